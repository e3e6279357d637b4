"""Scheduled procedure steps and review work as FHIR Tasks (https://hl7.org/fhir/R4/task.html)."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from app.fhir.mapping import terms
from app.fhir.mapping.codes import Json

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, terms.BASE + "/Task")
FULFIL = {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]}
MODALITY_INPUT = {"coding": [{"system": terms.DCM, "code": "121139", "display": "Modality"}]}
STEP_TYPE = "scheduled-procedure-step"


@dataclass(frozen=True, slots=True)
class Step:
    """One scheduled procedure step of an order. `number` counts from 1; `start` is a FHIR dateTime or None."""

    order_id: str
    patient_id: str
    number: int
    modality: str
    station: str
    protocol: str
    sps_id: str
    start: str | None
    authored: str


def step_id(order_id: str, number: int) -> str:
    """The Task of an order's n-th step always has the same id."""
    return str(uuid.uuid5(NAMESPACE, f"{order_id}#{number}"))


def scheduled(step: Step) -> Json:
    """The Task of a step that waits for its modality."""
    task: Json = {
        "resourceType": "Task",
        "id": step_id(step.order_id, step.number),
        "identifier": [{"system": terms.STEP, "value": step.sps_id}],
        "basedOn": [{"reference": f"ServiceRequest/{step.order_id}"}],
        "status": "accepted",
        "businessStatus": business_status("SCHEDULED"),
        "intent": "order",
        "code": FULFIL,
        "description": step.protocol,
        "focus": {"reference": f"ServiceRequest/{step.order_id}"},
        "for": {"reference": f"Patient/{step.patient_id}"},
        "authoredOn": step.authored,
        "owner": {"type": "Device", "identifier": {"system": terms.AE_TITLE, "value": step.station}},
        "input": [
            {
                "type": MODALITY_INPUT,
                "valueCodeableConcept": {"coding": [{"system": terms.DCM, "code": step.modality}]},
            }
        ],
    }
    if step.start:
        task["restriction"] = {"period": {"start": step.start}}
    return task


def business_status(code: str) -> Json:
    """The step's status in the words of the worklist (0040,0020)."""
    return {"coding": [{"system": terms.STEP_STATUS, "code": code}]}


def modality(task: Json) -> str | None:
    """The modality that a step asks for."""
    for entry in task.get("input", []):
        if entry.get("type") == MODALITY_INPUT:
            return entry["valueCodeableConcept"]["coding"][0]["code"]
    return None


def station(task: Json) -> str | None:
    """The AE title a step is scheduled on."""
    owner = task.get("owner", {}).get("identifier", {})
    return owner.get("value") if owner.get("system") == terms.AE_TITLE else None


def is_step(task: Json) -> bool:
    """Whether the Task is a scheduled procedure step of ours."""
    return any(entry.get("system") == terms.STEP for entry in task.get("identifier", []))


def review_id(key: str) -> str:
    """The same question always has the same Task."""
    return str(uuid.uuid5(NAMESPACE, f"review#{key}"))


def review(key: str, reason: str, *, focus: str, patient: str | None, authored: str) -> Json:
    """Work for a person: something that could not be decided without guessing. `key` makes it one Task."""
    task: Json = {
        "resourceType": "Task",
        "id": review_id(key),
        "status": "requested",
        "intent": "proposal",
        "priority": "routine",
        "code": {"coding": [{"system": terms.REVIEW, "code": reason}]},
        "description": REVIEW_REASONS[reason],
        "focus": {"reference": focus},
        "authoredOn": authored,
    }
    if patient:
        task["for"] = {"reference": patient}
    return task


REVIEW_REASONS = {
    "no-order": "Images without an order: find the order they belong to, or confirm that there is none.",
    "patient-mismatch": "Images carry an order's number but another patient: decide whose they are.",
    "ambiguous-order": "Several orders fit these images: choose one.",
    "anonymised-copy": "A copy made inside the archive: it is not linked to any order.",
    "unknown-procedure": "The ordered procedure is not in the catalogue: modality and station were not known.",
    "late-images": "Images arrived after the report was final: the report was left as it is.",
    "images-missing": "The modality made more images than have arrived: look whether it still has them.",
    "images-removed": "Images of a reported study are gone from the archive: the report was left as it is.",
    "study-removed": "A reported study is gone from the archive: the report was left as it is.",
    "late-evidence": "Measurements arrived after the report was final: the report was left as it is.",
    "cancelled-after-start": "The order was cancelled although images exist: they were left as they are.",
}
