"""What a modality reports of its step moves the Task it belongs to (PS3.4 Annex F, MPPS)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from app.access import Access
from app.fhir import resources
from app.fhir.mapping import task, terms
from app.fhir.mapping.codes import Json
from app.store import mpps, studies
from app.store.database import Store
from app.store.timeline import Happening, add
from app.workflow.orders import complete, escaped
from app.workflow.states import STEP_MOVES

if TYPE_CHECKING:
    from app.dicom.mpps import MppsHandler, PerformedStep

MOVES = {"IN PROGRESS": "step-started", "COMPLETED": "step-completed", "DISCONTINUED": "step-discontinued"}
BY_HAND = {
    **dict.fromkeys(("accepted", "ready"), ("SCHEDULED", "")),
    "on-hold": ("SCHEDULED", "order-held"),
    "in-progress": ("STARTED", "step-started"),
    "completed": ("COMPLETED", "step-completed"),
    "failed": ("DISCONTINUED", "step-discontinued"),
    **dict.fromkeys(("cancelled", "rejected"), ("CANCELED", "step-cancelled")),
}
"""What a status set by a person is called on the worklist and on the timeline."""


def handler(store: Store) -> MppsHandler:
    """The MPPS service's memory and its way up."""
    # Loaded late: only the edge hears of performed steps (docs/decisions/0078).
    from app.dicom.mpps import MppsHandler

    def load(uid: str) -> dict[str, Any] | None:
        with store.read() as connection:
            return mpps.load(connection, uid)

    def save(uid: str, state: dict[str, Any]) -> None:
        store.transact(lambda connection: mpps.save(connection, uid, state))

    def performed(step: PerformedStep) -> None:
        store.transact(lambda connection: perform(connection, step))

    return MppsHandler(load, save, performed)


def perform(connection: Connection, step: PerformedStep) -> None:
    """Move the scheduled steps that this performed step names. Safe to repeat."""
    kind, cause = MOVES[step.status], f"MPPS {step.uid}"
    move = STEP_MOVES[kind]
    for found in _scheduled(connection, step):
        if found["status"] not in move.sources:
            continue
        order_id = found["focus"]["reference"].removeprefix("ServiceRequest/")
        changes: dict[str, Any] = {"status": move.status, "businessStatus": task.business_status(move.business)}
        resources.edit(connection, "Task", found["id"], changes, cause=cause)
        add(connection, Happening(kind, cause, order_id=order_id))
        complete(connection, order_id, cause)
    if step.status != "IN PROGRESS":
        for study_uid in {one.study_uid for one in step.scheduled}:
            studies.expect(connection, study_uid, step.instance_uids)


def _scheduled(connection: Connection, step: PerformedStep) -> list[Json]:
    """The Tasks by their step ids; a step id of another accession number is not ours."""
    found: list[Json] = []
    for scheduled in step.scheduled:
        if scheduled.step_id:
            criteria = [("identifier", f"{terms.STEP}|{escaped(scheduled.step_id)}")]
            found += resources.find(connection, "Task", criteria)
    return found


def received(connection: Connection, caller: Access, step: Json, before: Json | None) -> None:
    """A person moved a step by hand: the worklist's word, the timeline and the order follow. The guard knew the way."""
    if before is None or not task.is_step(step) or step["status"] == before["status"]:
        return
    cause = f"Task/{step['id']} by {caller.client_id}"
    order_id = step["focus"]["reference"].removeprefix("ServiceRequest/")
    word, told = BY_HAND[step["status"]]
    resources.edit(connection, "Task", step["id"], {"businessStatus": task.business_status(word)}, cause=cause)
    if told:
        add(connection, Happening(told, cause, order_id=order_id))
    complete(connection, order_id, cause)
