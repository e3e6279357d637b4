"""Which structured reports have been read, and what was odd about them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import now, upsert
from app.store.sync import Known
from app.store.tables import evidence


def remember(connection: Connection, sop_uid: str, study: Known, problems: list[str]) -> bool:
    """Note that a report was read; whether this was the first time."""
    first = connection.execute(sa.select(evidence.c.sop_uid).where(evidence.c.sop_uid == sop_uid)).first() is None
    values = {
        "sop_uid": sop_uid,
        "imaging_study_id": study.imaging_study_id,
        "study_orthanc_id": study.orthanc_id,
        "state": "read",
        "problems": problems,
        "at": now(),
    }
    upsert(connection, evidence, values, keys=("sop_uid",))
    return first


def of_study(connection: Connection, study_orthanc_id: str) -> frozenset[str]:
    """The reports of a study that have been read."""
    statement = sa.select(evidence.c.sop_uid).where(evidence.c.study_orthanc_id == study_orthanc_id)
    return frozenset(connection.execute(statement).scalars())


def forget(connection: Connection, sop_uid: str) -> None:
    """The report is gone; should it come back, it is read again."""
    connection.execute(evidence.delete().where(evidence.c.sop_uid == sop_uid))
