"""The sweep against a real archive: what it finds at which depth, and when it holds back (app.workflow.sweep)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset
from sqlalchemy import update

from app.dicom.orthanc import Orthanc as Client
from app.errors import ArchiveUnavailable, Unavailable
from app.store import requests, sync, truth
from app.store.tables import cursor, lease
from app.workflow import arrivals, changes, sweep
from app.workflow.arrivals import Archive
from tests.faults.proxy import Proxy
from tests.orthanc.hospital import Hospital, both, lite
from tests.orthanc.test_changes import requests as requests_of
from tests.processes import free_port, wait_until

__all__ = ["both", "lite"]

pytestmark = pytest.mark.orthanc


def image(at: Hospital, study_uid: str, number: int = 1, **attributes: Any) -> Dataset:
    made = at.image(InstanceNumber=number, **attributes)
    made.StudyInstanceUID, made.SeriesInstanceUID = study_uid, f"{study_uid}.1"
    made.SOPInstanceUID = f"{study_uid}.1.{number}"
    return made


def published(at: Hospital, count: int) -> list[str]:
    """So many studies with one image each, in the archive and told of; their UIDs."""
    found = [f"1.7.{number}" for number in range(count)]
    at.send(*(image(at, one) for one in found))
    at.look()
    return found


def delete(at: Hospital, study_uids: list[str]) -> None:
    for one in study_uids:
        at.delete("studies", at.orthanc_id(one))


def unnoticed(at: Hospital) -> None:
    """Lose the archive's change log: only the sweep can know."""
    at.pacs.delete("/changes").raise_for_status()
    at.poll()
    at.store.transact(lambda tx: tx.execute(sync.dirty_study.delete()))


def statuses(at: Hospital) -> set[str]:
    return {study["status"] for study in at.find("ImagingStudy")}


# --- how deep ------------------------------------------------------------------------------------------------------


def test_equal_totals_are_all_that_is_asked_for(both: Hospital) -> None:
    published(both, 2)
    drift = sweep.sweep(both.archive)
    assert (drift.total, drift.level) == (0, "totals")


def test_a_study_that_no_change_told_of_is_found_by_its_id(both: Hospital) -> None:
    published(both, 2)
    both.send(image(both, "1.8.1"))
    unnoticed(both)
    drift = sweep.sweep(both.archive)
    assert (drift.new, drift.missing, drift.changed, drift.level) == (1, 0, 0, "ids")
    both.rebuild()
    assert both.study("1.8.1")["status"] == "available"
    assert sweep.sweep(both.archive).total == 0


def test_an_image_that_no_change_told_of_is_found_by_the_counts(both: Hospital) -> None:
    published(both, 3)
    both.send(image(both, "1.7.1", 2))
    unnoticed(both)
    drift = sweep.sweep(both.archive)
    assert (drift.total, drift.changed, drift.level) == (1, 1, "counts")
    assert drift.studies == {"changed": [both.orthanc_id("1.7.1")]}
    both.rebuild()
    assert both.study("1.7.1")["numberOfInstances"] == 2


def test_a_new_study_does_not_hide_that_another_one_lost_an_image(lite: Hospital) -> None:
    published(lite, 2)
    lite.send(image(lite, "1.7.1", 2))
    lite.look()
    lite.send(image(lite, "1.8.1"), image(lite, "1.8.1", 2))
    lite.delete("instances", lite.archive.orthanc.instances_with_uid("1.7.1.1.1")[0])
    unnoticed(lite)
    drift = sweep.sweep(lite.archive)
    assert (drift.new, drift.changed) == (1, 1)


def test_an_image_exchanged_for_another_is_found_by_the_nightly_look_at_every_instance(both: Hospital) -> None:
    published(both, 2)
    both.send(image(both, "1.7.0", 5))
    both.delete("instances", both.archive.orthanc.instances_with_uid("1.7.0.1.1")[0])
    unnoticed(both)
    drift = sweep.sweep(both.archive, thorough=True)
    assert (drift.changed, drift.level) == (1, "instances")
    both.rebuild()
    [listed] = both.study("1.7.0")["series"]
    assert [one["uid"] for one in listed["instance"]] == ["1.7.0.1.5"]
    assert sweep.sweep(both.archive, thorough=True).total == 0


