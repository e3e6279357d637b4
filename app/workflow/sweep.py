"""The sweep: what the archive holds compared with what is published, the truth behind every hint of a change.

It only marks studies. Mass disappearance, an emptied archive and another database behind it hold every withdrawal back
until a person decides.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog
from sqlalchemy.engine import Connection

from app.errors import ArchiveUnavailable, Unavailable
from app.settings import Settings
from app.store import requests, sync, truth
from app.store.database import now
from app.store.requests import Request
from app.store.sync import Mark
from app.store.truth import SWEEP, Believed, State, state
from app.workflow import comparing, identity
from app.workflow.comparing import Found, Level
from app.workflow.site import Archive

T = TypeVar("T")

log = structlog.get_logger(__name__)

MASS_KNOWN, MASS_SHARE = 20, 0.2
MASS = "studies disappeared in a mass"
EMPTIED = "the archive holds none of the known studies"
ANOTHER_DATABASE = "the archive's database was replaced"

LEASE_SECONDS = 15.0
PAUSE = 0.5
"""Seconds between two turns of the loop."""
SOON = 0.05
"""The same while a request is carried from one step to the next."""
GLANCE_SECONDS = 5.0
"""Between two sweeps the archive's totals are looked at so often: deletions are in no change log."""
GLANCE_SHARE = 0.02
"""Of the time at most so much is spent on that, where totals take long to count."""
NAMED = 20
"""Studies that are named in an answer to a person."""
ROUNDS, PATIENCE_MS = 10, 60_000
"""A person's request compares again until nothing differs: at most so often, and for so long after the first time."""
CHANGING = "the archive changed during every comparison; what is left is marked and will be looked at"


# --- one sweep -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drift:
    """What a sweep found different between the archive and what is published."""

    new: int = 0
    missing: int = 0
    changed: int = 0
    held: str = ""
    """Why nothing may be withdrawn."""
    level: Level = "totals"
    """How deep it looked."""
    waiting: int = 0
    """How many studies were marked before it began."""
    left: int = 0
    """How many differ or were marked, without those that are held back and those that fail again and again."""
    studies: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Some of them: archive's ids of the new and changed ones, Study Instance UIDs of the missing ones."""

    @property
    def total(self) -> int:
        """How many studies differ."""
        return self.new + self.missing + self.changed


@dataclass(frozen=True, slots=True)
class Accepted:
    """A person's word that what is missing is gone for good, and why it went."""

    reason: str = "unknown"


