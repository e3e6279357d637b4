"""The archive's change log, a hint: each row marks its study, once, whatever is repeated (Orthanc Book, /changes).

Rows, cursor and marks are one transaction under the lease's fencing number. What the log lost, the sweep finds.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy.engine import Connection

from app.dicom.orthanc import Orthanc
from app.fhir.mapping.codes import Json
from app.store import sync
from app.store.database import now
from app.store.sync import Change, Mark, Position
from app.workflow import identity, sweep
from app.workflow.identity import CHANGES, OVERLAP, PAGE
from app.workflow.site import Archive

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 0.5
"""How often they are read again."""
RESYNC = 5000
"""So many studies are marked in one transaction when all of them are."""
HINTS = frozenset({"StableStudy", "StableSeries", "StablePatient", "CompletedSeries"})
"""What the archive concludes itself: nothing has changed with it, so what has goes first."""
ANOTHER_SECONDS = 30
"""How often the archive is asked who it is."""

QUIET_MS, QUIETEST_MS = 150, 600
"""A published study is written again when its images have paused for so long: longer, the longer they have come."""
PAUSES = 4
"""After so many pauses the next must be twice as long: an examination of an hour is not written for each image."""
FIRST_INTERVAL, GROWTH = 4, 4
"""While they do not pause it is written after 4 s, 16 s, 64 s …: a study of any length gets a handful of versions."""
PAUSE_SECONDS = 5
"""Images after so long a pause are a new series of arrivals."""
REMEMBERED = 50_000


@dataclass(slots=True)
class Burst:
    """Images of one study that come one after another."""

    start: float
    last: float
    count: int
    pauses: int = 0
    """How often they paused for so long that the study was written."""

    def more(self, moment: float, images: int) -> None:
        """More of them come."""
        if (moment - self.last) * 1000 > pace(self)[0]:
            self.pauses += 1
        self.last, self.count = moment, self.count + images


@dataclass(slots=True)
class Reader:
    """What one process remembers of the log between two readings; all of it may be lost at any time."""

    at: Archive
    bursts: dict[str, Burst] = field(default_factory=dict[str, Burst])
    series: dict[str, str] = field(default_factory=dict[str, str])
    """The study of a series: Orthanc's ids are hashes, so it never changes."""
    again: float = 0
    asked: float = 0


def read(reader: Reader, fence: int) -> int:
    """Mark the studies that changed since the last call and move the cursor, in one transaction; how many rows."""
    at = reader.at
    with at.store.read() as connection:
        position = sync.position(connection, CHANGES)
    if not position.epoch:
        return _resync(reader, fence, hold="")
    if _is_another_server(reader, position):
        return _another_database(reader, position, fence)
    since = _since(reader, position)
    answer = at.orthanc.changes(since, PAGE)
    last = int(answer["Last"])
    with at.store.read() as connection:
        heard = sync.heard(connection, position.epoch, since)
    rows: list[Json] = answer["Changes"]
    if identity.is_reused(rows, heard) or identity.is_behind(at.orthanc, last, position):
        return _another_database(reader, position, fence)
    rows = [row for row in rows if row["Seq"] not in heard]
    if not rows and last <= position.value:
        return 0
    told = {"last": max(last, position.value), "at": now()}
    moved = Position(told["last"], position.epoch, {**(position.detail or {}), **told})
    return _take(reader, moved, _changes(reader, rows), fence)


def _since(reader: Reader, position: Position) -> int:
    moment = time.monotonic()
    if moment - reader.again < AGAIN_SECONDS:
        return position.value
    reader.again = moment
    # What was there before the first contact was marked then.
    return max(int((position.detail or {}).get("from", 0)), position.value - OVERLAP, 0)


def _take(reader: Reader, moved: Position, changes: Sequence[Change], fence: int) -> int:
    started = _follow(reader, changes)
    # What the archive concludes of a study is named only when nothing else happened to it.
    ordered = sorted(changes, key=lambda one: one.kind not in HINTS)
    last = {one.study: one for one in ordered if one.study}

    def work(connection: Connection) -> int:
        if not sync.require(connection, CHANGES, fence):
            return 0
        sync.hear(connection, moved.epoch, changes)
        if moved.value // PAGE > (moved.value - len(changes)) // PAGE:
            sync.forget_changes(connection, moved.epoch, moved.value)
        published = sync.published(connection, last)
        # Of a study that is published already a conclusion tells nothing new; what was missed of it the sweep counts.
        told = [one for one in last.values() if one.kind not in HINTS or one.study not in published]
        sync.mark_each(connection, [_mark(reader, one, one.study in started - published) for one in told])
        sync.move(connection, CHANGES, moved)
        return len(changes)

    return reader.at.store.transact(work)


# --- pace ----------------------------------------------------------------------------------------------------------


