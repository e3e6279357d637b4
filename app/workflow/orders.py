"""From a ServiceRequest to a worklist: numbers, steps and the registered study in the order's own transaction."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from app.access import Access
from app.errors import Conflict, Issue, Unprocessable
from app.fhir import resources
from app.fhir.mapping import imaging_study, task, terms, worklist
from app.fhir.mapping.codes import Json
from app.fhir.resources import Own
from app.store import counters, studies, sync, timeline
from app.store import resources as rows
from app.store.database import Store
from app.store.timeline import Happening
from app.workflow import owned
from app.workflow.site import Procedure, Site
from app.workflow.states import FINAL_REPORTS, GIVEN_UP, OPEN, STEP_MOVES, TERMINAL, WAITING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from app.dicom.worklist import Worklist, WorklistKeys

INTENTS = frozenset({"order", "original-order", "filler-order", "instance-order"})
IMAGING = ("http://snomed.info/sct", "363679005")
STUDY_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, terms.BASE + "/ImagingStudy")
UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
WITHDRAWN = frozenset({"revoked", "entered-in-error"})
SHORT_STRING = 16
"""Accession numbers and step ids are DICOM SH: at most 16 characters."""


# --- what is an order ----------------------------------------------------------------------------------------


def is_order(site: Site, resource: Json) -> bool:
    """Whether a ServiceRequest asks for imaging here: an order intent, and imaging by category or catalogue."""
    if resource.get("intent") not in INTENTS or resource.get("status") == "draft":
        return False
    categories = [coding for concept in resource.get("category", []) for coding in concept.get("coding", [])]
    if any((coding.get("system"), coding.get("code")) == IMAGING for coding in categories):
        return True
    return site.procedure(_codings(resource)).known


def study_resource_id(study_uid: str, patient_id: str) -> str:
    """The ImagingStudy of a Study Instance UID and a patient: two patients under one UID stay two."""
    return str(uuid.uuid5(STUDY_NAMESPACE, f"{study_uid}|{patient_id}"))


def natural_key(study_uid: str, patient_id: str) -> str:
    """The one key by which every write path finds a study's resource."""
    return f"study:{study_uid}|{patient_id}"


# --- the hook behind every write of a ServiceRequest -----------------------------------------------------------


def received(site: Site, connection: Connection, caller: Access, order: Json, before: Json | None) -> None:
    """Do what a created or changed ServiceRequest means; anything that is no order is only stored."""
    known = before is not None and steps_of(connection, order["id"]) != []
    if not known and not (is_order(site, order) and order["status"] == "active"):
        return
    cause = f"ServiceRequest/{order['id']} by {caller.client_id}"
    order = _numbered(site, connection, order, before, cause)
    if before is not None and known:
        _check_change(connection, order, before)
    if order["status"] == "active":
        _schedule(site, connection, order, cause)
        move_steps(connection, order["id"], "order-released", cause)
    elif order["status"] == "on-hold":
        move_steps(connection, order["id"], "order-held", cause)
    elif order["status"] in WITHDRAWN:
        _cancel(connection, order, cause)


def _check_change(connection: Connection, order: Json, before: Json) -> None:
    """What a client may not change any more: what was taken off the worklist, and whose images were taken."""
    if before["status"] in WITHDRAWN and order["status"] not in WITHDRAWN:
        given_up = all(step["status"] in GIVEN_UP for step in steps_of(connection, order["id"]))
        if given_up:
            raise Conflict("a revoked order is not brought back: place a new one")
    if _study_key(order) == _study_key(before):
        return
    if any(study["status"] == "available" for study in studies_of(connection, order["id"])):
        raise Conflict("an order with images keeps its patient and its Study Instance UID")


def _study_key(order: Json) -> tuple[str, str]:
    return imaging_study.uid_of(order) or "", patient_of(order) or ""


def steps_of(connection: Connection, order_id: str) -> list[Json]:
    """The scheduled steps of an order, first step first."""
    found = resources.find(connection, "Task", [("focus", f"ServiceRequest/{order_id}")])
    return sorted((one for one in found if task.is_step(one)), key=lambda one: one["identifier"][0]["value"])


def studies_of(connection: Connection, order_id: str) -> list[Json]:
    """The ImagingStudies of an order."""
    return resources.find(connection, "ImagingStudy", [("basedon", f"ServiceRequest/{order_id}")])


