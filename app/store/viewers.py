"""Viewer sessions: a path-scoped cookie, known by its hash, that points to a grant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.tables import viewer_session

Row = Mapping[str, Any]


def add(connection: Connection, values: Row) -> None:
    """Keep a new session."""
    connection.execute(viewer_session.insert().values(dict(values)))


def find(connection: Connection, session_id: str, cookie_hash: str) -> Row | None:
    """The session that this address and this cookie belong to, ended and expired ones included."""
    both = (viewer_session.c.id == session_id, viewer_session.c.cookie_hash == cookie_hash)
    row = connection.execute(sa.select(viewer_session).where(*both)).mappings().first()
    return None if row is None else {str(name): value for name, value in row.items()}


def touch(connection: Connection, session_id: str, at: int) -> None:
    """Note that the session was used; its time never runs backwards."""
    older = (viewer_session.c.id == session_id, viewer_session.c.ended.is_(None), viewer_session.c.seen < at)
    connection.execute(viewer_session.update().where(*older).values(seen=at))


def end(connection: Connection, session_id: str, at: int) -> None:
    """End a session for good."""
    open_one = (viewer_session.c.id == session_id, viewer_session.c.ended.is_(None))
    connection.execute(viewer_session.update().where(*open_one).values(ended=at))
