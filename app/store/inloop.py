"""Writes of an event loop on SQLite: done in the loop's own thread, made durable in another.

SQLite lets go of the interpreter at every step, and a writer in a thread of its own gets it back only when the loop is
idle or its time is over: with many requests that costs several times the work itself (docs/decisions/0037). Here the
statements run where the request is, those of requests that come together in one transaction; only the commit, which
waits for the disk, leaves the loop. When somebody else is writing, the work goes to the store's writer instead.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from sqlalchemy.engine import Connection

from app.store.database import GROUP, Store, run_one

T = TypeVar("T")
Work = tuple[Callable[[Connection], Any], "asyncio.Future[Any]"]


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
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
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
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
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
        results: list[tuple[Any, Any]] = []
        try:
            for work, future in batch:
                run_one(connection, work, future, results, savepoint=len(batch) > 1)
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
            *(asyncio.wrap_future(self._store.submit(work)) for work, _ in batch), return_exceptions=True
        )
        for (_, future), result in zip(batch, done, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
