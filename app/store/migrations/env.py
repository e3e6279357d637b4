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
context.configure(
    connection=connection, target_metadata=tables.SQLModel.metadata, render_as_batch=True, render_item=plain_string
)
if connection.dialect.name == "sqlite":
    # The engine autocommits; the migration takes the write lock itself so that two processes do not both migrate.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    context.run_migrations()
    connection.exec_driver_sql("COMMIT")
else:
    with context.begin_transaction():
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(4207849484)")
        context.run_migrations()
    connection.commit()
