"""What a clinician reads of an imaging order: FHIR R4 resources as plain values for pages, nothing but thinking."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from typing import Any

Json = dict[str, Any]

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
STAGES = ("Ordered", "In progress", "Images available", "Draft report", "Signed")
ENDED = {
    "revoked": "Cancelled",
    "entered-in-error": "Entered in error",
    "on-hold": "On hold",
    "draft": "Draft order",
    "unknown": "Unknown",
}
"""Order statuses that stand beside the stages."""
SIGNED = frozenset({"final", "amended", "corrected", "appended"})
DRAFTS = frozenset({"registered", "partial", "preliminary"})
STARTED = frozenset({"in-progress", "completed", "failed"})
STEP_WORDS = {
    "requested": "scheduled",
    "received": "scheduled",
    "accepted": "scheduled",
    "ready": "ready",
    "in-progress": "in progress",
    "on-hold": "on hold",
    "failed": "discontinued",
    "entered-in-error": "entered in error",
}
EVENT_WORDS = {
    "order-accepted": "Order accepted, step scheduled",
    "order-held": "Order put on hold",
    "order-released": "Order released",
    "order-cancelled": "Order cancelled",
    "order-completed": "Order completed",
    "step-started": "Acquisition started",
    "step-completed": "Acquisition completed",
    "step-discontinued": "Acquisition discontinued",
    "images-available": "First images available",
    "images-complete": "Study complete",
    "study-withdrawn": "Study withdrawn from the archive",
    "evidence-read": "Measurements read",
    "report-preliminary": "Draft report started",
    "report-final": "Report signed",
    "report-archived": "Signed report archived as PDF",
    "report-not-archived": "Signed report not archived: no images",
}
UNVERIFIED = "unit-not-verified"


# --- texts ---------------------------------------------------------------------------------------------------


def concept(value: Json | None) -> str:
    """What a person reads of a CodeableConcept."""
    codings: list[Json] = (value or {}).get("coding", [])
    return (
        (value or {}).get("text")
        or next((one["display"] for one in codings if one.get("display")), "")
        or "".join(one.get("code", "") for one in codings[:1])
    )


def moment(value: str | float | datetime | None, zone: tzinfo) -> str:
    """An instant in the site's zone with the zone's name; a FHIR date without a time stays a date."""
    match value:
        case None | "":
            return ""
        case datetime():
            at = value
        case str() if "T" not in value:
            return value
        case str():
            at = datetime.fromisoformat(value)
        case _:
            at = EPOCH + timedelta(milliseconds=value)
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %Z").replace(":00 ", " ", 1)


def number(value: float) -> str:
    """Two decimals at most: a viewer writes more digits than it measured."""
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def _value(observation: Json) -> str:
    quantity: Json | None = observation.get("valueQuantity")
    if quantity and "value" in quantity:
        return f"{number(quantity['value'])} {quantity.get('unit', '')}".strip()
    if "valueCodeableConcept" in observation:
        return concept(observation["valueCodeableConcept"])
    return observation.get("valueString") or concept(observation.get("dataAbsentReason"))


# --- the patient ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Person:
    """The banner of a patient."""

    id: str
    name: str
    mrn: str
    born: str
    age: str
    sex: str


def person(patient: Json, mrn_system: str, today: date) -> Person:
    """The patient as a banner shows one: family name first, never a guess."""
    identifiers: list[Json] = [one for one in patient.get("identifier", []) if one.get("value")]
    known = [one for one in identifiers if one.get("system") == mrn_system] or identifiers
    born: str = patient.get("birthDate", "")
    return Person(
        patient["id"],
        _name(patient.get("name", [])),
        known[0]["value"] if known else "",
        born,
        _age(born, today),
        patient.get("gender", ""),
    )


def _name(names: Sequence[Json]) -> str:
    if not names:
        return "(no name)"
    used = next((one for one in names if one.get("use") == "official"), names[0])
    given = " ".join(used.get("given", []))
    family = used.get("family", "").upper()
    return ", ".join(part for part in (family, given) if part) or used.get("text", "(no name)")


def _age(born: str, today: date) -> str:
    if len(born) != 10:
        return ""
    birth = date.fromisoformat(born)
    months = (today.year - birth.year) * 12 + today.month - birth.month - (today.day < birth.day)
    if months < 0:
        return ""
    return f"{months // 12} y" if months >= 24 else f"{months} mo"


# --- measurements --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measurement:
    """One value; `doubt` says why it needs a look."""

    name: str
    value: str
    status: str
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """One finding or lesion with what was measured of it."""

    name: str
    site: str
    status: str
    members: tuple[Measurement, ...]


def groups(observations: Sequence[Json], results: Sequence[str] = ()) -> list[Group]:
    """The measurement groups, those of the report's results first; values outside any group come last, in their own."""
    place = {reference: number for number, reference in enumerate(results)}
    ordered = sorted(observations, key=lambda one: place.get(f"Observation/{one['id']}", len(place)))
    held = {f"Observation/{one['id']}": one for one in ordered if one.get("status") != "entered-in-error"}
    found: list[Group] = []
    inside: set[str] = set()
    for reference, one in held.items():
        if "hasMember" not in one:
            continue
        members = [entry.get("reference", "") for entry in one["hasMember"]]
        inside |= {reference, *members}
        values = tuple(_measurement(held[member]) for member in members if member in held)
        found.append(Group(_label(one), concept(one.get("bodySite")), one.get("status", ""), values))
    rest = tuple(_measurement(one) for reference, one in held.items() if reference not in inside)
    return [*found, Group("Other values", "", "", rest)] if rest else found


