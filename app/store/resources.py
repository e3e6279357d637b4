"""Rows of FHIR resources: current bytes, replaced versions, and the index that finds them."""

# ruff: noqa: S608 - SQL is put together from our own words; every value is bound

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypedDict, Unpack

import psycopg
from sqlalchemy.engine import Connection

from app.errors import Conflict
from app.store import plan
from app.store.database import insert, is_sqlite, run, run_many, seen, together
from app.store.query import SHORT, Index, Place, Query, cut, key
from app.store.tables import cursor

DAY = 86_400_000
_CHUNK = 1000
_CHUNK_BYTES = 16 << 20
"""PostgreSQL gets at most so much in one statement."""
_RUNS = (256, 32)
"""SQLite gets so many index rows in one statement."""
_DIGEST = "search index"
_APART = "apart"


@dataclass(slots=True)
class Stored:
    """One version of a resource as it is stored; `updated` is in milliseconds, `rid` the resource's number.

    Nobody changes one; but to freeze it would cost as much as reading its row, and a page has a thousand.
    """

    resource_type: str
    resource_id: str
    version: int
    updated: int
    deleted: bool
    body: bytes
    rid: int = 0
    patient_id: str | None = None
    method: str = ""
    """The HTTP method that made the version; nothing when the server itself did."""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A version to store; `before` is the one it replaces, read for update. A natural key of None stays as it is."""

    new: Stored
    index: Index
    before: Stored | None = None
    natural_key: str | None = None


class Hit(NamedTuple):
    """What was found, and the place to go on from."""

    stored: Stored
    place: Place


class Found(NamedTuple):
    """As much of a current version as a page of a search shows, and the place to go on from.

    A page has up to a thousand: what nobody shows would cost more than finding them.
    """

    rid: int
    resource_type: str
    resource_id: str
    body: bytes
    place: Place


# --- reading -------------------------------------------------------------------------------------------------

_COLUMNS = (
    "r.resource_type, r.resource_id, r.version, r.updated, r.deleted, r.body, r.rid, r.patient_id, r.method, r.cause"
)
_OLD_COLUMNS = (
    "r.resource_type, r.resource_id, v.version, v.updated, v.deleted, v.body, r.rid, r.patient_id, v.method, v.cause"
)


def current(connection: Connection, resource_type: str, resource_id: str, *, for_update: bool = False) -> Stored | None:
    """The current version, deleted ones included; for update it is locked until the transaction ends."""
    if not resource_id:
        return None
    sql = f"SELECT {_COLUMNS} FROM resource r WHERE r.resource_type = ? AND r.resource_id = ?"
    row = run(connection, sql + _locked(connection, for_update), (resource_type, resource_id)).fetchone()
    return _stored(row) if row else None


def currents(
    connection: Connection, pairs: Iterable[tuple[str, str]], *, for_update: bool = False
) -> dict[tuple[str, str], Stored]:
    """The current versions of these (type, id), locked in one order so that nobody waits in a circle."""
    wanted = sorted(set(pairs))
    if is_sqlite(connection):
        found = (current(connection, *pair) for pair in wanted)
        return {(one.resource_type, one.resource_id): one for one in found if one is not None}
    sql = (
        f"SELECT {_COLUMNS} FROM resource r WHERE (r.resource_type, r.resource_id) IN"
        f" (SELECT * FROM unnest(?::text[], ?::text[])) ORDER BY r.rid{_locked(connection, for_update)}"
    )
    rows = run(connection, sql, [list(column) for column in zip(*wanted, strict=True)]) if wanted else ()
    return {(row[0], row[1]): _stored(row) for row in rows}


def version(connection: Connection, resource_type: str, resource_id: str, number: int) -> Stored | None:
    """One version of the history."""
    sql = f"""SELECT {_COLUMNS} FROM resource r WHERE r.resource_type = ? AND r.resource_id = ? AND r.version = ?
        UNION ALL SELECT {_OLD_COLUMNS} FROM resource r JOIN resourceversion v ON v.rid = r.rid
        WHERE r.resource_type = ? AND r.resource_id = ? AND v.version = ?"""
    row = run(connection, sql, (resource_type, resource_id, number) * 2).fetchone()
    return _stored(row) if row else None


def by_natural_key(connection: Connection, natural_key: str) -> Stored | None:
    """The current version of what bears this key."""
    row = run(connection, f"SELECT {_COLUMNS} FROM resource r WHERE r.natural_key = ?", (natural_key,)).fetchone()
    return _stored(row) if row else None


def with_token(connection: Connection, resource_type: str, param: str, system: str, value: str) -> list[Stored]:
    """The current versions that a token parameter finds by system and value, the oldest first."""
    sql = f"""SELECT {_COLUMNS} FROM indextoken t CROSS JOIN resource r
        WHERE t.param = ? AND t.value = ? AND t.system = ? AND r.rid = t.rid ORDER BY r.rid"""
    found = run(connection, sql, (key(resource_type, param), cut(value), cut(system))).fetchall()
    return [_stored(row) for row in found]


def several(connection: Connection, resource_type: str, ids: Iterable[str]) -> list[Stored]:
    """The current versions that are there, by id."""
    found = currents(connection, ((resource_type, resource_id) for resource_id in ids))
    return [stored for _, stored in sorted(found.items()) if not stored.deleted]


def lock(connection: Connection, text: str) -> None:
    """Let only one transaction at a time go on with this text. SQLite has one writer anyway."""
    if not is_sqlite(connection):
        run(connection, "SELECT pg_advisory_xact_lock(hashtextextended(?, 0))", (text,))


def _locked(connection: Connection, for_update: bool) -> str:
    return " FOR UPDATE OF r" if for_update and not is_sqlite(connection) else ""


def _stored(row: Sequence[Any]) -> Stored:
    return Stored(row[0], row[1], row[2], row[3], bool(row[4]), row[5], row[6], row[7], row[8], row[9])


# --- history -------------------------------------------------------------------------------------------------


class Past(TypedDict, total=False):
    """Which versions: of one resource, of types, or all; made since, or current at some moment of [lo, hi).

    With a patient, those of resources that are now this patient's or nobody's.
    """

    resource_type: str | None
    types: Sequence[str] | None
    resource_id: str | None
    since: int | None
    at: tuple[int, int] | None
    patient_id: str | None


def history(connection: Connection, *, limit: int, after: Place | None = None, **past: Unpack[Past]) -> list[Hit]:
    """Versions, the newest first."""
    one = past.get("resource_type")
    kinds = (one,) if one is not None else tuple(past.get("types") or (None,))
    branches = [_branch(past, kind, after, row) for kind in kinds for row in ("r", "v")]
    sql = " UNION ALL ".join(f"SELECT * FROM ({text} LIMIT ?) b{number}" for number, (text, _) in enumerate(branches))
    values = [value for _, these in branches for value in (*these, limit)]
    rows = run(connection, f"{sql} {_latest(past, '')} LIMIT ?", (*values, limit))
    return [Hit(_stored(row), (row[3], row[6], row[2])) for row in rows]


def _latest(past: Past, row: str) -> str:
    by = ("version",) if past.get("resource_id") is not None else ("updated", "rid", "version")
    return f"ORDER BY {', '.join(f'{row}{name} DESC' for name in by)}"


def _branch(past: Past, kind: str | None, after: Place | None, row: str) -> tuple[str, list[Any]]:
    conditions = [*_which(past, kind, row), *_when(past, row)]
    if after is not None and past.get("resource_id") is not None:
        conditions.append((f"{row}.version < ?", after[2:]))
    elif after is not None:
        conditions.append((f"({row}.updated, {row}.rid, {row}.version) < (?, ?, ?)", after))
    where = " AND ".join(text for text, _ in conditions) or "1 = 1"
    columns = _OLD_COLUMNS if row == "v" else _COLUMNS
    sources = "resourceversion v JOIN resource r ON r.rid = v.rid" if row == "v" else "resource r"
    sql = f"SELECT {columns} FROM {sources} WHERE {where} {_latest(past, f'{row}.')}"
    return sql, [value for _, values in conditions for value in values]


def _which(past: Past, kind: str | None, row: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    resource_id = past.get("resource_id")
    if resource_id is not None:
        yield "r.resource_type = ? AND r.resource_id = ?", (kind, resource_id)
    elif kind is not None:
        yield f"{row}.resource_type = ?", (kind,)
    if past.get("patient_id") is not None:
        yield "(r.patient_id = ? OR r.patient_id IS NULL)", (past.get("patient_id"),)


def _when(past: Past, row: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    since, at = past.get("since"), past.get("at")
    if since is not None:
        yield f"{row}.updated >= ?", (since,)
    if at is not None:
        yield f"{row}.updated < ?", (at[1],)
        if row == "v":
            yield "v.until > ?", (at[0],)


# --- writing -------------------------------------------------------------------------------------------------


@contextmanager
def undoable(connection: Connection) -> Generator[None]:
    """What is written within is undone by an exception, and the transaction can go on."""
    run(connection, "SAVEPOINT undoable")
    try:
        yield
    except BaseException:
        run(connection, "ROLLBACK TO SAVEPOINT undoable")
        raise
    finally:
        run(connection, "RELEASE SAVEPOINT undoable")


def write(connection: Connection, changes: Sequence[Change]) -> list[Stored]:
    """Store these versions of different resources, with their numbers; Conflict when an id or natural key is taken.

    After a Conflict among several the transaction has to be rolled back.
    """
    written: list[Stored] = []
    for some in _chunks(changes):
        numbers = _insert(connection, [change for change in some if change.before is None])
        _supersede(connection, [change for change in some if change.before is not None])
        stored = [_numbered(change, numbers) for change in some]
        fresh = [(one, change.index) for one, change in zip(stored, some, strict=True) if change.before is None]
        known = [(one, change.index) for one, change in zip(stored, some, strict=True) if change.before is not None]
        if fresh:
            _index(connection, {}, _entries(fresh))
        if known:
            _index(connection, _indexed(connection, [one.rid for one, _ in known]), _entries(known))
        written += stored
    return written


def _chunks(changes: Sequence[Change]) -> Iterator[list[Change]]:
    some: list[Change] = []
    size = 0
    for change in changes:
        if some and (len(some) == _CHUNK or size + len(change.new.body) > _CHUNK_BYTES):
            yield some
            some, size = [], 0
        some.append(change)
        size += len(change.new.body)
    if some:
        yield some


def _numbered(change: Change, numbers: Mapping[tuple[str, str], int]) -> Stored:
    new, before = change.new, change.before
    rid = before.rid if before is not None else numbers[new.resource_type, new.resource_id]
    whose = (rid, _owner(change), new.method, new.cause)
    return Stored(new.resource_type, new.resource_id, new.version, new.updated, new.deleted, new.body, *whose)


def _owner(change: Change) -> str | None:
    """A deleted resource remains its patient's: its history does."""
    return change.before.patient_id if change.before is not None and change.new.deleted else change.index.patient_id


