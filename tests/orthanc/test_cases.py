"""What can happen to images between scanners, archive and server, case by case (capability/sync_cases.toml)."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from app.dicom.orthanc import Orthanc as Client
from app.store import sync
from app.store.database import Store
from app.workflow import arrivals, sweep
from tests.faults.chaos import Pacs
from tests.orthanc import phantoms
from tests.orthanc.conftest import Orthanc
from tests.orthanc.hospital import RADIOLOGIST, Hospital, both, hospital, lite, uid
from tests.orthanc.test_reports import report
from tests.processes import free_port, wait_until

__all__ = ["both", "lite"]

pytestmark = pytest.mark.orthanc

Json = dict[str, Any]


def image(study: str, number: int = 1, series: int = 1, mrn: str = "P-1", **attributes: Any) -> Dataset:
    made = phantoms.image(mrn=mrn, study=study, series=f"{study}.{series}", instance=f"{study}.{series}.{number}")
    made.SeriesNumber = series
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def published(at: Hospital) -> dict[str, tuple[str, int]]:
    """Status and number of instances by Study Instance UID."""
    found = at.find("ImagingStudy")
    return {one["identifier"][0]["value"].removeprefix("urn:oid:"): _facts(one) for one in found}


def _facts(study: Json) -> tuple[str, int]:
    return study["status"], study.get("numberOfInstances", 0)


# --- the server was away, the archive dies -------------------------------------------------------------------------


@pytest.mark.case(1)
def test_a_server_that_was_away_learns_what_came_changed_and_went_meanwhile(both: Hospital) -> None:
    both.send(image("1.4.1"), image("1.4.2"), image("1.4.3"))
    both.settle()
    both.send(image("1.4.1", 2), image("1.4.4"))
    both.delete("studies", both.orthanc_id("1.4.2"))
    both.restart()
    both.settle()
    assert published(both)["1.4.1"] == ("available", 2)
    assert published(both)["1.4.4"] == ("available", 1)
    sweep.sweep(both.archive)
    both.settle()
    assert published(both) == {
        "1.4.1": ("available", 2),
        "1.4.2": ("unknown", 0),
        "1.4.3": ("available", 1),
        "1.4.4": ("available", 1),
    }
    assert sweep.sweep(both.archive).total == 0


@contextmanager
def own_archive(folder: Path, store: Store, *, overwrite: bool = False, **more: Any) -> Iterator[tuple[Hospital, Pacs]]:
    """A hospital with an Orthanc that the test may kill and configure."""
    server = Orthanc(f"http://127.0.0.1:{free_port()}", "127.0.0.1", free_port(), "ORTHANC", "isocenter", "secret")
    pacs = Pacs(folder, server, overwrite, more=more)
    pacs.start()
    try:
        with hospital(store, server, folder) as at:
            yield at, pacs
            at.judge()
    finally:
        pacs.kill()


@pytest.fixture
def empty(sqlite_template: Path, tmp_path: Path) -> Iterator[Store]:
    """A store on SQLite without an archive."""
    shutil.copy(sqlite_template, tmp_path / "lite.sqlite")
    store = Store(f"sqlite:///{tmp_path / 'lite.sqlite'}")
    yield store
    store.close()


@pytest.mark.case(3)
def test_a_study_amid_which_the_archive_was_killed_completes_without_being_called_stable(
    empty: Store, tmp_path: Path
) -> None:
    with own_archive(tmp_path, empty, StableAge=600) as (at, pacs):
        order = at.order()
        at.send(at.image(order))
        at.look()
        pacs.kill()
        pacs.start()
        at.send(at.image(order, number=2))
        at.settle()
        logged = at.pacs.get("/changes").raise_for_status().json()["Changes"]
        study = at.study(uid(order))
        [step] = at.find("Task")
    assert "StableStudy" not in {row["ChangeType"] for row in logged}
    assert _facts(study) == ("available", 2)
    assert step["status"] == "completed"


class Unsettled(Client):
    """An archive whose index shows lower numbers after higher ones, as PostgreSQL may."""

    hidden: frozenset[str] = frozenset()
    """What the log does not tell of yet."""

    def changes(self, since: int, limit: int = 1000) -> Json:
        answer = super().changes(since, limit)
        return answer | {"Changes": [row for row in answer["Changes"] if row["ID"] not in self.hidden]}


@pytest.mark.case(6)
def test_a_number_that_becomes_visible_after_a_higher_one_is_not_skipped(lite: Hospital) -> None:
    with Unsettled(lite.server.url, lite.server.username, lite.server.password) as archive:
        lite.archive = replace(lite.archive, orthanc=archive)
        lite.restart()
        lite.send(image("1.4.5"))
        rows = lite.pacs.get("/changes", params={"limit": 1000}).raise_for_status().json()["Changes"]
        archive.hidden = frozenset(row["ID"] for row in rows)
        lite.send(image("1.4.6", mrn="P-2"))
        lite.look()
        assert set(published(lite)) == {"1.4.6"}
        archive.hidden = frozenset()
        wait_until(lambda: "1.4.5" in _looked(lite), "the numbers that came late to be read")
        assert published(lite) == {"1.4.5": ("available", 1), "1.4.6": ("available", 1)}


def _looked(at: Hospital) -> dict[str, tuple[str, int]]:
    at.look()
    return published(at)


# --- images change and go --------------------------------------------------------------------------------------------


@pytest.mark.case(7)
@pytest.mark.parametrize("level", ["studies", "patients"])
def test_a_deleted_study_stays_readable_and_says_that_its_images_are_gone(lite: Hospital, level: str) -> None:
    order = lite.order()
    lite.send(lite.image(order), image("1.4.7", mrn="P-2"))
    lite.settle()
    before = lite.study(uid(order))
    target = lite.orthanc_id(uid(order))
    if level == "patients":
        target = lite.pacs.get(f"/studies/{target}").raise_for_status().json()["ParentPatient"]
    lite.delete(level, target)
    sweep.sweep(lite.archive)
    lite.settle()
    gone = lite.read("ImagingStudy", before["id"])
    assert (gone["status"], gone["numberOfInstances"], gone["numberOfSeries"]) == ("unknown", 0, 0)
    assert gone["basedOn"] == before["basedOn"]
    assert not {"endpoint", "series"} & gone.keys()
    assert published(lite)["1.4.7"] == ("available", 1)


@pytest.mark.case(8)
@pytest.mark.parametrize(("level", "left"), [("instances", (2, 3)), ("series", (1, 2))])
def test_what_is_deleted_of_a_study_lowers_its_counts(both: Hospital, level: str, left: tuple[int, int]) -> None:
    both.send(*[image("1.4.8", number, series) for series in (1, 2) for number in (1, 2)])
    both.settle()
    before = both.study("1.4.8")
    study = both.orthanc_id("1.4.8")
    [first, _] = sorted(one["ID"] for one in both.pacs.get(f"/studies/{study}/series").raise_for_status().json())
    target = first
    if level == "instances":
        target = both.pacs.get(f"/series/{first}").raise_for_status().json()["Instances"][0]
    both.delete(level, target)
    sweep.sweep(both.archive)
    both.settle()
    after = both.study("1.4.8")
    assert (after["numberOfSeries"], after["numberOfInstances"]) == left
    assert sum(len(series["instance"]) for series in after["series"]) == left[1]
    assert both.version(after) == both.version(before) + 1


@pytest.mark.case(9)
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_images_sent_again_make_no_version(empty: Store, tmp_path: Path, overwrite: bool) -> None:
    with own_archive(tmp_path, empty, overwrite=overwrite) as (at, _):
        at.send(image("1.4.9"), image("1.4.9", 2))
        at.settle()
        before = at.study("1.4.9")
        at.send(image("1.4.9", 2), image("1.4.9"), image("1.4.9"))
        at.settle()
        sweep.sweep(at.archive)
        at.settle()
        assert at.version(at.study("1.4.9")) == at.version(before)


@pytest.mark.case(10)
@pytest.mark.parametrize("count", [1, 2])
def test_an_overwritten_image_is_read_anew_from_its_file(empty: Store, tmp_path: Path, count: int) -> None:
    with own_archive(tmp_path, empty, overwrite=True) as (at, _):
        at.send(*[image("1.4.10", number) for number in range(1, count + 1)])
        at.settle()
        before = at.study("1.4.10")
        for number in range(1, count + 1):
            at.send(image("1.4.10", number, SeriesDescription="again", StudyDescription="anew", InstanceNumber=70))
        at.settle()
        after = at.study("1.4.10")
    assert before["series"][0]["description"] == "axial"
    assert (after["description"], after["series"][0]["description"]) == ("anew", "again")
    assert {one["number"] for one in after["series"][0]["instance"]} == {70}
    assert (after["id"], after["numberOfInstances"]) == (before["id"], count)


@pytest.mark.case(11)
def test_what_is_shown_of_disagreeing_images_does_not_depend_on_who_came_first(lite: Hospital) -> None:
    images = [
        image("1.4.11", number, series, StudyDescription=f"series {series}", AccessionNumber=f"A{series}")
        for series in (1, 2)
        for number in (1, 2)
    ]
    shown = []
    for order in (images, images[::-1]):
        for one in order:
            lite.send(one)
            lite.settle()
        study = lite.study("1.4.11")
        shown.append((study["description"], study["identifier"]))
        lite.delete("studies", lite.orthanc_id("1.4.11"))
        lite.settle()
    assert shown[0] == shown[1]


@pytest.mark.case(17)
def test_an_order_whose_images_have_two_study_uids_has_two_studies(both: Hospital) -> None:
    order = both.order()
    first = both.image(order)
    second = image("1.4.17", AccessionNumber=first.AccessionNumber)
    both.send(first, second)
    both.settle()
    wanted = f"ServiceRequest/{order['id']}"
    based_on = [one["reference"] for study in (uid(order), "1.4.17") for one in both.study(study)["basedOn"]]
    assert based_on == [wanted, wanted]
    assert {one["status"] for one in both.find("ImagingStudy")} == {"available"}
    assert both.reviews() == []


@pytest.mark.case(18)
def test_of_two_orders_that_one_acquisition_names_the_first_is_linked_and_the_other_stays_open(lite: Hospital) -> None:
    first, second = lite.order(), lite.order()
    items = []
    for order in (first, second):
        item = Dataset()
        item.AccessionNumber = lite.item(order).AccessionNumber
        items.append(item)
    lite.send(lite.image(first, RequestAttributesSequence=items))
    lite.settle()
    assert [one["reference"] for one in lite.study(uid(first))["basedOn"]] == [f"ServiceRequest/{first['id']}"]
    assert lite.study(uid(second))["status"] == "registered"
    assert lite.item(second).StudyInstanceUID == uid(second)


@pytest.mark.case(20)
def test_images_that_come_after_their_step_was_completed_do_not_open_it_again(lite: Hospital) -> None:
    order = lite.order()
    late = lite.image(order, number=2)
    lite.send(lite.image(order))
    lite.settle()
    [step] = lite.find("Task")
    assert step["status"] == "completed"
    lite.send(late)
    lite.settle()
    assert lite.read("Task", step["id"])["meta"]["versionId"] == step["meta"]["versionId"]
    assert lite.study(uid(order))["numberOfInstances"] == 2


@pytest.mark.case(21)
def test_images_that_come_after_the_final_report_make_a_version_and_one_question(both: Hospital) -> None:
    order = both.order()
    late = [both.image(order, number=number) for number in (2, 3)]
    both.send(both.image(order))
    both.settle()
    signed = both.write(report(both, order), RADIOLOGIST)
    both.settle()
    before, told = both.study(uid(order)), both.read("DiagnosticReport", signed["id"])
    for one in late:
        both.send(one)
        both.settle()
    assert both.reviews() == ["late-images"]
    assert both.read("DiagnosticReport", signed["id"]) == told
    after = both.study(uid(order))
    assert after["numberOfInstances"] == before["numberOfInstances"] + 2
    assert both.version(after) > both.version(before)


# --- changes within the archive --------------------------------------------------------------------------------------


def _post(at: Hospital, path: str, **body: Any) -> Json:
    return at.pacs.post(path, json=body | {"Synchronous": True}).raise_for_status().json()


@pytest.mark.case(32)
@pytest.mark.parametrize("action", ["modify", "anonymize"])
def test_a_copy_made_in_the_archive_is_a_study_of_its_own_linked_to_nobody(both: Hospital, action: str) -> None:
    order = both.order()
    both.send(both.image(order))
    both.settle()
    original = both.study(uid(order))
    _post(both, f"/studies/{both.orthanc_id(uid(order))}/{action}", Replace={"StudyDescription": "copy"})
    both.settle()
    [copy] = [one for one in both.find("ImagingStudy") if one["id"] != original["id"]]
    assert (copy["status"], copy["description"]) == ("available", "copy")
    assert "basedOn" not in copy
    assert copy["subject"] != original["subject"]
    assert both.version(both.study(uid(order))) == both.version(original)
    assert both.reviews() == ["anonymised-copy"]


@pytest.mark.case(33)
def test_a_split_study_is_published_as_the_two_that_there_are(both: Hospital) -> None:
    both.send(image("1.4.33"), image("1.4.33", 1, 2), image("1.4.33", 2, 2))
    both.settle()
    study = both.orthanc_id("1.4.33")
    [second] = [
        one["ID"]
        for one in both.pacs.get(f"/studies/{study}/series").raise_for_status().json()
        if len(one["Instances"]) == 2
    ]
    _post(both, f"/studies/{study}/split", Series=[second])
    sweep.sweep(both.archive)
    both.settle()
    assert published(both).pop("1.4.33") == ("available", 1)
    assert sorted(published(both).values()) == [("available", 1), ("available", 2)]


@pytest.mark.case(33)
def test_a_merged_study_is_withdrawn_and_its_images_are_in_the_other(both: Hospital) -> None:
    both.send(image("1.4.34"), image("1.4.35"), image("1.4.35", 2))
    both.settle()
    target, source = both.orthanc_id("1.4.34"), both.orthanc_id("1.4.35")
    _post(both, f"/studies/{target}/merge", Resources=[source], KeepSource=False)
    sweep.sweep(both.archive)
    both.settle()
    assert published(both) == {"1.4.34": ("available", 3), "1.4.35": ("unknown", 0)}
    assert sweep.sweep(both.archive).total == 0


@pytest.mark.case(34)
def test_what_an_archive_recycles_is_withdrawn_and_what_is_left_stays(empty: Store, tmp_path: Path) -> None:
    with own_archive(tmp_path, empty, MaximumPatientCount=2) as (at, _):
        for number in (1, 2):
            at.send(image(f"1.4.36.{number}", mrn=f"R-{number}"))
        at.settle()
        at.send(image("1.4.36.3", mrn="R-3"))
        at.settle()
        sweep.sweep(at.archive)
        at.settle()
        assert published(at) == {
            "1.4.36.1": ("unknown", 0),
            "1.4.36.2": ("available", 1),
            "1.4.36.3": ("available", 1),
        }


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.case(35)
@pytest.mark.parametrize(
    ("attributes", "started"),
    [
        ({"StudyDate": "20260701", "StudyTime": "120000"}, "2026-07-01T12:00:00+02:00"),
        ({"StudyDate": "20260115", "StudyTime": "120000"}, "2026-01-15T12:00:00+01:00"),
        ({"StudyTime": "120000", "TimezoneOffsetFromUTC": "-0530"}, "2026-03-01T12:00:00-05:30"),
        ({"StudyTime": ""}, "2026-03-01"),
    ],
    ids=["summer", "winter", "an offset of its own", "no time"],
)
def test_a_time_is_read_in_the_zone_it_was_written_in(lite: Hospital, attributes: dict[str, str], started: str) -> None:
    lite.send(image("1.4.37", **attributes))
    lite.settle()
    assert lite.study("1.4.37")["started"] == started


@pytest.mark.case(39)
def test_private_attributes_are_nowhere_in_what_is_published(lite: Hospital) -> None:
    made = image("1.4.39", mrn="STRANGER")
    made.private_block(0x0011, "SOMEBODY'S OWN", create=True).add_new(0x01, "LO", "SECRETVALUE")
    made.private_block(0x0029, "SOMEBODY'S OWN", create=True).add_new(0x10, "PN", "SECRET^NAME")
    lite.send(made)
    lite.settle()
    [held] = lite.archive.orthanc.instances_with_uid("1.4.39.1.1")
    assert b"SECRETVALUE" in lite.archive.orthanc.file(held)
    told = json.dumps([*lite.find("ImagingStudy"), *lite.find("Patient"), *lite.find("Task")])
    assert "1.4.39" in told
    assert "SECRET" not in told
    assert "SOMEBODY" not in told


@pytest.mark.case(40)
def test_a_report_among_the_images_is_counted_and_is_no_image(lite: Hospital) -> None:
    order = lite.order()
    study = uid(order)
    lite.send(phantoms.report(mrn="P-1", study=study, series=f"{study[:50]}.9", instance=f"{study[:50]}.9.1"))
    lite.settle()
    [step] = lite.find("Task")
    assert _facts(lite.study(study)) == ("available", 1)
    assert step["status"] == "accepted"
    lite.send(lite.image(order))
    lite.settle()
    found = lite.study(study)
    assert (found["numberOfSeries"], found["numberOfInstances"]) == (2, 2)
    assert sorted(coding["code"] for coding in found["modality"]) == ["CT", "SR"]
    assert lite.read("Task", step["id"])["status"] == "completed"


def _rebuild_all(archive: arrivals.Archive) -> None:
    while arrivals.rebuild_one(archive):
        continue


# --- two at once ---------------------------------------------------------------------------------------------------


@pytest.mark.case(43)
def test_of_two_servers_one_reads_the_log_until_it_stops_and_no_version_is_doubled(both: Hospital) -> None:
    taken = both.store.transact(lambda tx: sync.hold(tx, "somebody's", "first", seconds=60))
    assert taken is not None
    assert both.store.transact(lambda tx: sync.hold(tx, "somebody's", "second", seconds=60)) is None
    both.send(*[image(f"1.4.43.{number}") for number in range(4)])
    both.poll()
    both.hurry()
    others = [replace(both.archive) for _ in range(2)]
    threads = [threading.Thread(target=_rebuild_all, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {both.version(one) for one in both.find("ImagingStudy")} == {1}
    assert len(published(both)) == 4
