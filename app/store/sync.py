"""Where reading the archive stands: cursors, its change log as read, studies to look at again, workers, leases."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert, is_sqlite, now, run, run_many, upsert
from app.store.tables import cursor, dirty_study, inbox, lease, study, worker

CLAIM_MS = 30_000
"""How long a claim lasts that no worker's life ends."""
WORKING_MS = 600_000
"""How long a living worker may take for one study."""
FAR = 2**62
LIVE, RESYNC = 0, 1
"""Priorities: what has just happened goes before what a comparison found."""
DUE = """SELECT orthanc_id, mark, attempts, reason FROM dirtystudy
    WHERE due <= ? AND (claimed_until <= ?
        OR worker <> '' AND worker NOT IN (SELECT id FROM worker WHERE until > ?))
    ORDER BY priority, due LIMIT ?"""
"""What nobody has claimed who still lives."""
OWNED = "SELECT 1 FROM dirtystudy WHERE orthanc_id = ? AND claimed_until = ? AND worker = ?"
DONE = "DELETE FROM dirtystudy WHERE orthanc_id = ? AND claimed_until = ? AND worker = ? AND mark = ?"
AGAIN = """UPDATE dirtystudy SET claimed_until = 0, worker = '', attempts = 0, since = marked
    WHERE orthanc_id = ? AND claimed_until = ? AND worker = ?"""
LATER = """UPDATE dirtystudy SET claimed_until = 0, worker = '', attempts = ?,
        due = CASE WHEN mark = ? THEN ? ELSE due END
    WHERE orthanc_id = ? AND claimed_until = ? AND worker = ?"""
KEPT = 10_000
"""So many rows of the change log stay, to know a repeat and to tell what made a version."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a source has been read."""

    value: int = 0
    epoch: str = ""
    detail: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the archive's change log, and the study it touched (empty when that is gone)."""

    seq: int
    kind: str
    resource: str
    study: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A wish to look at a study: not before `delay_ms`; later marks put it off up to `latest_ms` and no longer."""

    orthanc_id: str
    reason: str
    delay_ms: int = 0
    latest_ms: int = 0
    priority: int = LIVE


@dataclass(frozen=True, slots=True)
class Dirty:
    """A study to look at again; `mark` tells whether it was marked once more meanwhile."""

    orthanc_id: str
    mark: int
    attempts: int
    reason: str
    until: int
    """When the claim ends: with the worker, the claim's own name as well."""
    worker: str = ""


def position(connection: Connection, name: str) -> Position:
    """The stored position, or the beginning."""
    row = connection.execute(sa.select(cursor).where(cursor.c.name == name)).mappings().first()
    return Position(row["value"], row["epoch"], row["detail"]) if row else Position()


def move(connection: Connection, name: str, to: Position) -> None:
    """Store a position."""
    values = {"name": name, "value": to.value, "epoch": to.epoch, "detail": to.detail or {}}
    upsert(connection, cursor, values, keys=("name",))


# --- the change log as read --------------------------------------------------------------------------------------


def heard(connection: Connection, epoch: str, after: int) -> dict[int, str]:
    """What was read of the log beyond `after`: the archive's id of what changed, by sequence number."""
    own = sa.and_(inbox.c.epoch == epoch, inbox.c.seq > after)
    return {row[0]: row[1] for row in connection.execute(sa.select(inbox.c.seq, inbox.c.resource).where(own))}


def hear(connection: Connection, epoch: str, changes: Sequence[Change]) -> None:
    """Keep rows of the log; one that is known already stays as it was."""
    moment = now()
    statement = """INSERT INTO inbox (epoch, seq, kind, resource, study, at) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT (epoch, seq) DO NOTHING"""
    run_many(connection, statement, [(epoch, one.seq, one.kind, one.resource, one.study, moment) for one in changes])


def forget_changes(connection: Connection, epoch: str, last: int) -> None:
    """Drop the rows of other databases, and all but the newest of this one."""
    connection.execute(inbox.delete().where(sa.or_(inbox.c.epoch != epoch, inbox.c.seq <= last - KEPT)))


# --- studies to look at again --------------------------------------------------------------------------------------


def mark(
    connection: Connection, orthanc_ids: Iterable[str], reason: str, *, delay_ms: int = 0, priority: int = LIVE
) -> None:
    """Have these studies looked at (again), not before `delay_ms` from now unless one is due sooner."""
    mark_each(connection, [Mark(one, reason, delay_ms, delay_ms, priority) for one in orthanc_ids])


