"""What a client may not write or delete: what follows the archive, the orders and the documents, and what is past.

A guard is asked in the write's transaction, before it; `before` is None for what is new. docs/fhir.md lists the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.engine import Connection

from app.access import Access
from app.errors import Conflict, Forbidden, Issue, Unprocessable
from app.fhir import granted, index, resources
from app.fhir.mapping import imaging_study as mapping
from app.fhir.mapping import task as tasks
from app.fhir.mapping import terms
from app.fhir.mapping.codes import Json
from app.fhir.registry import offers
from app.fhir.site import here
from app.store import resources as rows
from app.store import studies
from app.store.query import Clause, Query, Target
from app.workflow import reports
from app.workflow.orders import natural_key, steps_of
from app.workflow.owned import has_mark, require_no_marks, require_unchanged, signed_notes
from app.workflow.states import CLIENT_MOVES, DEAD_REPORTS, FINAL_REPORTS

Guard = Callable[[Connection, Access, Json, Json | None], None]
DeleteGuard = Callable[[Connection, Access, Json], None]

OUR_ENDPOINT = "endpoint:dicomweb"
"""The natural key under which the server keeps its own Endpoint."""
NO_DELIVERY = "notifications are not built yet: a Subscription can be kept with the status off only"
FORGOTTEN = frozenset({"cancelled", "entered-in-error", "unknown"})
"""What an ImagingStudy is called that has no images and awaits none."""


# --- writing -------------------------------------------------------------------------------------------------


def imaging_study(connection: Connection, caller: Access, study: Json, before: Json | None) -> None:
    """A study keeps its patient and its UID, and exists once; what its images or its order say is theirs to change."""
    _refuse_narrow(caller)
    if before is None:
        uid, patient_id = _owner(study)
        gone = _deleted(connection, study)
        if gone is not None and _owner(gone) != (uid, patient_id):
            # The id still stands for the study that was deleted: its images may come yet.
            raise Conflict("this id was another study's: an ImagingStudy keeps its patient and its Study Instance UID")
        if uid and resources.by_natural_key(connection, natural_key(uid, patient_id)) is not None:
            raise Conflict("this patient's study with this Study Instance UID has an ImagingStudy already")
        return
    if _owner(study) != _owner(before):
        raise Conflict("an ImagingStudy keeps its patient and its Study Instance UID")
    if is_own_study(connection, before):
        require_unchanged(study, before, "this follows the images in the archive and their order")


def observation(_connection: Connection, _caller: Access, resource: Json, before: Json | None) -> None:
    """What a structured report says is changed by another structured report."""
    require_no_marks(resource, before)
    if before is not None and has_mark(before, terms.CONTENT_ITEM):
        require_unchanged(resource, before, "this follows the structured report it was read from")
        _require_authors(resource, before)


def task(_connection: Connection, _caller: Access, wanted: Json, before: Json | None) -> None:
    """A step or a question of the server moves along its table, and keeps what it is about."""
    require_no_marks(wanted, before)
    if before is None:
        return
    is_step = tasks.is_step(before)
    if not is_step and not _is_question(before):
        return
    require_unchanged(wanted, before, "this follows the order", free=() if is_step else ("owner", "businessStatus"))
    was, becomes = before["status"], wanted["status"]
    if was != becomes and becomes not in CLIENT_MOVES.get(was, frozenset()):
        legal = ", ".join(sorted(CLIENT_MOVES.get(was, ()))) or "nothing: it is over"
        sentence = f"a Task of this server that is {was} can become {legal}"
        raise Conflict(issues=(Issue("business-rule", sentence, "Task.status"),))


def endpoint(connection: Connection, _caller: Access, wanted: Json, before: Json | None) -> None:
    """The server's own Endpoint follows its settings."""
    if before is not None and _is_own_endpoint(connection, before):
        require_unchanged(wanted, before, "this follows the server's settings")


def provenance(connection: Connection, caller: Access, record: Json, before: Json | None) -> None:
    """What was recorded stays as it was recorded, and nobody records the past of what is hidden from them."""
    if before is not None:
        raise Conflict("a Provenance is a record of the past and cannot be changed")
    goals = (index.target(one.get("reference", ""), here().base) for one in record.get("target", []))
    found = rows.currents(connection, [(kind, identity) for kind, identity in filter(None, goals) if kind in offers()])
    if not all(stored.deleted or granted.readable(caller, stored) for stored in found.values()):
        raise Forbidden


def subscription(_connection: Connection, _caller: Access, wanted: Json, _before: Json | None) -> None:
    """Accepting what would never be delivered is worse than refusing it."""
    if wanted.get("status") != "off":
        raise Unprocessable(issues=(Issue("not-supported", NO_DELIVERY, "Subscription.status"),))


def is_own_study(connection: Connection, study: Json) -> bool:
    """Whether an ImagingStudy is the one that the archive and the orders keep, not one that a client described."""
    uid, patient_id = _owner(study)
    own = resources.by_natural_key(connection, natural_key(uid, patient_id)) if uid else None
    return own is not None and own["id"] == study["id"]


def _deleted(connection: Connection, study: Json) -> Json | None:
    """What was deleted under this id."""
    stored = rows.current(connection, "ImagingStudy", study.get("id", ""))
    last = rows.version(connection, "ImagingStudy", stored.resource_id, stored.version - 1) if stored else None
    return resources.loads(last.body) if stored and stored.deleted and last and not last.deleted else None