_NEW = (
    *(("resource_type", "text"), ("resource_id", "text"), ("version", "int"), ("updated", "bigint")),
    *(("deleted", "boolean"), ("patient_id", "text"), ("sort", "bigint"), ("cause", "text"), ("method", "text")),
    *(("body", "bytea"), ("natural_key", "text")),
)
_NEW_COLUMNS = tuple(name for name, _ in _NEW)
_NEW_NAMES = ", ".join(_NEW_COLUMNS)
_NEW_ARRAYS = ", ".join(f"?::{kind}[]" for _, kind in _NEW)


def _insert(connection: Connection, changes: Sequence[Change]) -> dict[tuple[str, str], int]:
    if not changes:
        return {}
    rows: list[tuple[Any, ...]] = [(*_columns(change), change.natural_key) for change in changes]
    if is_sqlite(connection):
        first = (run(connection, "SELECT max(rid) FROM resource").fetchone()[0] or 0) + 1
        numbered = [(first + number, *row) for number, row in enumerate(rows)]
        made = sum(_insert_values(connection, "resource", ("rid", *_NEW_COLUMNS), numbered, "ON CONFLICT DO NOTHING"))
        numbers = {(row[0], row[1]): first + number for number, row in enumerate(rows)}
    else:
        sql = f"""INSERT INTO resource ({_NEW_NAMES}) SELECT * FROM unnest({_NEW_ARRAYS})
            ON CONFLICT DO NOTHING RETURNING rid, resource_type, resource_id"""
        returned = run(connection, sql, [list(column) for column in zip(*rows, strict=True)]).fetchall()
        numbers = {(row[1], row[2]): row[0] for row in returned}
        made = len(returned)
    if made < len(changes):
        raise Conflict(f"{_name(changes)} has been created meanwhile")
    return numbers


