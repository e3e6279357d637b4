"""Writes of an event loop on SQLite: done in the loop's own thread, made durable in another.

SQLite lets go of the interpreter at every step, and a writer in a thread of its own gets it back only when the loop is
idle or its time is over: with many requests that costs several times the work itself (docs/decisions/0037). Here the
statements run where the request is, those of requests that come together in one transaction; only the commit, which
waits for the disk, leaves the loop. When somebody else is writing, the work goes to the store's writer instead.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.engine import Connection

from app.store.database import GROUP, Store, run_one

T = TypeVar("T")
P = TypeVar("P")
Finish = Callable[[Connection, Sequence[Any]], Sequence[Any]]
Results = list[tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Work:
    """What waits to be written. With `finish`, `first` only decides, and those who share it are finished at once."""

    first: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    finish: Finish | None = None

    def __call__(self, connection: Connection) -> Any:
        """The whole of it alone."""
        found = self.first(connection)
        return found if self.finish is None else self.finish(connection, [found])[0]


class LoopWriter:
    """The writer of one event loop; `threads` is where it waits for the disk."""

    def __init__(self, store: Store, threads: Executor) -> None:
        """`store` must be SQLite."""
        self._store, self._threads = store, threads
        self._waiting: list[Work] = []
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run short `work` in a transaction and return its result once it is durable; its exception undoes it alone."""
        return await self._wait(work, None)

    async def join(
        self, decide: Callable[[Connection], P], finish: Callable[[Connection, Sequence[P]], Sequence[T]]
    ) -> T:
        """The same for `decide`, which writes nothing, and `finish`, which writes what several have decided at once.

        What is decided together must not depend on one another; it is decided after all other works are done.
        """
        return await self._wait(decide, finish)

    async def _wait(self, first: Callable[[Connection], Any], finish: Finish | None) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(Work(first, future, finish))
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await future

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                # One turn of the loop, so that those who come together go together.
                await asyncio.sleep(0)
                batch, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
                await self._do(batch)
        finally:
            self._task = None

    async def _do(self, batch: list[Work]) -> None:
        try:
            await self._commit(batch)
        except BaseException as error:
            for work in batch:
                if not work.future.done():
                    work.future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    async def _commit(self, batch: list[Work]) -> None:
        connection = self._connection = self._connection or self._opened()
        driver: Any = connection.connection.driver_connection
        try:
            driver.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            await self._hand_over(batch)
            return
        results: Results = []
        try:
            _run(connection, batch, results)
            if driver.in_transaction:
                await asyncio.get_running_loop().run_in_executor(self._threads, driver.execute, "COMMIT")
        except BaseException:
            if driver.in_transaction:
                driver.execute("ROLLBACK")
            raise
        for future, result in results:
            if not future.done():
                future.set_result(result)

    def _opened(self) -> Connection:
        connection = self._store.writing()
        # The loop does not wait for another writer.
        connection.exec_driver_sql("PRAGMA busy_timeout=0")
        return connection

    async def _hand_over(self, batch: list[Work]) -> None:
        """Another process or thread is writing: wait for it in the store's own writer."""
        done = await asyncio.gather(
            *(asyncio.wrap_future(self._store.submit(work)) for work in batch), return_exceptions=True
        )
        for work, result in zip(batch, done, strict=True):
            if work.future.done():
                continue
            if isinstance(result, BaseException):
                work.future.set_exception(result)
            else:
                work.future.set_result(result)


def _run(connection: Connection, batch: Sequence[Work], results: Results) -> None:
    """Each work for itself, then those that can be finished at once."""
    joint: dict[Finish, list[Work]] = {}
    for work in batch:
        if work.finish is not None and len(batch) > 1:
            joint.setdefault(work.finish, []).append(work)
        else:
            run_one(connection, work, work.future, results, savepoint=len(batch) > 1)
    for finish, works in joint.items():
        decided = [*_decided(connection, works)]
        if not decided:
            continue
        try:
            answers = _finished(connection, finish, [found for _, found in decided])
        except Exception:  # noqa: BLE001 - whose fault it is shows when each is done alone
            for work, _ in decided:
                run_one(connection, work, work.future, results, savepoint=True)
        else:
            results += zip((work.future for work, _ in decided), answers, strict=True)


def _decided(connection: Connection, works: Sequence[Work]) -> Iterator[tuple[Work, Any]]:
    """What each decides; who fails has written nothing."""
    for work in works:
        try:
            yield work, work.first(connection)
        except Exception as error:  # noqa: BLE001 - belongs to this caller only
            if not work.future.done():
                work.future.set_exception(error)


def _finished(connection: Connection, finish: Finish, decided: Sequence[Any]) -> Sequence[Any]:
    """All of it, or an exception and nothing."""
    driver: Any = connection.connection.driver_connection
    driver.execute("SAVEPOINT joint")
    try:
        return finish(connection, decided)
    except BaseException:
        driver.execute("ROLLBACK TO joint")
        raise
    finally:
        driver.execute("RELEASE joint")
