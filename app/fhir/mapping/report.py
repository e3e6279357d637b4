"""A DiagnosticReport of an imaging order: our draft of it, and what a reader of the printed report sees.

https://hl7.org/fhir/R4/diagnosticreport.html; categories as US Core's report profile wants them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

from app.fhir.mapping import patient as patients
from app.fhir.mapping import terms, values, worklist
from app.fhir.mapping.codes import Json

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, terms.BASE + "/DiagnosticReport")
RADIOLOGY = [
    {"coding": [{"system": "http://loinc.org", "code": "LP29684-5", "display": "Radiology"}]},
    {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD"}]},
]
STUDY_REPORT = {"system": "http://loinc.org", "code": "18748-4", "display": "Diagnostic imaging study"}
BANNERS = {"final": "FINAL", "amended": "AMENDED", "corrected": "CORRECTED", "appended": "AMENDED"}


def draft_id(about: str) -> str:
    """The draft of an order (or of a study without one) always has the same id."""
    return str(uuid.uuid5(NAMESPACE, about))


def draft(study: Json, order: Json | None, results: Sequence[Json]) -> Json:
    """Our own unsigned report: it only gathers results until a person makes it theirs."""
    about = f"ServiceRequest/{order['id']}" if order else f"ImagingStudy/{study['id']}"
    report: Json = {
        "resourceType": "DiagnosticReport",
        "id": draft_id(about),
        "identifier": [{"system": terms.ORDER_DRAFT, "value": draft_id(about)}],
        "basedOn": [{"reference": about}] if order else [],
        "status": "preliminary",
        "category": RADIOLOGY,
        "code": order["code"] if order and order.get("code") else {"coding": [STUDY_REPORT]},
        "subject": study["subject"],
        "effectiveDateTime": study.get("started"),
        "result": list(results),
        "imagingStudy": [{"reference": f"ImagingStudy/{study['id']}"}],
    }
    return {key: value for key, value in report.items() if value not in (None, [])}


def is_draft(report: Json) -> bool:
    """Whether a report is our own draft, or has taken one over."""
    return any(one.get("system") == terms.ORDER_DRAFT for one in report.get("identifier", []))


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything a printed report is made of."""

    report: Json
    patient: Json
    order: Json | None
    study: Json | None
    observations: Sequence[Json]
    signer: str
    version: int
    zone: tzinfo


def view(sources: Sources) -> Json:
    """The printed report as plain values: texts only, in reading order."""
    report, patient, order = sources.report, sources.patient, sources.order
    names: list[Json] = patient.get("name", [])
    return {
        "banner": BANNERS.get(report["status"], report["status"].upper()),
        "title": worklist.concept_text(report.get("code")) or STUDY_REPORT["display"],
        "patient": {
            "name": shown_name(names),
            "identifier": next((one["value"] for one in patient.get("identifier", []) if one.get("value")), ""),
            "born": patient.get("birthDate", ""),
            "sex": patient.get("gender", ""),
        },
        "accession": (worklist.accession(order) or "") if order else "",
        "ordered": (worklist.concept_text(order.get("code")) or "") if order else "",
        "reason": _reasons(order),
        "studied": shown_time((sources.study or {}).get("started"), sources.zone),
        "issued": shown_time(report.get("issued"), sources.zone),
        "signer": sources.signer,
        "version": str(sources.version),
        "conclusion": report.get("conclusion", ""),
        "codes": [text for concept in report.get("conclusionCode", []) if (text := worklist.concept_text(concept))],
        "measurements": list(_measurements(sources.observations)),
    }


def shown_name(names: Sequence[Json]) -> str:
    """A name as people write it."""
    if not names:
        return ""
    official = next((name for name in names if name.get("use") == "official"), names[0])
    parts = [*official.get("prefix", []), *official.get("given", []), official.get("family", "")]
    return official.get("text") or " ".join(part for part in parts if part) or patients.person_name(list(names))


def shown_time(value: str | None, zone: tzinfo) -> str:
    """A date, or a time in the site's zone with the zone's name."""
    instant = values.parse_instant(value)
    return instant.astimezone(zone).strftime("%Y-%m-%d %H:%M %Z") if instant else (value or "")


def shown_value(resource: Json) -> str:
    """An Observation's value as text; an absent one says so."""
    quantity = resource.get("valueQuantity")
    if quantity:
        return f"{_number(quantity['value'])} {quantity.get('unit', '')}".strip()
    concept: Json | None = resource.get("valueCodeableConcept")
    if concept:
        return worklist.concept_text(concept) or ""
    return resource.get("valueString") or ("not published" if "dataAbsentReason" in resource else "")


def _number(value: Any) -> str:
    # A viewer writes sixteen digits; a hundredth of a millimetre is already more than it measured.
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def _measurements(observations: Sequence[Json]) -> Iterable[Json]:
    by_reference = {f"Observation/{one['id']}": one for one in observations}
    number = 0
    for group in observations:
        if "hasMember" not in group or group["status"] == "entered-in-error":
            continue
        number += 1
        label = _label(group)
        for member in group["hasMember"]:
            resource = by_reference.get(member["reference"])
            if resource is not None and resource["status"] != "entered-in-error":
                name = worklist.concept_text(resource.get("code")) or ""
                yield {"number": str(number), "label": label, "name": name, "value": shown_value(resource)}


def _label(group: Json) -> str:
    finding = worklist.concept_text(group.get("valueCodeableConcept"))
    notes = [note["text"] for note in group.get("note", []) if note.get("text")]
    return finding or (notes[0] if notes else "")


def _reasons(order: Json | None) -> str:
    texts = [worklist.concept_text(concept) for concept in (order or {}).get("reasonCode", [])]
    return "; ".join(text for text in texts if text)


def sign_time(moment: datetime) -> str:
    """An instant to the millisecond."""
    return moment.isoformat(timespec="milliseconds")
