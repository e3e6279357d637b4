"""Numbers that never repeat, whichever process asks."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert
from app.store.tables import counter


def take(connection: Connection, name: str) -> int:
    """The next number of this name, from 1; it is given back only if the transaction is."""
    first = insert(connection, counter).values(name=name, value=1)
    statement = first.on_conflict_do_update(index_elements=["name"], set_={"value": counter.c.value + 1})
    return connection.execute(statement.returning(counter.c.value)).scalar_one()


def peek(connection: Connection, name: str) -> int:
    """The last number taken, 0 when none was."""
    return connection.execute(sa.select(counter.c.value).where(counter.c.name == name)).scalar() or 0
