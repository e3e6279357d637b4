"""Writes in the event loop: together, each on its own risk, and behind whoever is writing already."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
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


Finish = Callable[[Connection, Sequence[str]], list[str]]


def naming(name: str) -> Callable[[Connection], str]:
    def decide(_connection: Connection) -> str:
        if name == "undecided":
            raise ValueError(name)
        return name

    return decide


def finishing(met: list[list[str]]) -> Finish:
    """Adds all names at once; "refused" is refused after it was written."""

    def finish(connection: Connection, decided: Sequence[str]) -> list[str]:
        met.append([*decided])
        for name in decided:
            connection.execute(counter.insert().values(name=name, value=1))
        if "refused" in decided:
            raise LookupError("refused")
        return [f"made {name}" for name in decided]

    return finish


def joined(writer: LoopWriter, finish: Finish, *decided: str, beside: str = "") -> list[Any]:
    async def run() -> list[Any]:
        works = [writer.join(naming(name), finish) for name in decided]
        return await asyncio.gather(*works, *([writer.write(adding(beside))] if beside else []), return_exceptions=True)

    return asyncio.run(run())


def test_what_shares_its_end_is_finished_at_once_and_after_all_else(store: Store, writer: LoopWriter) -> None:
    met: list[list[str]] = []
    assert joined(writer, finishing(met), "a", "b", "c", beside="d") == ["made a", "made b", "made c", "d"]
    assert met == [["a", "b", "c"]]
    assert names(store) == ["a", "b", "c", "d"]


def test_who_cannot_decide_keeps_nobody_from_finishing(store: Store, writer: LoopWriter) -> None:
    met: list[list[str]] = []
    first, failed, last = joined(writer, finishing(met), "a", "undecided", "c")
    assert (first, str(failed), last) == ("made a", "undecided", "made c")
    assert met == [["a", "c"]]
    assert names(store) == ["a", "c"]


def test_when_the_end_fails_each_is_done_alone_and_one_hears_of_it(store: Store, writer: LoopWriter) -> None:
    met: list[list[str]] = []
    first, failed, last = joined(writer, finishing(met), "a", "refused", "c")
    assert (first, type(failed), last) == ("made a", LookupError, "made c")
    assert met == [["a", "refused", "c"], ["a"], ["refused"], ["c"]]
    assert names(store) == ["a", "c"]


def test_one_alone_is_decided_and_finished_as_any_work(store: Store, writer: LoopWriter) -> None:
    assert joined(writer, finishing([]), "a") == ["made a"]
    assert isinstance(joined(writer, finishing([]), "refused")[0], LookupError)
    assert names(store) == ["a"]