def _name(changes: Sequence[Change]) -> str:
    new = changes[0].new
    return f"{new.resource_type}/{new.resource_id}" if len(changes) == 1 else f"one of {len(changes)} resources"


def _columns(change: Change) -> tuple[Any, ...]:
    new, index = change.new, change.index
    coordinates = (new.resource_type, new.resource_id, new.version, new.updated, new.deleted)
    return (*coordinates, _owner(change), index.sort, new.cause, new.method, new.body)


_MOVE = """INSERT INTO resourceversion
    (rid, version, resource_type, updated, until, deleted, cause, method, body)
    SELECT r.rid, r.version, r.resource_type, r.updated, {until}, r.deleted, r.cause, r.method, r.body FROM {rows}"""
_SET = """UPDATE resource SET version = {u}version, updated = {u}updated, deleted = {u}deleted,
    patient_id = {u}patient_id, sort = {u}sort, cause = {u}cause, method = {u}method, body = {u}body,
    natural_key = coalesce({u}natural_key, resource.natural_key)"""


def _supersede(connection: Connection, changes: Sequence[Change]) -> None:
    """Move the current versions aside and put the new ones in their place."""
    if not changes:
        return
    _claim(connection, changes)
    known = [(change.before.rid, change.before.version) for change in changes if change.before is not None]
    rows = [(*_columns(change)[2:], change.natural_key) for change in changes]
    try:
        if is_sqlite(connection):
            made = _supersede_each(connection, known, rows)
        else:
            made = _supersede_all(connection, known, rows)
    except (psycopg.errors.UniqueViolation, sqlite3.IntegrityError) as error:
        raise Conflict("another resource bears this natural key") from error
    if made < len(changes):
        raise Conflict(f"{_name(changes)} has been changed meanwhile")