def test_an_image_overwritten_under_its_own_uid_is_found_by_its_file(lite: Hospital) -> None:
    published(lite, 2)
    lite.delete("studies", lite.orthanc_id("1.7.0"))
    lite.send(image(lite, "1.7.0", StudyDescription="another"))
    unnoticed(lite)
    assert sweep.sweep(lite.archive).total == 0
    assert sweep.sweep(lite.archive, thorough=True).changed == 1
    lite.rebuild()
    assert lite.study("1.7.0")["description"] == "another"


def test_what_is_on_its_way_is_not_marked_again(lite: Hospital) -> None:
    published(lite, 2)
    lite.send(image(lite, "1.8.1"), image(lite, "1.7.1", 2))
    lite.poll()
    with lite.store.read() as connection:
        before = connection.execute(sync.dirty_study.select()).all()
    drift = sweep.sweep(lite.archive)
    with lite.store.read() as connection:
        assert connection.execute(sync.dirty_study.select()).all() == before
    assert (drift.new, drift.changed, drift.waiting, drift.level) == (1, 0, 2, "ids")


# --- what holds it back --------------------------------------------------------------------------------------------


@pytest.mark.case(34)
def test_a_mass_disappearance_withdraws_nothing_until_a_person_accepts_it(both: Hospital) -> None:
    uids = published(both, 20)
    delete(both, uids[:5])
    # One study was marked before, for another reason, and is found absent first.
    both.store.transact(lambda tx: sync.mark(tx, [next(iter(sync.present(tx)))], "changed"))
    both.rebuild_once()
    drift = sweep.sweep(both.archive)
    both.rebuild()
    assert (drift.held, drift.missing) == (sweep.MASS, 5)
    assert drift.studies == {"missing": uids[:5]}
    assert statuses(both) == {"available"}
    assert sweep.sweep(both.archive).missing == 5
    sweep.sweep(both.archive, accept_missing=True)
    # Another sweep before they are withdrawn does not hold them again.
    assert sweep.sweep(both.archive).held == ""
    both.rebuild()
    assert [both.study(one)["status"] for one in uids] == ["unknown"] * 5 + ["available"] * 15
    assert sweep.sweep(both.archive, thorough=True).total == 0


def test_a_fifth_of_the_studies_and_no_more_is_withdrawn_without_asking(lite: Hospital) -> None:
    uids = published(lite, 20)
    delete(lite, uids[:4])
    assert sweep.sweep(lite.archive).held == ""
    lite.rebuild()
    assert [lite.study(one)["status"] for one in uids[:4]] == ["unknown"] * 4


def test_what_disappears_bit_by_bit_within_a_sweeps_time_disappears_in_a_mass(lite: Hospital) -> None:
    uids = published(lite, 20)
    delete(lite, uids[:3])
    assert sweep.sweep(lite.archive).held == ""
    lite.rebuild()
    delete(lite, uids[3:6])
    assert sweep.sweep(lite.archive).held == sweep.MASS
    lite.rebuild()
    assert [lite.study(one)["status"] for one in uids[:6]] == ["unknown"] * 3 + ["available"] * 3


def test_new_studies_do_not_let_a_held_withdrawal_through(lite: Hospital) -> None:
    uids = published(lite, 20)
    delete(lite, uids[:5])
    assert sweep.sweep(lite.archive).held == sweep.MASS
    lite.send(*(image(lite, f"1.8.{number}") for number in range(10)))
    lite.look()
    assert sweep.sweep(lite.archive).held == sweep.MASS
    lite.rebuild()
    assert statuses(lite) == {"available"}


def test_studies_that_all_come_back_end_the_hold_by_themselves(lite: Hospital) -> None:
    uids = published(lite, 20)
    delete(lite, uids[:5])
    assert sweep.sweep(lite.archive).held == sweep.MASS
    lite.send(*(image(lite, one) for one in uids[:5]))
    assert sweep.sweep(lite.archive).held == ""
    lite.look()
    assert statuses(lite) == {"available"}
    with lite.store.read() as connection:
        assert sweep.hold(connection) == ""


@pytest.mark.case(5)
def test_an_emptied_archive_withdraws_nothing_however_few_studies_there_were(both: Hospital) -> None:
    delete(both, published(both, 3))
    assert sweep.sweep(both.archive).held == sweep.EMPTIED
    both.rebuild()
    assert statuses(both) == {"available"}