@dataclass(frozen=True, slots=True)
class Lead:
    """The right to compare: one process has it at a time, and every write asks for its number."""

    at: Archive
    owner: str
    fence: int

    def renew(self) -> None:
        """Keep it; Unavailable when another process has it."""
        if _hold(self.at, self.owner) != self.fence:
            raise Unavailable("another process compares with the archive now")

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction, if nobody else leads."""

        def fenced(connection: Connection) -> T:
            if not sync.require(connection, SWEEP, self.fence):
                raise Unavailable("another process compares with the archive now")
            return work(connection)

        return self.at.store.transact(fenced)


def lead(at: Archive, owner: str) -> Lead | None:
    """The right to compare, unless another process has it."""
    fence = _hold(at, owner)
    return None if fence is None else Lead(at, owner, fence)


def _hold(at: Archive, owner: str) -> int | None:
    return at.store.transact(lambda tx: sync.hold(tx, SWEEP, owner, seconds=LEASE_SECONDS))


def this_process() -> str:
    """How this process is called among those that compare."""
    return f"{socket.gethostname()}:{os.getpid()}"


def sweep(at: Archive, *, thorough: bool = False, accept_missing: bool = False, reason: str = "unknown") -> Drift:
    """Compare totals, then ids, then counts, `thorough` every instance, and mark every study that differs.

    Studies gone in a mass, or with the archive's database, are withdrawn only when a person accepts that.
    """
    led = lead(at, this_process())
    if led is None:
        raise Unavailable("another process compares with the archive now")
    return carry_out(led, thorough=thorough, accepted=Accepted(reason) if accept_missing else None)


def carry_out(led: Lead, *, thorough: bool, accepted: Accepted | None = None) -> Drift:
    """One sweep under a lead."""
    at, begun, moment = led.at, time.monotonic(), now()
    with at.store.read() as connection:
        ours = truth.believed(connection, _window(at.site.settings))
        before, epoch = state(connection), sync.position(connection, identity.CHANGES).epoch
    found = comparing.differences(comparing.Sides(at.orthanc, at.store, ours, led.renew), thorough=thorough)
    gone = found.missing | (ours.leaving - found.held)
    hold = "" if accepted else _held_back(before.hold, ours, gone) or _replaced(at, gone)
    left = (found.new | found.changed | ours.waiting | (frozenset() if hold else gone)) - ours.failing
    drift = Drift(len(found.new), len(gone), len(found.changed), hold, found.level, len(ours.waiting), len(left))
    since = (before.hold_since or moment) if hold else 0
    facts = {"at": moment, "took": round(time.monotonic() - begun, 3), "hold_since": since, **_told(drift)}
    full = {"full_at": moment, "full_epoch": epoch} if thorough else {}
    leave = frozenset[str]() if hold else gone
    # A look under way may have read the archive before this and publish after it: it must not be the last one.
    again = (((found.new | found.changed) - ours.waiting) | ours.claimed) - leave

    def work(connection: Connection) -> None:
        _mark(connection, at.site.settings, again, leave, accepted)
        truth.missing(connection, leave, moment)
        if accepted:
            truth.accept(connection, leave, accepted.reason)
        truth.note(connection, **facts, **full)

    if not led.write(_unless_held(before.hold, work)):
        return carry_out(led, thorough=thorough, accepted=accepted)
    if hold and not before.hold:
        log.error("withdrawals held back", reason=hold, missing=len(gone), known=len(ours.present) + len(ours.leaving))
    return _named(at, drift, found, gone)


def _unless_held(before: str, work: Callable[[Connection], object]) -> Callable[[Connection], bool]:
    """The work, unless somebody has begun or ended to hold back meanwhile: the comparison knew nothing of it."""

    def unless(connection: Connection) -> bool:
        # With this the row is ours until the transaction ends.
        truth.note(connection)
        if state(connection).hold != before:
            return False
        work(connection)
        return True

    return unless


def _told(drift: Drift) -> dict[str, Any]:
    return {
        "hold": drift.held,
        "level": drift.level,
        "new": drift.new,
        "missing": drift.missing,
        "changed": drift.changed,
    }


def _named(at: Archive, drift: Drift, found: Found, gone: frozenset[str]) -> Drift:
    with at.store.read() as connection:
        missing = truth.uids(connection, sorted(gone)[:NAMED])
    named = {"new": sorted(found.new)[:NAMED], "changed": sorted(found.changed)[:NAMED], "missing": missing}
    return replace(drift, studies={name: some for name, some in named.items() if some})


def _mark(
    connection: Connection,
    settings: Settings,
    again: frozenset[str],
    leave: frozenset[str],
    accepted: Accepted | None,
) -> None:
    """Have studies looked at: at once, and after the grace those that leave; what a person has accepted has none."""
    grace = 0 if accepted else int(settings.delete_grace * 1000)
    marks = [Mark(one, "sweep", priority=sync.RESYNC) for one in again]
    # All at once and before the studies, as everybody else does: two transactions must not wait for each other.
    sync.mark_each(connection, marks + [Mark(one, "missing", grace, grace) for one in leave])


def _window(settings: Settings) -> int:
    """What disappeared within a sweep's time disappeared in one sweep, however often the totals are looked at."""
    return int(max(settings.sweep_seconds, settings.delete_grace) * 1000)


def _held_back(before: str, ours: Believed, gone: frozenset[str]) -> str:
    """Why nothing may be withdrawn now. Once held, it stays so until all came back or a person decides."""
    if not gone or before:
        return before if gone else ""
    here = len(ours.present) + len(ours.leaving)
    known, missing = here + ours.recent, len(gone) + ours.recent
    if known >= MASS_KNOWN and missing > known * MASS_SHARE:
        return MASS
    # One study alone that is deleted is no emptied archive.
    return EMPTIED if len(gone) == here > 1 else ""


def _replaced(at: Archive, gone: frozenset[str]) -> str:
    """Whether it is another archive that lacks them: the log's reader may not have noticed yet."""
    return ANOTHER_DATABASE if gone and identity.is_another(at) else ""


# --- where it stands -------------------------------------------------------------------------------------------


def hold(connection: Connection) -> str:
    """Why nothing may be withdrawn for now; empty when nothing holds."""
    return state(connection).hold


def counted(connection: Connection, since: int) -> bool:
    """Whether a sweep has counted what was missing then: nothing is withdrawn before. If not, one is wanted."""
    known = state(connection)
    if known.at >= since:
        return True
    if known.wanted <= known.at:
        truth.note(connection, wanted=now())
    return False


def distrust(connection: Connection) -> None:
    """The archive's database is not the one we knew: compare everything, withdraw nothing."""
    truth.note(connection, hold=ANOTHER_DATABASE, hold_since=now(), full_at=0, wanted=now())


# --- the loop --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Glance:
    """The archive's totals as last seen."""

    due: float = 0
    totals: tuple[int, ...] = ()


