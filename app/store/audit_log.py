"""The audit trail: rows are only ever added."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache

from sqlalchemy.engine import Connection

from app.audit import Record
from app.store.database import now, run

_INSERT = (
    "INSERT INTO auditrow (at, door, action, outcome, client_id, grant_id, fhir_user, patient_id, study_uid, target,"
    " request_id, detail) VALUES "
)
_ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_TOGETHER = 100
"""Rows of one statement. Row by row each would wait anew for the interpreter while requests are answered."""


def add(connection: Connection, records: Iterable[Record]) -> None:
    """Append records with the store's time."""
    at = now()
    add_many(connection, [(at, record) for record in records])


def add_many(connection: Connection, noted: Iterable[tuple[int, Record]]) -> None:
    """Append records, each with the time in milliseconds at which it happened."""
    rows = [_values(at, record) for at, record in noted]
    for first in range(0, len(rows), _TOGETHER):
        some = rows[first : first + _TOGETHER]
        run(connection, _statement(len(some)), [value for row in some for value in row])


@cache
def _statement(rows: int) -> str:
    return _INSERT + ", ".join([_ROW] * rows)


def _values(at: int, record: Record) -> Sequence[object]:
    return (
        at,
        record.door,
        record.action,
        record.outcome,
        record.client_id,
        record.grant_id,
        record.fhir_user,
        record.patient_id,
        record.study_uid,
        record.target,
        record.request_id,
        json.dumps(record.detail) if record.detail else "{}",
    )
