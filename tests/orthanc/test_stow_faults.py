"""The archive fails while an upload is stored: each object is told as far as it is known, and trying again is safe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from pydicom.uid import JPEGLosslessSV1

from app.dicom import stow
from app.dicom.orthanc import Orthanc
from app.store import studies, tables
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.conftest import configuration
from tests.orthanc.gateway import Running, U, fill, serving
from tests.orthanc.phantoms import image, part10, report
from tests.orthanc.wires import Wires, wires
from tests.processes import answers, free_port, program
from tests.processes import running as running_program

pytestmark = pytest.mark.orthanc

MARK = "frontier"
NAMES = [f"{U}.9.{number}" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def laid(orthanc: Archive) -> Iterator[Wires]:
    with wires(orthanc.url) as laid:
        yield laid


@pytest.fixture(scope="module")
def running(orthanc: Archive, laid: Wires, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(replace(orthanc, url=laid.url), tmp_path_factory.mktemp("faults")) as running:
        fill(running.archive, running.store)
        yield running


@pytest.fixture
def archive(orthanc: Archive, running: Running, laid: Wires) -> Iterator[Orthanc]:
    """The archive itself, with what tests stored removed afterwards."""
    laid.mend()
    running.records.clear()
    running.dirty.clear()
    running.store.transact(lambda connection: connection.execute(tables.stow.delete()))
    with Orthanc(orthanc.url, orthanc.username, orthanc.password) as archive:
        yield archive
        laid.mend()
        for name in NAMES:
            for orthanc_id in archive.instances_with_uid(name):
                archive.delete_instance(orthanc_id)


@pytest.fixture(scope="module", autouse=True)
def empty_afterwards(orthanc: Archive, running: Running) -> Iterator[None]:
    yield
    with Orthanc(orthanc.url, orthanc.username, orthanc.password) as archive:
        for study in list(archive.study_ids()):
            archive.delete_study(study)


def document(name: str, text: str = "seen") -> bytes:
    return part10(report(mrn="A", study=U, series=f"{U}.9", instance=name, text=text))


def send(running: Running, *contents: bytes) -> httpx.Response:
    parts = [f"--{MARK}\r\nContent-Type: application/dicom\r\n\r\n".encode() + one + b"\r\n" for one in contents]
    kind = f'multipart/related; type="application/dicom"; boundary={MARK}'
    with running.client("writer") as client:
        headers = {"Content-Type": kind}
        body = b"".join(parts) + f"--{MARK}--\r\n".encode()
        return client.post(f"/dicom-web/studies/{U}", content=body, headers=headers, timeout=30)


def told(response: httpx.Response) -> dict[str, int]:
    """What became of each object: its failure reason, or 0."""
    answer = response.json()
    stored = {item["00081155"]["Value"][0]: 0 for item in answer.get("00081199", {}).get("Value", [])}
    failed = answer.get("00081198", {}).get("Value", [])
    return stored | {item["00081155"]["Value"][0]: item["00081197"]["Value"][0] for item in failed}


def present(archive: Orthanc) -> list[str]:
    return [name for name in NAMES if archive.instances_with_uid(name)]


def recorded(running: Running, name: str) -> str | None:
    with running.store.read() as connection:
        found = studies.stowed(connection, name)
    return found and found.sha256


def test_an_archive_that_is_away_gets_nothing_and_each_object_is_told_so(
    running: Running, laid: Wires, archive: Orthanc
) -> None:
    laid.fate = lambda _: "refuse"
    response = send(running, *map(document, NAMES))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert told(response) == dict.fromkeys(NAMES, stow.OUT_OF_RESOURCES)
    # It is asked for the first object only.
    assert len(laid.asked) <= 3
    laid.mend()
    assert present(archive) == []
    assert [record.outcome for record in running.records] == ["failed"]
    assert send(running, *map(document, NAMES)).status_code == 200


@pytest.mark.ps318("10.5.3.3")
def test_an_archive_that_goes_away_in_the_middle_has_what_is_told_as_stored(
    running: Running, laid: Wires, archive: Orthanc
) -> None:
    laid.only("POST /instances", "die", after=1)
    response = send(running, *map(document, NAMES))
    assert response.status_code == 202
    expected = dict(zip(NAMES, (0, stow.PROCESSING_FAILURE, stow.OUT_OF_RESOURCES), strict=True))
    assert told(response) == expected
    # Of the second nobody knew: it is there. Trying all again stores the rest and says so of all.
    assert present(archive) == NAMES[:2]
    laid.mend()
    assert told(send(running, *map(document, NAMES))) == dict.fromkeys(NAMES, 0)
    assert present(archive) == NAMES
    assert [recorded(running, name) for name in NAMES] == [hashlib.sha256(document(name)).hexdigest() for name in NAMES]


def test_a_connection_cut_while_an_object_is_sent_fails_that_object_alone(
    running: Running, laid: Wires, archive: Orthanc
) -> None:
    laid.only("POST /instances", "cut")
    cut = laid.fate
    cuts: list[str] = []

    def first_object(request: str) -> str:
        # A request that meets a closing connection is sent once more by the client itself.
        if request.startswith("POST /instances") and len(cuts) < 2:
            cuts.append(request)
            return cut(request)
        return "pass"

    laid.fate = first_object  # type: ignore[assignment]
    response = send(running, *map(document, NAMES))
    answer = told(response)
    assert response.status_code in {200, 202}
    assert present(archive) == [name for name, reason in answer.items() if reason == 0]
    assert set(answer.values()) <= {0, stow.PROCESSING_FAILURE}
    laid.mend()
    assert send(running, *map(document, NAMES)).status_code == 200
    assert present(archive) == NAMES


def test_an_answer_that_is_lost_after_the_last_object_is_made_good_by_sending_again(
    running: Running, laid: Wires, archive: Orthanc
) -> None:
    laid.only("POST /instances", "die")
    response = send(running, document(NAMES[0]))
    assert (response.status_code, told(response)) == (503, {NAMES[0]: stow.PROCESSING_FAILURE})
    assert present(archive) == [NAMES[0]]
    # The sync looks at the study, and knows who stored what is there.
    assert running.dirty
    assert recorded(running, NAMES[0]) == hashlib.sha256(document(NAMES[0])).hexdigest()
    laid.mend()
    assert told(send(running, document(NAMES[0]))) == {NAMES[0]: 0}


def test_an_object_that_the_archive_fails_at_does_not_stop_the_others(
    running: Running, laid: Wires, archive: Orthanc
) -> None:
    laid.only("POST /instances", "fail", after=2)
    response = send(running, *map(document, NAMES))
    assert response.status_code == 202
    assert told(response) == dict(zip(NAMES, (0, 0, stow.PROCESSING_FAILURE), strict=True))
    assert present(archive) == NAMES[:2]


@pytest.mark.ps318("10.5.2")
def test_bytes_that_changed_on_the_way_are_noticed_and_removed(running: Running, laid: Wires, archive: Orthanc) -> None:
    laid.only("POST /instances", "change")
    response = send(running, document(NAMES[0]), document(NAMES[1], text="read"))
    assert response.status_code == 202
    assert told(response) == {NAMES[0]: stow.PROCESSING_FAILURE, NAMES[1]: 0}
    assert present(archive) == [NAMES[1]]
    assert recorded(running, NAMES[0]) is None
    (record,) = running.records
    assert record.detail == {"stored": 1, "failed": 1, "reasons": {"0110": 1}}


def test_what_could_not_be_removed_is_audited(running: Running, laid: Wires, archive: Orthanc) -> None:
    def fate(request: str) -> str:
        return {"POST /ins": "change", "DELETE /i": "fail"}.get(request[:9], "pass")

    laid.fate = fate  # type: ignore[assignment]
    response = send(running, document(NAMES[0]))
    assert (response.status_code, told(response)) == (409, {NAMES[0]: stow.PROCESSING_FAILURE})
    (record,) = running.records
    assert record.detail["left"] == [NAMES[0]]
    assert record.outcome == "failed"


@contextmanager
def another(folder: Path, settings: dict[str, object]) -> Iterator[Archive]:
    """One more archive, set up otherwise."""
    archive = Archive(f"http://127.0.0.1:{free_port()}", "127.0.0.1", free_port(), "OTHER", "isocenter", "test-secret")
    file, log = folder / "orthanc.json", folder / "orthanc.log"
    file.write_text(json.dumps(configuration(archive, folder) | {"Plugins": []} | settings))
    with running_program([program("/usr/sbin/Orthanc"), str(file)], log) as process, archive.client() as client:

        def up() -> bool:
            try:
                return client.get("/system").status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

        answers(process, log, up, "another Orthanc")
        yield archive


def test_an_archive_that_overwrites_and_keeps_no_sums_is_read_back(tmp_path: Path) -> None:
    settings = {"OverwriteInstances": True, "StoreMD5ForAttachments": False}
    with another(tmp_path, settings) as other, serving(other, tmp_path) as running:
        fill(running.archive, running.store)
        assert told(send(running, document(NAMES[0]))) == {NAMES[0]: 0}
        assert running.archive.md5(running.archive.instances_with_uid(NAMES[0])[0]) == ""
        assert told(send(running, document(NAMES[0]))) == {NAMES[0]: 0}
        assert told(send(running, document(NAMES[0], text="else"))) == {NAMES[0]: stow.DUPLICATE}
        assert running.archive.file(running.archive.instances_with_uid(NAMES[0])[0]) == document(NAMES[0])


def test_an_archive_that_transcodes_what_comes_in_is_told_with_a_warning(tmp_path: Path) -> None:
    with another(tmp_path, {"IngestTranscoding": JPEGLosslessSV1}) as other, serving(other, tmp_path) as running:
        fill(running.archive, running.store)
        running.gateway.rules = replace(running.gateway.rules, classes=None)
        picture = image(mrn="A", study=U, series=f"{U}.9", instance=NAMES[0])
        for _ in range(2):
            response = send(running, part10(picture))
            assert told(response) == {NAMES[0]: 0}
            warnings = [item.get("00081196") for item in response.json()["00081199"]["Value"]]
            # Only who stored it is told that the archive keeps another form; sent again it is simply there.
            assert (response.status_code, warnings) in [(202, [{"vr": "US", "Value": [stow.COERCED]}]), (200, [None])]
        picture.SeriesDescription = "else"
        assert told(send(running, part10(picture))) == {NAMES[0]: stow.DUPLICATE}
