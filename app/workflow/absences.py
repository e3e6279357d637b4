"""Studies that the archive no longer holds: a grace, then their ImagingStudy is withdrawn, never deleted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy.engine import Connection

from app.fhir import resources
from app.fhir.mapping import imaging_study
from app.store import studies, sync, timeline
from app.store.database import now
from app.store.sync import Dirty, Known
from app.store.timeline import Happening
from app.workflow import sweep
from app.workflow.site import Site


def absent(site: Site, connection: Connection, dirty: Dirty) -> None:
    """The archive does not hold this study (any more): wait out the grace, then withdraw what tells of it."""
    row = sync.known(connection, dirty.orthanc_id)
    grace = int(site.settings.delete_grace * 1000)
    if not sync.owned(connection, dirty):
        return
    if row is None or row.instances == 0:
        sync.clean(connection, dirty)
    elif sweep.hold(connection):
        sync.write(connection, replace(row, missing_since=None))
        sync.clean(connection, dirty)
    elif row.missing_since is None:
        sync.write(connection, replace(row, missing_since=now()))
        sync.postpone(connection, dirty, grace)
    elif now() - row.missing_since < grace:
        sync.postpone(connection, dirty, grace - (now() - row.missing_since))
    else:
        _withdraw(connection, row)
        sync.clean(connection, dirty)


def _withdraw(connection: Connection, row: Known) -> None:
    cause = "gone from the archive"
    study = resources.read(connection, "ImagingStudy", row.imaging_study_id)
    if study is not None and study["status"] == "available":
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        resources.put(connection, imaging_study.withdrawn(study, moment), cause=cause)
        happening = Happening("study-withdrawn", cause, order_id=row.order_id, study_uid=row.study_uid)
        timeline.add(connection, happening)
    studies.put_instances(connection, row.orthanc_id, [])
    sync.write(connection, replace(row, digest="", instances=0))
