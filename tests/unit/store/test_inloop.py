"""Writes in the event loop: together, each on its own risk, and behind whoever is writing already."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import Store
from app.store.inloop import LoopWriter
from app.store.tables import counter

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def writer(store: Store) -> Iterator[LoopWriter]:
    with ThreadPoolExecutor(2) as threads:
        made = LoopWriter(store, threads)
        yield made
        made.close()


def adding(name: str, *, fails: bool = False) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        connection.execute(counter.insert().values(name=name, value=1))
        if fails:
            raise ValueError(name)
        return name

    return work


def names(store: Store) -> list[str]:
    with store.read() as connection:
        return list(connection.execute(sa.select(counter.c.name).order_by(counter.c.name)).scalars())


def together(writer: LoopWriter, *works: Callable[[Connection], Any]) -> list[Any]:
    async def run() -> list[Any]:
        return await asyncio.gather(*(writer.write(work) for work in works), return_exceptions=True)

    return asyncio.run(run())


def test_one_that_fails_leaves_the_others_of_its_transaction(store: Store, writer: LoopWriter) -> None:
    first, failed, last = together(writer, adding("a"), adding("b", fails=True), adding("c"))
    assert (first, str(failed), last) == ("a", "b", "c")
    assert names(store) == ["a", "c"]


def test_one_alone_that_fails_leaves_nothing_and_the_next_succeeds(store: Store, writer: LoopWriter) -> None:
    assert isinstance(together(writer, adding("a", fails=True))[0], ValueError)
    assert together(writer, adding("b")) == ["b"]
    assert names(store) == ["b"]


def test_what_was_answered_can_be_read_by_others(store: Store, writer: LoopWriter) -> None:
    async def run() -> None:
        for number in range(100):
            await writer.write(adding(f"n{number:03}"))
            assert len(names(store)) == number + 1

    asyncio.run(run())


def test_while_another_writes_the_work_waits_for_it_and_the_loop_does_not(store: Store, writer: LoopWriter) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        connection.execute(counter.insert().values(name="slow", value=1))
        writing.set()
        go_on.wait(10)

    other = threading.Thread(target=lambda: store.transact(slow))
    other.start()
    assert writing.wait(10)

    async def run() -> str:
        waiting = asyncio.create_task(writer.write(adding("late")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        go_on.set()
        return await waiting

    assert asyncio.run(run()) == "late"
    other.join()
    assert names(store) == ["late", "slow"]