def _refuse_narrow(caller: Access) -> None:
    if caller.studies is not None:
        # Its "u" is for STOW-RS: what a viewer stores changes the study, not what it says about it.
        raise Forbidden("a grant for one study stores images; the ImagingStudy follows the archive")


def _require_authors(resource: Json, before: Json) -> None:
    """Notes without an author are the server's, so a client's note tells whose it is."""
    said = [one for one in before.get("note", []) if one not in signed_notes(before)]
    if [one for one in resource.get("note", []) if one not in signed_notes(resource)] != said:
        kind = resource["resourceType"]
        sentence = "a note needs authorString or authorReference; those without follow their document"
        raise Conflict(issues=(Issue("business-rule", sentence, f"{kind}.note"),))


def _is_question(step: Json) -> bool:
    """Review work of ours: its id is made of what it asks, and nobody else uses its code system."""
    return any(coding.get("system") == terms.REVIEW for coding in step.get("code", {}).get("coding", []))


def _is_own_endpoint(connection: Connection, known: Json) -> bool:
    own = resources.by_natural_key(connection, OUR_ENDPOINT)
    return own is not None and own["id"] == known["id"]


def _owner(study: Json) -> tuple[str, str]:
    reference: str = study.get("subject", {}).get("reference", "")
    return mapping.uid_of(study) or "", reference.removeprefix("Patient/")


# --- deleting ------------------------------------------------------------------------------------------------


def delete_patient(connection: Connection, _caller: Access, patient: Json) -> None:
    """A patient stays while anything refers to it."""
    found = referrers(connection, "Patient", patient["id"])
    if found:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
        raise Conflict(f"other resources refer to this Patient: {told}")


def delete_order(connection: Connection, _caller: Access, order: Json) -> None:
    """An order that was accepted is revoked, not deleted: a modality may hold it."""
    if steps_of(connection, order["id"]):
        raise Conflict("this order was accepted and has steps on the worklist: set its status to revoked instead")


def delete_imaging_study(connection: Connection, caller: Access, study: Json) -> None:
    """A study stays while there are images, or an order that awaits them."""
    _refuse_narrow(caller)
    if not is_own_study(connection, study):
        return
    if studies.of_imaging_study(connection, study["id"]) or study["status"] == "available":
        raise Conflict("the archive holds images of this study: delete them there, and it follows")
    if study["status"] not in FORGOTTEN:
        raise Conflict("an order awaits the images of this study: revoke the order, and it follows")


def delete_observation(_connection: Connection, _caller: Access, resource: Json) -> None:
    """What a structured report says is withdrawn with the report."""
    if has_mark(resource, terms.CONTENT_ITEM):
        raise Conflict("this was read from a structured report: it is withdrawn when the report is replaced or gone")


def delete_report(connection: Connection, _caller: Access, report: Json) -> None:
    """What was signed stays, and so does the draft that results gather in."""
    if report["status"] in FINAL_REPORTS:
        raise Conflict("a signed report is withdrawn by the status entered-in-error, not deleted")
    if report["status"] in DEAD_REPORTS and referrers(connection, "DiagnosticReport", report["id"]).get("Provenance"):
        raise Conflict("this report was signed once: its withdrawal stays on record")
    if has_mark(report, terms.ORDER_DRAFT) and report["status"] not in DEAD_REPORTS:
        raise Conflict("results gather in this draft: sign it, or set its status to entered-in-error")


def delete_task(_connection: Connection, _caller: Access, known: Json) -> None:
    """A step or a question of the server ends by its status."""
    if tasks.is_step(known) or _is_question(known):
        raise Conflict("this Task is the server's: end it by its status")


def delete_endpoint(connection: Connection, _caller: Access, known: Json) -> None:
    """Every ImagingStudy points to the server's own Endpoint."""
    if _is_own_endpoint(connection, known):
        raise Conflict("this is the server's own Endpoint")


def delete_provenance(_connection: Connection, _caller: Access, _record: Json) -> None:
    """What was recorded stays."""
    raise Conflict("a Provenance is a record of the past and cannot be deleted")


def referrers(connection: Connection, resource_type: str, resource_id: str) -> Mapping[str, int]:
    """How many resources of each type refer to this one by any of their search parameters, itself not counted."""
    found: dict[str, int] = {}
    for kind, one in offers().items():
        names = [name for name, known in one.search.items() if _leads_to(known, resource_type)]
        if not names or one.kept:
            continue
        targets = tuple(Target(name, resource_type, resource_id) for name in names)
        count = rows.count(connection, Query(kind, (Clause(targets),)))
        if count:
            found[kind] = count
    return found


def _leads_to(parameter: Any, resource_type: str) -> bool:
    return parameter.type == "reference" and resource_type in parameter.targets


GUARDS: Mapping[str, Guard] = {
    "DiagnosticReport": reports.guard,
    "Endpoint": endpoint,
    "ImagingStudy": imaging_study,
    "Observation": observation,
    "Provenance": provenance,
    "Subscription": subscription,
    "Task": task,
}
DELETE_GUARDS: Mapping[str, DeleteGuard] = {
    "DiagnosticReport": delete_report,
    "Endpoint": delete_endpoint,
    "ImagingStudy": delete_imaging_study,
    "Observation": delete_observation,
    "Patient": delete_patient,
    "Provenance": delete_provenance,
    "ServiceRequest": delete_order,
    "Task": delete_task,
}
