"""Transactional outbox: effects outside the database, delivered at least once and in order per key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert, now
from app.store.tables import outbox

CLAIM_MS = 30_000
FIRST_RETRY_MS = 500
LONGEST_RETRY_MS = 60_000


@dataclass(frozen=True, slots=True)
class Effect:
    """Something to do outside. `once` names it stably: asking for the same effect again changes nothing."""

    kind: str
    key: str
    once: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claimed:
    """An effect that this worker may do until its claim runs out."""

    id: int
    kind: str
    key: str
    payload: dict[str, Any]
    attempts: int


def add(connection: Connection, effect: Effect) -> None:
    """Put an effect into the transaction of its cause."""
    row = {"kind": effect.kind, "key": effect.key, "once": effect.once, "payload": effect.payload, "due": now()}
    statement = insert(connection, outbox).values(**row, attempts=0, claimed_until=0, error="")
    connection.execute(statement.on_conflict_do_nothing(index_elements=["kind", "once"]))


def claim(connection: Connection, kinds: tuple[str, ...]) -> Claimed | None:
    """The oldest effect that is due and whose key has nothing older undone; claimed for CLAIM_MS."""
    moment = now()
    earlier = outbox.alias("earlier")
    blocked = sa.exists().where(earlier.c.key == outbox.c.key, earlier.c.done.is_(None), earlier.c.id < outbox.c.id)
    statement = (
        sa.select(outbox)
        .where(outbox.c.done.is_(None), outbox.c.due <= moment, outbox.c.claimed_until <= moment)
        .where(outbox.c.kind.in_(kinds), ~blocked)
        .order_by(outbox.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = connection.execute(statement).mappings().first()
    if row is None:
        return None
    claimed = outbox.update().where(outbox.c.id == row["id"])
    connection.execute(claimed.values(claimed_until=moment + CLAIM_MS, attempts=row["attempts"] + 1))
    return Claimed(row["id"], row["kind"], row["key"], row["payload"], row["attempts"] + 1)


def done(connection: Connection, effect_id: int) -> None:
    """The effect has happened."""
    connection.execute(outbox.update().where(outbox.c.id == effect_id).values(done=now(), claimed_until=0, error=""))


def failed(connection: Connection, effect: Claimed, error: str) -> None:
    """The effect did not happen; it is tried again later, ever more slowly. `error` holds no patient data."""
    wait = min(FIRST_RETRY_MS * 2 ** min(effect.attempts - 1, 10), LONGEST_RETRY_MS)
    statement = outbox.update().where(outbox.c.id == effect.id)
    connection.execute(statement.values(due=now() + wait, claimed_until=0, error=error[:500]))


def pending(connection: Connection) -> dict[str, int]:
    """How many effects of each kind are still to be done."""
    statement = sa.select(outbox.c.kind, sa.func.count()).where(outbox.c.done.is_(None)).group_by(outbox.c.kind)
    return {row[0]: row[1] for row in connection.execute(statement)}