def _measurement(observation: Json) -> Measurement:
    tags: list[Json] = observation.get("meta", {}).get("tag", [])
    doubt = "unit not verified" if any(one.get("code") == UNVERIFIED for one in tags) else ""
    return Measurement(concept(observation.get("code")), _value(observation), observation.get("status", ""), doubt)


def _label(group: Json) -> str:
    notes = [note["text"] for note in group.get("note", []) if note.get("text")]
    return concept(group.get("valueCodeableConcept")) or next(iter(notes), "") or concept(group.get("code"))


# --- the order -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chart:
    """An order with everything that belongs to it, as the FHIR server tells it."""

    order: Json
    patient: Json
    tasks: tuple[Json, ...] = ()
    studies: tuple[Json, ...] = ()
    reports: tuple[Json, ...] = ()
    observations: tuple[Json, ...] = ()
    requester: str = ""
    signers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def accession(self) -> str:
        """The identifier of type ACSN."""
        for one in self.order.get("identifier", []):
            if any(coding.get("code") == "ACSN" for coding in one.get("type", {}).get("coding", [])):
                return one.get("value", "")
        return ""

    @property
    def procedure(self) -> str:
        """What was ordered."""
        return concept(self.order.get("code")) or "Imaging procedure"

    @property
    def reason(self) -> str:
        """Why it was ordered."""
        return "; ".join(filter(None, map(concept, self.order.get("reasonCode", []))))

    @property
    def steps(self) -> list[Json]:
        """The scheduled steps: name, modality, station, state in words."""
        return [_step(task) for task in self.tasks if task.get("intent") == "order"]

    @property
    def questions(self) -> list[str]:
        """What a person is asked to decide about this order."""
        asked = [task for task in self.tasks if task.get("intent") == "proposal" and task.get("status") == "requested"]
        return [task.get("description", "") for task in asked]

    @property
    def shown(self) -> list[Json]:
        """The studies that hold images."""
        return [study for study in self.studies if study.get("status") == "available"]

    @property
    def report(self) -> Json | None:
        """The signed report if there is one, else the draft; the newest of its kind."""
        for statuses in (SIGNED, DRAFTS):
            found = [one for one in self.reports if one.get("status") in statuses]
            if found:
                return max(found, key=lambda one: one.get("meta", {}).get("lastUpdated", ""))
        return None

    @property
    def results(self) -> list[str]:
        """The references of the report's results, in the report's order."""
        return [one.get("reference", "") for one in (self.report or {}).get("result", [])]

    @property
    def is_signed(self) -> bool:
        """Whether the report is final in some form."""
        return self.report is not None and self.report["status"] in SIGNED

    @property
    def stage(self) -> int:
        """How far the order has come, as an index into STAGES."""
        if self.is_signed:
            return 4
        if self.report is not None:
            return 3
        if self.shown:
            return 2
        return int(any(task.get("status") in STARTED for task in self.tasks if task.get("intent") == "order"))

    @property
    def state(self) -> str:
        """The order's state in words."""
        return ENDED.get(self.order.get("status", ""), STAGES[self.stage])

    @property
    def is_settled(self) -> bool:
        """Whether nothing more is expected to happen by itself."""
        if self.order.get("status") in {"revoked", "entered-in-error"}:
            return True
        return self.order.get("status") == "completed" and document(self.report) is not None

    @property
    def can_open(self) -> bool:
        """Whether there is something to see, and no doubt which."""
        return len(self.shown) == 1

    @property
    def version(self) -> str:
        """The version of the report that the reader has in view; empty when there is none."""
        return (self.report or {}).get("meta", {}).get("versionId", "")


