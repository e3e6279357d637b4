"""Which structured reports have been read, what they replace, and what was odd about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import now, upsert
from app.store.tables import evidence


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a report; `state` is `read`, or `failed` when nothing could be made of it."""

    sop_uid: str
    imaging_study_id: str
    study_orthanc_id: str
    state: str
    predecessors: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


COLUMNS = tuple(evidence.c[name] for name in Reading.__dataclass_fields__)


def known(connection: Connection, sop_uid: str) -> Reading | None:
    """The last reading of a report."""
    row = connection.execute(sa.select(*COLUMNS).where(evidence.c.sop_uid == sop_uid)).first()
    return _reading(row) if row else None


def remember(connection: Connection, reading: Reading) -> None:
    """Note that a report was read."""
    values = asdict(reading) | {"predecessors": list(reading.predecessors), "problems": list(reading.problems)}
    upsert(connection, evidence, values | {"at": now()}, keys=("sop_uid",))


def of_study(connection: Connection, study_orthanc_id: str) -> Mapping[str, Reading]:
    """The readings of a study's reports by SOP Instance UID."""
    statement = sa.select(*COLUMNS).where(evidence.c.study_orthanc_id == study_orthanc_id)
    return {row[0]: _reading(row) for row in connection.execute(statement)}


def forget(connection: Connection, sop_uid: str) -> None:
    """The report is gone; should it come back, it is read again."""
    connection.execute(evidence.delete().where(evidence.c.sop_uid == sop_uid))


def _reading(row: Sequence[Any]) -> Reading:
    return Reading(row[0], row[1], row[2], row[3], tuple(row[4]), tuple(row[5]))
