"""What happened to each order and study, in order: the one source of timelines, subscriptions and Provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import now
from app.store.tables import event


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
    connection.execute(
        event.insert().values(
            at=now(),
            kind=happening.kind,
            cause=happening.cause,
            order_id=happening.order_id,
            study_uid=happening.study_uid,
            detail=happening.detail,
        )
    )


def of_order(connection: Connection, order_id: str) -> Sequence[sa.RowMapping]:
    """The events of one order, oldest first."""
    statement = sa.select(event).where(event.c.order_id == order_id).order_by(event.c.id)
    return connection.execute(statement).mappings().all()