def _supersede_each(connection: Connection, known: list[tuple[int, int]], rows: list[tuple[Any, ...]]) -> int:
    move = _MOVE.format(until="?", rows="resource r WHERE r.rid = ? AND r.version = ?")
    run_many(connection, move, ((row[1], *which) for which, row in zip(known, rows, strict=True)))
    put = """UPDATE resource SET version = ?, updated = ?, deleted = ?, patient_id = ?, sort = ?, cause = ?, method = ?,
        body = ?, natural_key = coalesce(?, natural_key) WHERE rid = ? AND version = ?"""
    return run_many(connection, put, ((*row, *which) for which, row in zip(known, rows, strict=True)))


def _supersede_all(connection: Connection, known: list[tuple[int, int]], rows: list[tuple[Any, ...]]) -> int:
    rids, versions = (list(column) for column in zip(*known, strict=True))
    columns = [list(column) for column in zip(*rows, strict=True)]
    which = "unnest(?::bigint[], ?::int[], ?::bigint[]) AS k (rid, version, until) JOIN resource r USING (rid, version)"
    names, kinds = zip(*_NEW[2:], strict=True)
    arrays = ", ".join(f"?::{kind}[]" for kind in kinds)
    put = f"""{_SET.format(u="u.")} FROM unnest(?::bigint[], ?::int[], {arrays}) AS u (rid, was, {", ".join(names)})
        WHERE resource.rid = u.rid AND resource.version = u.was"""
    with together(connection):
        run(connection, _MOVE.format(until="k.until", rows=which), (rids, versions, columns[1]))
        made = run(connection, put, (rids, versions, *columns))
    return int(made.rowcount)


