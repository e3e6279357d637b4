"""The work no caller waits for: reading the archive, the sweep, evidence and the outbox, each in its own loop.

A loop that fails logs what kind of error it was and goes on: every step is repeated from the store's state. A worker
says every second that it lives; what it has claimed is free for others when it does not.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from sqlalchemy.engine import Connection

from app import errors
from app.errors import ArchiveUnavailable
from app.store import outbox, sync
from app.store.database import now
from app.store.outbox import Claimed
from app.store.sync import Dirty
from app.workflow import arrivals, changes, evidence, reports, sweep
from app.workflow.arrivals import Archive, Looking

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.15
BUSY_POLL_SECONDS = 0.03
BUSY_SECONDS = 3.0
"""So long after the last change the archive is asked more often."""
DUE_SECONDS = 0.03
OUTBOX_SECONDS = 0.2
LEASE_SECONDS = 6.0
BEAT_SECONDS, LIFE_SECONDS = 1.0, 5.0
"""How often a worker says that it lives, and how long that is believed."""
SILENT_SECONDS = 3600
"""A worker of another machine that was silent for so long is forgotten."""
LONGEST_PAUSE = 10.0
THREADS = 8
"""Portions of studies looked at side by side: some are read while others wait for the disk. Requests at once are the
archive's client's to limit."""
BEHIND = 2
"""So many studies of a portion are on their way to the disk while the next one is read."""
PORTION = 8
"""So many studies at most are read together; what has just happened waits for one portion at the longest."""

Effects = Mapping[str, Callable[[Archive, Claimed], None]]
EFFECTS: Effects = {
    "evidence": lambda at, effect: evidence.read_one(at, effect.payload["sop_uid"]),
    "archive-report": reports.archive_one,
}
_MINE: set[str] = set()
"""The workers of this process."""


@dataclass(frozen=True, slots=True)
class Loop:
    """One kind of work: a step that tells how many seconds to pause before the next one."""

    name: str
    step: Callable[[], float]
    pause: float
    """The pause after a failure, doubled with each that follows."""


# --- who works -----------------------------------------------------------------------------------------------------


def born(at: Archive) -> str:
    """A name for this worker, alive from now on. Workers of this machine whose process is gone are buried."""
    host = socket.gethostname()
    name = f"{host}:{os.getpid()}:{secrets.token_hex(4)}"
    _MINE.add(name)

    def work(connection: Connection) -> None:
        known, silent = sync.living(connection), now() - SILENT_SECONDS * 1000
        sync.bury(connection, [one for one, until in known.items() if until < silent or _is_gone(one, host)])
        sync.live(connection, name, seconds=LIFE_SECONDS)

    at.store.transact(work)
    return name


def _is_gone(name: str, host: str) -> bool:
    """Whether a worker ran on this machine and does no longer. A guess that is wrong costs a second look, no more."""
    where, _, rest = name.rpartition(":")[0].rpartition(":")
    if where != host or not rest.isdigit() or name in _MINE:
        return False
    if int(rest) == os.getpid():
        return True
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def dead(at: Archive, name: str) -> None:
    """This worker ends: what it had claimed is free at once."""
    _MINE.discard(name)
    at.store.transact(lambda connection: sync.bury(connection, [name]))


# --- the marked studies ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rebuilder:
    """Looks at marked studies, several side by side; each is claimed by this worker alone."""

    at: Archive
    owner: str
    _threads: ThreadPoolExecutor = field(init=False)
    _running: set[Future[None]] = field(default_factory=set[Future[None]])
    _closed: bool = False

    def __post_init__(self) -> None:
        """Threads are started when there is work."""
        self._threads = ThreadPoolExecutor(THREADS, "rebuild")

    def turn(self) -> int:
        """Claim what is due and hand it to the threads; how many portions are under way."""
        self._running = {one for one in self._running if not one.done()}
        free = THREADS - len(self._running)
        if free and self._is_due():
            some = self.at.store.transact(lambda tx: sync.claim_some(tx, self.owner, free * PORTION))
            # What is to be looked at first is the first of its portion.
            self._running |= {
                self._threads.submit(self._look_at, some[one::free]) for one in range(min(free, len(some)))
            }
        return len(self._running)

    def close(self) -> None:
        """Finish what is being looked at; what waits is given back."""
        self._closed = True
        self._threads.shutdown(cancel_futures=True)

    def _is_due(self) -> bool:
        with self.at.store.read() as connection:
            return sync.is_due(connection)

    def _look_at(self, some: Sequence[Dirty]) -> None:
        outlines = arrivals.outlined(self.at, some)
        begun: deque[Looking] = deque()
        for dirty in some:
            if self._closed:
                break
            held = outlines.get(dirty.orthanc_id)
            with _told():
                begun.append(Looking(self.at, dirty, held))
            # A large study waits for nothing: it takes memory.
            self._end(begun, BEHIND if held else 0)
        self._end(begun, 0)

    def _end(self, begun: deque[Looking], left: int) -> None:
        while len(begun) > left:
            with _told():
                begun.popleft().end()


@contextmanager
def _told() -> Generator[None]:
    """What goes wrong is told: the study stays marked and is looked at again."""
    try:
        yield
    except ArchiveUnavailable:
        log.warning("archive unavailable", loop="rebuild")
    except Exception as error:  # noqa: BLE001 - the others are looked at
        _failed("rebuild", error)


def rebuild_until(at: Archive, done: Callable[[], bool]) -> None:
    """Look at marked studies until this is true, beside whatever worker runs."""
    owner = born(at)
    rebuilder, beaten = Rebuilder(at, owner), time.monotonic()
    try:
        while not done():
            if time.monotonic() - beaten > BEAT_SECONDS:
                _say_alive(at, owner)
                beaten = time.monotonic()
            time.sleep(DUE_SECONDS / 3 if rebuilder.turn() else DUE_SECONDS)
    finally:
        rebuilder.close()
        dead(at, owner)


def _say_alive(at: Archive, owner: str) -> None:
    at.store.transact(lambda connection: sync.live(connection, owner, seconds=LIFE_SECONDS))


# --- the loops -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Poller:
    """Reads the change log while this worker holds the lease; often while something happens."""

    reader: changes.Reader
    owner: str
    fence: int | None = None
    renewed: float = 0
    busy: float = 0

    def step(self) -> float:
        moment = time.monotonic()
        if self.fence is None or moment - self.renewed > LEASE_SECONDS / 4:
            self.fence = self.reader.at.store.transact(self._hold)
            self.renewed = moment
        if self.fence is None:
            return POLL_SECONDS
        read = changes.read(self.reader, self.fence)
        self.busy = moment if read else self.busy
        if read >= changes.PAGE // 2:
            return 0
        return BUSY_POLL_SECONDS if moment - self.busy < BUSY_SECONDS else POLL_SECONDS

    def _hold(self, connection: Connection) -> int | None:
        return sync.hold(connection, changes.CHANGES, self.owner, seconds=LEASE_SECONDS)


def loops(at: Archive, owner: str, rebuilder: Rebuilder) -> list[Loop]:
    """Every loop of a worker; any number of workers may run them side by side."""

    def beat() -> float:
        _say_alive(at, owner)
        return BEAT_SECONDS

    return [
        Loop("beat", beat, BEAT_SECONDS),
        Loop("changes", _Poller(changes.Reader(at), owner).step, POLL_SECONDS),
        Loop("sweep", sweep.turns(at, owner), sweep.PAUSE),
        Loop("rebuild", lambda: DUE_SECONDS / 3 if rebuilder.turn() else DUE_SECONDS, DUE_SECONDS),
        Loop("settle", lambda: 0 if arrivals.settle(at) else 1.0, 1.0),
        Loop("outbox", lambda: 0 if deliver_one(at) else OUTBOX_SECONDS, OUTBOX_SECONDS),
    ]


def deliver_one(at: Archive) -> bool:
    """Do one effect of the outbox; False when none is due."""
    effect = at.store.transact(lambda connection: outbox.claim(connection, tuple(EFFECTS)))
    if effect is None:
        return False
    try:
        EFFECTS[effect.kind](at, effect)
    except Exception as error:
        reason = type(error).__name__
        at.store.transact(lambda connection: outbox.failed(connection, effect, reason))
        raise
    at.store.transact(lambda connection: outbox.done(connection, effect.id))
    return True


def run(at: Archive, stop: threading.Event) -> None:
    """Run every loop until `stop` is set, then wait for the steps under way."""
    owner = born(at)
    rebuilder = Rebuilder(at, owner)
    threads = [
        threading.Thread(target=_turn, args=(loop, stop), name=loop.name) for loop in loops(at, owner, rebuilder)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rebuilder.close()
    dead(at, owner)


def _turn(loop: Loop, stop: threading.Event) -> None:
    failures = 0
    while not stop.is_set():
        try:
            pause = loop.step()
            failures = 0
        except ArchiveUnavailable:
            failures += 1
            log.warning("archive unavailable", loop=loop.name)
            pause = _longer(loop, failures)
        except Exception as error:  # noqa: BLE001 - whatever failed is retried; the loop must not end
            failures += 1
            _failed(loop.name, error)
            pause = _longer(loop, failures)
        stop.wait(pause)


def _longer(loop: Loop, failures: int) -> float:
    return min(loop.pause * 2**failures, LONGEST_PAUSE)


def _failed(name: str, error: Exception) -> None:
    # A trace may hold patient data.
    log.error("step failed", loop=name, error=type(error).__name__, where=errors.place(error))