def test_an_archive_that_does_not_answer_withdraws_nothing(lite: Hospital) -> None:
    published(lite, 2)
    with Client(f"http://127.0.0.1:{free_port()}") as nobody, pytest.raises(ArchiveUnavailable):
        sweep.sweep(Archive(lite.store, nobody, lite.archive.site), thorough=True)
    assert statuses(lite) == {"available"}
    assert sweep.sweep(lite.archive).total == 0


@pytest.mark.case(5)
def test_another_database_behind_the_archive_withdraws_nothing(both: Hospital) -> None:
    both.send(both.image())
    both.look()
    both.delete("studies", both.orthanc_id("1.2.3.1"))
    ahead = update(cursor).where(cursor.c.name == changes.CHANGES).values(value=10**6)
    both.store.transact(lambda tx: tx.execute(ahead))
    both.poll()
    assert sweep.sweep(both.archive).held == sweep.ANOTHER_DATABASE
    both.rebuild()
    assert both.study("1.2.3.1")["status"] == "available"
    both.send(image(both, "1.7.1"))
    both.look()
    assert both.study("1.7.1")["status"] == "available"
    assert sweep.sweep(both.archive).held == sweep.ANOTHER_DATABASE
    sweep.sweep(both.archive, accept_missing=True)
    both.rebuild()
    assert both.study("1.2.3.1")["status"] == "unknown"


@pytest.mark.case(5)
def test_another_database_is_found_by_the_sweep_before_the_log_is_read_again(both: Hospital) -> None:
    both.send(both.image(), image(both, "1.7.1"))
    both.look()
    both.delete("studies", both.orthanc_id("1.2.3.1"))
    both.store.transact(
        lambda tx: tx.execute(update(cursor).where(cursor.c.name == changes.CHANGES).values(value=10**6))
    )
    assert sweep.sweep(both.archive).held == sweep.ANOTHER_DATABASE
    both.rebuild()
    assert both.study("1.2.3.1")["status"] == "available"


@pytest.mark.case(5)
def test_what_was_held_back_during_a_comparison_stays_held(both: Hospital) -> None:
    both.send(both.image(), image(both, "1.7.1"))
    both.look()
    both.delete("studies", both.orthanc_id("1.2.3.1"))
    port, login = int(both.server.url.rsplit(":", 1)[1]), (both.server.username, both.server.password)
    with Proxy(port) as network, Client(f"http://127.0.0.1:{network.port}", *login) as slow:
        network.keep_back(b"/studies")
        compare = threading.Thread(target=sweep.sweep, args=(Archive(both.store, slow, both.archive.site),))
        compare.start()
        wait_until(lambda: network.keeps > 0, "the comparison to begin", 10)
        both.store.transact(sweep.distrust)
        network.restore()
        compare.join(30)
    with both.store.read() as connection:
        assert sweep.hold(connection) == sweep.ANOTHER_DATABASE
    both.rebuild()
    assert both.study("1.2.3.1")["status"] == "available"


# --- who compares, and when ----------------------------------------------------------------------------------------


@pytest.mark.case(43)
def test_only_one_process_compares_and_one_that_was_overtaken_writes_nothing(both: Hospital) -> None:
    published(both, 2)
    slow = sweep.lead(both.archive, "slow")
    assert slow is not None
    assert sweep.lead(both.archive, "another") is None
    with pytest.raises(Unavailable):
        sweep.sweep(both.archive)
    both.send(image(both, "1.8.1"))
    both.store.transact(lambda tx: tx.execute(lease.update().values(until=0)))
    fast = sweep.lead(both.archive, "fast")
    assert fast is not None
    with pytest.raises(Unavailable):
        sweep.carry_out(slow, thorough=False)
    assert both.store.transact(sync.waiting) == 0
    assert sweep.carry_out(fast, thorough=False).new == 1


def turned(at: Hospital) -> Callable[[], float]:
    """The worker's loop; another process than the ones of `sweep.sweep`."""
    return sweep.turns(at.archive, "loop")


def last(at: Hospital) -> sweep.State:
    with at.store.read() as connection:
        return sweep.state(connection)


