"""What we believe the archive holds, for comparing: counts and files of each study, what is gone, what still waits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert, now
from app.store.sync import Position, move, position
from app.store.tables import cursor, dirty_study, instance, lease, study

SWEEP = "sweep"
"""Name of the lease and of the position of what compares."""
AT_ONCE = 500
"""Ids in one statement: SQLite bounds them."""
HOPELESS = 3
"""Tries after which a study counts as failing: nobody waits for it any more, but it is tried on."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A study as it was last published; 0 series and an empty moment mean that nobody has counted them yet."""

    instances: int
    series: int
    last_update: str


@dataclass(frozen=True, slots=True)
class Believed:
    """Everything a comparison needs to know of our side, read at one moment."""

    present: Mapping[str, Counted]
    """Studies believed to be in the archive."""
    leaving: frozenset[str]
    """Disappeared, not withdrawn yet, and no person has accepted it."""
    accepted: frozenset[str]
    """Disappeared, not withdrawn yet, accepted by a person."""
    recent: int
    """How many were withdrawn a short while ago without a person's word."""
    waiting: frozenset[str]
    """Marked to be looked at."""
    claimed: frozenset[str] = frozenset()
    """Of those the ones somebody looks at just now: what is published of them may be older than this."""
    failing: frozenset[str] = frozenset()
    """Of those the ones that fail again and again."""

    @property
    def instances(self) -> int:
        """Of all studies believed to be in the archive."""
        return sum(one.instances for one in self.present.values())


def believed(connection: Connection, window_ms: int) -> Believed:
    """What we believe now; withdrawals of the last `window_ms` count as recent."""
    # Marks first: a look that ends after this is among the claimed, one that ended before is in the studies read next.
    marks = connection.execute(
        sa.select(dirty_study.c.orthanc_id, dirty_study.c.claimed_until, dirty_study.c.attempts)
    ).all()
    here = study.c.missing_since.is_(None)
    rows = connection.execute(
        sa.select(study.c.orthanc_id, study.c.instances, study.c.series, study.c.last_update).where(here)
    )
    present = {row[0]: Counted(row[1], row[2], row[3]) for row in rows}
    gone = connection.execute(
        sa.select(study.c.orthanc_id, study.c.instances, study.c.missing_since, _accepted()).where(~here)
    ).all()
    after = now() - window_ms
    return Believed(
        present,
        frozenset(row[0] for row in gone if row[1] and not row[3]),
        frozenset(row[0] for row in gone if row[1] and row[3]),
        sum(1 for row in gone if not row[1] and not row[3] and row[2] > after),
        frozenset(row[0] for row in marks),
        frozenset(row[0] for row in marks if row[1]),
        frozenset(row[0] for row in marks if row[2] >= HOPELESS),
    )


def _accepted() -> sa.ColumnElement[bool]:
    # What has been published since is back: an acceptance is for one disappearance only.
    return sa.func.coalesce(study.c.accepted, -1) >= study.c.changed


def missing(connection: Connection, orthanc_ids: Collection[str], moment: int) -> None:
    """Note since when these studies are gone; their withdrawal waits for the grace."""
    for some in _parts(orthanc_ids):
        own = sa.and_(study.c.orthanc_id.in_(some), study.c.missing_since.is_(None), study.c.instances > 0)
        connection.execute(study.update().where(own).values(missing_since=moment))


def accept(connection: Connection, orthanc_ids: Collection[str], reason: str) -> None:
    """A person says that these studies are gone for good, and why."""
    for some in _parts(orthanc_ids):
        own = study.c.orthanc_id.in_(some)
        connection.execute(study.update().where(own).values(accepted=now(), gone_reason=reason))


@dataclass(frozen=True, slots=True)
class Absence:
    """What is known of a study's disappearance."""

    accepted: bool
    reason: str


