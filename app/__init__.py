"""Isocenter: a FHIR-native imaging server facade for the Orthanc PACS."""
