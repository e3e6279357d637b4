"""A PACS changed behind our back, restored, emptied, away: what `isocenter sync` and /ready say and repair."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select

from app.fhir import rebuild, resources
from app.main import probes
from app.settings import Settings
from app.store.database import Store
from app.store.tables import resource, study
from tests.faults.chaos import Site, site
from tests.faults.nursery import Nursery, nursery
from tests.orthanc import phantoms
from tests.processes import wait_until

pytestmark = [pytest.mark.orthanc, pytest.mark.slow]


@pytest.fixture(scope="module")
def cradle() -> Iterator[Nursery]:
    with nursery() as made:
        yield made


@pytest.fixture
def lite(sqlite_template: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copy(sqlite_template, tmp_path / "isocenter.sqlite")
    opened = Store(f"sqlite:///{tmp_path / 'isocenter.sqlite'}")
    yield opened
    opened.close()


@contextmanager
def hospital(store: Store, folder: Path, cradle: Nursery, *, served: bool = True) -> Iterator[Site]:
    """An archive and, when it is served, a worker beside it."""
    url = store.url.render_as_string(hide_password=False)
    rebuild.upgrade(Settings(database_url=SecretStr(url)))
    with site(folder, cradle, url, overwrite=False) as made:
        if not served:
            made.workers.pop().kill()
        yield made


def send(at: Site, *numbers: int, image: int = 1) -> None:
    with at.pacs.server.client() as client:
        for number in numbers:
            uid = f"1.2.99.{number}"
            made = phantoms.image(mrn=f"P{number}", study=uid, series=f"{uid}.1", instance=f"{uid}.1.{image}")
            client.post("/instances", content=phantoms.part10(made)).raise_for_status()


def delete(at: Site, *numbers: int) -> None:
    with at.pacs.server.client() as client:
        for number in numbers:
            [found] = client.post("/tools/lookup", content=f"1.2.99.{number}").json()
            client.delete(found["Path"]).raise_for_status()


def statuses(store: Store) -> Counter[str]:
    with store.read() as connection:
        return Counter(one["status"] for one in resources.find(connection, "ImagingStudy", [("_count", "1000")]))


def until(store: Store, expected: dict[str, int]) -> None:
    wait_until(lambda: statuses(store) == expected, f"{expected}", 60)


def ready(at: Site, store: Store) -> dict[str, str]:
    """What /ready says is degraded."""
    settings = Settings(
        orthanc_url=f"http://127.0.0.1:{at.network.port}",
        orthanc_username=at.pacs.server.username,
        orthanc_password=SecretStr(at.pacs.server.password),
    )
    status, body = probes.readiness(store, settings)
    assert status == 200
    return body["degraded"]


@pytest.mark.case(7, 8)
def test_a_pacs_changed_behind_our_back_is_told_and_repaired_without_a_server(
    store: Store, tmp_path: Path, cradle: Nursery
) -> None:
    with hospital(store, tmp_path, cradle, served=False) as at:
        send(at, *range(8))
        assert at.reconcile()["before"]["new"] == 8
        assert statuses(store) == {"available": 8}
        delete(at, 0)
        send(at, 1, image=2)
        send(at, 8)
        with at.pacs.server.client() as client:
            source, target = (client.post("/tools/lookup", content=f"1.2.99.{one}").json()[0] for one in (2, 3))
            body = {"Resources": [source["ID"]], "KeepSource": False}
            client.post(f"{target['Path']}/merge", json=body).raise_for_status()
            client.delete("/changes").raise_for_status()
        drift = at.reconcile()
        before = drift["before"]
        assert (before["new"], before["missing"], before["changed"]) == (1, 2, 2)
        assert before["studies"]["missing"] == ["1.2.99.0", "1.2.99.2"]
        assert (drift["after"]["total"], drift["failing"]) == (0, 0)
        assert statuses(store) == {"available": 7, "unknown": 2}
        again = at.reconcile()
        assert again["before"] == again["after"] == drift["after"]


@pytest.mark.case(5)
def test_a_restored_older_copy_is_noticed_and_takes_nothing_away_before_a_person_says_so(
    lite: Store, tmp_path: Path, cradle: Nursery
) -> None:
    with hospital(lite, tmp_path, cradle) as at:
        send(at, *range(6))
        until(lite, {"available": 6})
        at.pacs.keep()
        at.pacs.start()
        send(at, 6, 7)
        until(lite, {"available": 8})
        at.pacs.put_back()
        at.pacs.start()
        wait_until(lambda: "replaced" in ready(at, lite).get("sync", ""), "the replaced database to be told", 60)
        assert "isocenter sync reconcile --accept-missing" in ready(at, lite)["sync"]
        drift = at.reconcile()
        assert drift["before"]["studies"]["missing"] == ["1.2.99.6", "1.2.99.7"]
        assert drift["after"]["held"] == drift["before"]["held"] != ""
        assert statuses(lite) == {"available": 8}
        assert at.reconcile("--accept-missing", "--reason", "retention")["after"]["total"] == 0
        assert statuses(lite) == {"available": 6, "unknown": 2}
        assert ready(at, lite) == {}


@pytest.mark.case(5, 34)
def test_an_emptied_or_unreachable_archive_does_not_empty_fhir_and_is_told(
    lite: Store, tmp_path: Path, cradle: Nursery
) -> None:
    with hospital(lite, tmp_path, cradle) as at:
        send(at, *range(5))
        until(lite, {"available": 5})
        delete(at, *range(5))
        wait_until(lambda: "none of the known" in ready(at, lite).get("sync", ""), "the emptied archive to be told", 60)
        assert at.reconcile()["after"]["missing"] == 5
        at.pacs.stop()
        assert ready(at, lite)["archive"]
        refused = at.run("sync", "reconcile")
        assert refused.wait(60) == 1
        assert refused.told().splitlines()[-1].startswith("isocenter: the archive does not answer")
        assert statuses(lite) == {"available": 5}
        at.pacs.start()
        send(at, *range(5))
        assert at.reconcile()["after"]["total"] == 0
        assert ready(at, lite) == {}
        assert statuses(lite) == {"available": 5}


def test_a_backfill_killed_half_way_goes_on_where_it_stopped(store: Store, tmp_path: Path, cradle: Nursery) -> None:
    def published() -> int:
        with store.read() as connection:
            return connection.execute(select(func.count()).select_from(study)).scalar_one()

    with hospital(store, tmp_path, cradle, served=False) as at:
        send(at, *range(150))
        first = at.run("sync", "reconcile")
        wait_until(lambda: published() > 20, "a part of the backfill", 60)
        first.kill()
        done = published()
        assert done < 150
        drift = at.reconcile()
        assert drift["before"]["new"] == 150
        assert drift["after"]["total"] == 0
        assert published() == 150
        with store.read() as connection:
            kinds = resource.c.resource_type == "ImagingStudy"
            assert set(connection.execute(select(resource.c.version).where(kinds)).scalars()) == {1}