def absence(connection: Connection, orthanc_id: str) -> Absence:
    """Whether a person accepted the disappearance, and the reason when it is known."""
    own = study.c.orthanc_id == orthanc_id
    row = connection.execute(sa.select(_accepted(), study.c.gone_reason).where(own)).one()
    return Absence(bool(row[0]), row[1] if row[0] else "")


def files(connection: Connection, orthanc_ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Of each instance of these studies its study and its file in the archive (empty when not known)."""
    found: dict[str, tuple[str, str]] = {}
    columns = instance.c.orthanc_id, instance.c.study_orthanc_id, instance.c.file
    for some in _parts(orthanc_ids):
        rows = connection.execute(sa.select(*columns).where(instance.c.study_orthanc_id.in_(some)))
        found |= {row[0]: (row[1], row[2]) for row in rows}
    return found


def uids(connection: Connection, orthanc_ids: Collection[str]) -> list[str]:
    """The Study Instance UIDs of these studies, as far as they are known."""
    found: set[str] = set()
    for some in _parts(orthanc_ids):
        found.update(connection.execute(sa.select(study.c.study_uid).where(study.c.orthanc_id.in_(some))).scalars())
    return sorted(found)


# --- what still waits ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many studies are marked, since when the oldest waits (0 for none), and how many fail again and again."""

    studies: int
    since: int
    failing: int


def waiting(connection: Connection) -> Waiting:
    """What is marked now."""
    failing = sa.func.sum(sa.case((dirty_study.c.attempts >= HOPELESS, 1), else_=0))
    row = connection.execute(sa.select(sa.func.count(), sa.func.min(dirty_study.c.since), failing)).one()
    return Waiting(row[0], row[1] or 0, row[2] or 0)


def unsettled(connection: Connection, since: int) -> int:
    """How many studies marked up to a moment have not been looked at, those that fail again and again left out."""
    own = sa.and_(dirty_study.c.since <= since, dirty_study.c.attempts < HOPELESS)
    return connection.execute(sa.select(sa.func.count()).select_from(dirty_study).where(own)).scalar_one()


def totals(connection: Connection) -> tuple[int, int]:
    """How many studies and instances are believed to be in the archive."""
    own = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(study.c.instances), 0))
    row = connection.execute(own.where(study.c.missing_since.is_(None))).one()
    return row[0], int(row[1])


# --- the position ----------------------------------------------------------------------------------------------


def leads(connection: Connection, owner: str) -> bool:
    """Whether it is this one who compares at present."""
    own = sa.and_(lease.c.name == SWEEP, lease.c.owner == owner, lease.c.until > now())
    return connection.execute(sa.select(lease.c.fence).where(own)).scalar() is not None


@dataclass(frozen=True, slots=True)
class State:
    """What the last sweep left; moments in ms, 0 for never."""

    hold: str = ""
    hold_since: int = 0
    at: int = 0
    took: float = 0
    level: str = ""
    new: int = 0
    missing: int = 0
    changed: int = 0
    full_at: int = 0
    full_epoch: str = ""
    wanted: int = 0
    """When somebody last wanted a sweep at once."""


def state(connection: Connection) -> State:
    """Where comparing stands."""
    known = position(connection, SWEEP).detail or {}
    return State(**{name: known[name] for name in State.__dataclass_fields__ if name in known})


def note(connection: Connection, **facts: object) -> None:
    """Add facts to what is known of the last comparison."""
    # Two writers must not lose each other's facts.
    first = insert(connection, cursor).values(name=SWEEP, value=0, epoch="", detail={})
    connection.execute(first.on_conflict_do_nothing())
    connection.execute(sa.select(cursor.c.name).where(cursor.c.name == SWEEP).with_for_update())
    before = position(connection, SWEEP)
    move(connection, SWEEP, Position(before.value, before.epoch, {**(before.detail or {}), **facts}))


def _parts(orthanc_ids: Iterable[str]) -> Iterable[list[str]]:
    # In one order, so that two transactions do not wait for each other.
    rest = iter(sorted(orthanc_ids))
    while some := list(islice(rest, AT_ONCE)):
        yield some
