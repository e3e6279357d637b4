"""Write a migration from the difference between the declared tables and a database at head: `migration.py MESSAGE`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic import command

from app.store import schema
from app.store.database import Store


def main(message: str) -> None:
    """Compare against a fresh SQLite database brought to head."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{Path(folder) / 'head.sqlite'}")
        schema.migrate(store)
        config = schema._config()
        number = len(list((schema.MIGRATIONS / "versions").glob("*.py"))) + 1
        with store.engine.connect() as connection:
            config.attributes["connection"] = connection
            command.revision(config, message, autogenerate=True, rev_id=f"{number:04d}")
        store.close()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
