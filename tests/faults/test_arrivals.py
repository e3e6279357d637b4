"""The archive stops and comes back; nothing is lost and nothing is withdrawn (app.workflow.arrivals)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.dicom.orthanc import Orthanc as Client
from app.errors import ArchiveUnavailable
from app.settings import Settings
from app.store import sync, truth
from app.store.database import Store, now
from app.workflow import site, sweep
from app.workflow.arrivals import Archive
from tests.orthanc.conftest import Orthanc, configuration
from tests.orthanc.hospital import Hospital, hospital
from tests.processes import answers, free_port, program, running

pytestmark = pytest.mark.orthanc


@contextmanager
def started(server: Orthanc, folder: Path) -> Iterator[None]:
    """This archive, on its own folder, for the time of the block."""
    settings, log = folder / "orthanc.json", folder / "orthanc.log"
    settings.write_text(json.dumps(configuration(server, folder)))
    with running([program("/usr/sbin/Orthanc"), str(settings)], log) as process, server.client() as client:

        def up() -> bool:
            try:
                return client.get("/system").status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

        answers(process, log, up, "Orthanc")
        yield


@contextmanager
def away(store: Store, server: Orthanc, folder: Path) -> Iterator[Hospital]:
    """A new process on the store, with an archive that does not answer."""
    where = site.of(Settings(data_dir=folder, timezone="Europe/Berlin", quiet_seconds=0, delete_grace=0))
    with Client(server.url, server.username, server.password) as orthanc, server.client() as pacs:
        yield Hospital(Archive(store, orthanc, where), server, pacs)


@pytest.mark.case(3)
def test_an_archive_that_was_away_is_read_on_and_nothing_was_withdrawn(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "lite.sqlite")
    store = Store(f"sqlite:///{tmp_path / 'lite.sqlite'}")
    server = Orthanc(f"http://127.0.0.1:{free_port()}", "127.0.0.1", free_port(), "ORTHANC", "isocenter", "secret")
    with started(server, tmp_path), hospital(store, server, tmp_path) as at:
        order = at.order()
        at.send(at.image(order))
        at.poll()
    with away(store, server, tmp_path) as at:
        with pytest.raises(ArchiveUnavailable):
            at.rebuild()
        with pytest.raises(ArchiveUnavailable):
            at.poll()
        with pytest.raises(ArchiveUnavailable):
            sweep.sweep(at.archive)
        assert store.transact(sync.waiting) == 1
        assert [study["status"] for study in at.find("ImagingStudy")] == ["registered"]
        with started(server, tmp_path):
            at.settle()
            assert [study["status"] for study in at.find("ImagingStudy")] == ["available"]
            assert sweep.sweep(at.archive).total == 0
            assert store.transact(sync.waiting) == 0
    store.close()


@pytest.mark.case(3)
def test_a_study_is_not_given_up_because_its_archive_was_away(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "lite.sqlite")
    store = Store(f"sqlite:///{tmp_path / 'lite.sqlite'}")
    server = Orthanc(f"http://127.0.0.1:{free_port()}", "127.0.0.1", free_port(), "ORTHANC", "isocenter", "secret")
    with started(server, tmp_path), hospital(store, server, tmp_path) as at:
        at.send(at.image())
        at.poll()
    with away(store, server, tmp_path) as at:
        for _ in range(2 * truth.HOPELESS):
            with pytest.raises(ArchiveUnavailable):
                at.rebuild()
        assert store.transact(lambda tx: truth.unsettled(tx, now())) == 1
        with started(server, tmp_path):
            at.settle()
            assert [study["status"] for study in at.find("ImagingStudy")] == ["available"]
    store.close()