def test_the_loop_sweeps_in_its_time_and_looks_at_every_instance_once_a_night(lite: Hospital) -> None:
    published(lite, 1)
    turn = turned(lite)
    turn()
    first = last(lite)
    assert first.level == "instances"
    turn()
    assert last(lite) == first
    lite.store.transact(lambda tx: truth.note(tx, at=first.at - 10**6))
    turn()
    assert last(lite).level == "totals"
    lite.store.transact(lambda tx: truth.note(tx, at=first.at - 10**6, full_at=first.at - 24 * 3600 * 1000))
    turn()
    assert last(lite).level == "instances"


def test_a_deletion_is_noticed_at_a_glance_without_waiting_for_the_sweep(
    lite: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "GLANCE_SECONDS", 0)
    monkeypatch.setattr(sweep, "GLANCE_SHARE", 1e6)
    published(lite, 3)
    turn = turned(lite)
    turn()
    turn()
    assert last(lite).missing == 0
    delete(lite, ["1.7.1"])
    turn()
    assert last(lite).missing == 1


def test_a_hold_ends_at_a_glance_when_everything_is_back(lite: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "GLANCE_SECONDS", 0)
    monkeypatch.setattr(sweep, "GLANCE_SHARE", 1e6)
    uids = published(lite, 3)
    turn = turned(lite)
    turn()
    delete(lite, uids)
    turn()
    turn()
    assert last(lite).hold == sweep.EMPTIED
    lite.send(image(lite, uids[0]))
    turn()
    assert last(lite).hold == sweep.EMPTIED
    lite.send(*(image(lite, one) for one in uids))
    turn()
    assert last(lite).hold == ""
    assert statuses(lite) == {"available"}


# --- requests ------------------------------------------------------------------------------------------------------


def asked(at: Hospital, kind: str, **detail: Any) -> int:
    return at.store.transact(lambda tx: requests.ask(tx, kind, detail))


def answered(at: Hospital, request_id: int) -> requests.Request:
    with at.store.read() as connection:
        found = requests.read(connection, request_id)
    assert found is not None
    return found


def test_a_person_who_asks_gets_the_drift_before_and_after(both: Hospital) -> None:
    published(both, 3)
    both.send(image(both, "1.8.1"), image(both, "1.7.1", 2))
    delete(both, ["1.7.2"])
    unnoticed(both)
    request, turn = asked(both, "reconcile"), turned(both)
    assert asked(both, "reconcile") == request
    turn()
    turn()
    assert answered(both, request).done is None
    both.rebuild()
    turn()
    found = answered(both, request)
    before = found.answer["before"]
    assert (before["new"], before["missing"], before["changed"]) == (1, 1, 1)
    assert before["studies"]["missing"] == ["1.7.2"]
    assert found.answer["after"]["total"] == 0
    assert found.done is not None
    assert asked(both, "reconcile") != request


def test_where_nothing_differs_every_instance_is_read_once(both: Hospital) -> None:
    published(both, 2)
    request, turn = asked(both, "reconcile"), turned(both)
    asked_of = requests_of(both)
    turn()
    found = answered(both, request)
    assert found.done is not None
    assert found.answer["before"] == found.answer["after"]
    # What whoever waits looks at to tell how far it is.
    assert {"marked", "studies"} <= found.answer.keys()
    assert (found.answer["after"]["total"], found.answer["after"]["level"]) == (0, "instances")
    assert asked_of.count("/tools/bulk-content") == 1


@contextmanager
def looking(at: Hospital) -> Generator[None]:
    """Somebody looks at the study that is due, has read it, and publishes it when this ends."""
    port, login = int(at.server.url.rsplit(":", 1)[1]), (at.server.username, at.server.password)
    with Proxy(port) as network, Client(f"http://127.0.0.1:{network.port}", *login) as slow:
        network.keep_back(b"tags")
        at.hurry()
        look = threading.Thread(target=arrivals.rebuild_one, args=(Archive(at.store, slow, at.archive.site),))
        look.start()
        wait_until(lambda: network.keeps > 0, "the study to be read", 10)
        try:
            yield
        finally:
            network.restore()
            look.join(10)


def carried_on(at: Hospital, request: int, turn: Callable[[], float]) -> requests.Request:
    """The request's answer; a worker looks at what is marked between two turns."""
    for _ in range(2 * sweep.ROUNDS):
        if (found := answered(at, request)).done is not None:
            return found
        at.rebuild()
        turn()
    raise AssertionError("the request has no end")