def _follow(reader: Reader, changes: Iterable[Change]) -> set[str]:
    """Count the images as they come; the studies whose first ones these are."""
    moment, started = time.monotonic(), set[str]()
    if len(reader.bursts) > REMEMBERED:
        over = [study for study, burst in reader.bursts.items() if moment - burst.last > PAUSE_SECONDS]
        for study in over:
            del reader.bursts[study]
    for one in changes:
        if not one.study or one.kind in HINTS:
            continue
        burst = reader.bursts.get(one.study)
        if burst is None or moment - burst.last > PAUSE_SECONDS:
            burst = reader.bursts[one.study] = Burst(moment, moment, 0)
            started.add(one.study)
        burst.more(moment, one.kind == "NewInstance")
    return started


def _mark(reader: Reader, change: Change, at_once: bool) -> Mark:
    reason = f"{change.kind} {change.seq} (changes)"
    burst = reader.bursts.get(change.study)
    if change.kind in HINTS and (burst is None or time.monotonic() - burst.last > PAUSE_SECONDS):
        return Mark(change.study, reason, priority=sync.RESYNC)
    if at_once or burst is None:
        return Mark(change.study, reason)
    return Mark(change.study, reason, *pace(burst))


def pace(burst: Burst) -> tuple[int, int]:
    """How long to wait for a pause, and at the longest, in ms."""
    lasted = burst.last - burst.start
    rhythm = lasted / max(burst.count - 1, 1)
    longest = min(QUIETEST_MS * 2 ** (burst.pauses // PAUSES), PAUSE_SECONDS * 1000)
    quiet = min(max(QUIET_MS, 4000 * rhythm, 50 * lasted), longest)
    interval = FIRST_INTERVAL
    while interval <= lasted:
        interval *= GROWTH
    return int(quiet), int((interval - lasted) * 1000)


# --- which study ---------------------------------------------------------------------------------------------------


def _changes(reader: Reader, rows: Sequence[Json]) -> list[Change]:
    studies = _studies(reader, rows)
    return [
        Change(row["Seq"], row["ChangeType"], row["ID"], studies.get(row["ID"], ""))
        for row in sorted(rows, key=lambda row: row["Seq"])
    ]


def _studies(reader: Reader, rows: Sequence[Json]) -> Mapping[str, str]:
    """The study of each resource that the rows name; what is gone already has none."""
    named: dict[str, set[str]] = {"Patient": set(), "Study": set(), "Series": set(), "Instance": set()}
    for row in rows:
        named[row["ResourceType"]].add(row["ID"])
    orthanc = reader.at.orthanc
    held = orthanc.bulk_content("Instance", sorted(named["Instance"]), metadata=False)
    above = {row["ID"]: row["ParentSeries"] for row in held}
    _learn(reader, orthanc, {*named["Series"], *above.values()} - reader.series.keys())
    found = {one: one for one in named["Study"]}
    found |= {one: reader.series[one] for one in named["Series"] if one in reader.series}
    return found | {one: reader.series[series] for one, series in above.items() if series in reader.series}


def _learn(reader: Reader, orthanc: Orthanc, unknown: Iterable[str]) -> None:
    if len(reader.series) > REMEMBERED:
        reader.series.clear()
    for row in orthanc.bulk_content("Study", sorted(unknown), metadata=False):
        reader.series.update(dict.fromkeys(row["Series"], row["ID"]))


# --- the first contact, and another database --------------------------------------------------------------------------


def _is_another_server(reader: Reader, position: Position) -> bool:
    """Whether the archive says now and then that it is not the one read before."""
    if time.monotonic() - reader.asked < ANOTHER_SECONDS:
        return False
    found = identity.is_named_otherwise(reader.at.orthanc, position)
    reader.asked = time.monotonic()
    return found


def _another_database(reader: Reader, position: Position, fence: int) -> int:
    """The archive counts anew, or from lower than we had read: a restored or another database. Nothing is withdrawn."""
    log.warning("archive database changed", cursor=position.value)
    return _resync(reader, fence, hold=sweep.ANOTHER_DATABASE)


def _resync(reader: Reader, fence: int, *, hold: str) -> int:
    """Look at every study there is, and read the log from its present end on."""
    at = reader.at
    last, server = at.orthanc.last_change(), identity.name(at.orthanc)
    reader.bursts.clear()
    reader.series.clear()
    epoch = uuid.uuid4().hex
    reason = hold or "first contact"

    def note(connection: Connection) -> bool:
        held = sync.require(connection, CHANGES, fence)
        if held and hold:
            sweep.distrust(connection)
        return held

    if not at.store.transact(note):
        return 0
    with at.store.read() as connection:
        known = sync.present(connection) if hold else {}
    every = list({**dict.fromkeys(at.orthanc.study_ids()), **known})
    for begin in range(0, len(every), RESYNC):
        some = every[begin : begin + RESYNC]
        at.store.transact(lambda connection, some=some: sync.mark(connection, some, reason, priority=sync.RESYNC))
    start = Position(last, epoch, {"from": last, "server": server})

    def go_on(connection: Connection) -> None:
        if sync.require(connection, CHANGES, fence):
            sync.move(connection, CHANGES, start)

    at.store.transact(go_on)
    return len(every)
