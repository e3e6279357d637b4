"""What happened to each order and study, in order: the one source of timelines, subscriptions and Provenance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import now, run
from app.store.tables import event

ADD = "INSERT INTO event (at, kind, cause, order_id, study_uid, detail) VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Happening:
    """One event. `cause` names the API call, DICOM event or message behind it; `detail` holds identifiers only."""

    kind: str
    cause: str
    order_id: str | None = None
    study_uid: str | None = None
    detail: dict[str, Any] = field(default_factory=dict[str, Any])


def add(connection: Connection, happening: Happening) -> None:
    """Append the event with the store's time."""
    one = happening
    row = (now(), one.kind, one.cause, one.order_id, one.study_uid, json.dumps(one.detail))
    run(connection, ADD, row)


def of_order(connection: Connection, order_id: str) -> Sequence[sa.RowMapping]:
    """The events of one order, oldest first."""
    statement = sa.select(event).where(event.c.order_id == order_id).order_by(event.c.id)
    return connection.execute(statement).mappings().all()
