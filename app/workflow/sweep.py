"""The sweep: what the archive holds compared with what is published, the truth behind every hint of a change.

It only marks studies; mass disappearance and another database behind the archive hold every withdrawal back.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.engine import Connection

from app.store import sync
from app.store.database import now
from app.store.sync import Position
from app.workflow.site import Archive

SWEEP = "sweep"
MASS_KNOWN, MASS_SHARE = 20, 0.2
MASS = "studies disappeared in a mass"
ANOTHER_DATABASE = "the archive's database was replaced"


@dataclass(frozen=True, slots=True)
class Drift:
    """What a sweep found different between the archive and what is published."""

    new: int = 0
    missing: int = 0
    changed: int = 0
    held: str = ""

    @property
    def total(self) -> int:
        """How many studies differ."""
        return self.new + self.missing + self.changed


def sweep(at: Archive, *, thorough: bool = False, accept_missing: bool = False) -> Drift:
    """Compare totals, then ids, and mark every study that differs.

    Studies gone in a mass, or with the archive's database, are withdrawn only when a person accepts that.
    """
    with at.store.read() as connection:
        present, leaving = sync.present(connection), sync.leaving(connection)
        before = hold(connection)
    totals = at.orthanc.statistics()
    same = (int(totals["CountStudies"]), int(totals["CountInstances"])) == (len(present), sum(present.values()))
    held = set(at.orthanc.study_ids()) if thorough or not same else set(present)
    new, missing = held - present.keys(), present.keys() - held
    changed = held & present.keys() if thorough or (not same and not new and not missing) else set[str]()
    counts = len(present) + len(leaving), len(missing) + len(leaving - held)
    drift = Drift(len(new), len(missing), len(changed), "" if accept_missing else _held_back(before, *counts))

    def work(connection: Connection) -> None:
        sync.mark(connection, new | changed, "sweep")
        if not drift.held:
            sync.mark(connection, missing, "missing")
        detail = {"hold": drift.held, "at": now(), "new": drift.new, "missing": drift.missing, "changed": drift.changed}
        sync.move(connection, SWEEP, Position(detail=detail))

    at.store.transact(work)
    return drift


def _held_back(before: str, known: int, missing: int) -> str:
    """Why nothing may be withdrawn now."""
    if before == ANOTHER_DATABASE and missing:
        return before
    return MASS if known >= MASS_KNOWN and missing > known * MASS_SHARE else ""


def hold(connection: Connection) -> str:
    """Why nothing may be withdrawn for now; empty when nothing holds."""
    return (sync.position(connection, SWEEP).detail or {}).get("hold", "")
