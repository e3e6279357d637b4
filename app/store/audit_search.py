"""The audit trail as it is read: rows by conditions, newest first, page after page."""

# ruff: noqa: S608 - SQL is put together from our own words; every value is bound
from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.engine import Connection

from app.store.database import run

Column = Literal[
    "id", "door", "action", "outcome", "client_id", "grant_id", "fhir_user", "patient_id", "study_uid", "target",
    "request_id",
]  # fmt: skip

_COLUMNS = (
    "id, at, door, action, outcome, client_id, grant_id, fhir_user, patient_id, study_uid, target, request_id,"
    " CAST(detail AS TEXT)"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One record of the trail with its number and its time in milliseconds."""

    id: int
    at: int
    door: str
    action: str
    outcome: str
    client_id: str
    grant_id: str | None
    fhir_user: str | None
    patient_id: str | None
    study_uid: str | None
    target: str
    request_id: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Where:
    """A condition on rows, with its values; made by the functions below only."""

    sql: str
    values: tuple[Any, ...] = ()


ALL = Where("1 = 1")
NONE = Where("1 = 0")


def among(column: Column, values: Iterable[Any]) -> Where:
    """The column has one of the values."""
    found = tuple(values)
    return Where(f"{column} IN ({', '.join('?' * len(found))})", found) if found else NONE


def known(column: Column) -> Where:
    """The column says something."""
    return Where(f"{column} <> ''")


def begins(column: Column, text: str) -> Where:
    """The column's value begins with this text."""
    return Where(f"substr({column}, 1, {len(text)}) = ?", (text,))


def ends(column: Column, text: str) -> Where:
    """The column's value ends with this text."""
    return Where(f"substr({column}, length({column}) - {len(text) - 1}) = ?", (text,))


def contains(column: Column, text: str) -> Where:
    """The column's value has this text in it."""
    return Where(f"{column} LIKE ?", (f"%{text}%",))


def tells(name: str) -> Where:
    """The detail has an entry of that name."""
    # Within a text of JSON a quotation mark stands behind a backslash, so this is a name and nothing else.
    return Where("CAST(detail AS TEXT) LIKE ?", (f'%"{name}": %',))


def since(at: int) -> Where:
    """Recorded at this moment or later."""
    return Where("at >= ?", (at,))


def before(at: int) -> Where:
    """Recorded earlier."""
    return Where("at < ?", (at,))


def every(conditions: Iterable[Where]) -> Where:
    """All of them."""
    return _joined(" AND ", conditions, ALL)


def some(conditions: Iterable[Where]) -> Where:
    """At least one of them."""
    return _joined(" OR ", conditions, NONE)


def no(condition: Where) -> Where:
    """Not so, or not known."""
    return Where(f"({condition.sql}) IS NOT TRUE", condition.values)


def search(
    connection: Connection, where: Where, *, limit: int, after: Sequence[Any] | None = None, descending: bool = True
) -> list[Row]:
    """Rows by time, the newest first unless told otherwise; `after` is the time and number of the last one seen."""
    sign, order = ("<", "DESC") if descending else (">", "ASC")
    place = every([where, Where(f"(at, id) {sign} (?, ?)", tuple(after))]) if after else where
    sql = f"SELECT {_COLUMNS} FROM auditrow WHERE {place.sql} ORDER BY at {order}, id {order} LIMIT ?"
    return [_row(row) for row in run(connection, sql, (*place.values, limit)).fetchall()]


def count(connection: Connection, where: Where) -> int:
    """How many rows there are."""
    return int(run(connection, f"SELECT count(*) FROM auditrow WHERE {where.sql}", where.values).fetchone()[0])


def _row(row: Sequence[Any]) -> Row:
    return Row(*row[:-1], detail=json.loads(row[-1]) or {})


def _joined(word: str, conditions: Iterable[Where], empty: Where) -> Where:
    found = tuple(conditions)
    if not found:
        return empty
    return Where(f"({word.join(one.sql for one in found)})", tuple(value for one in found for value in one.values))
