"""Performed procedure steps as the modalities last told them: they outlive a restart of the service."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import now, upsert
from app.store.tables import mpps_state


def load(connection: Connection, sop_uid: str) -> dict[str, Any] | None:
    """The state of a performed step, None when it was never created."""
    return connection.execute(sa.select(mpps_state.c.state).where(mpps_state.c.sop_uid == sop_uid)).scalar()


def save(connection: Connection, sop_uid: str, state: dict[str, Any]) -> None:
    """Keep the state of a performed step."""
    upsert(connection, mpps_state, {"sop_uid": sop_uid, "state": state, "at": now()}, keys=("sop_uid",))
