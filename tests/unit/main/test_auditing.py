"""The audit trail loses nothing that was noted, writes many records at once, and never holds up the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.audit import Record
from app.errors import Unavailable
from app.main.auditing import Auditor
from app.store import audit_search
from app.store.audit_search import ALL, Row
from app.store.database import Store, now
from tests.processes import wait_until


def record(number: int = 0) -> Record:
    return Record("fhir", "read", "allowed", "app", target=f"Patient/{number}")


def rows(store: Store) -> list[Row]:
    with store.read() as connection:
        return audit_search.search(connection, ALL, limit=10_000, descending=False)


@pytest.fixture
def auditor(store: Store) -> Iterator[Auditor]:
    made = Auditor(store)
    yield made
    made.close()


def test_what_was_noted_is_durable_after_a_flush_in_its_order_and_with_its_time(store: Store, auditor: Auditor) -> None:
    before = now()
    for number in range(1200):
        auditor.note(record(number))
    auditor.flush()

    found = rows(store)
    assert [row.target for row in found] == [f"Patient/{number}" for number in range(1200)]
    assert all(before <= row.at <= now() for row in found)


def test_a_record_is_written_by_itself_after_a_moment(store: Store, auditor: Auditor) -> None:
    auditor.note(record())
    wait_until(lambda: len(rows(store)) == 1, "the record")


def test_closing_writes_what_is_left_and_nothing_is_taken_afterwards(store: Store) -> None:
    auditor = Auditor(store, seconds=60)
    for number in range(10):
        auditor.note(record(number))
    auditor.close()
    assert len(rows(store)) == 10
    with pytest.raises(Unavailable):
        auditor.note(record())


def test_threads_note_at_once_and_every_record_is_there_once(store: Store, auditor: Auditor) -> None:
    def note(first: int) -> None:
        for number in range(first, first + 200):
            auditor.note(record(number))

    threads = [threading.Thread(target=note, args=(first,)) for first in range(0, 1600, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    auditor.flush()
    assert sorted(int(row.target.removeprefix("Patient/")) for row in rows(store)) == list(range(1600))


def test_one_record_that_cannot_be_stored_keeps_no_other_out(store: Store, auditor: Auditor) -> None:
    auditor.note(record(1))
    auditor.note(Record("fhir", "read", "allowed", detail={"what": object()}))
    auditor.note(record(2))
    auditor.flush()
    assert [row.target for row in rows(store)] == ["Patient/1", "Patient/2"]


T = TypeVar("T")


class Jammed(Store):
    """A store that does not write while it is jammed, as a database that is away."""

    jammed = True

    def transact(self, work: Callable[[Connection], T]) -> T:
        if self.jammed:
            raise sa.exc.OperationalError("", {}, Exception())
        return super().transact(work)


@pytest.fixture
def jammed(store: Store) -> Iterator[Jammed]:
    made = Jammed(store.url.render_as_string(hide_password=False))
    yield made
    made.close()


def test_without_room_the_event_loop_is_refused_at_once_and_a_thread_waits(jammed: Jammed) -> None:
    auditor = Auditor(jammed, full=5)

    async def fill() -> None:
        for number in range(5):
            auditor.note(record(number))
        with pytest.raises(Unavailable):
            auditor.note(record(5))

    asyncio.run(fill())
    waiting = threading.Thread(target=auditor.note, args=(record(6),))
    waiting.start()
    assert waiting.is_alive()
    jammed.jammed = False
    waiting.join(30)
    auditor.close()

    assert [row.target for row in rows(jammed)] == [*(f"Patient/{number}" for number in range(5)), "Patient/6"]


def test_a_database_that_comes_back_gets_everything_in_order(jammed: Jammed) -> None:
    auditor = Auditor(jammed)
    for number in range(700):
        auditor.note(record(number))
    jammed.jammed = False
    auditor.flush()
    auditor.close()
    assert [row.target for row in rows(jammed)] == [f"Patient/{number}" for number in range(700)]
