"""The work no caller waits for: reading the archive, the sweep, evidence and the outbox, each in its own loop.

A loop that fails logs what kind of error it was and goes on: every step is repeated from the store's state.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from app import errors
from app.errors import ArchiveUnavailable
from app.store import outbox, sync
from app.store.outbox import Claimed
from app.workflow import arrivals, evidence, reports, sweep
from app.workflow.arrivals import Archive

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.2
SWEEP_SECONDS = 5.0
THOROUGH_EVERY = 60
"""One sweep in so many looks at every id, whatever the totals say."""
LEASE_SECONDS = 10.0
LONGEST_PAUSE = 10.0

Effects = Mapping[str, Callable[[Archive, Claimed], None]]
EFFECTS: Effects = {
    "evidence": lambda at, effect: evidence.read_one(at, effect.payload["sop_uid"]),
    "archive-report": reports.archive_one,
}


@dataclass(frozen=True, slots=True)
class Loop:
    """One kind of work: a step that says whether there may be more, and the pause when there is none."""

    name: str
    step: Callable[[], bool]
    pause: float


def loops(at: Archive) -> list[Loop]:
    """Every loop of a worker; any number of workers may run them side by side."""
    owner = f"{socket.gethostname()}:{os.getpid()}"
    sweeps = [0]

    def poll() -> bool:
        fence = at.store.transact(lambda tx: sync.hold(tx, arrivals.CHANGES, owner, seconds=LEASE_SECONDS))
        return fence is not None and arrivals.poll(at, fence) > 0

    def compare() -> bool:
        if at.store.transact(lambda tx: sync.hold(tx, sweep.SWEEP, owner, seconds=LEASE_SECONDS)) is not None:
            sweep.sweep(at, thorough=sweeps[0] % THOROUGH_EVERY == 0)
            sweeps[0] += 1
        return False

    return [
        Loop("changes", poll, POLL_SECONDS),
        Loop("sweep", compare, SWEEP_SECONDS),
        Loop("rebuild", lambda: arrivals.rebuild_one(at), POLL_SECONDS / 2),
        Loop("settle", lambda: arrivals.settle(at) > 0, 1.0),
        Loop("outbox", lambda: deliver_one(at), POLL_SECONDS),
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
    threads = [threading.Thread(target=_turn, args=(loop, stop), name=loop.name) for loop in loops(at)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _turn(loop: Loop, stop: threading.Event) -> None:
    failures = 0
    while not stop.is_set():
        more = False
        try:
            more = loop.step()
            failures = 0
        except ArchiveUnavailable:
            failures += 1
            log.warning("archive unavailable", loop=loop.name)
        except Exception as error:  # noqa: BLE001 - whatever failed is retried; the loop must not end
            failures += 1
            log.error(  # noqa: TRY400 - a trace may hold patient data
                "step failed", loop=loop.name, error=type(error).__name__, where=errors.place(error)
            )
        if not more:
            stop.wait(min(loop.pause * 2**failures, LONGEST_PAUSE))