def move_steps(connection: Connection, order_id: str, kind: str, cause: str, *, modality: str | None = None) -> int:
    """Let an event act on an order's steps, or on those of one modality; how many moved."""
    lock(connection, order_id)
    move, moved = STEP_MOVES[kind], 0
    for step in steps_of(connection, order_id):
        if step["status"] not in move.sources or modality not in {None, task.modality(step)}:
            continue
        changes: dict[str, Any] = {"status": move.status, "businessStatus": task.business_status(move.business)}
        resources.edit(connection, "Task", step["id"], changes, cause=cause)
        moved += 1
    if moved:
        timeline.add(connection, Happening(move.told, cause, order_id=order_id))
    return moved


def advance(connection: Connection, order_id: str, acquired: frozenset[str], kind: str, cause: str) -> None:
    """Move the steps whose modality acquired images; an only step moves whatever its modality was called."""
    lock(connection, order_id)
    steps = [step for step in steps_of(connection, order_id) if step["status"] not in GIVEN_UP]
    if len(steps) == 1 and acquired:
        move_steps(connection, order_id, kind, cause)
        return
    for modality in sorted({task.modality(step) or "" for step in steps} & acquired):
        move_steps(connection, order_id, kind, cause, modality=modality)


def lock(connection: Connection, order_id: str) -> None:
    """Let no other transaction act on the order until ours ends: what is read after this is the present."""
    rows.current(connection, "ServiceRequest", order_id, for_update=True)


def final_reports(connection: Connection, order_id: str) -> list[Json]:
    """The signed reports of an order."""
    reports = resources.find(connection, "DiagnosticReport", [("based-on", f"ServiceRequest/{order_id}")])
    return [report for report in reports if report["status"] in FINAL_REPORTS]


def complete(connection: Connection, order_id: str, cause: str) -> None:
    """An order is completed when a signed report exists and no step is open; until then it stays as it is."""
    lock(connection, order_id)
    order = resources.read(connection, "ServiceRequest", order_id)
    if order is None or order["status"] != "active" or not final_reports(connection, order_id):
        return
    if all(step["status"] in TERMINAL for step in steps_of(connection, order_id)):
        resources.edit(connection, "ServiceRequest", order_id, {"status": "completed"}, cause=cause)
        timeline.add(connection, Happening("order-completed", cause, order_id=order_id))


def _numbered(site: Site, connection: Connection, order: Json, before: Json | None, cause: str) -> Json:
    """Give the order its accession number and Study Instance UID, or keep those it had."""
    identifiers: list[Json] = list(order.get("identifier", []))
    held = (before or {}).get("identifier", [])
    if worklist.accession(order) is None:
        kept = next((one for one in held if worklist.accession({"identifier": [one]})), None)
        identifiers.append(kept or _new_accession(site, connection))
    if imaging_study.uid_of(order) is None:
        kept = next((one for one in held if one.get("system") == terms.DICOM_UID), None)
        identifiers.append(kept or imaging_study.uid_identifier(f"2.25.{uuid.uuid4().int}"))
    numbered = order | {"identifier": identifiers}
    _check_numbers(numbered)
    if identifiers != order.get("identifier", []):
        resources.edit(connection, "ServiceRequest", order["id"], {"identifier": identifiers}, cause=cause)
    return numbered


def _new_accession(site: Site, connection: Connection) -> Json:
    authority = site.settings.default_authority("accession")
    while True:
        value = f"IC{counters.take(connection, 'accession'):08d}"
        taken = resources.find(connection, "ServiceRequest", [("identifier", f"{authority.fhir_system}|{value}")])
        if not taken:
            return imaging_study.accession_identifier(authority.fhir_system, value)


def _check_numbers(order: Json) -> None:
    accession, uid = worklist.accession(order) or "", imaging_study.uid_of(order) or ""
    plain = accession.isprintable() and accession == accession.strip() and "\\" not in accession
    if not accession or len(accession) > SHORT_STRING or not plain:
        sentence = "an accession number has 1 to 16 characters, no backslash, control character or blank at its ends"
        raise _refused("ServiceRequest.identifier", sentence)
    if not UID.fullmatch(uid) or len(uid) > 64:
        raise _refused("ServiceRequest.identifier", "the urn:dicom:uid identifier is not a DICOM UID")


def _schedule(site: Site, connection: Connection, order: Json, cause: str) -> None:
    patient_id = _patient_id(connection, order)
    uid, steps = imaging_study.uid_of(order) or "", steps_of(connection, order["id"])
    procedure = site.procedure(_codings(order))
    _register(connection, order, (uid, patient_id), [step.modality for step in procedure.steps], cause)
    if all(step["status"] in WAITING for step in steps):
        for step in _planned(order, patient_id, procedure):
            _put_step(connection, step, steps, cause)
    if not steps:
        timeline.add(connection, Happening("order-accepted", cause, order_id=order["id"], study_uid=uid))
        _claim_images(connection, order)
        if not procedure.known:
            review(
                connection, f"procedure|{order['id']}", "unknown-procedure", f"ServiceRequest/{order['id']}", patient_id
            )


