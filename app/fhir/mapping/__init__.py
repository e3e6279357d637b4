"""Pure functions from values of other standards to FHIR R4 JSON; nothing here reads, stores or sends."""
