"""One database, SQLite or PostgreSQL: reads on a connection, writes through `transact`.

On SQLite one writer thread per process commits queued writes in groups (WAL, synchronous=FULL, BEGIN IMMEDIATE), and
reads go on beside it, each on a connection of its own that is kept open; on PostgreSQL each write is a transaction of
its own on a pooled connection, and each statement that reads stands for itself.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.event import listen
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.pool import NullPool

from app.errors import ConfigurationError, Unavailable

T = TypeVar("T")
Work = tuple[Callable[[Connection], Any], Future[Any]]

BUSY_SECONDS = 30
GROUP = 64
"""At most so many writes share one commit on SQLite."""
RETRIES = 5
TRANSIENT = frozenset({"40001", "40P01"})
"""PostgreSQL: serialization failure and deadlock; the work is simply done again."""
CANCELED = "57014"
"""PostgreSQL: a statement took longer than it may."""
IDLE_SECONDS = 30
"""A connection to PostgreSQL that was unused for longer is asked whether it still lives."""
KEPT = 16
"""So many idle reading connections stay open on SQLite; each may hold CACHE_KB of pages."""
CACHE_KB = 2048
WRITER_CACHE_KB = 16384
"""The writer keeps the upper pages of every index, so that it need not read them back from the log."""
CHECKPOINT_PAGES = 4000
"""The log is copied into the database after so many pages (16 MB): what changed often meanwhile is copied once."""
MAPPED_BYTES = 256 << 20
"""Pages mapped from the file are the system's cache, not this process's memory."""
STEPS = 20_000
"""SQLite looks at the clock after so many steps of its machine: about a millisecond."""
TOO_LONG = "this takes too long to find: ask for less"
WRITERS = 8
"""Threads for work that is submitted on PostgreSQL."""
_SEEN = "isocenter seen"


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
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._idle: deque[Connection] = deque()

    def read(self, seconds: float | None = None) -> AbstractContextManager[Connection]:
        """A connection that writes nothing; Unavailable when what is read takes longer than so many seconds.

        On SQLite it sees one consistent state, on PostgreSQL each statement does.
        """
        return _Reading(self, seconds) if self.sqlite else self._read_postgres(seconds)

    @contextmanager
    def _read_postgres(self, seconds: float | None) -> Generator[Connection]:
        try:
            with self._connected(seconds) as connection:
                yield connection
        except (DBAPIError, psycopg.Error) as error:
            self._forget(error)
            if seconds is not None and _is_interrupted(error):
                raise Unavailable(TOO_LONG) from error
            raise

    @contextmanager
    def _connected(self, seconds: float | None) -> Generator[Connection]:
        if seconds is None:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                yield connection
            return
        # A time limit for this transaction only: behind PgBouncer the session belongs to others too.
        with self.engine.connect() as connection:
            run(connection, "SELECT set_config('statement_timeout', ?, true)", (str(max(1, int(seconds * 1000))),))
            yield connection

    def reader(self) -> Connection:
        """A connection to read from on SQLite, to be given back."""
        try:
            return self._idle.pop()
        except IndexError:
            connection = self.engine.connect()
            connection.exec_driver_sql("PRAGMA query_only=ON")
            connection.info[_SEEN] = (-1, {})
            return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a reading connection for the next reader."""
        if self._closed or len(self._idle) >= KEPT:
            connection.close()
            return
        self._idle.append(connection)
        if self._closed:
            self._let_go()

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction and return its result once it is durable; its exception rolls it back."""
        return self.submit(work).result() if self.sqlite else self._postgres(work)

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """The same for callers that cannot wait, such as the event loop."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise Unavailable("the store is closed")
            if not self.sqlite:
                self._threads = self._threads or ThreadPoolExecutor(WRITERS, "store-writer")
                return self._threads.submit(self._postgres, work)
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="store-writer", daemon=True)
                self._writer.start()
            self._queue.put((work, future))
        return future

    def close(self) -> None:
        """Finish what is queued and let go of every connection."""
        with self._lock:
            self._closed = True
            writer, threads = self._writer, self._threads
            if writer is not None:
                self._queue.put(None)
        if writer is not None:
            writer.join()
        if threads is not None:
            threads.shutdown()
        self._let_go()
        self.engine.dispose()

    def _let_go(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _postgres(self, work: Callable[[Connection], T]) -> T:
        for _ in range(RETRIES):
            try:
                with self.engine.begin() as connection:
                    return work(connection)
            except (DBAPIError, psycopg.Error) as error:
                self._forget(error)
                if _sqlstate(error) not in TRANSIENT:
                    raise
        raise Unavailable("too many write the same at once: send it again")

    def _forget(self, error: Exception) -> None:
        """A server that went away took the idle connections with it."""
        state = _sqlstate(error)
        lost = state is None or (state[:2] == "57" and state != CANCELED)
        if lost and isinstance(getattr(error, "orig", error), psycopg.OperationalError):
            self.engine.dispose()

    def _write(self) -> None:
        connection: Connection | None = None
        while (batch := self._batch()) is not None:
            try:
                connection = connection or self.writing()
                self._commit(connection, batch)
            except BaseException as error:  # noqa: BLE001 - whatever it was, every waiting caller must hear of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
        if connection is not None:
            connection.close()

    def writing(self) -> Connection:
        """A connection to SQLite for a writer."""
        connection = self.engine.connect()
        connection.exec_driver_sql(f"PRAGMA cache_size=-{WRITER_CACHE_KB}")
        # Savepoints remember the pages that they change: in memory, or half of all that is written would be for them.
        connection.exec_driver_sql("PRAGMA temp_store=MEMORY")
        return connection

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

    def _commit(self, connection: Connection, batch: list[Work]) -> None:
        driver: Any = connection.connection.driver_connection
        results: list[tuple[Future[Any], Any]] = []
        driver.execute("BEGIN IMMEDIATE")
        try:
            for work, future in batch:
                run_one(connection, work, future, results, savepoint=len(batch) > 1)
            # Work that was alone and failed has rolled back everything.
            if driver.in_transaction:
                driver.execute("COMMIT")
        except BaseException:
            if driver.in_transaction:
                driver.execute("ROLLBACK")
            raise
        for future, result in results:
            future.set_result(result)


def run_one(
    connection: Connection,
    work: Callable[[Connection], Any],
    future: Any,
    results: list[tuple[Any, Any]],
    *,
    savepoint: bool,
) -> None:
    """One work of a shared transaction: its failure is told to its own caller and undone, the others' work stays."""
    driver: Any = connection.connection.driver_connection
    if savepoint:
        driver.execute("SAVEPOINT work")
    try:
        result = work(connection)
    except Exception as error:  # noqa: BLE001 - belongs to this caller only
        driver.execute("ROLLBACK TO work" if savepoint else "ROLLBACK")
        if not future.done():
            future.set_exception(error)
    else:
        results.append((future, result))
    if savepoint:
        driver.execute("RELEASE work")


class _Reading:
    """One reading of a SQLite database: a class, for a generator would cost as much as looking up a row."""

    __slots__ = ("_connection", "_driver", "_seconds", "_store")

    def __init__(self, store: Store, seconds: float | None) -> None:
        self._store, self._seconds = store, seconds

    def __enter__(self) -> Connection:
        self._connection = self._store.reader()
        self._driver: Any = self._connection.connection.driver_connection
        self._driver.execute("BEGIN")
        if self._seconds is not None:
            limit = time.monotonic() + self._seconds
            self._driver.set_progress_handler(lambda: time.monotonic() > limit, STEPS)
        return self._connection

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._seconds is not None:
            self._driver.set_progress_handler(None, 0)
        if self._driver.in_transaction:
            self._driver.execute("ROLLBACK")
        self._store.give_back(self._connection)
        if self._seconds is not None and isinstance(error, DBAPIError | sqlite3.Error) and _is_interrupted(error):
            raise Unavailable(TOO_LONG) from error


def _sqlite_engine(url: str) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise ConfigurationError(
            "ISOCENTER_DATABASE_URL must name a SQLite file; an in-memory database cannot be shared"
        )
    # Patients and password hashes: nobody else on this machine reads them. SQLite's side files take the file's mode.
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    Path(path).touch(mode=0o600)
    # The store keeps its connections itself: the writer's, and a stack of readers'.
    engine = sa.create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False, "cached_statements": 512},
    )
    listen(engine, "connect", _configure_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_SECONDS * 1000}",
        f"cache_size=-{CACHE_KB}",
        f"mmap_size={MAPPED_BYTES}",
        f"wal_autocheckpoint={CHECKPOINT_PAGES}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _postgres_engine(url: str) -> Engine:
    # No prepared statements: PgBouncer in transaction mode gives each transaction another server connection.
    engine = sa.create_engine(url, pool_size=10, max_overflow=10, connect_args={"prepare_threshold": None})
    listen(engine, "checkin", _remember_use)
    listen(engine, "checkout", _ask_idle)
    return engine


