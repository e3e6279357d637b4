"""Whether the archive is still the one whose change log was read: its numbers, rows and name (Orthanc, /changes).

A restored copy or an emptied database answers like any other; only what was read before tells it apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from app.dicom.orthanc import Orthanc
from app.fhir.mapping.codes import Json
from app.store import sync
from app.store.sync import Position
from app.workflow.site import Archive

CHANGES = "changes"
OVERLAP = 200
"""Sequence numbers read again: PostgreSQL may show a lower number after a higher one."""
PAGE = 1000


def is_another(at: Archive) -> bool:
    """Asked before anything is believed to be gone: the log's reader may not have come to it yet."""
    with at.store.read() as connection:
        position = sync.position(connection, CHANGES)
    if not position.epoch:
        return False
    since = max(int((position.detail or {}).get("from", 0)), position.value - OVERLAP, 0)
    answer = at.orthanc.changes(since, PAGE)
    with at.store.read() as connection:
        heard = sync.heard(connection, position.epoch, since)
    counts = is_reused(answer["Changes"], heard) or is_behind(at.orthanc, int(answer["Last"]), position)
    return counts or is_named_otherwise(at.orthanc, position)


def is_reused(rows: Iterable[Json], heard: Mapping[int, str]) -> bool:
    """Whether a number now belongs to another resource than when it was read."""
    return any(heard.get(row["Seq"], row["ID"]) != row["ID"] for row in rows)


def is_behind(orthanc: Orthanc, last: int, position: Position) -> bool:
    """Whether the log ends before what was read of it."""
    return last < position.value and orthanc.last_change() < position.value


def is_named_otherwise(orthanc: Orthanc, position: Position) -> bool:
    """Whether an archive that says who it is (Orthanc 1.11.1) says something else."""
    known, told = (position.detail or {}).get("server", ""), name(orthanc)
    return bool(known and told and known != told)


def name(orthanc: Orthanc) -> str:
    """What the archive calls its database; nothing before Orthanc 1.11.1."""
    return str(orthanc.system().get("DatabaseServerIdentifier") or "")
