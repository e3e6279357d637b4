"""The schema's version: brought to head by `isocenter migrate`, checked by every process before it serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from app.errors import ConfigurationError
from app.store.database import Store

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
_VERSION = sa.table("alembic_version", sa.column("version_num"))


def migrate(store: Store) -> None:
    """Bring the database to head; safe to repeat."""
    # Loaded late: a process that serves only compares two numbers (docs/decisions/0078).
    from alembic import command

    with store.engine.connect() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def require_current(store: Store) -> None:
    """Raise ConfigurationError unless the database is at head."""
    wanted = head()
    with store.engine.connect() as connection:
        there = sa.inspect(connection).has_table(_VERSION.name)
        current = connection.execute(sa.select(_VERSION.c.version_num)).scalar() if there else None
    if current != wanted:
        raise ConfigurationError(f"the database schema is {current or 'empty'}, not {wanted}: run `isocenter migrate`")


def head() -> str:
    """The last migration's number, with which its file's name begins."""
    return max(path.name for path in (MIGRATIONS / "versions").glob("[0-9]*.py")).partition("_")[0]


def _config() -> Config:
    # Loaded late: see above.
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config
