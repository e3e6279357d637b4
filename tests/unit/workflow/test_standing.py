"""Where keeping in step stands, in one word (app.workflow.standing)."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Connection

from app.settings import Settings
from app.store import sync, truth
from app.store.database import Store, now
from app.workflow import standing
from app.workflow.identity import CHANGES


@pytest.mark.parametrize(
    ("epoch", "marked", "word"),
    [
        ("", [], "in-step"),
        ("e", [], "catching-up"),
        ("", ["a study"], "catching-up"),
    ],
)
def test_changes_that_nobody_reads_are_no_work_that_waits(
    store: Store, epoch: str, marked: list[str], word: str
) -> None:
    def compared(connection: Connection) -> None:
        truth.note(connection, at=now(), level="instances")
        sync.mark(connection, marked, "test")
        if epoch:
            sync.move(connection, CHANGES, sync.Position(3, epoch))

    store.transact(compared)
    with store.read() as connection:
        found = standing.of(connection, Settings(), standing.Seen(7))
    assert found.state == word
    assert found.behind == (4 if epoch else 7)
