"""Rows of FHIR resources: current bytes, every version, the search index, and the one query that searches them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from app.errors import Conflict
from app.store.database import insert
from app.store.tables import (
    INDEX_TABLES,
    index_date,
    index_reference,
    index_string,
    index_token,
    resource,
    resource_version,
)

UNDATED = -(2**62)
"""The sort value of a resource without its natural date: it comes last, whichever way one sorts."""
_LAST = 2**62
_KEY_BYTES = 800
"""PostgreSQL indexes at most 2,704 bytes a row: longer keys are cut, when stored and when looked for."""

Columns = sa.sql.ColumnCollection[str, sa.Column[Any]]
Kind = Literal["token", "reference", "date", "string"]
TABLES: Mapping[Kind, sa.Table] = {
    "token": index_token,
    "reference": index_reference,
    "date": index_date,
    "string": index_string,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of a resource as it is stored; `updated` is in milliseconds."""

    resource_type: str
    resource_id: str
    version: int
    updated: int
    deleted: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class Index:
    """All that is kept beside the bytes so that a search finds them; each entry starts with the parameter's name."""

    tokens: frozenset[tuple[str, str, str]] = frozenset()
    """(parameter, system, value)"""
    references: frozenset[tuple[str, str, str]] = frozenset()
    """(parameter, target type, target id)"""
    dates: frozenset[tuple[str, int, int]] = frozenset()
    """(parameter, lo, hi)"""
    strings: frozenset[tuple[str, str, str]] = frozenset()
    """(parameter, folded, exact)"""
    patient_id: str | None = None
    sort: int = UNDATED


# --- what can be asked ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ids:
    """The resource is one of these."""

    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Owner:
    """The resource is in this patient's compartment."""

    patient_id: str


@dataclass(frozen=True, slots=True)
class Token:
    """A code, an identifier or a URI; a system of None means any, a value of None any of the system."""

    param: str
    system: str | None
    value: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """A reference; a type of None means any."""

    param: str
    target_type: str | None
    target_id: str


@dataclass(frozen=True, slots=True)
class Date:
    """A date compared with the interval [lo, hi) by one of the prefixes of FHIR."""

    param: str
    prefix: str
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class Text:
    """A string: its beginning, a part of it, or the whole as written."""

    param: str
    mode: Literal["starts", "contains", "exact"]
    value: str


@dataclass(frozen=True, slots=True)
class Present:
    """The parameter has a value at all."""

    param: str
    kind: Kind


