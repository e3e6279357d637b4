"""The archive's change log becomes marks: each row once, all of it or nothing, whoever reads (app.workflow.changes)."""

from __future__ import annotations

import sqlite3
import threading
from typing import Any

import pytest
import sqlalchemy as sa

from app.dicom import archive
from app.store import sync
from app.store.tables import cursor, dirty_study, inbox, resource
from app.workflow import arrivals, changes, sweep, worker
from tests.orthanc.hospital import Hospital, both, lite
from tests.orthanc.test_arrivals import other_study
from tests.processes import wait_until

__all__ = ["both", "lite"]

pytestmark = pytest.mark.orthanc


def rows(at: Hospital, statement: sa.Select[Any]) -> list[Any]:
    with at.store.read() as connection:
        return [tuple(row) for row in connection.execute(statement)]


def position(at: Hospital) -> sync.Position:
    with at.store.read() as connection:
        return sync.position(connection, changes.CHANGES)


def marks(at: Hospital) -> dict[str, str]:
    return dict(rows(at, sa.select(dirty_study.c.orthanc_id, dirty_study.c.reason)))


# --- each row once -----------------------------------------------------------------------------------------------


def test_every_row_of_the_log_stands_in_the_inbox_with_its_study(both: Hospital) -> None:
    both.send(both.image())
    both.poll()
    study = both.orthanc_id("1.2.3.1")
    kept = rows(both, sa.select(inbox.c.kind, inbox.c.study).order_by(inbox.c.seq))
    assert {("NewInstance", study), ("NewSeries", study), ("NewStudy", study)} <= set(kept)
    assert position(both).value == max(row[0] for row in rows(both, sa.select(inbox.c.seq)))


def test_the_same_rows_read_again_by_a_new_process_mark_nothing(both: Hospital) -> None:
    both.send(both.image())
    both.settle()
    before = rows(both, sa.select(sa.func.count()).select_from(inbox))
    both.restart()
    assert both.poll() == 0
    assert marks(both) == {}
    assert rows(both, sa.select(sa.func.count()).select_from(inbox)) == before


@pytest.mark.case(6)
def test_a_row_that_shows_after_a_later_one_is_still_read(lite: Hospital) -> None:
    lite.send(lite.image())
    lite.poll()
    lite.rebuild()
    # PostgreSQL shows a lower number later: to us it is one that was not there when its successors were read.
    [late] = rows(lite, sa.select(inbox.c.seq).where(inbox.c.kind == "NewInstance"))
    lite.store.transact(lambda tx: tx.execute(inbox.delete().where(inbox.c.seq == late[0])))
    lite.restart()
    assert lite.poll() == 1
    assert marks(lite) == {lite.orthanc_id("1.2.3.1"): f"NewInstance {late[0]} (changes)"}


# --- all of it or nothing ------------------------------------------------------------------------------------------


@pytest.mark.case(2)
def test_rows_marks_and_cursor_are_written_together_or_not_at_all(lite: Hospital) -> None:
    lite.send(lite.image())
    before = position(lite)
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON dirtystudy BEGIN SELECT RAISE(ABORT, 'no'); END"
    lite.store.transact(lambda tx: tx.exec_driver_sql(refuse))
    with pytest.raises(sa.exc.IntegrityError):
        lite.poll()
    assert position(lite) == before
    assert rows(lite, sa.select(inbox.c.seq)) == []
    lite.store.transact(lambda tx: tx.exec_driver_sql("DROP TRIGGER refuse"))
    assert lite.look() == 1
    assert lite.study("1.2.3.1")["status"] == "available"