def mark_each(connection: Connection, marks: Iterable[Mark]) -> None:
    """The same, each study with a reason and a pace of its own."""
    moment = now()
    # In one order, so that two transactions do not wait for each other.
    rows = [
        {
            "orthanc_id": one.orthanc_id, "mark": 1, "priority": one.priority, "reason": one.reason,
            "due": moment + one.delay_ms, "latest": moment + max(one.delay_ms, one.latest_ms),
            "since": moment, "marked": moment, "claimed_until": 0, "worker": "", "attempts": 0,
        }
        for one in sorted(marks, key=lambda one: one.orthanc_id)
    ]  # fmt: skip
    if not rows:
        return
    first = insert(connection, dirty_study)
    new, old = first.excluded, dirty_study.c
    latest = _lesser(old.latest, new.latest)
    again = {
        "mark": old.mark + 1,
        "priority": _lesser(old.priority, new.priority),
        "reason": new.reason,
        "due": _lesser(new.due, latest),
        "latest": latest,
        "marked": new.marked,
    }
    connection.execute(first.on_conflict_do_update(index_elements=["orthanc_id"], set_=again), rows)


def _lesser(left: Any, right: Any) -> Any:
    return sa.case((left < right, left), else_=right)


def claim(connection: Connection, owner: str = "") -> Dirty | None:
    """One study that is due, claimed so that nobody else looks at the same time."""
    return next(iter(claim_some(connection, owner, 1)), None)


def claim_some(connection: Connection, owner: str, limit: int) -> list[Dirty]:
    """Studies that are due, claimed by a worker for as long as it lives: what is new first."""
    moment = now()
    lock = "" if is_sqlite(connection) else " FOR UPDATE SKIP LOCKED"
    rows = run(connection, DUE + lock, (moment, moment, moment, limit)).fetchall()
    until = moment + (WORKING_MS if owner else CLAIM_MS)
    if rows:
        # Marks made from now on have a pace of their own.
        taken = "UPDATE dirtystudy SET claimed_until = ?, worker = ?, latest = ? WHERE orthanc_id = ?"
        run_many(connection, taken, [(until, owner, FAR, row[0]) for row in rows])
    return [Dirty(row[0], row[1], row[2], row[3], until, owner) for row in rows]


def is_due(connection: Connection) -> bool:
    """Whether any study could be claimed now."""
    moment = now()
    return run(connection, DUE, (moment, moment, moment, 1)).fetchone() is not None


def owned(connection: Connection, dirty: Dirty) -> bool:
    """Whether the claim is still ours: after it has ended another worker may have looked, later than we did."""
    lock = "" if is_sqlite(connection) else " FOR UPDATE"
    return run(connection, OWNED + lock, _own(dirty)).fetchone() is not None


def clean(connection: Connection, dirty: Dirty) -> None:
    """The study was looked at; it stays dirty if it was marked again since it was claimed."""
    if not run(connection, DONE, (*_own(dirty), dirty.mark)).rowcount:
        run(connection, AGAIN, _own(dirty))


def postpone(connection: Connection, dirty: Dirty, delay_ms: int, attempts: int = 0) -> None:
    """Look at the study again after `delay_ms`, or when a mark made meanwhile wants it; so many looks have failed."""
    run(connection, LATER, (attempts, dirty.mark, now() + delay_ms, *_own(dirty)))


def _own(dirty: Dirty) -> tuple[str, int, str]:
    return dirty.orthanc_id, dirty.until, dirty.worker


def waiting(connection: Connection) -> int:
    """How many studies are to be looked at."""
    return connection.execute(sa.select(sa.func.count()).select_from(dirty_study)).scalar_one()


def oldest(connection: Connection) -> int | None:
    """When the oldest mark was made that nobody has dealt with; None when nothing waits."""
    return connection.execute(sa.select(sa.func.min(dirty_study.c.since))).scalar()


# --- workers and leases ----------------------------------------------------------------------------------------------


def live(connection: Connection, owner: str, *, seconds: float) -> None:
    """A worker lives for so many seconds more: what it claimed stays its own."""
    moment = now()
    row = {"id": owner, "until": moment + int(seconds * 1000), "started": moment}
    first = insert(connection, worker).values(row)
    connection.execute(first.on_conflict_do_update(index_elements=["id"], set_={"until": first.excluded.until}))


def living(connection: Connection) -> dict[str, int]:
    """The workers that have not been found dead, and until when each said that it lives."""
    return {row[0]: row[1] for row in connection.execute(sa.select(worker.c.id, worker.c.until))}


def bury(connection: Connection, owners: Collection[str]) -> None:
    """These workers are no more: what they held is free at once."""
    own = list(owners)
    free = {"claimed_until": 0, "worker": ""}
    connection.execute(dirty_study.update().where(dirty_study.c.worker.in_(own)).values(free))
    connection.execute(lease.update().where(lease.c.owner.in_(own)).values(until=0))
    connection.execute(worker.delete().where(worker.c.id.in_(own)))


