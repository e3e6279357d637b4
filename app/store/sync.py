"""Where the reading of the archive stands: cursors, studies to look at again, leases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert, now, upsert
from app.store.tables import cursor, dirty_study, lease, study

CLAIM_MS = 30_000


@dataclass(frozen=True, slots=True)
class Position:
    """How far a source has been read."""

    value: int = 0
    epoch: str = ""
    detail: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Dirty:
    """A study to look at again; `mark` tells whether it was marked once more meanwhile."""

    orthanc_id: str
    mark: int
    attempts: int
    reason: str
    until: int
    """When the claim ends: the claim's own name as well."""


def position(connection: Connection, name: str) -> Position:
    """The stored position, or the beginning."""
    row = connection.execute(sa.select(cursor).where(cursor.c.name == name)).mappings().first()
    return Position(row["value"], row["epoch"], row["detail"]) if row else Position()


def move(connection: Connection, name: str, to: Position) -> None:
    """Store a position."""
    values = {"name": name, "value": to.value, "epoch": to.epoch, "detail": to.detail or {}}
    upsert(connection, cursor, values, keys=("name",))


def mark(connection: Connection, orthanc_ids: Iterable[str], reason: str, *, delay_ms: int = 0) -> None:
    """Have these studies looked at (again), not before `delay_ms` from now unless one is due sooner."""
    due = now() + delay_ms
    # In one order, so that two transactions do not wait for each other.
    for orthanc_id in sorted(orthanc_ids):
        first = insert(connection, dirty_study).values(
            orthanc_id=orthanc_id, mark=1, due=due, claimed_until=0, attempts=0, reason=reason
        )
        sooner = sa.case((dirty_study.c.due < due, dirty_study.c.due), else_=due)
        again = {"mark": dirty_study.c.mark + 1, "due": sooner, "reason": reason}
        connection.execute(first.on_conflict_do_update(index_elements=["orthanc_id"], set_=again))


def claim(connection: Connection) -> Dirty | None:
    """One study that is due, claimed so that no other worker looks at the same time."""
    moment = now()
    statement = (
        sa.select(dirty_study)
        .where(dirty_study.c.due <= moment, dirty_study.c.claimed_until <= moment)
        .order_by(dirty_study.c.due)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = connection.execute(statement).mappings().first()
    if row is None:
        return None
    until = moment + CLAIM_MS
    own = dirty_study.update().where(dirty_study.c.orthanc_id == row["orthanc_id"])
    # Due again when the claim ends; a mark made meanwhile brings its own, earlier, time.
    connection.execute(own.values(claimed_until=until, due=until, attempts=row["attempts"] + 1))
    return Dirty(row["orthanc_id"], row["mark"], row["attempts"] + 1, row["reason"], until)


def owned(connection: Connection, dirty: Dirty) -> bool:
    """Whether the claim is still ours: after it has run out another worker may have looked, later than we did."""
    statement = sa.select(dirty_study.c.claimed_until).where(dirty_study.c.orthanc_id == dirty.orthanc_id)
    return connection.execute(statement.with_for_update()).scalar() == dirty.until


def clean(connection: Connection, dirty: Dirty) -> None:
    """The study was looked at; it stays dirty if it was marked again since it was claimed."""
    own = sa.and_(dirty_study.c.orthanc_id == dirty.orthanc_id, dirty_study.c.claimed_until == dirty.until)
    connection.execute(dirty_study.delete().where(own, dirty_study.c.mark == dirty.mark))
    connection.execute(dirty_study.update().where(own).values(claimed_until=0, attempts=0))


def postpone(connection: Connection, dirty: Dirty, delay_ms: int) -> None:
    """Look at the study again after `delay_ms`, or when a mark made meanwhile wants it."""
    own = sa.and_(dirty_study.c.orthanc_id == dirty.orthanc_id, dirty_study.c.claimed_until == dirty.until)
    due = sa.case((dirty_study.c.mark == dirty.mark, now() + delay_ms), else_=dirty_study.c.due)
    connection.execute(dirty_study.update().where(own).values(claimed_until=0, due=due))


def waiting(connection: Connection) -> int:
    """How many studies are to be looked at."""
    return connection.execute(sa.select(sa.func.count()).select_from(dirty_study)).scalar_one()


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


COLUMNS = tuple(study.c[name] for name in Known.__dataclass_fields__)


def known(connection: Connection, orthanc_id: str) -> Known | None:
    """What was published of a study of the archive."""
    row = connection.execute(sa.select(*COLUMNS).where(study.c.orthanc_id == orthanc_id).with_for_update()).first()
    return Known(*row) if row else None


def write(connection: Connection, row: Known) -> None:
    """Keep what has just been published."""
    upsert(connection, study, asdict(row), keys=("orthanc_id",))


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
