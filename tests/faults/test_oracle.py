"""The oracle of the chaos bites: what could go wrong in a store, done by hand, is found (tests.faults.oracle).

An oracle that says yes to everything would let every round pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.dicom.orthanc import Level, Orthanc
from app.store import tables
from app.workflow import sweep
from tests.faults import oracle
from tests.orthanc import phantoms
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.conftest import clean_orthanc, orthanc
from tests.orthanc.hospital import Hospital, both, lite

__all__ = ["both", "clean_orthanc", "lite", "orthanc"]

pytestmark = pytest.mark.orthanc

Json = dict[str, Any]
ZONE = ZoneInfo("Europe/Berlin")
"""The hospital's."""
STAYS, GOES, ORDERED = "1.2.66.1", "1.2.66.2", "1.2.66.3"


def filled(at: Hospital) -> None:
    """Two series of two images, a copy of them without a name, a study of an order, and a study that went."""
    at.send(at.image(at.order(identifier=[{"system": "urn:dicom:uid", "value": f"urn:oid:{ORDERED}"}])))
    for series in ("1", "2"):
        for number in ("1", "2"):
            uid = f"{STAYS}.{series}"
            at.send(phantoms.image(mrn="P-1", study=STAYS, series=uid, instance=f"{uid}.{number}"))
    at.send(phantoms.image(mrn="S-1", study=GOES, series=f"{GOES}.1", instance=f"{GOES}.1.1"))
    at.pacs.post(f"/studies/{at.orthanc_id(STAYS)}/anonymize", json={}).raise_for_status()
    at.settle()
    at.delete("studies", at.orthanc_id(GOES))
    sweep.sweep(at.archive)
    at.settle()


def edited(change: Callable[[Json], object], uid: str = STAYS) -> Callable[[Connection], None]:
    """A hand on the stored body of the study with this UID."""

    def tamper(connection: Connection) -> None:
        rows = sa.select(tables.resource.c.rid, tables.resource.c.body)
        for rid, body in connection.execute(rows.where(tables.resource.c.resource_type == "ImagingStudy")).all():
            found = json.loads(body)
            if any(one["value"] == f"urn:oid:{uid}" for one in found["identifier"]):
                change(found)
                changed = tables.resource.update().where(tables.resource.c.rid == rid)
                connection.execute(changed.values(body=json.dumps(found).encode()))

    return tamper


def doubled(connection: Connection) -> None:
    """The same study told of a second time, under another id."""
    row = connection.execute(_one_study()).mappings().one()
    values = {**row, "rid": None, "resource_id": "twice", "natural_key": None}
    values["body"] = json.dumps(json.loads(row["body"]) | {"id": "twice"}).encode()
    del values["rid"]
    connection.execute(tables.resource.insert().values(**values))


def repeated(connection: Connection) -> None:
    """A second version that says what the first said."""
    row = connection.execute(_one_study()).mappings().one()
    found = json.loads(row["body"])
    past = {name: row[name] for name in ("rid", "version", "resource_type", "updated", "body")}
    connection.execute(tables.resource_version.insert().values(**past, until=row["updated"] + 1, deleted=False))
    found["meta"]["versionId"] = str(row["version"] + 1)
    now = tables.resource.update().where(tables.resource.c.rid == row["rid"])
    connection.execute(now.values(version=row["version"] + 1, body=json.dumps(found).encode()))


def removed(connection: Connection) -> None:
    connection.execute(tables.resource.delete().where(tables.resource.c.resource_id == _one(connection)))


def _one(connection: Connection) -> str:
    return connection.execute(_one_study()).mappings().one()["resource_id"]


def _one_study() -> sa.Select[Any]:
    known = sa.select(tables.study.c.imaging_study_id).where(tables.study.c.study_uid == STAYS)
    return sa.select(tables.resource).where(tables.resource.c.resource_id.in_(known))


def row_lost(connection: Connection) -> None:
    one = tables.instance.delete().where(tables.instance.c.sop_uid == f"{STAYS}.1.1")
    connection.execute(one)


def row_of_nothing(connection: Connection) -> None:
    names = ("orthanc_id", "study_orthanc_id", "series_uid", "sop_uid", "sop_class")
    connection.execute(tables.instance.insert().values(**dict.fromkeys(names, "1.2"), modality="CT"))


def study_forgotten(connection: Connection) -> None:
    connection.execute(tables.study.delete().where(tables.study.c.study_uid == STAYS))


def asked_twice(connection: Connection) -> None:
    kind = tables.resource.c.resource_type == "Task"
    rows = [dict(one) for one in connection.execute(sa.select(tables.resource).where(kind)).mappings()]
    row = next(one for one in rows if json.loads(one["body"])["status"] == "requested")
    del row["rid"]
    row |= {"resource_id": "again", "natural_key": None}
    connection.execute(tables.resource.insert().values(**row))


def moved(found: Json) -> None:
    found["series"][0]["uid"] = "1.2.3"