Indexed = Token | Target | Date | Text | Present
Condition = Ids | Owner | Token | Target | Date | Text | Present


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition or another; or none of them."""

    any_of: tuple[Condition, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """By the natural date or by the last update; the id breaks ties in the same direction."""

    by: Literal["sort", "updated"] = "sort"
    descending: bool = True


@dataclass(frozen=True, slots=True)
class Query:
    """A search: every clause holds, and all clauses of at least one allowance (none restricts nothing)."""

    resource_type: str
    clauses: tuple[Clause, ...] = ()
    allowed: tuple[tuple[Clause, ...], ...] = ((),)
    order: Order = Order()


@dataclass(frozen=True, slots=True)
class Hit:
    """A found resource with the key its page ends by."""

    stored: Stored
    key: int


# --- reading -------------------------------------------------------------------------------------------------

_COLUMNS = (
    resource.c.resource_type,
    resource.c.resource_id,
    resource.c.version,
    resource.c.updated,
    resource.c.deleted,
    resource.c.body,
)


def current(connection: Connection, resource_type: str, resource_id: str, *, for_update: bool = False) -> Stored | None:
    """The current version, deleted ones included; for update it is locked until the transaction ends."""
    statement = sa.select(*_COLUMNS).where(
        resource.c.resource_type == resource_type, resource.c.resource_id == resource_id
    )
    # SQLite has one writer at a time and ignores FOR UPDATE.
    row = connection.execute(statement.with_for_update() if for_update else statement).one_or_none()
    return _stored(row) if row else None


def version(connection: Connection, resource_type: str, resource_id: str, number: int) -> Stored | None:
    """One version of the history."""
    table = resource_version.c
    statement = sa.select(
        table.resource_type, table.resource_id, table.version, table.updated, table.deleted, table.body
    ).where(table.resource_type == resource_type, table.resource_id == resource_id, table.version == number)
    row = connection.execute(statement).one_or_none()
    return _stored(row) if row else None


def by_natural_key(connection: Connection, natural_key: str) -> Stored | None:
    """The current version of what bears this key."""
    row = connection.execute(sa.select(*_COLUMNS).where(resource.c.natural_key == natural_key)).one_or_none()
    return _stored(row) if row else None


def _stored(row: Sequence[Any]) -> Stored:
    return Stored(row[0], row[1], row[2], row[3], bool(row[4]), bytes(row[5]))


# --- writing -------------------------------------------------------------------------------------------------


def add(connection: Connection, new: Stored, index: Index, *, cause: str, natural_key: str | None = None) -> None:
    """Store a first version; Conflict when the id or the natural key is taken."""
    values = {**_columns(new, index), "natural_key": natural_key}
    statement = insert(connection, resource).values(values).on_conflict_do_nothing().returning(resource.c.version)
    if connection.execute(statement).first() is None:
        raise Conflict(f"{new.resource_type}/{new.resource_id} has been created meanwhile")
    _keep(connection, new, index, cause)


def replace(connection: Connection, new: Stored, index: Index, *, cause: str, natural_key: str | None = None) -> None:
    """Store the next version of a row that is locked; a natural key of None leaves the one it has."""
    values = _columns(new, index)
    if natural_key is not None:
        holder = by_natural_key(connection, natural_key)
        if holder and (holder.resource_type, holder.resource_id) != (new.resource_type, new.resource_id):
            raise Conflict("another resource bears this natural key")
        values["natural_key"] = natural_key
    connection.execute(resource.update().where(*_is(resource, new)).values(values))
    for table in INDEX_TABLES:
        connection.execute(table.delete().where(*_is(table, new)))
    _keep(connection, new, index, cause)


def _is(table: sa.Table, stored: Stored) -> tuple[sa.ColumnElement[bool], ...]:
    return table.c.resource_type == stored.resource_type, table.c.resource_id == stored.resource_id


def _columns(new: Stored, index: Index) -> dict[str, Any]:
    return {
        "resource_type": new.resource_type,
        "resource_id": new.resource_id,
        "version": new.version,
        "updated": new.updated,
        "deleted": new.deleted,
        "body": new.body,
        "patient_id": index.patient_id,
        "sort": index.sort,
    }


def _keep(connection: Connection, new: Stored, index: Index, cause: str) -> None:
    owner = {"resource_type": new.resource_type, "resource_id": new.resource_id}
    kept = {"version": new.version, "updated": new.updated, "deleted": new.deleted, "body": new.body}
    connection.execute(resource_version.insert().values(**owner, **kept, cause=cause))
    rows: tuple[tuple[sa.Table, set[tuple[Any, ...]], tuple[str, ...]], ...] = (
        (index_token, {(p, cut(s), cut(v)) for p, s, v in index.tokens}, ("param", "system", "value")),
        (index_reference, {(p, t, cut(i)) for p, t, i in index.references}, ("param", "target_type", "target_id")),
        (index_date, set(index.dates), ("param", "lo", "hi")),
        (index_string, {(p, cut(f), cut(e)) for p, f, e in index.strings}, ("param", "folded", "exact")),
    )
    for table, values, names in rows:
        if values:
            connection.execute(table.insert(), [{**owner, **dict(zip(names, value, strict=True))} for value in values])


def cut(text: str) -> str:
    """The part of a text that an index row can hold."""
    if len(text) * 4 <= _KEY_BYTES:
        return text
    return text.encode()[:_KEY_BYTES].decode(errors="ignore")


# --- searching -----------------------------------------------------------------------------------------------


def search(connection: Connection, query: Query, *, limit: int, after: tuple[int, str] | None = None) -> list[Hit]:
    """At most `limit` resources in order, beginning after the key and id of the last one of the page before."""
    key = _key(query.order)
    by = _Unindexed(key) if _is_led(query) else key
    ordered = (by.desc(), resource.c.resource_id.desc()) if query.order.descending else (by, resource.c.resource_id)
    statement = sa.select(*_COLUMNS, key.label("page_key")).where(*_found(query)).order_by(*ordered).limit(limit)
    if after is not None:
        place, mark = sa.tuple_(key, resource.c.resource_id), sa.tuple_(sa.literal(after[0]), sa.literal(after[1]))
        statement = statement.where(place < mark if query.order.descending else place > mark)
    return [Hit(_stored(row), int(row[6])) for row in connection.execute(statement)]


def count(connection: Connection, query: Query) -> int:
    """How many resources the query finds."""
    return int(connection.execute(sa.select(sa.func.count()).select_from(resource).where(*_found(query))).scalar_one())


def _found(query: Query) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        resource.c.resource_type == query.resource_type,
        resource.c.deleted.is_(False),
        *(_clause(clause, query.resource_type) for clause in query.clauses),
        _allowed(query),
    )


def targets(connection: Connection, resource_type: str, param: str, ids: Iterable[str]) -> list[tuple[str, str]]:
    """(type, id) of what these resources point to by a reference parameter."""
    table = index_reference.c
    statement = (
        sa.select(table.target_type, table.target_id)
        .distinct()
        .where(table.resource_type == resource_type, table.param == param, table.resource_id.in_(list(ids)))
        .order_by(table.target_type, table.target_id)
    )
    return [(row[0], row[1]) for row in connection.execute(statement)]


def referrers(connection: Connection, resource_type: str, param: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Ids of the resources of a type that point to one of these (type, id) by a reference parameter."""
    table = index_reference.c
    statement = (
        sa.select(table.resource_id)
        .distinct()
        .where(table.resource_type == resource_type, table.param == param)
        .where(sa.tuple_(table.target_type, table.target_id).in_(list(pairs)))
        .order_by(table.resource_id)
    )
    return list(connection.execute(statement).scalars())