@pytest.mark.case(43)
def test_a_reader_that_lost_its_lease_writes_nothing(both: Hospital) -> None:
    both.send(both.image())
    fence = both.store.transact(lambda tx: sync.hold(tx, changes.CHANGES, "old", seconds=-1))
    newer = both.store.transact(lambda tx: sync.hold(tx, changes.CHANGES, "new", seconds=60))
    assert fence is not None
    assert newer is not None
    before = position(both)
    assert changes.read(both.reader, fence) == 0
    assert (position(both), marks(both)) == (before, {})
    assert changes.read(both.reader, newer) > 0
    assert len(marks(both)) == 1


def test_a_change_of_what_is_gone_already_keeps_nothing_up(lite: Hospital) -> None:
    lite.send(lite.image(), other_study(lite.image(), "1.7.1"))
    answer = lite.archive.orthanc.changes(position(lite).value)
    lite.delete("studies", lite.orthanc_id("1.2.3.1"))
    found = changes._changes(lite.reader, answer["Changes"])
    assert {one.study for one in found if one.kind == "NewInstance"} == {"", lite.orthanc_id("1.7.1")}
    assert lite.look() == 1
    assert lite.study("1.7.1")["status"] == "available"


# --- another database --------------------------------------------------------------------------------------------


@pytest.mark.case(5)
def test_a_restored_copy_that_has_counted_past_us_is_found_by_its_rows(both: Hospital) -> None:
    both.send(both.image())
    both.settle()
    epoch = position(both).epoch
    # What we read under this number was something else: the log is not the one we knew.
    other = inbox.update().where(inbox.c.kind == "NewInstance").values(resource="another")
    both.store.transact(lambda tx: tx.execute(other))
    both.restart()
    both.poll()
    with both.store.read() as connection:
        assert sweep.hold(connection) == sweep.ANOTHER_DATABASE
    assert position(both).epoch != epoch
    assert marks(both)[both.orthanc_id("1.2.3.1")] == sweep.ANOTHER_DATABASE
    both.rebuild()
    assert both.version(both.study("1.2.3.1")) == 1


@pytest.mark.case(5)
def test_an_archive_that_says_it_is_another_is_compared_anew(lite: Hospital) -> None:
    known = position(lite)
    told = sync.Position(known.value, known.epoch, {**(known.detail or {}), "server": "somebody"})
    lite.store.transact(lambda tx: sync.move(tx, changes.CHANGES, told))
    # This Orthanc does not say who it is, which proves nothing.
    lite.poll()
    assert position(lite).epoch == known.epoch


def test_the_first_contact_marks_every_study_behind_what_is_new(both: Hospital) -> None:
    both.send(*(other_study(both.image(), f"1.7.{number}") for number in range(3)))
    both.store.transact(lambda tx: tx.execute(cursor.delete().where(cursor.c.name == changes.CHANGES)))
    assert both.poll() == 3
    assert set(marks(both).values()) == {"first contact"}
    both.send(both.image())
    both.poll()
    both.hurry()
    first = both.store.transact(sync.claim)
    assert first is not None
    assert first.orthanc_id == both.orthanc_id("1.2.3.1")


# --- what made a version -----------------------------------------------------------------------------------------


def test_each_version_names_the_event_that_made_it(lite: Hospital) -> None:
    lite.send(lite.image())
    lite.settle()
    [(seq,)] = rows(lite, sa.select(inbox.c.seq).where(inbox.c.kind == "NewInstance"))
    own = sa.select(resource.c.cause).where(resource.c.resource_type == "ImagingStudy")
    [(cause,)] = rows(lite, own)
    assert cause.endswith(" (changes)")
    lite.send(lite.image(number=2))
    lite.pacs.delete("/changes").raise_for_status()
    sweep.sweep(lite.archive)
    lite.rebuild()
    [(cause,)] = rows(lite, own)
    assert cause == "archive sweep"
    assert seq > 0


# --- how often -----------------------------------------------------------------------------------------------------


