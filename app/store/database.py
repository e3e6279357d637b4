"""One database, SQLite or PostgreSQL: reads on a connection, writes through `transact`.

On SQLite one writer thread per process commits queued writes in groups (WAL, synchronous=FULL, BEGIN IMMEDIATE);
on PostgreSQL each write is a transaction of its own on a pooled connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.event import listen
from sqlalchemy.exc import OperationalError

from app.errors import ConfigurationError, Unavailable

T = TypeVar("T")
Work = tuple[Callable[[Connection], Any], Future[Any]]

BUSY_SECONDS = 30
GROUP = 64
"""At most so many writes share one commit on SQLite."""
RETRIES = 5
TRANSIENT = frozenset({"40001", "40P01"})
"""PostgreSQL: serialization failure and deadlock; the work is simply done again."""


def now() -> int:
    """Milliseconds since 1970 UTC, the store's time."""
    return time.time_ns() // 1_000_000


class Store:
    """The open database of one process."""

    def __init__(self, url: str) -> None:
        """`url` is an SQLAlchemy URL; a SQLite file's folder is made when absent."""
        self.url = make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(url) if self.sqlite else _postgres_engine(url)
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A connection that sees one consistent state and writes nothing."""
        with self.engine.connect() as connection:
            if not self.sqlite:
                yield connection
                return
            connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                connection.exec_driver_sql("ROLLBACK")

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction and return its result once it is durable; its exception rolls it back."""
        if not self.sqlite:
            return self._postgres(work)
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise Unavailable("the store is closed")
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="store-writer", daemon=True)
                self._writer.start()
            self._queue.put((work, future))
        return future.result()

    def close(self) -> None:
        """Finish what is queued and let go of every connection."""
        with self._lock:
            self._closed = True
            writer = self._writer
            if writer is not None:
                self._queue.put(None)
        if writer is not None:
            writer.join()
        self.engine.dispose()

    def _postgres(self, work: Callable[[Connection], T]) -> T:
        for attempt in range(RETRIES):
            try:
                with self.engine.begin() as connection:
                    return work(connection)
            except OperationalError as error:
                transient = getattr(error.orig, "sqlstate", None) in TRANSIENT
                if not transient or attempt == RETRIES - 1:
                    raise
        raise Unavailable("the database is too busy")

    def _write(self) -> None:
        while (batch := self._batch()) is not None:
            try:
                self._commit(batch)
            except BaseException as error:  # noqa: BLE001 - whatever it was, every waiting caller must hear of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _batch(self) -> list[Work] | None:
        first = self._queue.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < GROUP:
            try:
                work = self._queue.get_nowait()
            except Empty:
                break
            if work is None:
                self._queue.put(None)
                break
            batch.append(work)
        return batch

    def _commit(self, batch: list[Work]) -> None:
        results: list[tuple[Future[Any], Any]] = []
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                for work, future in batch:
                    self._one(connection, work, future, results)
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
        for future, result in results:
            future.set_result(result)

    @staticmethod
    def _one(
        connection: Connection,
        work: Callable[[Connection], Any],
        future: Future[Any],
        results: list[tuple[Future[Any], Any]],
    ) -> None:
        connection.exec_driver_sql("SAVEPOINT work")
        try:
            result = work(connection)
        except Exception as error:  # noqa: BLE001 - belongs to this caller only; the others' work stays
            connection.exec_driver_sql("ROLLBACK TO work")
            future.set_exception(error)
        else:
            results.append((future, result))
        connection.exec_driver_sql("RELEASE work")


def _sqlite_engine(url: str) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise ConfigurationError(
            "ISOCENTER_DATABASE_URL must name a SQLite file; an in-memory database cannot be shared"
        )
    # Patients and password hashes: nobody else on this machine reads them. SQLite's side files take the file's mode.
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    Path(path).touch(mode=0o600)
    engine = sa.create_engine(
        url, isolation_level="AUTOCOMMIT", connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}
    )

    listen(engine, "connect", _configure_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _postgres_engine(url: str) -> Engine:
    # No prepared statements: PgBouncer in transaction mode gives each transaction another server connection.
    return sa.create_engine(
        url, pool_size=10, max_overflow=10, pool_pre_ping=True, connect_args={"prepare_threshold": None}
    )


def is_sqlite(connection: Connection) -> bool:
    """Which of the two engines this is."""
    return connection.dialect.name == "sqlite"


def run(connection: Connection, sql: str, values: Sequence[Any] = ()) -> Any:
    """Execute on the driver itself, which costs an eighth of the way through SQLAlchemy; `?` stands for a value."""
    driver: Any = connection.connection.driver_connection
    if is_sqlite(connection):
        return driver.execute(sql, values)
    return driver.execute(_for_psycopg(sql), values, binary=True)


def run_many(connection: Connection, sql: str, rows: Iterable[Sequence[Any]]) -> int:
    """Execute once for each row; tells how many rows changed in all."""
    driver: Any = connection.connection.driver_connection
    if is_sqlite(connection):
        return int(driver.executemany(sql, rows).rowcount)
    with driver.cursor() as cursor:
        cursor.executemany(_for_psycopg(sql), rows)
        return int(cursor.rowcount)


@contextmanager
def together(connection: Connection) -> Generator[None]:
    """What is run within goes to the server without waiting for each answer; nothing of the kind on SQLite."""
    if is_sqlite(connection):
        yield
        return
    driver: Any = connection.connection.driver_connection
    with driver.pipeline():
        yield


@lru_cache(maxsize=4096)
def _for_psycopg(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")


def upsert(connection: Connection, table: sa.Table, values: dict[str, Any], *, keys: tuple[str, ...]) -> None:
    """Insert a row, or update the one with the same `keys`."""
    statement = insert(connection, table).values(values)
    changed = {name: statement.excluded[name] for name in values if name not in keys}
    if changed:
        connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=changed))
    else:
        connection.execute(statement.on_conflict_do_nothing())


def insert(connection: Connection, table: sa.Table) -> Any:
    """The dialect's INSERT, which knows ON CONFLICT on both engines in the same words."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
