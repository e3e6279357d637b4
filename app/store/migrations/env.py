"""Alembic's entry: runs the migrations on the connection the caller hands over."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlmodel import AutoString

from app.store import tables


def plain_string(kind: str, value: Any, _context: Any) -> str | Literal[False]:
    """Write sqlmodel's string type as SQLAlchemy's, so that a migration needs no sqlmodel."""
    return "sa.String()" if kind == "type" and isinstance(value, AutoString) else False


connection = context.config.attributes["connection"]
# One transaction around it all, and a lock: two processes that start together migrate once.
LOCKS = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(4207849484)"}
context.configure(
    connection=connection,
    target_metadata=tables.SQLModel.metadata,
    render_as_batch=True,
    render_item=plain_string,
    transactional_ddl=True,
)
with context.begin_transaction():
    connection.exec_driver_sql(LOCKS[connection.dialect.name])
    context.run_migrations()
