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
    for orthanc_id in orthanc_ids:
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
    own = dirty_study.update().where(dirty_study.c.orthanc_id == row["orthanc_id"])
    connection.execute(own.values(claimed_until=moment + CLAIM_MS, attempts=row["attempts"] + 1))
    return Dirty(row["orthanc_id"], row["mark"], row["attempts"] + 1, row["reason"])


def clean(connection: Connection, dirty: Dirty) -> None:
    """The study was looked at; it stays dirty if it was marked again since it was claimed."""
    own = dirty_study.c.orthanc_id == dirty.orthanc_id
    connection.execute(dirty_study.delete().where(own, dirty_study.c.mark == dirty.mark))
    connection.execute(dirty_study.update().where(own).values(claimed_until=0, attempts=0))


def postpone(connection: Connection, dirty: Dirty, delay_ms: int) -> None:
    """Look at the study again after `delay_ms`."""
    own = dirty_study.update().where(dirty_study.c.orthanc_id == dirty.orthanc_id)
    connection.execute(own.values(claimed_until=0, due=now() + delay_ms))


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


def quiet(connection: Connection, before: int) -> list[Known]:
    """Studies without a change since `before` (ms) that are not yet complete."""
    settled = sa.and_(study.c.complete.is_(False), study.c.missing_since.is_(None), study.c.changed <= before)
    return [Known(*row) for row in connection.execute(sa.select(*COLUMNS).where(settled).limit(100))]
