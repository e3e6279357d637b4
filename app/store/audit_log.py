"""The audit trail: rows are only ever added."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy.engine import Connection

from app.audit import Record
from app.store.database import now
from app.store.tables import audit_row


def add(connection: Connection, record: Record) -> None:
    """Append one record with the store's time."""
    connection.execute(audit_row.insert().values(at=now(), **asdict(record)))