TAMPERED: dict[str, tuple[Callable[[Connection], None], str]] = {
    "an instance is not listed": (edited(lambda one: one["series"][0]["instance"].pop()), "lost series"),
    "an instance is listed twice": (
        edited(lambda one: one["series"][0]["instance"].append(one["series"][0]["instance"][0])),
        "twice series",
    ),
    "a series is not listed": (edited(lambda one: one["series"].pop()), "lost series"),
    "a series has another uid": (edited(moved), "is not in the archive"),
    "the status changed": (edited(lambda one: one.update(status="unknown")), "0 available"),
    "a withdrawn study is back": (edited(lambda one: one.update(status="available"), GOES), "without a study behind"),
    "a withdrawn study has no tombstone": (edited(lambda one: one.pop("extension"), GOES), "not withdrawn"),
    "a number of series": (edited(lambda one: one.update(numberOfSeries=3)), "numberOfSeries"),
    "a number of instances": (edited(lambda one: one["series"][1].update(numberOfInstances=3)), "numberOfInstances"),
    "a SOP class": (edited(lambda one: one["series"][0]["instance"][0]["sopClass"].update(code="urn:oid:1")), "sopCl"),
    "a modality": (edited(lambda one: one["series"][0]["modality"].update(code="MR")), "modality"),
    "the modalities": (edited(lambda one: one["modality"].append({"code": "MR"})), "modality"),
    "the patient": (edited(lambda one: one["subject"].update(reference="Patient/other")), "0 available"),
    "the description": (edited(lambda one: one.update(description="another")), "description"),
    "the time": (edited(lambda one: one.update(started="2026-03-01T10:16:00+00:00")), "started"),
    "the accession number": (edited(lambda one: one["identifier"].pop(1)), "accession"),
    "the order": (edited(lambda one: one.pop("basedOn"), ORDERED), "basedOn"),
    "an order of others": (
        edited(lambda one: one.update(basedOn=[{"reference": "ServiceRequest/other"}])),
        "basedOn",
    ),
    "the endpoint": (edited(lambda one: one.pop("endpoint")), "no endpoint"),
    "a second ImagingStudy": (doubled, "2 available"),
    "no ImagingStudy": (removed, "0 available"),
    "a version that says nothing new": (repeated, "says nothing new"),
    "an instance row is missing": (row_lost, "lost instance row"),
    "an instance row of nothing": (row_of_nothing, "instance row"),
    "the study's row is missing": (study_forgotten, "lost known study"),
    "a question asked twice": (asked_twice, "2 open Tasks"),
}


@pytest.fixture
def sound(both: Hospital) -> Hospital:
    filled(both)
    return both


def test_a_sound_store_has_no_fault(sound: Hospital) -> None:
    verdict = oracle.judge(sound.pacs, sound.store, ZONE)
    assert verdict.problems == []
    assert (verdict.studies, verdict.instances, verdict.withdrawn) == (3, 9, 1)


class Undone(Exception):
    """The tampered transaction is not kept."""


def faults(at: Hospital, held: Sequence[oracle.Held], tamper: Callable[[Connection], None]) -> list[str]:
    """What the oracle says of the store when it is tampered with; the store is the same afterwards."""
    found: list[str] = []

    def work(connection: Connection) -> None:
        tamper(connection)
        found.extend(oracle.compare(held, oracle.read(connection)).problems)
        raise Undone

    with pytest.raises(Undone):
        at.store.transact(work)
    return found


def test_every_tampering_is_found(sound: Hospital) -> None:
    held = oracle.archive(sound.pacs, ZONE)
    said = {name: faults(sound, held, tamper) for name, (tamper, _) in TAMPERED.items()}
    missed = {name: said[name] for name, (_, word) in TAMPERED.items() if not any(word in one for one in said[name])}
    assert missed == {}
    assert oracle.compare(held, oracle.published(sound.store)).problems == []


# --- a rebuild that is broken --------------------------------------------------------------------------------------


class Forgetful(Orthanc):
    """A reader of the archive that loses the last of many."""

    def bulk_content(self, level: Level, orthanc_ids: Sequence[str], **options: Any) -> list[Json]:
        return super().bulk_content(level, sorted(orthanc_ids)[: max(1, len(orthanc_ids) - 1)], **options)


@pytest.fixture
def forgetful(lite: Hospital, clean_orthanc: Archive) -> Iterator[Hospital]:
    with Forgetful(clean_orthanc.url, clean_orthanc.username, clean_orthanc.password) as reader:
        lite.archive = replace(lite.archive, orthanc=reader)
        lite.restart()
        yield lite


def test_a_rebuild_that_loses_an_instance_fails_the_oracle(forgetful: Hospital) -> None:
    filled(forgetful)
    verdict = oracle.judge(forgetful.pacs, forgetful.store, ZONE)
    assert verdict.lost >= 1
    assert any("numberOfInstances is 3, the archive has 4" in one for one in verdict.problems)