def _claim(connection: Connection, changes: Sequence[Change]) -> None:
    for change in changes:
        holder = by_natural_key(connection, change.natural_key) if change.natural_key is not None else None
        if holder is not None and change.before is not None and holder.rid != change.before.rid:
            raise Conflict("another resource bears this natural key")


# --- the index -----------------------------------------------------------------------------------------------

Rows = Mapping[str, set[tuple[Any, ...]]]

_INDEX = {
    "indextoken": {"param": "bigint", "value": "text", "sort": "bigint", "rid": "bigint", "system": "text"},
    "indexreference": {
        "param": "bigint",
        "target_id": "text",
        "sort": "bigint",
        "rid": "bigint",
        "target_type": "text",
    },
    "indexdate": {"param": "bigint", "lo": "bigint", "rid": "bigint", "hi": "bigint", "apart": "boolean"},
    "indexstring": {"param": "bigint", "folded": "text", "rid": "bigint", "exact": "text"},
    "indexnumber": {
        **{"param": "bigint", "lo": "double precision", "rid": "bigint", "hi": "double precision"},
        **{"system": "text", "code": "text"},
    },
}
"""Each table with its columns; the owner's number is always among them."""


def _entries(written: Iterable[tuple[Stored, Index]]) -> Rows:
    rows: dict[str, set[tuple[Any, ...]]] = {table: set() for table in _INDEX}
    tokens, references, dates, strings, numbers = rows.values()
    for stored, index in written:
        kind, rid, sort = stored.resource_type, stored.rid, index.sort
        # A study has a thousand of these: asking for the length here is a third of calling a function that does.
        tokens |= {
            (key(kind, p), v if len(v) <= SHORT else cut(v), sort, rid, s if len(s) <= SHORT else cut(s))
            for p, s, v in index.tokens
        }
        references |= {(key(kind, p), cut(i), sort, rid, t) for p, t, i in index.references}
        times = Counter([p for p, _, _ in index.dates])
        dates |= {(key(kind, p), lo, rid, hi, hi - lo > DAY or times[p] > 1) for p, lo, hi in index.dates}
        strings |= {(key(kind, p), cut(f), rid, cut(e)) for p, f, e in index.strings}
        numbers |= {(key(kind, p), lo, rid, hi, cut(s), cut(c)) for p, lo, hi, s, c in index.numbers}
    return rows


def _indexed(connection: Connection, rids: Sequence[int]) -> Rows:
    """What the index holds of these resources."""
    if not rids:
        return {}
    if is_sqlite(connection):
        return {
            table: {
                row
                for rid in rids
                for row in run(connection, f"SELECT {', '.join(columns)} FROM {table} WHERE rid = ?", (rid,))
            }
            for table, columns in _INDEX.items()
        }
    with together(connection):
        answers = {
            table: run(connection, f"SELECT {', '.join(columns)} FROM {table} WHERE rid = ANY(?)", (list(rids),))
            for table, columns in _INDEX.items()
        }
        return {table: set(answer.fetchall()) for table, answer in answers.items()}


def _index(connection: Connection, before: Rows, now: Rows) -> None:
    """Write only what differs: most of a resource's values outlive a change."""
    with together(connection):
        for table, rows in now.items():
            had = before.get(table)
            if had:
                _delete_rows(connection, table, had - rows)
            # In the order of the primary key, so that neighbours land on one page.
            _insert_rows(connection, table, sorted(rows - had if had else rows))


