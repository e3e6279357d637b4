"""Studies that the archive no longer holds: a grace, then their ImagingStudy is withdrawn by policy, never deleted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy.engine import Connection

from app.fhir import resources
from app.fhir.mapping import imaging_study
from app.settings import Settings
from app.store import studies, sync, timeline, truth
from app.store.database import now
from app.store.sync import Dirty, Known
from app.store.timeline import Happening
from app.workflow import evidence, orders, sweep
from app.workflow.site import Site

POLICY: Mapping[str, str] = {
    "unknown": "unknown",
    "retention": "unknown",
    "quality": "cancelled",
    "safety": "cancelled",
    "worklist": "cancelled",
    "never-existed": "entered-in-error",
}
"""What an ImagingStudy becomes by the reason. R4 has no status for images that can no longer be had: `unknown` says
least, `cancelled` that something was done and rejected, `entered-in-error` that it should never have been told."""
COUNT_MS = 500
"""How soon a study is looked at again that no sweep has counted as missing yet."""


def status(settings: Settings, reason: str) -> str:
    """What the site's policy makes of a study that is gone for this reason."""
    named = {str(name): str(value) for name, value in settings.delete_policy.items()}
    policy = {**POLICY, **named}
    return policy.get(reason, policy["unknown"])


def absent(site: Site, connection: Connection, dirty: Dirty) -> None:
    """The archive does not hold this study (any more): wait out the grace, then withdraw what tells of it.

    Nothing is withdrawn before a sweep has counted how many others are missing too.
    """
    if not sync.owned(connection, dirty):
        return
    row = sync.known(connection, dirty.orthanc_id)
    if row is None or row.instances == 0:
        sync.clean(connection, dirty)
        return
    gone = truth.absence(connection, row.orthanc_id)
    wait = 0 if gone.accepted else _wait(site.settings, connection, row)
    if wait is None:
        sync.write(connection, replace(row, missing_since=None))
        sync.clean(connection, dirty)
    elif wait:
        sync.write(connection, replace(row, missing_since=row.missing_since or now()))
        sync.postpone(connection, dirty, wait)
    else:
        _withdraw(site, connection, row, gone.reason or "unknown")
        sync.clean(connection, dirty)


def _wait(settings: Settings, connection: Connection, row: Known) -> int | None:
    """How many ms to wait; None when nothing may be withdrawn at all."""
    if sweep.hold(connection):
        return None
    grace = int(settings.delete_grace * 1000)
    if row.missing_since is None:
        return max(grace, 1)
    left = grace - (now() - row.missing_since)
    if left > 0:
        return left
    return 0 if sweep.counted(connection, row.missing_since) else COUNT_MS


def _withdraw(site: Site, connection: Connection, row: Known, reason: str) -> None:
    cause = "gone from the archive" if reason == "unknown" else f"gone from the archive ({reason})"
    if others := studies.of_imaging_study(connection, row.imaging_study_id):
        # Another study of the archive is the same one to FHIR: what it holds is still there.
        sync.reconsider(connection, others, cause)
        studies.put_instances(connection, row.orthanc_id, [])
        sync.write(connection, replace(row, digest="", instances=0))
        return
    becomes = status(site.settings, reason)
    study = resources.read(connection, "ImagingStudy", row.imaging_study_id)
    if study is not None and study["status"] == "available":
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        resources.put(connection, imaging_study.withdrawn(study, moment) | {"status": becomes}, cause=cause)
        detail = {"reason": reason, "status": becomes}
        happening = Happening("study-withdrawn", cause, order_id=row.order_id, study_uid=row.study_uid, detail=detail)
        timeline.add(connection, happening)
    _ask(connection, row, "study-removed")
    if becomes == "entered-in-error":
        evidence.withdraw_missing(connection, row, [])
    studies.put_instances(connection, row.orthanc_id, [])
    sync.write(connection, replace(row, digest="", instances=0))


# --- what a signed report says of images that are gone ---------------------------------------------------------


def shrunk(connection: Connection, row: Known, cause: str) -> None:
    """Some images of a study are gone; a person is asked when a signed report rests on them."""
    happening = Happening("images-removed", cause, order_id=row.order_id, study_uid=row.study_uid)
    timeline.add(connection, happening)
    _ask(connection, row, "images-removed")


def back(connection: Connection, row: Known, cause: str) -> None:
    """A study that was withdrawn is in the archive again: what a person was asked has answered itself."""
    for key in _keys(connection, row, "study-removed"):
        orders.settled(connection, key, cause)


def _ask(connection: Connection, row: Known, reason: str) -> None:
    for key in _keys(connection, row, reason):
        orders.review(connection, key, reason, f"ImagingStudy/{row.imaging_study_id}", row.patient_id)


def _keys(connection: Connection, row: Known, reason: str) -> list[str]:
    """One question for each signed report of the study's order."""
    found = orders.final_reports(connection, row.order_id) if row.order_id else []
    return [f"{reason}|{row.orthanc_id}|{report['id']}|{report.get('issued')}" for report in found]