def several(connection: Connection, resource_type: str, ids: Iterable[str]) -> list[Stored]:
    """The current versions that are there, by id."""
    statement = (
        sa.select(*_COLUMNS)
        .where(resource.c.resource_type == resource_type, resource.c.resource_id.in_(list(ids)))
        .where(resource.c.deleted.is_(False))
        .order_by(resource.c.resource_id)
    )
    return [_stored(row) for row in connection.execute(statement)]


def _key(order: Order) -> sa.ColumnElement[int]:
    if order.by == "updated":
        return resource.c.updated
    if order.descending:
        return resource.c.sort
    return sa.case((resource.c.sort == UNDATED, sa.literal(_LAST)), else_=resource.c.sort)


def _allowed(query: Query) -> sa.ColumnElement[bool]:
    scopes = [
        sa.and_(sa.true(), *(_clause(clause, query.resource_type) for clause in clauses)) for clauses in query.allowed
    ]
    return sa.or_(sa.false(), *scopes)


def _clause(clause: Clause, resource_type: str) -> sa.ColumnElement[bool]:
    either = sa.or_(sa.false(), *(_condition(condition, resource_type) for condition in clause.any_of))
    return sa.not_(either) if clause.negated else either


def _condition(condition: Condition, resource_type: str) -> sa.ColumnElement[bool]:
    match condition:
        case Ids(values):
            return resource.c.resource_id.in_(sorted(values))
        case Owner(patient_id):
            return resource.c.patient_id == patient_id
        case Date("_lastUpdated", prefix, lo, hi):
            return _compared(resource.c.updated, resource.c.updated + 1, prefix, (lo, hi))
        case Token() | Target() | Text() | Date() | Present():
            return _indexed(condition, resource_type)