def _delete_rows(connection: Connection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    columns = _INDEX[table]
    if not rows:
        return
    if is_sqlite(connection):
        same = " AND ".join(f"{name} = ?" for name in columns)
        run_many(connection, f"DELETE FROM {table} WHERE {same}", rows)
        return
    same = " AND ".join(f"{table}.{name} = u.{name}" for name in columns)
    sql = f"DELETE FROM {table} USING {_arrays(columns)} AS u ({', '.join(columns)}) WHERE {same}"
    run(connection, sql, [list(column) for column in zip(*rows, strict=True)])


def _insert_rows(connection: Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    columns = _INDEX[table]
    if not rows:
        return
    if is_sqlite(connection):
        for _ in _insert_values(connection, table, tuple(columns), rows):
            pass
        return
    sql = f"INSERT INTO {table} ({', '.join(columns)}) SELECT * FROM {_arrays(columns)}"
    run(connection, sql, [list(column) for column in zip(*rows, strict=True)])


def _insert_values(
    connection: Connection, table: str, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]], otherwise: str = ""
) -> Iterator[int]:
    """Insert on SQLite, many rows by each statement; how many rows each has inserted."""
    for some in _runs(rows):
        sql = _values(table, columns, len(some), otherwise)
        yield int(run(connection, sql, [*chain.from_iterable(some)]).rowcount)


@lru_cache(maxsize=1024)
def _values(table: str, columns: tuple[str, ...], rows: int, otherwise: str) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * rows)} {otherwise}"