def _planned(order: Json, patient_id: str, procedure: Procedure) -> Iterator[task.Step]:
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    start = order.get("occurrenceDateTime") or order.get("occurrencePeriod", {}).get("start")
    accession = worklist.accession(order) or ""
    for number, planned in enumerate(procedure.steps, start=1):
        yield task.Step(
            order_id=order["id"],
            patient_id=patient_id,
            number=number,
            modality=planned.modality,
            station=planned.station,
            protocol=planned.protocol,
            sps_id=f"{accession[: SHORT_STRING - 3]}-{number}",
            start=start,
            authored=order.get("authoredOn") or moment,
        )


def _put_step(connection: Connection, step: task.Step, known: list[Json], cause: str) -> None:
    planned = task.scheduled(step)
    before = next((one for one in known if one["id"] == planned["id"]), None)
    if before is not None:
        kept = {name: before[name] for name in ("status", "businessStatus") if name in before}
        # Without an authoredOn of its own the order keeps the time it was first accepted.
        planned |= kept | {"authoredOn": before["authoredOn"]}
    resources.put(connection, owned.kept(planned, before), cause=cause)


def _register(connection: Connection, order: Json, key: tuple[str, str], modalities: Iterable[str], cause: str) -> None:
    uid, patient_id = key
    reference = f"ServiceRequest/{order['id']}"
    known = resources.read(connection, "ImagingStudy", study_resource_id(uid, patient_id))
    _leave(connection, order["id"], study_resource_id(uid, patient_id), cause)
    fulfilled = {one.get("reference") for one in (known or {}).get("basedOn", [])}
    if known is not None and reference not in fulfilled and _is_taken(connection, order, known):
        raise Conflict("another order of this patient has the same Study Instance UID")
    if known is not None and known["status"] not in {"registered", "cancelled"}:
        return
    subject = {"reference": f"Patient/{patient_id}"}
    waiting = imaging_study.Links(study_resource_id(uid, patient_id), subject, endpoint={})
    study = imaging_study.registered(uid, linked(waiting, order), modalities)
    study = owned.kept(study, known)
    resources.put(connection, study, cause=cause, natural_key=natural_key(uid, patient_id))


def _is_taken(connection: Connection, order: Json, study: Json) -> bool:
    """Whether a study is another order's: reserved, or with its images. Images may come before their order."""
    if study["status"] == "available":
        return bool(study.get("basedOn")) and not steps_of(connection, order["id"])
    return study["status"] == "registered"


def _leave(connection: Connection, order_id: str, kept: str, cause: str) -> None:
    """An order that moved to another patient or UID leaves no study behind that waits for images."""
    for study in studies_of(connection, order_id):
        if study["id"] != kept and study["status"] == "registered":
            resources.edit(connection, "ImagingStudy", study["id"], {"status": "cancelled"}, cause=cause)


def _claim_images(connection: Connection, order: Json) -> None:
    """Have studies that came before their order, and bear its numbers, matched again."""
    numbers = [
        f"{escaped(one.get('system', ''))}|{escaped(one['value'])}" for one in order["identifier"] if "value" in one
    ]
    for study in resources.find(connection, "ImagingStudy", [("identifier", ",".join(numbers))]):
        if study["status"] == "available" and not study.get("basedOn"):
            sync.reconsider(connection, studies.of_imaging_study(connection, study["id"]), "order")


def linked(links: imaging_study.Links, order: Json) -> imaging_study.Links:
    """The links of a study that fulfils an order: what the order says outweighs the images."""
    return replace(
        links,
        based_on=({"reference": f"ServiceRequest/{order['id']}"},),
        accession=accession_of(order),
        referrer=referrer_of(order),
        reason=tuple(order.get("reasonCode", [])),
        procedure=(order["code"],) if order.get("code") else (),
        encounter=order.get("encounter"),
    )


def accession_of(order: Json) -> Json | None:
    """The identifier that holds an order's accession number."""
    return next((one for one in order.get("identifier", []) if worklist.accession({"identifier": [one]})), None)


def referrer_of(order: Json) -> Json | None:
    """The requester, where ImagingStudy.referrer may name it."""
    requester = order.get("requester", {})
    reference = requester.get("reference", "")
    return requester if reference.split("/")[0] in {"Practitioner", "PractitionerRole"} else None


