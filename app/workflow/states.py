"""The state machine of an order as one table: what each event means for the step, the study and the worklist.

Steps and studies only move along these rows; each move is an event with its cause. An event that does not name the
state a step is in changes nothing, so repeats and late messages are harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WAITING = frozenset({"requested", "accepted", "ready", "on-hold"})
OPEN = frozenset({"requested", "accepted", "ready", "in-progress"})
"""Steps a modality may still see on its worklist."""
TERMINAL = frozenset({"completed", "cancelled", "failed", "rejected", "entered-in-error"})
GIVEN_UP = frozenset({"cancelled", "rejected", "entered-in-error"})
"""Steps that nobody will perform."""

FINAL_REPORTS = frozenset({"final", "amended", "corrected", "appended"})
DEAD_REPORTS = frozenset({"cancelled", "entered-in-error"})


CLIENT_MOVES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(
        WAITING,
        frozenset({"accepted", "ready", "on-hold", "in-progress", "completed", "cancelled", "rejected"}),
    ),
    "in-progress": frozenset({"completed", "failed"}),
}
"""From which status to which a client may move a Task of the server; a step that is over stays so."""


@dataclass(frozen=True, slots=True)
class Move:
    """From which Task statuses an event leads where; `business` is the worklist's word, `told` the timeline's."""

    sources: frozenset[str]
    status: str
    business: str
    told: str


STEP_MOVES: Mapping[str, Move] = {
    "order-held": Move(frozenset({"requested", "accepted", "ready"}), "on-hold", "SCHEDULED", "order-held"),
    "order-released": Move(frozenset({"on-hold"}), "accepted", "SCHEDULED", "order-released"),
    "order-cancelled": Move(WAITING, "cancelled", "CANCELED", "order-cancelled"),
    "step-started": Move(WAITING, "in-progress", "STARTED", "step-started"),
    "step-completed": Move(WAITING | {"in-progress"}, "completed", "COMPLETED", "step-completed"),
    "step-discontinued": Move(WAITING | {"in-progress"}, "failed", "DISCONTINUED", "step-discontinued"),
    "images-available": Move(WAITING, "in-progress", "STARTED", "step-started"),
    "images-complete": Move(WAITING | {"in-progress"}, "completed", "COMPLETED", "step-completed"),
    "report-final": Move(WAITING | {"in-progress"}, "completed", "COMPLETED", "step-completed"),
}
