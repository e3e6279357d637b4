"""The audit trail of reads without a commit for each: records are gathered and written together (45 CFR 164.312(b))."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from itertools import islice

import psycopg
import structlog
from sqlalchemy.exc import OperationalError

from app.audit import Record
from app.errors import Unavailable
from app.store import audit_log
from app.store.database import Store, now

log = structlog.get_logger(__name__)

AWAY = (OperationalError, sqlite3.OperationalError, psycopg.OperationalError, Unavailable)
"""The database does not answer now: what was to be written waits."""
Noted = tuple[int, Record]
"""When it happened, in milliseconds, and what."""

SECONDS = 0.1
"""So long a record may wait for others: what a killed process may lose of what it read out."""
ROWS = 500
FULL = 20_000
"""More than so many unwritten records are not taken: what cannot be audited is not answered."""
PATIENCE = 10.0
"""So many seconds a thread waits for room or for a flush."""
BACK_OFF = 5.0


class Auditor:
    """Takes records at once and writes them in batches from one thread of its own."""

    def __init__(self, store: Store, *, seconds: float = SECONDS, rows: int = ROWS, full: int = FULL) -> None:
        """A batch is written when its first record is `seconds` old, or when there are `rows` of them."""
        self._store = store
        self._seconds, self._rows, self._full = seconds, rows, full
        self._waiting: deque[Noted] = deque()
        self._lock = threading.Lock()
        self._due, self._room = threading.Condition(self._lock), threading.Condition(self._lock)
        self._noted = self._done = self._wanted = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def note(self, record: Record) -> None:
        """Keep a record, soon. Without room a thread waits and the event loop refuses: Unavailable, both."""
        at = now()
        with self._lock:
            if self._closed:
                raise Unavailable("the audit trail is closed")
            if len(self._waiting) >= self._full:
                self._wait_for_room()
            self._waiting.append((at, record))
            self._noted += 1
            many = len(self._waiting)
            if many in {1, self._rows}:
                self._start()
                self._due.notify()

    def flush(self) -> None:
        """Return when everything noted before is durable; Unavailable when that takes too long."""
        with self._lock:
            self._wanted = max(self._wanted, self._noted)
            target = self._wanted
            self._due.notify()
            if not self._room.wait_for(lambda: self._done >= target, PATIENCE):
                raise Unavailable("the audit trail cannot be written")

    def close(self) -> None:
        """Write what is left and end. What cannot be written now is told in the log, by its number."""
        with self._lock:
            self._closed = True
            self._due.notify()
            thread = self._thread
        if thread is not None:
            thread.join(PATIENCE)
        if self._waiting:
            log.error("audit records lost", records=len(self._waiting))

    def _wait_for_room(self) -> None:
        if _in_event_loop() or not self._room.wait_for(lambda: len(self._waiting) < self._full, PATIENCE):
            raise Unavailable("the audit trail cannot be written")

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain, name="audit-trail", daemon=True)
            self._thread.start()

    def _drain(self) -> None:
        failures = 0
        while batch := self._batch():
            try:
                self._write(batch)
                failures = 0
            except AWAY as error:
                failures += 1
                log.warning("audit trail not written", error=type(error).__name__, waiting=len(self._waiting))
                if self._closed:
                    return
                time.sleep(min(BACK_OFF, self._seconds * 2**failures))

    def _batch(self) -> list[Noted]:
        """The next records, which stay in the queue until they are durable; none when it is closed and empty."""
        with self._lock:
            self._due.wait_for(lambda: self._waiting or self._closed)
            self._due.wait_for(self._is_due, self._seconds)
            return list(islice(self._waiting, self._rows))

    def _is_due(self) -> bool:
        return len(self._waiting) >= self._rows or self._wanted > self._done or self._closed

    def _write(self, batch: list[Noted]) -> None:
        try:
            self._store.transact(lambda connection: audit_log.add_many(connection, batch))
        except AWAY:
            raise
        except Exception:  # noqa: BLE001 - one record that cannot be stored must not keep the others out
            self._singly(batch)
        else:
            self._finished(len(batch))

    def _singly(self, batch: list[Noted]) -> None:
        for one in batch:
            try:
                self._store.transact(lambda connection, one=one: audit_log.add_many(connection, [one]))
            except AWAY:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                record = one[1]
                log.warning("audit record refused", door=record.door, action=record.action, error=type(error).__name__)
            self._finished(1)

    def _finished(self, count: int) -> None:
        with self._lock:
            for _ in range(count):
                self._waiting.popleft()
            self._done += count
            self._room.notify_all()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