def _cancel(connection: Connection, order: Json, cause: str) -> None:
    known = studies_of(connection, order["id"])
    if any(study["status"] == "available" for study in known):
        patient_id = patient_of(order)
        review(
            connection, f"cancel|{order['id']}", "cancelled-after-start", f"ServiceRequest/{order['id']}", patient_id
        )
        return
    move_steps(connection, order["id"], "order-cancelled", cause)
    for study in known:
        if study["status"] == "registered":
            resources.edit(connection, "ImagingStudy", study["id"], {"status": "cancelled"}, cause=cause)


def review(connection: Connection, key: str, reason: str, focus: str, patient_id: str | None) -> None:
    """Ask a person; asking the same thing again changes nothing."""
    wanted = question(connection, key, reason, focus, patient_id)
    resources.put_all(connection, [wanted] if wanted else [])


def question(connection: Connection, key: str, reason: str, focus: str, patient_id: str | None) -> Own | None:
    """What asks a person, to be stored; None when it was asked before."""
    patient = f"Patient/{patient_id}" if patient_id else None
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    asked = task.review(key, reason, focus=focus, patient=patient, authored=moment)
    return resources.own_unless_there(connection, asked, cause=f"{focus}: {reason}")


def settled(connection: Connection, key: str, cause: str) -> None:
    """What a person was asked has answered itself."""
    asked = resources.read(connection, "Task", task.review_id(key))
    if asked is not None and asked["status"] == "requested":
        resources.edit(connection, "Task", asked["id"], {"status": "completed"}, cause=cause)


def patient_of(order: Json) -> str | None:
    """The id of the Patient an order is for."""
    kind, _, patient_id = order.get("subject", {}).get("reference", "").partition("/")
    return patient_id.split("/")[0] if kind == "Patient" and patient_id else None


def _patient_id(connection: Connection, order: Json) -> str:
    patient_id = patient_of(order)
    if patient_id is None or resources.read(connection, "Patient", patient_id) is None:
        raise _refused("ServiceRequest.subject", "an imaging order needs a Patient that this server knows")
    return patient_id


def _codings(order: Json) -> list[Json]:
    return order.get("code", {}).get("coding", [])


def _refused(expression: str, sentence: str) -> Unprocessable:
    return Unprocessable(issues=(Issue("business-rule", sentence, expression),))


# --- the worklist is a view ------------------------------------------------------------------------------------


def worklist_of(store: Store, site: Site) -> Worklist:
    """The source of worklist items: every open step of an active order, narrowed by the keys of the query."""

    def items(keys: WorklistKeys) -> Iterable[Dataset]:
        with store.read() as connection:
            return [found for step in _open_steps(connection, keys) if (found := _item(connection, site, step))]

    return items


def _open_steps(connection: Connection, keys: WorklistKeys) -> Iterator[Json]:
    narrowed = {"patient": _patients(connection, keys), "focus": _orders(connection, keys)}
    if "" in narrowed.values():
        return
    status = {"status": ",".join(sorted(OPEN))}
    criteria = [(name, found) for name, found in (status | narrowed).items() if found]
    for step in resources.find(connection, "Task", criteria):
        fits = keys.modality in {None, task.modality(step)} and keys.station_ae in {None, task.station(step)}
        if task.is_step(step) and fits:
            yield step


def _patients(connection: Connection, keys: WorklistKeys) -> str | None:
    if keys.patient_id is None:
        return None
    found = resources.find(connection, "Patient", [("identifier", escaped(keys.patient_id))])
    return ",".join(f"Patient/{patient['id']}" for patient in found)


def _orders(connection: Connection, keys: WorklistKeys) -> str | None:
    if keys.accession is None:
        return None
    found = resources.find(connection, "ServiceRequest", [("identifier", escaped(keys.accession))])
    return ",".join(f"ServiceRequest/{order['id']}" for order in found)


def escaped(value: str) -> str:
    """A value as a search parameter takes it, with its separators escaped."""
    return re.sub(r"([\\,$|])", r"\\\1", value)


def _item(connection: Connection, site: Site, step: Json) -> Dataset | None:
    order = resources.read(connection, "ServiceRequest", step["focus"]["reference"].partition("/")[2])
    if order is None or order["status"] != "active":
        return None
    patient = resources.read(connection, "Patient", patient_of(order) or "")
    if patient is None:
        return None
    return worklist.item(worklist.View(order, step, patient, _practitioner(connection, order), site.worklist))


def _practitioner(connection: Connection, order: Json) -> Json | None:
    kind, _, practitioner_id = order.get("requester", {}).get("reference", "").partition("/")
    return resources.read(connection, "Practitioner", practitioner_id) if kind == "Practitioner" else None
