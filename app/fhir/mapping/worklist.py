"""One scheduled step as a Modality Worklist item (PS3.4 table K.6-1): a view over Task, ServiceRequest and Patient.

Rows name the DICOM keyword and where its value comes from; who asks gets only what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time, tzinfo
from typing import TYPE_CHECKING, Any

from app.fhir.mapping import imaging_study, task, terms, values
from app.fhir.mapping import patient as patients
from app.fhir.mapping.codes import Json

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PRIORITY = {"stat": "STAT", "asap": "HIGH", "urgent": "HIGH", "routine": "ROUTINE"}
DESIGNATORS = {"http://snomed.info/sct": "SCT", "http://loinc.org": "LN", terms.DCM: "DCM"}
LOCAL = "99LOCAL"


@dataclass(frozen=True, slots=True)
class Site:
    """How this site writes times and issuers: FHIR identifier system → DICOM issuer ("" when it has none)."""

    zone: tzinfo
    mrn_issuers: dict[str, str]
    accession_issuers: dict[str, str]


@dataclass(frozen=True, slots=True)
class View:
    """What one worklist item is made of."""

    order: Json
    task: Json
    patient: Json
    requester: Json | None
    site: Site


Row = tuple[str, Callable[[View], Any]]

ITEM: tuple[Row, ...] = (
    ("AccessionNumber", lambda view: accession(view.order)),
    ("IssuerOfAccessionNumberSequence", lambda view: _accession_issuer(view)),
    ("ReferringPhysicianName", lambda view: _requester(view)),
    ("ReferencedStudySequence", lambda _: []),
    ("ReferencedPatientSequence", lambda _: []),
    ("PatientName", lambda view: patients.person_name(view.patient.get("name", []))),
    ("PatientID", lambda view: mrn(view.patient, view.site)[1]),
    ("IssuerOfPatientID", lambda view: view.site.mrn_issuers.get(mrn(view.patient, view.site)[0], "")),
    ("PatientBirthDate", lambda view: _whole_date(view.patient.get("birthDate"))),
    ("PatientSex", lambda view: patients.sex(view.patient.get("gender"))),
    ("PatientWeight", lambda _: ""),
    ("ConfidentialityConstraintOnPatientDataDescription", lambda _: ""),
    ("MedicalAlerts", lambda _: ""),
    ("Allergies", lambda _: ""),
    ("SpecialNeeds", lambda _: ""),
    ("PatientState", lambda _: ""),
    ("PregnancyStatus", lambda _: None),
    ("StudyInstanceUID", lambda view: imaging_study.uid_of(view.order)),
    ("RequestingPhysician", lambda view: _requester(view)),
    ("RequestedProcedureDescription", lambda view: _cut(concept_text(view.order.get("code")), 64)),
    ("RequestedProcedureCodeSequence", lambda view: _codes(view.order.get("code"))),
    ("AdmissionID", lambda _: ""),
    ("CurrentPatientLocation", lambda _: ""),
    ("RequestedProcedureID", lambda view: accession(view.order)),
    ("ReasonForTheRequestedProcedure", lambda view: _cut(_reason(view.order), 64)),
    ("RequestedProcedurePriority", lambda view: PRIORITY.get(view.order.get("priority", "routine"), "ROUTINE")),
    ("PatientTransportArrangements", lambda _: ""),
    ("RequestedProcedureComments", lambda view: _notes(view.order)),
    ("PlacerOrderNumberImagingServiceRequest", lambda view: _typed(view.order, "PLAC")),
    ("FillerOrderNumberImagingServiceRequest", lambda view: _typed(view.order, "FILL")),
    ("ScheduledProcedureStepSequence", lambda view: [_dataset(STEP, view)]),
)

STEP: tuple[Row, ...] = (
    ("ScheduledStationAETitle", lambda view: task.station(view.task)),
    ("ScheduledProcedureStepStartDate", lambda view: _start(view).strftime("%Y%m%d")),
    ("ScheduledProcedureStepStartTime", lambda view: _start(view).strftime("%H%M%S")),
    ("Modality", lambda view: task.modality(view.task)),
    ("ScheduledPerformingPhysicianName", lambda _: ""),
    ("ScheduledProcedureStepDescription", lambda view: _cut(view.task.get("description"), 64)),
    ("ScheduledProtocolCodeSequence", lambda view: _codes(view.order.get("code"))),
    ("ScheduledProcedureStepID", lambda view: _sps_id(view.task)),
    ("ScheduledStationName", lambda _: ""),
    ("ScheduledProcedureStepLocation", lambda _: ""),
    ("PreMedication", lambda _: ""),
    ("RequestedContrastAgent", lambda _: ""),
    ("ScheduledProcedureStepStatus", lambda view: _business_status(view.task)),
)


def item(view: View) -> Dataset:
    """The complete worklist item."""
    return _dataset(ITEM, view)


def accession(order: Json) -> str | None:
    """The accession number of an order: the identifier of type ACSN."""
    return _typed(order, "ACSN")


def mrn(patient: Json, site: Site) -> tuple[str, str]:
    """(system, value) of the identifier a modality shall see: of a known MRN authority, else the first there is."""
    # Cut or split at a backslash, a number would be another patient's.
    identifiers: list[Json] = [one for one in patient.get("identifier", []) if _is_long_string(one.get("value", ""))]
    known = [entry for entry in identifiers if entry.get("system") in site.mrn_issuers]
    chosen = (known or identifiers or [{"value": patient["id"]}])[0]
    return chosen.get("system", ""), chosen["value"]


def _is_long_string(value: str) -> bool:
    return len(value.strip()) > 0 and len(value) <= 64 and value.isprintable() and "\\" not in value


def concept_text(concept: Json | None) -> str | None:
    """What a person reads of a CodeableConcept."""
    codings: list[Json] = (concept or {}).get("coding", [])
    return (concept or {}).get("text") or next((one["display"] for one in codings if one.get("display")), None)


def _dataset(rows: tuple[Row, ...], view: View) -> Dataset:
    # Loaded late: an order is written without a worklist item (docs/decisions/0078).
    from pydicom import config
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    result = Dataset()
    for keyword, read in rows:
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise KeyError(keyword)
        result.add(DataElement(tag, dictionary_VR(tag), read(view) or None, validation_mode=config.IGNORE))
    return result


def _typed(resource: Json, code: str) -> str | None:
    for identifier in resource.get("identifier", []):
        if any(coding.get("code") == code for coding in identifier.get("type", {}).get("coding", [])):
            return identifier.get("value")
    return None


def _accession_issuer(view: View) -> list[Dataset]:
    system = next(
        (entry.get("system", "") for entry in view.order["identifier"] if entry.get("value") == accession(view.order)),
        "",
    )
    issuer = view.site.accession_issuers.get(system, "")
    return [_entry(LocalNamespaceEntityID=issuer)] if issuer else []


def _entry(**values: str) -> Dataset:
    # Loaded late: see above.
    from pydicom.dataset import Dataset

    entry = Dataset()
    for keyword, value in values.items():
        setattr(entry, keyword, value)
    return entry


def _requester(view: View) -> str:
    if view.requester:
        return patients.person_name(view.requester.get("name", []))
    return patients.person_name([{"text": view.order.get("requester", {}).get("display", "")}])


def _start(view: View) -> datetime:
    period = view.task.get("restriction", {}).get("period", {})
    start = period.get("start") or view.task["authoredOn"]
    instant = values.parse_instant(start)
    if instant is None:
        return datetime.combine(values.first_day(start), time(), view.site.zone)
    return instant.astimezone(view.site.zone)


def _sps_id(step: Json) -> str | None:
    found = (entry["value"] for entry in step["identifier"] if entry.get("system") == terms.STEP)
    return next(found, None)


def _business_status(step: Json) -> str | None:
    codings: list[Json] = step.get("businessStatus", {}).get("coding", [])
    return next((coding["code"] for coding in codings if coding.get("system") == terms.STEP_STATUS), None)


def _codes(concept: Json | None) -> list[Dataset]:
    coding = next(iter((concept or {}).get("coding", [])), None)
    if not coding or not coding.get("code"):
        return []
    name = "CodeValue" if len(coding["code"]) <= 16 else "LongCodeValue"
    scheme = DESIGNATORS.get(coding.get("system", ""), LOCAL)
    meaning = _cut(coding.get("display") or concept_text(concept) or coding["code"], 64)
    return [_entry(**{name: coding["code"]}, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]


def _reason(order: Json) -> str | None:
    return next((text for concept in order.get("reasonCode", []) if (text := concept_text(concept))), None)


def _notes(order: Json) -> str:
    reason = _reason(order)
    notes = [reason] if reason and len(reason) > 64 else []
    return "\n".join([*notes, *(note["text"] for note in order.get("note", []) if note.get("text"))])[:10240]


def _cut(text: str | None, length: int) -> str:
    text = " ".join((text or "").replace("\\", " ").split())
    if len(text) <= length:
        return text
    head, _, _ = text[: length + 1].rpartition(" ")
    return head or text[:length]


def _whole_date(birth_date: str | None) -> str:
    # A worklist has no partial dates; a year alone would become a wrong birthday.
    return birth_date.replace("-", "") if birth_date and len(birth_date) == 10 else ""