def hold(connection: Connection, name: str, owner: str, *, seconds: float) -> int | None:
    """Take or keep a lease; the fencing number when it is ours, None when another owner holds it."""
    moment = now()
    until = moment + int(seconds * 1000)
    row = connection.execute(sa.select(lease).where(lease.c.name == name).with_for_update()).mappings().first()
    if row is None:
        first = insert(connection, lease).values(name=name, owner=owner, fence=1, until=until)
        made = connection.execute(first.on_conflict_do_nothing()).rowcount
        return 1 if made else None
    if row["owner"] != owner and row["until"] > moment:
        return None
    fence = row["fence"] if row["owner"] == owner else row["fence"] + 1
    connection.execute(lease.update().where(lease.c.name == name).values(owner=owner, fence=fence, until=until))
    return fence


def require(connection: Connection, name: str, fence: int) -> bool:
    """Whether the lease still has this fencing number: asked inside every leased write."""
    statement = sa.select(lease.c.fence).where(lease.c.name == name).with_for_update()
    return connection.execute(statement).scalar() == fence


# --- what we know the archive to hold --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """A study as it was last published."""

    orthanc_id: str
    study_uid: str
    imaging_study_id: str
    patient_id: str
    order_id: str | None
    digest: str
    changed: int
    complete: bool
    missing_since: int | None
    instances: int
    """0 when it was withdrawn."""
    series: int = 0
    last_update: str = ""
    """What the archive said of its last change when it was looked at."""


COLUMNS = tuple(study.c[name] for name in Known.__dataclass_fields__)
NAMES = ", ".join(Known.__dataclass_fields__)
KNOWN = f"SELECT {NAMES} FROM study WHERE orthanc_id = ?"  # noqa: S608 - our own names
WRITE = (
    f"INSERT INTO study ({NAMES}) VALUES ({', '.join('?' for _ in COLUMNS)})"  # noqa: S608 - our own names
    f" ON CONFLICT (orthanc_id) DO UPDATE SET {', '.join(f'{one.name} = excluded.{one.name}' for one in COLUMNS[1:])}"
)


def known(connection: Connection, orthanc_id: str) -> Known | None:
    """What was published of a study of the archive."""
    lock = "" if is_sqlite(connection) else " FOR UPDATE"
    row = run(connection, KNOWN + lock, (orthanc_id,)).fetchone()
    # SQLite tells a boolean as a number.
    return replace(found := Known(*row), complete=bool(found.complete)) if row else None


def write(connection: Connection, row: Known) -> None:
    """Keep what has just been published."""
    run(connection, WRITE, tuple(getattr(row, name) for name in Known.__dataclass_fields__))


def touched(connection: Connection, row: Known, last_update: str) -> None:
    """The archive says another time of a study in which nothing changed."""
    if row.last_update != last_update:
        run(connection, "UPDATE study SET last_update = ? WHERE orthanc_id = ?", (last_update, row.orthanc_id))


def present(connection: Connection) -> dict[str, int]:
    """Every study believed to be in the archive, with its number of instances."""
    statement = sa.select(study.c.orthanc_id, study.c.instances).where(study.c.missing_since.is_(None))
    return {row[0]: row[1] for row in connection.execute(statement)}


def published(connection: Connection, orthanc_ids: Iterable[str]) -> frozenset[str]:
    """Those of these studies that have been published and are believed to be in the archive."""
    own = sa.and_(study.c.orthanc_id.in_(list(orthanc_ids)), study.c.missing_since.is_(None))
    return frozenset(connection.execute(sa.select(study.c.orthanc_id).where(own)).scalars())


def reconsider(connection: Connection, orthanc_ids: Iterable[str], reason: str) -> None:
    """Publish these studies anew although the archive holds nothing else: what they mean has changed."""
    wanted = list(orthanc_ids)
    connection.execute(study.update().where(study.c.orthanc_id.in_(wanted)).values(digest=""))
    mark(connection, wanted, reason)


def leaving(connection: Connection) -> frozenset[str]:
    """The studies that have disappeared but are not withdrawn yet."""
    own = sa.and_(study.c.missing_since.is_not(None), study.c.instances > 0)
    return frozenset(connection.execute(sa.select(study.c.orthanc_id).where(own)).scalars())


def quiet(connection: Connection, before: int) -> list[Known]:
    """Studies without a change since `before` (ms) that are not yet complete."""
    settled = sa.and_(study.c.complete.is_(False), study.c.missing_since.is_(None), study.c.changed <= before)
    return [Known(*row) for row in connection.execute(sa.select(*COLUMNS).where(settled).limit(100))]


def forget_digests(connection: Connection) -> int:
    """Have every study written anew, as if it had never been published; how many."""
    here = sa.select(study.c.orthanc_id).where(study.c.missing_since.is_(None))
    ids = list(connection.execute(here).scalars())
    connection.execute(study.update().where(study.c.missing_since.is_(None)).values(digest=""))
    mark(connection, ids, "rebuild")
    return len(ids)
