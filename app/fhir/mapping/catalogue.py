"""What an ImagingStudy and its Patient say of a study, in DICOM's words (PS3.4 tables C.6-1 to C.6-5).

Rows name the keyword and where its value comes from; what is not known is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from app.fhir.mapping import imaging_study, patient, task, terms, values, worklist
from app.fhir.mapping.codes import Json
from app.fhir.mapping.worklist import Site

UNCONFIGURED = "urn:isocenter:issuer:"
"""Before an issuer that images name and the site does not."""


@dataclass(frozen=True, slots=True)
class View:
    """What a study is told from: its resources, when it began, and the patient's numbers with who gave them."""

    study: Json
    patient: Json
    site: Site
    started: tuple[str, str, str]
    numbers: Sequence[tuple[str, str]]


Row = tuple[str, Callable[[View], Any]]


def view(study: Json, patient: Json, site: Site) -> View:
    """A study and its patient, at a site that knows authorities by these issuers."""
    return View(study, patient, site, _started(study), _numbers(patient, site))


def _started(study: Json) -> tuple[str, str, str]:
    """Date, time and offset from UTC, as the images had them."""
    day, _, clock = study.get("started", "").partition("T")
    digits, offset = (clock[:-1], "+0000") if clock.endswith("Z") else (clock[:-6], clock[-6:].replace(":", ""))
    return day.replace("-", "") if len(day) == 10 else "", digits.replace(":", ""), offset


def _numbers(patient: Json, site: Site) -> Sequence[tuple[str, str]]:
    """(number, issuer) of each number the patient has of an authority for them; the first is the one images bear."""
    own: list[Json] = patient.get("identifier", [])
    if not own:
        return []
    others = ((one.get("system", ""), one.get("value", "")) for one in own)
    found = [worklist.mrn(patient, site), *(one for one in others if _issuer(one[0], site) is not None)]
    return [(value, _issuer(system, site) or "") for system, value in dict.fromkeys(found) if value]


def _issuer(system: str, site: Site) -> str | None:
    """How DICOM names who gave a number; None for what is no authority."""
    if system.startswith(UNCONFIGURED):
        return unquote(system.removeprefix(UNCONFIGURED))
    return site.mrn_issuers.get(system)


def _study_id(view: View) -> str | None:
    return next((one.get("value") for one in view.study.get("identifier", []) if one.get("use") == "usual"), None)


def _accession_issuer(view: View) -> list[Json]:
    number = worklist.accession(view.study)
    systems = (one.get("system", "") for one in view.study.get("identifier", []) if one.get("value") == number)
    issuer = view.site.accession_issuers.get(next(systems, ""), "")
    return [{"LocalNamespaceEntityID": issuer}] if number and issuer else []


def _sop_classes(view: View) -> list[str]:
    instances = (one for series in view.study.get("series", []) for one in series.get("instance", []))
    return sorted({values.bare(one["sopClass"]["code"]) for one in instances if one["sopClass"].get("code")})


def _number(view: View, at: int) -> str | None:
    return view.numbers[0][at] if view.numbers else None


def _other_numbers(view: View) -> list[Json]:
    return [
        {"PatientID": number, "IssuerOfPatientID": issuer, "TypeOfPatientID": "TEXT"}
        for number, issuer in view.numbers[1:]
    ]


def _birth_date(view: View) -> str:
    born = view.patient.get("birthDate", "")
    return born.replace("-", "") if len(born) == 10 else ""


def _referrer(view: View) -> str:
    shown = view.study.get("referrer", {}).get("display")
    return patient.person_name([{"text": shown}]) if shown else ""


STUDY: tuple[Row, ...] = (
    ("StudyInstanceUID", lambda view: imaging_study.uid_of(view.study)),
    ("StudyDate", lambda view: view.started[0]),
    ("StudyTime", lambda view: view.started[1]),
    ("TimezoneOffsetFromUTC", lambda view: view.started[2]),
    ("AccessionNumber", lambda view: worklist.accession(view.study)),
    ("IssuerOfAccessionNumberSequence", _accession_issuer),
    ("ModalitiesInStudy", lambda view: sorted(one["code"] for one in view.study.get("modality", []) if "code" in one)),
    ("SOPClassesInStudy", _sop_classes),
    ("StudyDescription", lambda view: view.study.get("description")),
    ("StudyID", _study_id),
    ("NumberOfStudyRelatedSeries", lambda view: view.study.get("numberOfSeries")),
    ("NumberOfStudyRelatedInstances", lambda view: view.study.get("numberOfInstances")),
    ("PatientName", lambda view: patient.person_name(view.patient.get("name", []))),
    ("PatientID", lambda view: _number(view, 0)),
    ("IssuerOfPatientID", lambda view: _number(view, 1)),
    ("OtherPatientIDs", lambda view: [one["PatientID"] for one in _other_numbers(view)]),
    ("OtherPatientIDsSequence", _other_numbers),
    ("PatientBirthDate", _birth_date),
    ("PatientSex", lambda view: patient.sex(view.patient.get("gender"))),
)
ONLY_SHOWN: tuple[Row, ...] = (("ReferringPhysicianName", _referrer),)
"""Less than the images say: shown where the archive cannot be asked, and never matched."""


def study(view: View) -> dict[str, Any]:
    """The attributes of a study that are known."""
    told = ((keyword, read(view)) for keyword, read in (*ONLY_SHOWN, *STUDY))
    return {keyword: value for keyword, value in told if value not in (None, "", [])}


def requests(order: Json, steps: Iterable[Json]) -> list[Json]:
    """Items of Request Attributes Sequence, one for each step of an order, with the Modality it is for."""
    number = worklist.accession(order)
    shared = {
        "AccessionNumber": number,
        "RequestedProcedureID": number,
        "RequestedProcedureDescription": worklist.concept_text(order.get("code")),
    }
    found = [shared | _step(step) for step in steps]
    return [{keyword: value for keyword, value in one.items() if value} for one in found]


def _step(step: Json) -> Json:
    numbers = (one.get("value") for one in step.get("identifier", []) if one.get("system") == terms.STEP)
    return {
        "ScheduledProcedureStepID": next(numbers, None),
        "ScheduledProcedureStepDescription": step.get("description"),
        "Modality": task.modality(step) or "",
    }


def orders_of(study: Json) -> Sequence[str]:
    """The ids of the orders that a study fulfils."""
    found: list[Json] = study.get("basedOn", [])
    prefix = "ServiceRequest/"
    return [one["reference"].removeprefix(prefix) for one in found if one.get("reference", "").startswith(prefix)]
