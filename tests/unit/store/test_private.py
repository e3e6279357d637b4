"""Who may read the embedded database's file."""

from __future__ import annotations

import stat
from pathlib import Path

from app.store import schema
from app.store.database import Store


def test_the_file_of_patients_and_passwords_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "data" / "isocenter.sqlite"
    opened = Store(f"sqlite:///{file}")
    schema.migrate(opened)
    opened.close()
    assert [stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (file, file.parent)] == [0, 0]