def _runs(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Rows for one statement each: every statement hands Python's lock to other threads, and may wait to get it back.

    Two lengths and what remains of the smaller one, so that few statements are prepared.
    """
    at = 0
    for length in _RUNS:
        while len(rows) - at >= length:
            yield rows[at : at + length]
            at += length
    if at < len(rows):
        yield rows[at:]


def _arrays(columns: Mapping[str, str]) -> str:
    return f"unnest({', '.join(f'?::{kind}[]' for kind in columns.values())})"


def walk(connection: Connection, resource_type: str, after_rid: int, limit: int) -> list[Stored]:
    """Resources of a type that are not deleted, in the order of their numbers: for whoever fills the index again."""
    sql = f"""SELECT {_COLUMNS} FROM resource r WHERE r.resource_type = ? AND r.rid > ? AND NOT r.deleted
        ORDER BY r.rid LIMIT ?"""
    return [_stored(row) for row in run(connection, sql, (resource_type, after_rid, limit))]


def reindex(connection: Connection, found: Sequence[tuple[Stored, Index]]) -> None:
    """Index these again, but for those that have been changed since they were read."""
    pairs = [(stored.resource_type, stored.resource_id) for stored, _ in found]
    held = {one.rid: one.version for one in currents(connection, pairs, for_update=True).values()}
    fresh = [(stored, index) for stored, index in found if held.get(stored.rid) == stored.version]
    sql = "UPDATE resource SET patient_id = ?, sort = ? WHERE rid = ?"
    run_many(connection, sql, [(index.patient_id, index.sort, stored.rid) for stored, index in fresh])
    _index(connection, _indexed(connection, [stored.rid for stored, _ in fresh]), _entries(fresh))


def index_digest(connection: Connection) -> str:
    """What the index was filled by; nothing when it has to be filled again."""
    row = run(connection, "SELECT epoch FROM cursor WHERE name = ?", (_DIGEST,)).fetchone()
    return row[0] if row else ""


def set_index_digest(connection: Connection, digest: str) -> None:
    """Remember what the index has been filled by."""
    statement = insert(connection, cursor).values(name=_DIGEST, value=0, epoch=digest, detail={})
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"epoch": digest}))


# --- searching -----------------------------------------------------------------------------------------------


def search(connection: Connection, query: Query, *, limit: int, after: Place | None = None) -> list[Hit]:
    """At most `limit` resources in order, beginning after a place."""
    width = len(query.order) + 1
    return [Hit(_stored(row[width:]), row[:width]) for row in _page(connection, query, limit, after, _COLUMNS)]


def found(connection: Connection, query: Query, *, limit: int, after: Place | None = None) -> list[Found]:
    """The same, and no more of each than a page shows."""
    last, kind = len(query.order), query.resource_type
    rows = _page(connection, query, limit, after, "r.resource_id, r.body")
    return [Found(row[last], kind, row[-2], row[-1], row[: last + 1]) for row in rows]


def _page(connection: Connection, query: Query, limit: int, after: Place | None, columns: str) -> Iterable[Any]:
    page = plan.page(query, limit, after, _engine(connection))
    # One statement, so that what is shown is what was found.
    if is_sqlite(connection):
        # Never sorted again, with the bodies: the page is read in its order, and each row looked up beside it.
        sql = f"SELECT page.*, {columns} FROM ({page.text}) page CROSS JOIN resource r WHERE r.rid = page.rid"
    else:
        sql = f"""WITH page AS MATERIALIZED ({page.text}) SELECT page.*, {columns} FROM page
            JOIN resource r ON r.rid = page.rid {plan.ordering(query.order, "page.")}"""
    return run(connection, sql, page.values).fetchall()


def _engine(connection: Connection) -> plan.Engine:
    """On PostgreSQL a look beforehand would cost more than it saves, and each statement sees a later state."""
    if not is_sqlite(connection):
        return plan.Engine(False, lambda _: True)
    sql = "SELECT EXISTS (SELECT 1 FROM indexdate INDEXED BY ix_date_apart WHERE param = ? AND apart)"
    known = seen(connection)

    def has_apart(number: int) -> bool:
        found = known.get((_APART, number))
        if found is None:
            found = known[_APART, number] = bool(run(connection, sql, (number,)).fetchone()[0])
        return found

    return plan.Engine(True, has_apart)


def count(connection: Connection, query: Query) -> int:
    """How many resources the query finds."""
    counted = plan.count(query, _engine(connection))
    return int(run(connection, counted.text, counted.values).fetchone()[0])


def estimate(connection: Connection, query: Query) -> int:
    """About how many: the exact number, which the index counts quickly."""
    return count(connection, query)


def targets(
    connection: Connection, resource_type: str, param: str, rids: Sequence[int], limit: int
) -> list[tuple[str, str]]:
    """(type, id) of what these resources point to by a reference parameter; foreign ones have no type."""
    sql = f"""SELECT DISTINCT x.target_type, x.target_id FROM {_numbers(connection)} CROSS JOIN indexreference x
        WHERE x.rid = j.value AND x.param = ? ORDER BY x.target_type, x.target_id LIMIT ?"""
    values = (_listed(connection, list(rids)), key(resource_type, param), limit)
    return [(row[0], row[1]) for row in run(connection, sql, values)]


def referrers(
    connection: Connection, resource_type: str, param: str, pairs: Sequence[tuple[str, str]], limit: int
) -> list[str]:
    """Ids of the resources of a type that point to one of these (type, id) by a reference parameter."""
    found: dict[str, None] = {}
    sql = """SELECT DISTINCT r.resource_id FROM indexreference x CROSS JOIN resource r
        WHERE x.param = ? AND x.target_id = ? AND x.target_type = ? AND r.rid = x.rid ORDER BY r.resource_id LIMIT ?"""
    number = key(resource_type, param)
    with together(connection):
        answers = [run(connection, sql, (number, cut(target), kind, limit)) for kind, target in dict.fromkeys(pairs)]
        for answer in answers:
            found.update((row[0], None) for row in answer.fetchall())
    return sorted(found)[:limit]


def referring_types(connection: Connection, pointing: Iterable[tuple[str, str]], stored: Stored) -> list[str]:
    """Which types point to a resource by one of these (type, reference parameter)."""
    kinds = {key(kind, param): kind for kind, param in pointing}
    sql = f"""SELECT DISTINCT x.param FROM {_numbers(connection)} CROSS JOIN indexreference x
        WHERE x.param = j.value AND x.target_id = ? AND x.target_type = ? AND x.rid <> ?"""
    values = (_listed(connection, list(kinds)), cut(stored.resource_id), stored.resource_type, stored.rid)
    return sorted({kinds[row[0]] for row in run(connection, sql, values)})


def _numbers(connection: Connection) -> str:
    return "json_each(?) j" if is_sqlite(connection) else "unnest(?::bigint[]) AS j (value)"


def _listed(connection: Connection, numbers: list[int]) -> Any:
    return str(numbers) if is_sqlite(connection) else numbers
