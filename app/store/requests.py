"""What a person asks of whoever keeps in step with the archive: handed over, carried out step by step, answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import now
from app.store.tables import sync_request

KEPT = 50
"""Answers that are kept for whoever asked."""


@dataclass(frozen=True, slots=True)
class Request:
    """One thing asked; `answer` grows while it is carried out, `done` is set when it is complete."""

    id: int
    kind: str
    detail: dict[str, Any]
    asked: int
    taken: int | None
    done: int | None
    answer: dict[str, Any]


_COLUMNS = tuple(sync_request.c[name] for name in Request.__dataclass_fields__)


def ask(connection: Connection, kind: str, detail: dict[str, Any]) -> int:
    """Ask for something; what was asked in the same words and is not done yet is joined, not asked again."""
    for row in connection.execute(sa.select(*_COLUMNS).where(sync_request.c.done.is_(None), _kind(kind))):
        if row.detail == detail:
            return row.id
    oldest = sa.select(sync_request.c.id).order_by(sync_request.c.id.desc()).offset(KEPT).limit(1).scalar_subquery()
    connection.execute(sync_request.delete().where(sync_request.c.id <= oldest, sync_request.c.done.is_not(None)))
    values = {"kind": kind, "detail": detail, "asked": now(), "worker": "", "answer": {}}
    made = connection.execute(sync_request.insert().values(values).returning(sync_request.c.id))
    return made.scalar_one()


def _kind(kind: str) -> sa.ColumnElement[bool]:
    return sync_request.c.kind == kind


def read(connection: Connection, request_id: int) -> Request | None:
    """What was asked, and how far it is."""
    row = connection.execute(sa.select(*_COLUMNS).where(sync_request.c.id == request_id)).one_or_none()
    return Request(*row) if row else None


def next_one(connection: Connection) -> Request | None:
    """The oldest request that is not done."""
    own = sa.select(*_COLUMNS).where(sync_request.c.done.is_(None)).order_by(sync_request.c.id).limit(1)
    row = connection.execute(own).one_or_none()
    return Request(*row) if row else None


def take(connection: Connection, request: Request, worker: str, **answer: object) -> None:
    """Begin a request."""
    values = {"taken": now(), "worker": worker, "answer": {**request.answer, **answer}}
    connection.execute(sync_request.update().where(sync_request.c.id == request.id).values(values))


def finish(connection: Connection, request: Request, **answer: object) -> None:
    """The request is done, or could not be: then the answer holds an `error`."""
    values = {"done": now(), "answer": {**request.answer, **answer}}
    connection.execute(sync_request.update().where(sync_request.c.id == request.id).values(values))
