"""Launch contexts behind opaque values: made once, taken once (SMART App Launch 2.2, EHR launch)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy.engine import Connection

from app.errors import NotFound
from app.smart import opaque
from app.smart.facts import limits
from app.store import grants
from app.store.database import now

Kind = Literal["launch", "viewer", "chosen"]
SHORTEST = 60


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """For which app, user, patient and study a launch was opened, and by which client.

    `user_id` names a local account; whoever vouches for a user of their own gives an id with a colon
    (`client:id`), which no local account has.
    """

    client_id: str
    user_id: str | None
    fhir_user: str | None
    user_name: str
    patient_id: str
    imaging_study_id: str | None
    study_uid: str | None
    order_id: str | None
    made_by: str


def open_launch(connection: Connection, context: LaunchContext, *, kind: Kind, seconds: int = 300) -> str:
    """Keep a context and return the opaque value that stands for it, once, for so many seconds (60 to 300)."""
    value, at = opaque.make(), now()
    life = min(max(seconds, SHORTEST), limits().launch_seconds) * 1000
    row = {**asdict(context), "hash": opaque.digest(value), "kind": kind, "created": at, "expires": at + life}
    grants.add_launch(connection, row)
    return value


def peek_launch(connection: Connection, value: str, *, kind: Kind) -> LaunchContext:
    """The context of a launch that can still be taken; NotFound for unknown, used and expired alike."""
    row = grants.find_launch(connection, opaque.digest(value), kind, now())
    if row is None:
        raise NotFound("this launch is unknown, expired or already used")
    return LaunchContext(**{name: row[name] for name in LaunchContext.__slots__})


def take_launch(connection: Connection, value: str, *, kind: Kind) -> LaunchContext:
    """The context of a launch, which nobody can take again; NotFound for unknown, used and expired alike."""
    context = peek_launch(connection, value, kind=kind)
    if not grants.use_launch(connection, opaque.digest(value), kind, now()):
        raise NotFound("this launch is unknown, expired or already used")
    return context