def _indexed(condition: Indexed, resource_type: str) -> sa.ColumnElement[bool]:
    table = TABLES[_kind(condition)]
    rows = sa.select(table.c.resource_id).where(
        table.c.resource_type == resource_type, table.c.param == condition.param, *_wanted(condition, table.c)
    )
    if _leads(condition):
        return resource.c.resource_id.in_(rows)
    # Asked of each resource in page order by the owner's index, so that a full page ends the search early.
    return rows.where(table.c.resource_id == resource.c.resource_id).correlate(resource).exists()


class _Unindexed(FunctionElement[Any]):
    """A column that SQLite shall not choose an index by: without statistics it guesses badly."""

    name = "unindexed"
    inherit_cache = True

    def __init__(self, column: sa.ColumnElement[Any]) -> None:
        """The value is the column's own."""
        super().__init__(column)
        self.type = column.type


@compiles(_Unindexed)
def _plain(element: _Unindexed, compiler: Any, **how: Any) -> str:
    return compiler.process(element.clauses, **how)


@compiles(_Unindexed, "sqlite")
def _pinned(element: _Unindexed, compiler: Any, **how: Any) -> str:
    return f"+{compiler.process(element.clauses, **how)}"


def _leads(condition: Condition) -> bool:
    """Whether few resources meet the condition, so that a search had better begin with them."""
    match condition:
        case Ids() | Owner() | Target():
            return True
        case Token(param, _, value):
            return value is not None and param in SELECTIVE
        case Text(_, mode, _):
            return mode != "contains"
        case Date() | Present():
            return False


def _is_led(query: Query) -> bool:
    """Whether some condition leads, whichever of the allowances holds."""
    return any(map(_clause_leads, query.clauses)) or all(any(map(_clause_leads, clauses)) for clauses in query.allowed)


def _clause_leads(clause: Clause) -> bool:
    return not clause.negated and all(map(_leads, clause.any_of))


def _kind(condition: Indexed) -> Kind:
    match condition:
        case Token():
            return "token"
        case Target():
            return "reference"
        case Date():
            return "date"
        case Text():
            return "string"
        case Present(_, kind):
            return kind


def _wanted(condition: Indexed, column: Columns) -> list[sa.ColumnElement[bool]]:
    """What the condition's row in its index table must say."""
    match condition:
        case Token(_, system, value):
            said = {"value": value, "system": system}
            return [column[name] == cut(text) for name, text in said.items() if text is not None]
        case Target(_, target_type, target_id):
            kind = [] if target_type is None else [column["target_type"] == target_type]
            return [column["target_id"] == cut(target_id), *kind]
        case Date(_, prefix, lo, hi):
            return [_compared(column["lo"], column["hi"], prefix, (lo, hi))]
        case Text(_, mode, value):
            return [_spelled(column, mode, cut(value))]
        case Present():
            return []


SELECTIVE = frozenset(
    {"identifier", "requisition", "group-identifier", "series", "instance", "phone", "email", "telecom"}
)
"""Tokens that few resources share."""


def _spelled(column: Columns, mode: str, value: str) -> sa.ColumnElement[bool]:
    match mode:
        case "exact":
            return column["exact"] == value
        case "contains":
            return column["folded"].contains(value, autoescape=True)
        case _:
            return column["folded"].startswith(value, autoescape=True)


def _compared(
    lo: sa.ColumnElement[int], hi: sa.ColumnElement[int], prefix: str, wanted: tuple[int, int]
) -> sa.ColumnElement[bool]:
    """The range rules of https://hl7.org/fhir/R4/search.html#prefix for a target [lo, hi)."""
    least, most = wanted
    within = sa.and_(lo >= least, hi <= most)
    rules: dict[str, sa.ColumnElement[bool]] = {
        "eq": within,
        "ne": sa.not_(within),
        "gt": hi > most,
        "lt": lo < least,
        "ge": sa.or_(hi > most, within),
        "le": sa.or_(lo < least, within),
        "sa": lo >= most,
        "eb": hi <= least,
        "ap": sa.and_(lo < most, hi > least),
    }
    return rules[prefix]