@pytest.mark.case(47)
def test_a_worker_writes_few_versions_while_many_images_come(lite: Hospital) -> None:
    stop = threading.Event()
    running = threading.Thread(target=worker.run, args=(lite.archive, stop))
    running.start()
    try:
        for number in range(1, 61):
            lite.send(lite.image(number=number))
        study = wait_until(
            lambda: (found := lite.find("ImagingStudy")) and found[0]["numberOfInstances"] == 60 and found[0],
            "all sixty images",
        )
    finally:
        stop.set()
        running.join()
    assert lite.version(study) <= 4


@pytest.mark.case(47)
def test_a_study_is_read_in_six_requests_and_its_next_image_in_two(lite: Hospital) -> None:
    for series in range(1, 5):
        lite.send(*(other_study(lite.image(number=number), "1.7.1", str(series)) for number in (1, 2)))
    lite.poll()
    asked = requests(lite)
    lite.rebuild()
    assert len(asked) == 6
    lite.send(other_study(lite.image(number=3), "1.7.1", "4"))
    lite.poll()
    asked.clear()
    lite.rebuild()
    assert len(asked) == 2
    assert lite.study("1.7.1")["numberOfInstances"] == 9


def test_a_study_all_of_whose_headers_are_read_takes_three_requests(lite: Hospital) -> None:
    lite.send(*(other_study(lite.image(number=number), "1.7.1", str(number)) for number in (1, 2, 3)))
    lite.poll()
    asked = requests(lite)
    lite.rebuild()
    assert len(asked) == 3
    assert lite.study("1.7.1")["numberOfSeries"] == 3


def test_studies_that_wait_together_are_read_together_and_alike(
    lite: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "SMALL", 3)
    for study, images in (("1.7.1", 1), ("1.7.2", 3), ("1.7.3", 4), ("1.7.4", 1)):
        lite.send(*(other_study(lite.image(number=one), study, str(one)) for one in range(images)))
    small, three, large, gone = (lite.orthanc_id(f"1.7.{one}") for one in range(1, 5))
    lite.delete("studies", gone)
    asked = requests(lite)
    found = archive.outlines(lite.archive.orthanc, [small, gone, large, three])
    assert len(asked) == 2
    assert found == {one: archive.outline(lite.archive.orthanc, one) for one in (small, three)}
    assert archive.outline(lite.archive.orthanc, large) is not None


@pytest.mark.case(47)
def test_a_full_archive_is_taken_over_with_few_requests_and_each_study_once(both: Hospital) -> None:
    both.send(*(other_study(both.image(), f"1.7.{number}") for number in range(40)))
    both.poll()
    both.hurry()
    asked = requests(both)
    worker.rebuild_until(both.archive, lambda: marks(both) == {})
    # A header of each, and two for as many studies as a thread looks at.
    assert len(asked) <= 40 + 2 * worker.THREADS
    assert [one["meta"]["versionId"] for one in both.find("ImagingStudy")] == ["1"] * 40


def requests(at: Hospital) -> list[str]:
    """What the archive is asked from now on."""
    asked: list[str] = []
    wire = at.archive.orthanc._wire
    send = wire.send

    def counted(method: str, path: str, **more: Any) -> tuple[int, bytes]:
        asked.append(path)
        return send(method, path, **more)

    wire.send = counted  # type: ignore[method-assign]
    return asked


@pytest.mark.case(2)
def test_an_archive_that_fails_leaves_the_study_marked_and_tells_no_version(lite: Hospital) -> None:
    lite.send(lite.image())
    lite.poll()
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON instance BEGIN SELECT RAISE(ABORT, 'no'); END"
    lite.store.transact(lambda tx: tx.exec_driver_sql(refuse))
    lite.hurry()
    with pytest.raises(sqlite3.IntegrityError):
        arrivals.rebuild_one(lite.archive)
    assert lite.find("ImagingStudy") == []
    assert len(marks(lite)) == 1
    lite.store.transact(lambda tx: tx.exec_driver_sql("DROP TRIGGER refuse"))
    lite.rebuild()
    assert lite.study("1.2.3.1")["status"] == "available"
