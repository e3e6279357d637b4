"""A worker is killed while it holds studies; others take over, and nothing is done twice (app.workflow.worker)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from app.store import sync
from app.store.database import now
from app.store.tables import dirty_study
from app.store.tables import worker as workers
from app.workflow import worker
from app.workflow.arrivals import Archive
from tests.orthanc.hospital import Hospital, both, lite
from tests.orthanc.test_arrivals import other_study
from tests.processes import wait_until

__all__ = ["both", "lite"]

pytestmark = pytest.mark.orthanc

HOLDER = """
import sys, time
from app.store import sync
from app.store.database import Store
from app.workflow import worker
from app.workflow.site import Archive
store = Store(sys.argv[1])
owner = worker.born(Archive(store, None, None))
held = store.transact(lambda tx: sync.claim_some(tx, owner, 10))
fence = store.transact(lambda tx: sync.hold(tx, "singleton", owner, seconds=600))
print(len(held), fence, flush=True)
time.sleep(600)
"""


def waiting(at: Hospital) -> int:
    with at.store.read() as connection:
        return sync.waiting(connection)


def studies(at: Hospital, count: int) -> None:
    at.send(*(other_study(at.image(), f"1.7.{number}") for number in range(count)))
    at.poll()
    at.hurry()


@pytest.mark.case(2, 43)
def test_what_a_killed_worker_held_is_taken_by_the_next_one_at_once(both: Hospital) -> None:
    studies(both, 3)
    url = both.store.url.render_as_string(hide_password=False)
    with subprocess.Popen([sys.executable, "-c", HOLDER, url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held, fence = process.stdout.readline().split()
        assert held == "3"
        assert both.store.transact(sync.claim) is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        owner = worker.born(both.archive)
        taken = both.store.transact(lambda tx: sync.hold(tx, "singleton", owner, seconds=10))
        rebuilder = worker.Rebuilder(both.archive, owner)
        wait_until(lambda: rebuilder.turn() == 0 and waiting(both) == 0, "the studies to be published", 5)
        rebuilder.close()
    assert taken == int(fence) + 1
    assert [one["meta"]["versionId"] for one in both.find("ImagingStudy")] == ["1"] * 3


@pytest.mark.case(2, 43)
def test_a_worker_elsewhere_that_says_no_more_that_it_lives_loses_its_studies(both: Hospital) -> None:
    studies(both, 1)
    both.store.transact(lambda tx: sync.live(tx, "elsewhere:1:a", seconds=60))
    [held] = both.store.transact(lambda tx: sync.claim_some(tx, "elsewhere:1:a", 5))
    owner = worker.born(both.archive)
    assert both.store.transact(lambda tx: sync.claim_some(tx, owner, 5)) == []
    silent = workers.update().where(workers.c.id == "elsewhere:1:a").values(until=now() - 1)
    both.store.transact(lambda tx: tx.execute(silent))
    [taken] = both.store.transact(lambda tx: sync.claim_some(tx, owner, 5))
    assert taken.orthanc_id == held.orthanc_id
    # The other one was only slow: what it writes now counts for nothing.
    assert not both.store.transact(lambda tx: sync.owned(tx, held))
    both.store.transact(lambda tx: sync.clean(tx, held))
    assert waiting(both) == 1


@pytest.mark.case(43)
def test_two_workers_share_the_studies_and_write_each_once(both: Hospital) -> None:
    studies(both, 12)
    other = Archive(both.store, both.archive.orthanc, both.archive.site)
    rebuilders = [worker.Rebuilder(at, worker.born(at)) for at in (both.archive, other)]

    def work(rebuilder: worker.Rebuilder) -> None:
        wait_until(lambda: rebuilder.turn() == 0 and waiting(both) == 0, "every study to be published")

    threads = [threading.Thread(target=work, args=(one,)) for one in rebuilders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rebuilder in rebuilders:
        rebuilder.close()
    found = both.find("ImagingStudy")
    assert len(found) == 12
    assert {one["meta"]["versionId"] for one in found} == {"1"}


def test_a_worker_that_ends_gives_back_what_it_had_not_begun(lite: Hospital) -> None:
    studies(lite, 2)
    owner = worker.born(lite.archive)
    lite.store.transact(lambda tx: sync.claim_some(tx, owner, 5))
    worker.dead(lite.archive, owner)
    with lite.store.read() as connection:
        claims = connection.execute(sa.select(dirty_study.c.claimed_until, dirty_study.c.worker)).all()
    assert [tuple(one) for one in claims] == [(0, ""), (0, "")]
    assert lite.rebuild() == 2


def test_workers_that_are_long_silent_are_forgotten_and_others_are_not(lite: Hospital) -> None:
    def fill(tx: sa.Connection) -> None:
        sync.live(tx, "elsewhere:1:a", seconds=-worker.SILENT_SECONDS - 1)
        sync.live(tx, "elsewhere:2:b", seconds=-60)

    lite.store.transact(fill)
    owner = worker.born(lite.archive)
    with lite.store.read() as connection:
        assert set(sync.living(connection)) == {"elsewhere:2:b", owner}
