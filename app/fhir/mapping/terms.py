"""The names Isocenter adds to FHIR R4: extensions and identifier systems (https://hl7.org/fhir/R4/extensibility.html)."""

BASE = "https://isocenter.dev/fhir"

# Extensions
REGION = f"{BASE}/StructureDefinition/image-region"
VERDICT = f"{BASE}/StructureDefinition/measurement-verdict"
WRITTEN = f"{BASE}/StructureDefinition/measurement-as-written"
DERIVATION = f"{BASE}/StructureDefinition/measurement-derivation"
MODIFIER = f"{BASE}/StructureDefinition/content-item"
WITHDRAWN = f"{BASE}/StructureDefinition/withdrawn-from-archive"
BODY_STRUCTURE = "http://hl7.org/fhir/StructureDefinition/bodySite"

# Identifier systems
CONTENT_ITEM = f"{BASE}/sid/sr-content-item"
TRACKING_ID = f"{BASE}/sid/tracking-identifier"
LINEAGE = f"{BASE}/sid/lineage"
STEP = f"{BASE}/sid/scheduled-procedure-step"
AE_TITLE = f"{BASE}/sid/ae-title"
ORDER_DRAFT = f"{BASE}/sid/report-draft"
DICOM_UID = "urn:dicom:uid"

# Code systems
LOCAL_SCHEME = f"{BASE}/dicom-scheme"
QUALIFICATION = f"{BASE}/CodeSystem/content-qualification"
REVIEW = f"{BASE}/CodeSystem/review-reason"
STEP_STATUS = f"{BASE}/CodeSystem/step-status"
CHECK = f"{BASE}/CodeSystem/measurement-check"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
UMLS = "http://terminology.hl7.org/CodeSystem/umls"
UCUM = "http://unitsofmeasure.org"
OBSERVATION_CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
INTERPRETATION = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
DATA_ABSENT_REASON = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