def turns(at: Archive, owner: str) -> Callable[[], float]:
    """A step for a loop, which tells how long to pause: leads if nobody else does, answers requests, sweeps in time."""
    glance = _Glance()

    def turn() -> float:
        led = lead(at, owner)
        if led is None:
            return PAUSE
        with at.store.read() as connection:
            request, known = requests.next_one(connection), state(connection)
            epoch = sync.position(connection, "changes").epoch
        if request is not None and not _served(led, request):
            return SOON
        if _due(at.site.settings, known) or _noticed(at, glance, held=bool(known.hold)):
            full = known.full_at < _night(at.site.settings) or known.full_epoch != epoch
            carry_out(led, thorough=full)
        return PAUSE if request is None else PAUSE / 4

    return turn


def _due(settings: Settings, known: State) -> bool:
    return known.wanted > known.at or now() - known.at >= settings.sweep_seconds * 1000


def _night(settings: Settings) -> int:
    """The last time when the clock of the site showed the hour of full sweeps."""
    here = datetime.now(settings.zone)
    hour = here.replace(hour=settings.full_sweep_hour, minute=0, second=0, microsecond=0)
    return int((hour if hour <= here else hour - timedelta(days=1)).timestamp() * 1000)


def _noticed(at: Archive, glance: _Glance, *, held: bool) -> bool:
    """Whether the archive, other than at the last glance, lacks something; or, when withdrawals are held, no more."""
    begun = time.monotonic()
    if begun < glance.due:
        return False
    with at.store.read() as connection:
        ours = truth.totals(connection)
    totals = at.orthanc.statistics()
    seen = int(totals["CountStudies"]), int(totals["CountInstances"])
    before, glance.totals = glance.totals, seen
    glance.due = time.monotonic() + max(GLANCE_SECONDS, (time.monotonic() - begun) / GLANCE_SHARE)
    lacks = any(one < other for one, other in zip(seen, ours, strict=True))
    return seen != before and lacks != held


# --- requests of people ----------------------------------------------------------------------------------------


def _served(led: Lead, request: Request) -> bool:
    """Carry a request one step on; False when that step took the turn."""
    try:
        return _BEGIN[request.kind](led, request) if request.taken is None else _goes_on(led, request)
    except ArchiveUnavailable as error:
        # Whoever waits hears it; the mark of what was found already stays.
        sentence = str(error)
        led.write(lambda connection: requests.finish(connection, request, error=sentence))
        raise


def _reconcile(led: Lead, request: Request) -> bool:
    asked = request.detail
    accepted = Accepted(asked.get("reason", "unknown")) if asked.get("accept_missing") else None
    before = carry_out(led, thorough=True, accepted=accepted)
    if before.left:
        led.write(lambda connection: _begun(connection, led, request, before=told(before)))
    else:
        # Nothing was marked, so a second comparison would read the same again.
        led.write(lambda connection: _agreed(connection, led, request, told(before)))
    return False


def _agreed(connection: Connection, led: Lead, request: Request, found: dict[str, Any]) -> None:
    begun: dict[str, Any] = {"marked": now(), "studies": 0, "before": found}
    requests.take(connection, request, led.owner, **begun)
    failing = truth.waiting(connection).failing
    requests.finish(connection, request, **begun, after=found, failing=failing)


def _rebuild(led: Lead, request: Request) -> bool:
    def work(connection: Connection) -> None:
        _begun(connection, led, request, rebuilt=sync.forget_digests(connection))

    led.write(work)
    return False


_BEGIN: dict[str, Callable[[Lead, Request], bool]] = {"reconcile": _reconcile, "rebuild": _rebuild}


def _begun(connection: Connection, led: Lead, request: Request, **answer: object) -> None:
    moment = now()
    # Whoever waits sees what came later added to what there was.
    studies = request.answer.get("studies", 0) + truth.unsettled(connection, moment)
    requests.take(connection, request, led.owner, marked=moment, studies=studies, **answer)


def _goes_on(led: Lead, request: Request) -> bool:
    """Done when every study that was marked by then has been looked at, and a comparison finds nothing left."""
    with led.at.store.read() as connection:
        left = truth.unsettled(connection, int(request.answer["marked"]))
        failing = truth.waiting(connection).failing
    if left:
        return True
    answer: dict[str, Any] = {"failing": failing}
    if request.kind == "reconcile":
        after = carry_out(led, thorough=True)
        answer["after"] = told(after)
        if after.left:
            rounds, since = request.answer.get("rounds", 1), request.answer.get("compared", now())
            if rounds < ROUNDS and now() - since < PATIENCE_MS:
                led.write(lambda tx: _begun(tx, led, request, rounds=rounds + 1, compared=since))
                return False
            answer["note"] = CHANGING
    led.write(lambda connection: requests.finish(connection, request, **answer))
    return False


def told(drift: Drift) -> dict[str, Any]:
    """A drift as people and programs read it."""
    counts = {"new": drift.new, "missing": drift.missing, "changed": drift.changed}
    found = {"total": drift.total, **counts, "held": drift.held, "level": drift.level, "waiting": drift.waiting}
    return {**found, "studies": drift.studies} if drift.studies else found
