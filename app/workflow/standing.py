"""How far what is published is in step with the archive: one value for the command line, the probes and FHIR."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy.engine import Connection

from app.settings import Settings
from app.store import sync, truth
from app.store.database import now

Json = dict[str, Any]
Word = Literal["archive-unreachable", "held", "never-compared", "stalled", "catching-up", "in-step"]
CHANGES = "changes"


@dataclass(frozen=True, slots=True)
class Seen:
    """The archive as it was asked just now: the number of its last change, or why it does not answer."""

    last: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where keeping in step stands."""

    state: Word
    cursor: int
    """The number of the archive's last change that was read."""
    epoch: str
    """Which database of the archive counts these numbers; another epoch, another database."""
    lag: float
    """Seconds since the oldest mark that nobody has dealt with."""
    behind: int | None
    """Changes of the archive that were not read yet; null when it does not answer."""
    waiting: int
    failing: int
    studies: int
    instances: int
    drift: int
    """How many studies differed at the last sweep."""
    hold: str
    """Why nothing is withdrawn; empty when nothing holds."""
    hold_since: str | None
    last_sweep: Json | None
    last_full_sweep: str | None
    archive: str
    """Why the archive does not answer; empty when it does."""

    def told(self) -> Json:
        """As JSON."""
        return asdict(self)


def of(connection: Connection, settings: Settings, seen: Seen) -> Standing:
    """Where it stands now."""
    read, swept, waiting = sync.position(connection, CHANGES), truth.state(connection), truth.waiting(connection)
    studies, instances = truth.totals(connection)
    behind = None if seen.last is None else max(0, seen.last - read.value)
    # Without a server nobody reads the log, and a comparison down to every instance lacks nothing that stands in it.
    unread = behind if behind and read.epoch else 0
    return Standing(
        state=_state(settings, swept, seen, waiting.studies + unread),
        cursor=read.value,
        epoch=read.epoch,
        lag=round(max(0, now() - waiting.since) / 1000, 3) if waiting.since else 0.0,
        behind=behind,
        waiting=waiting.studies,
        failing=waiting.failing,
        studies=studies,
        instances=instances,
        drift=swept.new + swept.missing + swept.changed,
        hold=swept.hold,
        hold_since=_moment(swept.hold_since),
        last_sweep=_sweep(swept),
        last_full_sweep=_moment(swept.full_at),
        archive=seen.error,
    )


def trouble(connection: Connection, settings: Settings) -> str:
    """What a person must know or do about keeping in step; empty when nothing."""
    swept = truth.state(connection)
    if swept.hold:
        counted = f" ({swept.missing} missing)" if swept.missing else ""
        return (
            f"nothing is withdrawn: {swept.hold}{counted}. Bring them back, or accept it with "
            "`isocenter sync reconcile --accept-missing`"
        )
    if _is_stalled(settings, swept):
        return f"the archive was last compared {_moment(swept.at)}: is a worker running?"
    return ""


def _state(settings: Settings, swept: truth.State, seen: Seen, to_do: int) -> Word:
    if seen.error:
        return "archive-unreachable"
    if swept.hold:
        return "held"
    if not swept.at:
        return "never-compared"
    if _is_stalled(settings, swept):
        return "stalled"
    return "catching-up" if to_do else "in-step"


def _is_stalled(settings: Settings, swept: truth.State) -> bool:
    return bool(swept.at) and now() - swept.at > (3 * settings.sweep_seconds + 60) * 1000


def _sweep(swept: truth.State) -> Json | None:
    if not swept.at:
        return None
    found = {"new": swept.new, "missing": swept.missing, "changed": swept.changed}
    return {"at": _moment(swept.at), "seconds": swept.took, "level": swept.level, **found}


def _moment(ms: int) -> str | None:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if ms else None
