"""The studies the archive holds, whose they are, and who stored what through the gateway."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import now, run, run_many, upsert
from app.store.tables import instance, stow, study


@dataclass(frozen=True, slots=True)
class HeldStudy:
    """One study of the archive and the patient and ImagingStudy it belongs to."""

    orthanc_id: str
    study_uid: str
    imaging_study_id: str
    patient_id: str


@dataclass(frozen=True, slots=True)
class HeldInstance:
    """One instance of the archive and its place."""

    orthanc_id: str
    study_orthanc_id: str
    series_uid: str
    sop_uid: str
    sop_class: str
    modality: str = ""
    file: str = ""
    """The archive's name of the file."""


COLUMNS = (study.c.orthanc_id, study.c.study_uid, study.c.imaging_study_id, study.c.patient_id)
MEMBER = tuple(instance.c[name] for name in HeldInstance.__dataclass_fields__)
MEMBERS = f"SELECT {', '.join(HeldInstance.__dataclass_fields__)} FROM instance WHERE study_orthanc_id = ?"  # noqa: S608 - our own names
INSERT_MEMBER = (
    f"INSERT INTO instance ({', '.join(HeldInstance.__dataclass_fields__)})"  # noqa: S608 - our own names
    f" VALUES ({', '.join('?' for _ in HeldInstance.__dataclass_fields__)})"
)


def with_uid(connection: Connection, study_uid: str) -> list[HeldStudy]:
    """Every study that carries the UID: more than one when it was used for two patients."""
    return _held(connection, sa.select(*COLUMNS).where(study.c.study_uid == study_uid, study.c.missing_since.is_(None)))


def completed(connection: Connection, since: int, limit: int) -> list[tuple[HeldStudy, int]]:
    """The first complete studies that changed after `since`, with the moment of their last change."""
    is_complete = sa.and_(study.c.complete.is_(True), study.c.changed > since, study.c.missing_since.is_(None))
    statement = sa.select(*COLUMNS, study.c.changed).where(is_complete).order_by(study.c.changed).limit(limit)
    return [(HeldStudy(*row[:-1]), row[-1]) for row in connection.execute(statement)]


def put(connection: Connection, held: HeldStudy, *, digest: str, complete: bool = False, instances: int = 0) -> None:
    """Write what is known of a study, new or not; it is in the archive now."""
    values = asdict(held) | {"digest": digest, "changed": now(), "complete": complete, "instances": instances}
    upsert(connection, study, values | {"missing_since": None}, keys=("orthanc_id",))


def put_instances(connection: Connection, study_orthanc_id: str, held: Iterable[HeldInstance]) -> None:
    """Make these the study's instances, and no others; only rows that differ are written."""
    wanted = {one.orthanc_id: one for one in held}
    known = {row[0]: HeldInstance(*row) for row in run(connection, MEMBERS, (study_orthanc_id,))}
    gone = [(one,) for one, row in known.items() if wanted.get(one) != row]
    if gone:
        run_many(connection, "DELETE FROM instance WHERE orthanc_id = ?", gone)
    if rows := [_row(one) for one in wanted.values() if known.get(one.orthanc_id) != one]:
        run_many(connection, INSERT_MEMBER, rows)


def _row(held: HeldInstance) -> tuple[str, ...]:
    return tuple(getattr(held, name) for name in HeldInstance.__dataclass_fields__)


def modalities(connection: Connection, study_orthanc_id: str) -> frozenset[str]:
    """The modalities of a study's series."""
    statement = sa.select(instance.c.modality).where(instance.c.study_orthanc_id == study_orthanc_id).distinct()
    return frozenset(connection.execute(statement).scalars())


def count_images(connection: Connection, study_orthanc_id: str, apart_from: frozenset[str]) -> int:
    """How many instances a study has in series of other modalities than these."""
    statement = "SELECT modality, count(*) FROM instance WHERE study_orthanc_id = ? GROUP BY modality"
    found = run(connection, statement, (study_orthanc_id,))
    return sum(row[1] for row in found if row[0] not in apart_from)


def of_imaging_study(connection: Connection, imaging_study_id: str) -> list[str]:
    """The archive's ids of the studies that an ImagingStudy tells of."""
    statement = "SELECT orthanc_id FROM study WHERE imaging_study_id = ? AND missing_since IS NULL"
    return [row[0] for row in run(connection, statement, (imaging_study_id,))]


def any_image(connection: Connection, study_orthanc_id: str, apart_from: frozenset[str]) -> str | None:
    """The archive's id of one instance in a series of another modality than these: always the same one."""
    own = sa.and_(instance.c.study_orthanc_id == study_orthanc_id, instance.c.modality.not_in(apart_from))
    statement = sa.select(instance.c.orthanc_id).where(own).order_by(instance.c.sop_uid).limit(1)
    return connection.execute(statement).scalar()


def instance_of(connection: Connection, sop_uid: str) -> list[HeldInstance]:
    """Where an SOP Instance UID is in the archive: more than one place when it was used twice."""
    return [HeldInstance(*row) for row in connection.execute(sa.select(*MEMBER).where(instance.c.sop_uid == sop_uid))]


# --- what a modality said it made ------------------------------------------------------------------------------


def expect(connection: Connection, study_uid: str, sop_uids: Iterable[str]) -> None:
    """A modality made these instances. A study that was taken for complete without them is looked at once more."""
    statement = "INSERT INTO expected (study_uid, sop_uid) VALUES (?, ?) ON CONFLICT DO NOTHING"
    run_many(connection, statement, [(study_uid, one) for one in sop_uids])
    if awaited(connection, study_uid):
        connection.execute(study.update().where(study.c.study_uid == study_uid).values(complete=False))


def awaited(connection: Connection, study_uid: str) -> int:
    """How many instances that a modality made for a study the archive does not hold."""
    statement = """SELECT count(*) FROM expected WHERE study_uid = ? AND NOT EXISTS (
        SELECT 1 FROM instance JOIN study ON study.orthanc_id = instance.study_orthanc_id
        WHERE instance.sop_uid = expected.sop_uid AND study.missing_since IS NULL)"""
    return run(connection, statement, (study_uid,)).fetchone()[0]


# --- what came through the gateway -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stowed:
    """Who stored which object, and the hash of the bytes sent."""

    sop_uid: str
    study_uid: str
    grant_id: str | None
    client_id: str
    fhir_user: str | None
    sha256: str


def record_stow(connection: Connection, who: Stowed) -> Stowed | None:
    """Remember who stores an object, before the archive gets it; tells whom that replaces."""
    before = stowed(connection, who.sop_uid)
    upsert(connection, stow, asdict(who) | {"at": now()}, keys=("sop_uid",))
    return before


def undo_stow(connection: Connection, who: Stowed, before: Stowed | None) -> None:
    """The archive did not take the object: what was recorded before holds, unless another attempt came since."""
    if stowed(connection, who.sop_uid) != who:
        return
    if before is None:
        connection.execute(stow.delete().where(stow.c.sop_uid == who.sop_uid))
    else:
        upsert(connection, stow, asdict(before) | {"at": now()}, keys=("sop_uid",))


def stowed(connection: Connection, sop_uid: str) -> Stowed | None:
    """Who stored the object, if it came through the gateway."""
    columns = [stow.c[name] for name in Stowed.__dataclass_fields__]
    row = connection.execute(sa.select(*columns).where(stow.c.sop_uid == sop_uid)).one_or_none()
    return None if row is None else Stowed(*row)


def _held(connection: Connection, statement: sa.Select[Any, Any, Any, Any]) -> list[HeldStudy]:
    return [HeldStudy(*row) for row in connection.execute(statement)]
