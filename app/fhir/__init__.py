"""FHIR R4 REST server: interactions, search, validation and mapping (https://hl7.org/fhir/R4/http.html)."""
