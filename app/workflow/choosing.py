"""Whom and what a person may choose when an app is opened by itself (SMART App Launch 2.2, standalone launch)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sqlalchemy.engine import Connection

from app.fhir import resources
from app.fhir.mapping import imaging_study, report, worklist
from app.fhir.mapping.codes import Json
from app.smart.choosing import Choice, Records, Study
from app.workflow.orders import escaped

MOST = 20
SHORTEST = 2
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
Criteria = list[tuple[str, str]]


def patients(connection: Connection, text: str, only: Sequence[str] | None) -> list[Choice]:
    """Whom the text means: a number, or parts of a name and a date of birth; the first twenty, by name."""
    if len(text) < SHORTEST:
        return []
    within = [] if only is None else [("_id", ",".join(map(escaped, only)))]
    found: dict[str, Json] = {}
    for criteria in _readings(text):
        for patient in resources.find(connection, "Patient", [*criteria, *within, ("_sort", "family,given")], MOST):
            found.setdefault(patient["id"], patient)
    return [_choice(patient) for patient in list(found.values())[:MOST]]


def _readings(text: str) -> Iterator[Criteria]:
    yield [("identifier", escaped(text))]
    words = text.replace(",", " ").split()
    days = [word for word in words if _DAY.fullmatch(word)]
    names = [word for word in words if word not in days]
    if len(days) <= 1 and (days or len("".join(names)) >= SHORTEST):
        yield [*(("name", escaped(name)) for name in names), *(("birthdate", day) for day in days)]


def patient(connection: Connection, patient_id: str) -> Choice | None:
    """One patient, if there is such a one."""
    found = resources.read(connection, "Patient", patient_id)
    return None if found is None else _choice(found)


def studies(connection: Connection, patient_id: str) -> list[Choice]:
    """The patient's studies that have images, the newest first."""
    criteria = [("patient", f"Patient/{escaped(patient_id)}"), ("status", "available"), ("_sort", "-started")]
    return [
        Choice(found["id"], study_label(found), (found.get("started") or "")[:10])
        for found in resources.find(connection, "ImagingStudy", criteria, 100)
    ]


def study(connection: Connection, imaging_study_id: str) -> Study | None:
    """One study that has images."""
    found = resources.read(connection, "ImagingStudy", imaging_study_id)
    uid = imaging_study.uid_of(found) if found else None
    if found is None or uid is None or found.get("status") != "available":
        return None
    orders: list[Json] = found.get("basedOn", [])
    order_id = orders[0].get("reference", "").removeprefix("ServiceRequest/") if orders else ""
    patient_id = found["subject"].get("reference", "").removeprefix("Patient/")
    return Study(patient_id, imaging_study_id, uid, order_id or None)


def patient_label(connection: Connection, patient_id: str) -> str:
    """How a page names a patient."""
    found = resources.read(connection, "Patient", patient_id) or {}
    return report.shown_name(found.get("name", [])) or "a patient"


def label_of(connection: Connection, imaging_study_id: str) -> str:
    """How a page names a study: modalities, what was done, and the day."""
    found = resources.read(connection, "ImagingStudy", imaging_study_id) or {}
    return f"{study_label(found)} {(found.get('started') or '')[:10]}".rstrip()


def study_label(found: Json) -> str:
    """Modalities and what was done."""
    modalities = ", ".join(coding["code"] for coding in found.get("modality", []) if "code" in coding)
    described = found.get("description") or worklist.concept_text(next(iter(found.get("procedureCode", [])), None))
    return " ".join(part for part in (modalities, described) if part) or "one study"


def _choice(found: Json) -> Choice:
    numbers = [one["value"] for one in found.get("identifier", []) if one.get("value")]
    known = (("born", found.get("birthDate")), ("number", ", ".join(numbers[:3])))
    detail = " · ".join(f"{what} {value}" for what, value in known if value)
    return Choice(found["id"], report.shown_name(found.get("name", [])) or "without a name", detail)


RECORDS = Records(patients, patient, studies, study)