def test_what_a_look_publishes_that_began_before_the_comparison_is_looked_at_again(both: Hospital) -> None:
    published(both, 1)
    both.send(image(both, "1.8.1"))
    both.poll()
    request, turn = asked(both, "reconcile"), turned(both)
    with looking(both):
        delete(both, ["1.8.1"])
        turn()
    found = carried_on(both, request, turn)
    assert found.answer["after"]["total"] == 0
    assert "note" not in found.answer
    assert both.study("1.8.1")["status"] == "unknown"


def test_nobody_is_told_that_nothing_differs_while_a_look_is_under_way(both: Hospital) -> None:
    published(both, 1)
    both.send(image(both, "1.8.1"))
    unnoticed(both)
    request, turn = asked(both, "reconcile"), turned(both)
    turn()
    both.rebuild()
    both.send(image(both, "1.7.0", 2))
    both.poll()
    with looking(both):
        both.send(image(both, "1.7.0", 3))
        both.pacs.delete("/changes").raise_for_status()
        turn()
        assert answered(both, request).done is None
    assert carried_on(both, request, turn).answer["after"]["total"] == 0
    assert both.study("1.7.0")["numberOfInstances"] == 3


def test_an_archive_that_changes_under_every_comparison_is_told_of(
    lite: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "ROUNDS", 2)
    published(lite, 1)
    request, turn = asked(lite, "reconcile"), turned(lite)
    for number in range(3):
        assert answered(lite, request).done is None
        lite.send(image(lite, f"1.8.{number}"))
        turn()
        if number < 2:
            lite.rebuild()
    found = answered(lite, request)
    assert found.answer["note"] == sweep.CHANGING
    assert found.answer["after"]["new"] == 1
    assert lite.store.transact(sync.waiting) == 1


def test_a_request_outlives_the_process_that_took_it(lite: Hospital) -> None:
    published(lite, 2)
    lite.send(image(lite, "1.8.1"))
    unnoticed(lite)
    request = asked(lite, "reconcile")
    turned(lite)()
    lite.store.transact(lambda tx: tx.execute(lease.update().values(until=0)))
    other = sweep.turns(lite.archive, "another")
    lite.rebuild()
    other()
    assert answered(lite, request).answer["after"]["total"] == 0


def test_a_study_that_cannot_be_read_keeps_nobody_waiting_and_is_told(lite: Hospital) -> None:
    published(lite, 1)
    lite.store.transact(lambda tx: sync.mark(tx, ["unreadable"], "test"))
    hopeless = sync.dirty_study.update().values(attempts=truth.HOPELESS)
    lite.store.transact(lambda tx: tx.execute(hopeless))
    request, turn = asked(lite, "reconcile"), turned(lite)
    turn()
    turn()
    assert answered(lite, request).answer["failing"] == 1


def test_a_request_that_the_archive_does_not_let_happen_is_answered_with_the_reason(lite: Hospital) -> None:
    published(lite, 1)
    request = asked(lite, "reconcile")
    with Client(f"http://127.0.0.1:{free_port()}") as nobody, pytest.raises(ArchiveUnavailable):
        sweep.turns(Archive(lite.store, nobody, lite.archive.site), "loop")()
    found = answered(lite, request)
    assert found.done is not None
    assert found.answer["error"].startswith("the archive does not answer")


def test_everything_is_mapped_anew_and_nothing_gets_a_version_that_is_the_same(lite: Hospital) -> None:
    published(lite, 3)
    request, turn = asked(lite, "rebuild"), turned(lite)
    turn()
    assert answered(lite, request).answer["rebuilt"] == 3
    assert lite.store.transact(sync.waiting) == 3
    lite.rebuild()
    turn()
    assert answered(lite, request).done is not None
    assert {lite.version(study) for study in lite.find("ImagingStudy")} == {1}


@pytest.mark.case(4)
def test_a_changes_log_that_was_cleared_is_healed_by_the_sweep(lite: Hospital) -> None:
    lite.send(lite.image())
    assert lite.pacs.delete("/changes").status_code == httpx.codes.OK
    assert lite.look() == 0
    assert sweep.sweep(lite.archive).new == 1
    lite.rebuild()
    assert lite.study("1.2.3.1")["status"] == "available"