def _remember_use(_driver: Any, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _ask_idle(driver: Any, record: Any, _proxy: object) -> None:
    """A connection that was just used lives; one that rested may have lost its server."""
    if time.monotonic() - record.info.get("used", time.monotonic()) < IDLE_SECONDS and not driver.broken:
        return
    try:
        driver.execute("SELECT 1")
        driver.rollback()
    except psycopg.Error as error:
        raise DisconnectionError from error


def _sqlstate(error: Exception) -> str | None:
    return getattr(getattr(error, "orig", error), "sqlstate", None)


def _is_interrupted(error: Exception) -> bool:
    cause = getattr(error, "orig", error)
    return _sqlstate(error) == CANCELED or (isinstance(cause, sqlite3.OperationalError) and str(cause) == "interrupted")


@contextmanager
def limited(connection: Connection, seconds: float) -> Generator[None]:
    """Within a write, reading that may take no longer than so many seconds; Unavailable then.

    Where there is one writer all others wait for it. On PostgreSQL the limit is each statement's, and stays until the
    transaction ends.
    """
    driver: Any = connection.connection.driver_connection
    if is_sqlite(connection):
        limit = time.monotonic() + seconds
        driver.set_progress_handler(lambda: time.monotonic() > limit, STEPS)
    else:
        run(connection, "SELECT set_config('statement_timeout', ?, true)", (str(max(1, int(seconds * 1000))),))
    try:
        yield
    except (DBAPIError, sqlite3.Error, psycopg.Error) as error:
        if _is_interrupted(error):
            raise Unavailable(TOO_LONG) from error
        raise
    finally:
        if is_sqlite(connection):
            driver.set_progress_handler(None, 0)


def seen(connection: Connection) -> dict[Any, Any]:
    """What was read on this connection and still holds: an empty dict as soon as anything was committed.

    SQLite tells whether another connection has changed the database; one that only reads may so keep what each request
    asks for. On PostgreSQL, and on a connection that writes, nothing is kept.
    """
    kept: tuple[int, dict[Any, Any]] | None = connection.info.get(_SEEN)
    if kept is None:
        return {}
    (version,) = run(connection, "PRAGMA data_version").fetchone()
    if version != kept[0]:
        kept = connection.info[_SEEN] = (version, {})
    return kept[1]


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
