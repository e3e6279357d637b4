"""Studies and images that go from a real archive: grace, policy, questions, comeback (app.workflow.absences)."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from app.fhir.mapping.codes import Json
from app.store import sync, truth
from app.store.tables import event
from app.workflow import sweep
from tests.orthanc.hospital import RADIOLOGIST, Hospital, both, hospital, lite, uid

__all__ = ["both", "lite"]

pytestmark = pytest.mark.orthanc


def gone(at: Hospital, study_uid: str) -> None:
    """Delete a study; the next sweep notes that."""
    at.delete("studies", at.orthanc_id(study_uid))
    sweep.sweep(at.archive)


def signed(at: Hospital, order: Json) -> Json:
    report = {
        "resourceType": "DiagnosticReport",
        "status": "final",
        "code": order["code"],
        "subject": order["subject"],
        "basedOn": [{"reference": f"ServiceRequest/{order['id']}"}],
        "conclusion": "No finding.",
        "resultsInterpreter": [{"reference": "Practitioner/r"}],
    }
    return at.write(report, RADIOLOGIST)


# --- the whole study -----------------------------------------------------------------------------------------------


@pytest.mark.case(7)
def test_a_deleted_study_is_withdrawn_after_the_grace_and_comes_back(both: Hospital, tmp_path: Path) -> None:
    order = both.order()
    image = both.image(order)
    both.send(image)
    both.settle()
    with hospital(both.store, both.server, tmp_path, delete_grace=60) as slow:
        gone(slow, uid(order))
        slow.rebuild()
        assert slow.study(uid(order))["status"] == "available"
    both.rebuild()
    withdrawn = both.study(uid(order))
    assert withdrawn["status"] == "unknown"
    assert "endpoint" not in withdrawn
    assert "series" not in withdrawn
    assert sweep.sweep(both.archive).total == 0
    both.send(image)
    both.settle()
    back = both.study(uid(order))
    assert (back["status"], back["numberOfInstances"]) == ("available", 1)
    assert "endpoint" in back
    assert both.read("ServiceRequest", order["id"])["status"] == "active"


def test_a_study_that_is_only_sent_anew_within_the_grace_is_never_withdrawn(lite: Hospital, tmp_path: Path) -> None:
    with hospital(lite.store, lite.server, tmp_path, delete_grace=60) as slow:
        image = slow.image()
        slow.send(image)
        slow.settle()
        before = slow.study("1.2.3.1")
        gone(slow, "1.2.3.1")
        slow.rebuild_once()
        slow.send(image)
        slow.settle()
        assert slow.version(slow.study("1.2.3.1")) == slow.version(before)
        assert sweep.sweep(slow.archive).total == 0


def test_what_no_sweep_has_counted_as_missing_is_not_withdrawn(lite: Hospital) -> None:
    lite.send(lite.image())
    lite.look()
    orthanc_id = lite.orthanc_id("1.2.3.1")
    sweep.sweep(lite.archive)
    lite.delete("studies", orthanc_id)
    lite.store.transact(lambda tx: sync.mark(tx, [orthanc_id], "changed"))
    for _ in range(4):
        lite.rebuild_once()
    assert lite.study("1.2.3.1")["status"] == "available"
    with lite.store.read() as connection:
        assert sweep.state(connection).wanted > sweep.state(connection).at
    sweep.sweep(lite.archive)
    lite.rebuild_once()
    assert lite.study("1.2.3.1")["status"] == "unknown"


@pytest.mark.parametrize(
    ("reason", "policy", "expected"),
    [
        ("unknown", {}, "unknown"),
        ("retention", {}, "unknown"),
        ("worklist", {}, "cancelled"),
        ("never-existed", {}, "entered-in-error"),
        ("retention", {"retention": "cancelled"}, "cancelled"),
    ],
)
@pytest.mark.case(7)
def test_the_reason_a_person_gives_decides_by_the_sites_policy(
    lite: Hospital, tmp_path: Path, reason: str, policy: dict[str, str], expected: str
) -> None:
    lite.send(lite.image())
    lite.look()
    with hospital(lite.store, lite.server, tmp_path, delete_policy=policy, delete_grace=60) as there:
        there.delete("studies", there.orthanc_id("1.2.3.1"))
        sweep.sweep(there.archive, accept_missing=True, reason=reason)
        there.rebuild()
        assert there.study("1.2.3.1")["status"] == expected
        with there.store.read() as connection:
            told = connection.execute(select(event.c.detail).where(event.c.kind == "study-withdrawn")).scalar_one()
    assert told == {"reason": reason, "status": expected}


def test_an_acceptance_is_for_one_disappearance_only(lite: Hospital, tmp_path: Path) -> None:
    lite.send(lite.image())
    lite.look()
    orthanc_id = lite.orthanc_id("1.2.3.1")
    lite.delete("studies", orthanc_id)
    sweep.sweep(lite.archive, accept_missing=True, reason="never-existed")
    lite.rebuild()
    assert lite.study("1.2.3.1")["status"] == "entered-in-error"
    lite.send(lite.image())
    lite.look()
    assert lite.study("1.2.3.1")["status"] == "available"
    with lite.store.read() as connection:
        assert truth.absence(connection, orthanc_id) == truth.Absence(accepted=False, reason="")
    with hospital(lite.store, lite.server, tmp_path, delete_grace=60) as slow:
        gone(slow, "1.2.3.1")
        slow.rebuild()
        assert slow.study("1.2.3.1")["status"] == "available"


def test_a_reported_study_that_goes_asks_a_person_until_it_is_back(lite: Hospital) -> None:
    order = lite.order()
    image = lite.image(order)
    lite.send(image)
    lite.settle()
    report = signed(lite, order)
    gone(lite, uid(order))
    lite.rebuild()
    assert lite.reviews() == ["study-removed"]
    [task] = [one for one in lite.find("Task") if one["code"]["coding"][0]["code"] == "study-removed"]
    assert task["focus"] == {"reference": f"ImagingStudy/{lite.study(uid(order))['id']}"}
    assert lite.read("DiagnosticReport", report["id"])["meta"]["versionId"] == report["meta"]["versionId"]
    lite.send(image)
    lite.settle()
    assert "study-removed" not in lite.reviews()


# --- parts of it ---------------------------------------------------------------------------------------------------


@pytest.mark.case(8)
def test_images_that_go_lower_the_counts_and_ask_when_a_signed_report_rests_on_them(lite: Hospital) -> None:
    order = lite.order()
    lite.send(lite.image(order), lite.image(order, number=2))
    lite.settle()
    signed(lite, order)
    before = lite.study(uid(order))
    lite.delete("instances", lite.archive.orthanc.instances_with_uid(f"{uid(order)[:50]}.1.2")[0])
    assert sweep.sweep(lite.archive).changed == 1
    lite.rebuild()
    after = lite.study(uid(order))
    assert (after["status"], after["numberOfInstances"]) == ("available", 1)
    assert lite.version(after) == lite.version(before) + 1
    assert lite.reviews() == ["images-removed"]


def test_images_that_go_ask_nobody_while_there_is_no_signed_report(lite: Hospital) -> None:
    order = lite.order()
    lite.send(lite.image(order), lite.image(order, number=2))
    lite.settle()
    lite.delete("instances", lite.archive.orthanc.instances_with_uid(f"{uid(order)[:50]}.1.2")[0])
    sweep.sweep(lite.archive)
    lite.settle()
    assert lite.study(uid(order))["numberOfInstances"] == 1
    assert lite.reviews() == []


@pytest.mark.case(8)
def test_one_series_that_goes_leaves_the_others(lite: Hospital) -> None:
    lite.send(lite.image(), lite.image(number=9, SeriesInstanceUID="1.2.3.1.9"))
    lite.look()
    [series] = [one for one in lite.archive.orthanc.lookup("1.2.3.1.1") if one.level == "Series"]
    assert lite.study("1.2.3.1")["numberOfInstances"] == 2
    lite.delete("series", series.orthanc_id)
    sweep.sweep(lite.archive)
    lite.rebuild()
    assert lite.study("1.2.3.1")["numberOfInstances"] == 1
    assert lite.study("1.2.3.1")["status"] == "available"