def _step(task: Json) -> Json:
    inputs = [one.get("valueCodeableConcept") for one in task.get("input", [])]
    return {
        "name": task.get("description", "Step"),
        "modality": next(filter(None, map(concept, inputs)), ""),
        "station": task.get("owner", {}).get("identifier", {}).get("value", ""),
        "state": STEP_WORDS.get(task.get("status", ""), task.get("status", "")),
    }


def charts(entries: Iterable[Json]) -> list[Chart]:
    """One chart per order of a search that included what belongs to its orders, in the order of the matches."""
    held: dict[str, dict[str, Json]] = {}
    for resource in entries:
        held.setdefault(resource["resourceType"], {})[resource["id"]] = resource
    return [_chart(order, held) for order in held.get("ServiceRequest", {}).values()]


def imaging(entries: Iterable[Json]) -> list[Chart]:
    """The charts of the imaging orders: what the server took for one has an accession number."""
    return [one for one in charts(entries) if one.accession]


def _chart(order: Json, held: Mapping[str, Mapping[str, Json]]) -> Chart:
    own = f"ServiceRequest/{order['id']}"
    people = {f"Practitioner/{one['id']}": _name(one.get("name", [])) for one in _all(held, "Practitioner")}
    requester: Json = order.get("requester", {})
    patient_id = order.get("subject", {}).get("reference", "").removeprefix("Patient/")
    return Chart(
        order,
        held.get("Patient", {}).get(patient_id, {}),
        tuple(one for one in _all(held, "Task") if one.get("focus", {}).get("reference") == own),
        tuple(one for one in _all(held, "ImagingStudy") if own in _references(one)),
        tuple(one for one in _all(held, "DiagnosticReport") if own in _references(one)),
        tuple(one for one in _all(held, "Observation") if own in _references(one)),
        requester.get("display") or people.get(requester.get("reference", ""), ""),
        people,
    )


def _all(held: Mapping[str, Mapping[str, Json]], resource_type: str) -> Iterable[Json]:
    return held.get(resource_type, {}).values()


def _references(resource: Json) -> set[str]:
    return {one.get("reference", "") for one in resource.get("basedOn", [])}


def study_facts(study: Json, zone: tzinfo) -> Iterator[tuple[str, str]]:
    """(name, value) of what an ImagingStudy tells, without what is absent."""
    modalities = ", ".join(one.get("code", "") for one in study.get("modality", []))
    uids = [one.get("value", "") for one in study.get("identifier", []) if one.get("system") == "urn:dicom:uid"]
    facts = {
        "State": study.get("status", ""),
        "Modality": modalities,
        "Started": moment(study.get("started"), zone),
        "Series": str(study.get("numberOfSeries", "")),
        "Images and objects": str(study.get("numberOfInstances", "")),
        "Study UID": next(iter(uids), "").removeprefix("urn:oid:"),
    }
    yield from ((name, value) for name, value in facts.items() if value)


def signers(chart: Chart) -> str:
    """Who interpreted the signed report, by name."""
    people: list[Json] = (chart.report or {}).get("resultsInterpreter", [])
    names = [one.get("display") or chart.signers.get(one.get("reference", ""), "") for one in people]
    return "; ".join(filter(None, names))


def document(report: Json | None) -> bytes | None:
    """The PDF of a signed report, once it has been made."""
    for form in (report or {}).get("presentedForm", []):
        if form.get("contentType") == "application/pdf" and form.get("data"):
            try:
                return base64.b64decode(form["data"], validate=True)
            except binascii.Error:
                return None
    return None


def signed(chart: Chart, conclusion: str, interpreter: Json) -> Json:
    """The order's report as the interpreter signs it: the draft made final, or a new one."""
    studies = [{"reference": f"ImagingStudy/{one['id']}"} for one in chart.shown]
    started = next((one["started"] for one in chart.shown if "started" in one), None)
    fresh: Json = {
        "resourceType": "DiagnosticReport",
        "basedOn": [{"reference": f"ServiceRequest/{chart.order['id']}"}],
        "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD"}]}],
        "code": chart.order.get("code") or {"coding": [{"system": "http://loinc.org", "code": "18748-4"}]},
        "subject": chart.order["subject"],
        "imagingStudy": studies,
        **({"effectiveDateTime": started} if started else {}),
    }
    final = {"status": "final", "conclusion": conclusion, "resultsInterpreter": [interpreter]}
    return (chart.report or fresh) | final | {"performer": [interpreter]}


def timeline(events: Iterable[Mapping[str, Any]], zone: tzinfo) -> list[Json]:
    """What happened to an order, newest first."""
    rows = [
        {
            "at": moment(one["at"], zone),
            "what": EVENT_WORDS.get(one["kind"], str(one["kind"]).replace("-", " ").capitalize()),
            "cause": one["cause"],
        }
        for one in events
    ]
    return rows[::-1]
