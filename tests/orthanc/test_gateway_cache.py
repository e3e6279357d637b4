"""What the gateway gives from its cache is what the archive has now, and only to whom it was granted."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.dicom import prepared, preparing, relay
from app.dicom.cache import Cache
from app.dicom.crowd import AT_ONCE
from app.dicom.holdings import Holdings
from app.store import studies
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.conftest import configuration
from tests.orthanc.gateway import Running, U, V, Z, fill, serving
from tests.orthanc.phantoms import image, part10
from tests.processes import answers, free_port, program, stop, wait_until

pytestmark = pytest.mark.orthanc

SERIES = f"/dicom-web/studies/{U}/series/{U}.1"
FRAMES = {"Accept": "multipart/related; type=application/octet-stream; transfer-syntax=*"}
WHOLE = {"Accept": "multipart/related; type=application/dicom; transfer-syntax=*"}


def frame(number: int, study: str = U, which: int = 1) -> str:
    return f"/dicom-web/studies/{study}/series/{study}.1/instances/{study}.1.{number}/frames/{which}"


@dataclass
class Overwriting:
    """An archive that replaces what is stored again, and can be stopped."""

    archive: Archive
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as output:
            command = [program("/usr/sbin/Orthanc"), str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        with self.archive.client() as client:
            answers(self.process, self.folder / "log", lambda: _is_up(client), "Orthanc")

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)
            self.process = None


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/system").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def overwriting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overwriting]:
    folder = tmp_path_factory.mktemp("overwriting")
    archive = Archive(f"http://127.0.0.1:{free_port()}", "127.0.0.1", free_port(), "ORTHANC", "isocenter", "secret")
    settings = configuration(archive, folder) | {"OverwriteInstances": True}
    (folder / "orthanc.json").write_text(json.dumps(settings))
    made = Overwriting(archive, folder)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def served(overwriting: Overwriting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(overwriting.archive, tmp_path_factory.mktemp("gateway")) as made:
        fill(made.archive, made.store)
        yield made


@pytest.fixture
def gateway(served: Running) -> Running:
    """The same one for all, which has forgotten what was before."""
    served.gateway.trail.close()
    served.records.clear()
    served.gateway.ahead._tracks.clear()
    served.gateway.holdings._kept.clear()
    shutil.rmtree(served.gateway.flights.cache.folder, ignore_errors=True)
    return served


@pytest.fixture
def changing(gateway: Running) -> Iterator[None]:
    """Afterwards the study is again as it was."""
    yield
    with gateway.store.read() as connection:
        (held,) = studies.with_uid(connection, U)
    gateway.archive.delete_study(held.orthanc_id)
    fill(gateway.archive, gateway.store)


@pytest.fixture
def client(gateway: Running) -> Iterator[httpx.Client]:
    with gateway.client() as client:
        yield client


def name_of(gateway: Running, number: int, which: int = 1, study: str = U) -> str:
    """The name under which a frame is kept."""
    with gateway.store.read() as connection:
        (held,) = studies.with_uid(connection, study)
    instance = Holdings(gateway.archive).read(held).series[f"{study}.1"].instances[f"{study}.1.{number}"]
    return f"{instance.version} frames/{which - 1}/raw"


def kept(gateway: Running, number: int, which: int = 1) -> None:
    cache, name = gateway.gateway.flights.cache, name_of(gateway, number, which)
    wait_until(lambda: cache.get(name), "the frame in the cache")


def replaced(number: int, word: bytes) -> bytes:
    """The same object with other pixels."""
    dataset = image(mrn="A", study=U, series=f"{U}.1", instance=f"{U}.1.{number}", frames=3)
    dataset.PixelData = word.ljust(32, b".") * 3
    return part10(dataset)


# --- from the cache, and only what was asked for -----------------------------------------------------------------


def test_a_frame_that_was_read_once_comes_from_the_cache(gateway: Running, client: httpx.Client) -> None:
    first = client.get(frame(1), headers=FRAMES)
    kept(gateway, 1)
    gateway.gateway.flights.cache.put(name_of(gateway, 1), b"from the cache".ljust(32))
    again = client.get(frame(1), headers=FRAMES)
    assert b"from the cache" in again.content
    assert again.headers["etag"] == first.headers["etag"]


def test_the_frames_after_one_that_was_read_are_fetched_ahead(gateway: Running, client: httpx.Client) -> None:
    client.get(frame(1), headers=FRAMES)
    for number, which in ((1, 2), (1, 3), (2, 1), (2, 3)):
        kept(gateway, number, which)
    assert not gateway.gateway.flights.cache.has(name_of(gateway, 1, study=V))
    assert client.get(frame(2, which=3), headers=FRAMES).content.count(f"{U}.1.2.....".encode()) == 1


def test_the_metadata_of_a_series_fetches_its_first_frames(gateway: Running, client: httpx.Client) -> None:
    client.get(f"{SERIES}/metadata").raise_for_status()
    kept(gateway, 1, 1)
    kept(gateway, 2, 2)


def test_a_launch_fetches_what_the_viewer_will_ask_for(gateway: Running) -> None:
    with gateway.store.read() as connection:
        (held,) = studies.with_uid(connection, U)
        (other,) = studies.with_uid(connection, V)
    gateway.gateway.prepare(U, other.imaging_study_id)
    gateway.gateway.prepare(U, held.imaging_study_id)
    kept(gateway, 1, 1)
    kept(gateway, 2, 3)
    cache = gateway.gateway.flights.cache
    for series in Holdings(gateway.archive).read(held).series.values():
        wait_until(lambda series=series: _is_prepared(cache, series.version), "metadata")
    for series in Holdings(gateway.archive).read(other).series.values():
        assert not _is_prepared(cache, series.version)


def _is_prepared(cache: Cache, version: str) -> bool:
    return cache.has(prepared.name(version))


def test_another_gateway_on_the_same_folder_gives_the_same(
    overwriting: Overwriting, gateway: Running, client: httpx.Client, tmp_path: Path
) -> None:
    first = client.get(frame(1), headers=FRAMES)
    kept(gateway, 1)
    (tmp_path / "cache").symlink_to(gateway.gateway.flights.cache.folder)
    with gateway.store.read() as connection:
        (held,) = studies.with_uid(connection, U)
    with serving(overwriting.archive, tmp_path, gateway.url) as second:
        second.store.transact(lambda connection: studies.put(connection, held, digest="d"))
        answer = httpx.get(f"{second.address}{frame(1)}", headers={**FRAMES, "Authorization": "Bearer one-study"})
    assert answer.content == first.content
    assert answer.headers["etag"] == first.headers["etag"]


# --- who may ---------------------------------------------------------------------------------------------------------


def test_what_one_grant_has_read_is_refused_to_another(gateway: Running) -> None:
    with (
        gateway.client("patient") as wide,
        gateway.client("one-study") as narrow,
        gateway.client("system") as all_of_it,
    ):
        paths = [frame(1, V), f"/dicom-web/studies/{V}/series/{V}.1/metadata", f"/dicom-web/studies/{V}/thumbnail"]
        tags = [wide.get(path).raise_for_status().headers.get("etag", "*") for path in paths]
        all_of_it.get(frame(1, Z), headers=FRAMES).raise_for_status()
        for path, tag in zip(paths, tags, strict=True):
            unknown = narrow.get(path.replace(V, "1.2.999"))
            for headers in ({}, {"If-None-Match": tag}, {"If-None-Match": "*"}, {"Range": "bytes=0-1"}):
                refused = narrow.get(path, headers=headers)
                assert (refused.status_code, "etag" in refused.headers) == (403, False)
                assert _said(refused) == _said(unknown)
        assert wide.get(frame(1, Z), headers=FRAMES).status_code == 403
        assert httpx.get(f"{gateway.url}{frame(1)}", trust_env=False).status_code == 401


def _said(answer: httpx.Response) -> dict[str, object]:
    return {name: value for name, value in answer.json().items() if name != "request_id"}


def test_what_comes_from_the_cache_is_audited_like_the_rest(gateway: Running, client: httpx.Client) -> None:
    for _ in range(3):
        client.get(frame(1), headers=FRAMES).raise_for_status()
    gateway.gateway.trail.close()
    counts = [record.detail.get("count") for record in gateway.records if record.action == "frames"]
    assert counts == [1, 2]


# --- conditions and ranges -------------------------------------------------------------------------------------------


@pytest.mark.ps318("10.4.1.3")
def test_an_unchanged_frame_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get(frame(1), headers=FRAMES)
    assert first.headers["cache-control"] == "private, no-cache"
    again = client.get(frame(1), headers=FRAMES | {"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert client.get(frame(1), headers=FRAMES).content == first.content
    other = client.get(frame(2), headers=FRAMES | {"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200


@pytest.mark.ps318("10.4.1.3")
def test_a_part_of_a_frame_is_sent(client: httpx.Client) -> None:
    octets = {"Accept": "application/octet-stream; transfer-syntax=*"}
    whole = client.get(frame(1), headers=octets)
    part = client.get(frame(1), headers=octets | {"Range": "bytes=4-7", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, whole.content[4:8])
    assert part.headers["content-range"] == "bytes 4-7/32"
    assert client.get(frame(1), headers=octets | {"Range": "bytes=90-"}).status_code == 416


# --- what the archive changed ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("changing")
@pytest.mark.ps318("10.4.2")
def test_what_was_overwritten_is_not_served_any_more(gateway: Running, client: httpx.Client) -> None:
    paths = [frame(1), f"{SERIES}/instances/{U}.1.1/rendered"]
    before = [client.get(path).raise_for_status() for path in paths]
    kept(gateway, 1)
    for round_ in (b"second", b"third"):
        gateway.archive.store(replaced(1, round_))
        wait_until(lambda round_=round_: round_ in client.get(frame(1), headers=FRAMES).content, "new pixels", 3)
        assert b"second" in client.get(frame(1), headers=FRAMES).content or round_ == b"third"
        after = [client.get(path) for path in paths]
        for old, new in zip(before, after, strict=True):
            assert new.headers["etag"] != old.headers["etag"]
            assert new.content != old.content
            changed = client.get(str(new.request.url), headers={"If-None-Match": old.headers["etag"]})
            assert changed.status_code == 200
        before = after


@pytest.mark.usefixtures("changing")
def test_metadata_tells_at_once_what_was_overwritten_deleted_or_came_late(
    gateway: Running, client: httpx.Client
) -> None:
    def told() -> dict[str, int]:
        rows = client.get(f"{SERIES}/metadata").raise_for_status().json()
        return {row["00080018"]["Value"][0]: row["00280010"]["Value"][0] for row in rows}

    assert told() == {f"{U}.1.1": 4, f"{U}.1.2": 4}
    dataset = image(mrn="A", study=U, series=f"{U}.1", instance=f"{U}.1.1")
    dataset.Rows, dataset.Columns = 2, 8
    gateway.archive.store(part10(dataset))
    assert told() == {f"{U}.1.1": 2, f"{U}.1.2": 4}
    gateway.archive.store(part10(image(mrn="A", study=U, series=f"{U}.1", instance=f"{U}.1.3")))
    assert told() == {f"{U}.1.1": 2, f"{U}.1.2": 4, f"{U}.1.3": 4}
    (found,) = gateway.archive.instances_with_uid(f"{U}.1.2")
    gateway.archive.delete_instance(found)
    assert told() == {f"{U}.1.1": 2, f"{U}.1.3": 4}


@pytest.mark.usefixtures("changing")
def test_a_deleted_object_is_gone_although_its_frames_are_kept(gateway: Running, client: httpx.Client) -> None:
    client.get(frame(1), headers=FRAMES).raise_for_status()
    kept(gateway, 1)
    (found,) = gateway.archive.instances_with_uid(f"{U}.1.1")
    gateway.archive.delete_instance(found)
    wait_until(lambda: client.get(frame(1), headers=FRAMES).status_code == 404, "the frame to be gone", 3)
    gateway.archive.store(replaced(1, b"back"))
    wait_until(lambda: b"back" in client.get(frame(1), headers=FRAMES).content, "the frame to be back", 3)


def test_a_damaged_entry_is_fetched_anew(gateway: Running, client: httpx.Client) -> None:
    first = client.get(frame(1), headers=FRAMES)
    kept(gateway, 1)
    cache = gateway.gateway.flights.cache
    path = cache._path(name_of(gateway, 1))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert client.get(frame(1), headers=FRAMES).content == first.content
    shutil.rmtree(cache.folder)
    assert client.get(frame(1), headers=FRAMES).content == first.content


def test_while_the_archive_is_away_nothing_is_served_and_afterwards_all_is(
    overwriting: Overwriting, gateway: Running, client: httpx.Client
) -> None:
    first = client.get(frame(1), headers=FRAMES)
    overwriting.stop()
    try:
        # Whether it was granted is known, but no more whether it is still there.
        away = wait_until(lambda: _unless_well(client.get(frame(1), headers=FRAMES)), "the archive to be missed", 5)
        assert away.status_code == 503
        assert int(away.headers["retry-after"]) > 0
    finally:
        overwriting.start()
    assert client.get(frame(1), headers=FRAMES).content == first.content


def _unless_well(answer: httpx.Response) -> httpx.Response | None:
    return None if answer.status_code == 200 else answer


# --- metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [f"/studies/{U}", f"/studies/{U}/series/{U}.2", None])
def test_kept_metadata_is_byte_for_byte_what_is_made_anew(gateway: Running, level: str | None) -> None:
    path = f"{level or f'/studies/{U}/series/{U}.2/instances/{U}.2.1'}/metadata"
    cookies = {"viewer": "one-study"}
    addresses = [
        (f"/dicom-web{path}", {}),
        (f"/v/one/dicom-web{path}", cookies),
        (f"/v/2/dicom-web{path}", cookies),
    ]
    first = [_metadata(gateway, *address) for address in addresses]
    again = [_metadata(gateway, *address) for address in addresses]
    shutil.rmtree(gateway.gateway.flights.cache.folder)
    anew = [_metadata(gateway, *reversed_) for reversed_ in addresses]
    assert first == again == anew
    bases = [f"{gateway.url}/dicom-web", f"{gateway.url}/v/one/dicom-web", f"{gateway.url}/v/2/dicom-web"]
    for content, base in zip(first, bases, strict=True):
        for row in json.loads(content):
            assert row["00081190"]["Value"][0].startswith(f"{base}/studies/{U}/")
            assert row["7FE00010"]["BulkDataURI"].startswith(f"{base}/studies/{U}/")


def _metadata(gateway: Running, path: str, cookies: dict[str, str]) -> bytes:
    headers = {} if cookies else {"Authorization": "Bearer one-study"}
    answer = httpx.get(f"{gateway.url}{path}", headers=headers, cookies=cookies, trust_env=False)
    return answer.raise_for_status().content


def test_the_metadata_of_a_study_is_prepared_when_it_is_complete(gateway: Running) -> None:
    cache, over = gateway.gateway.flights.cache, threading.Event()
    with gateway.store.read() as connection:
        (done,), (open_,) = studies.with_uid(connection, U), studies.with_uid(connection, V)
    gateway.store.transact(lambda connection: studies.put(connection, done, digest="d", complete=True))
    arguments = (gateway.store, gateway.archive, cache, over)
    thread = threading.Thread(target=preparing.run, args=arguments)
    thread.start()
    try:
        versions = [series.version for series in Holdings(gateway.archive).read(done).series.values()]
        wait_until(lambda: all(_is_prepared(cache, version) for version in versions), "the metadata")
    finally:
        over.set()
        thread.join()
    unfinished = Holdings(gateway.archive).read(open_).series.values()
    assert not any(_is_prepared(cache, series.version) for series in unfinished)


# --- slow clients ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("changing")
def test_clients_that_do_not_read_keep_nobody_from_the_archive(gateway: Running, client: httpx.Client) -> None:
    dataset = image(mrn="A", study=U, series=f"{U}.1", instance=f"{U}.1.9")
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 1024, 1024, 6
    dataset.PixelData = bytes(range(256)) * (1024 * 1024 * 2 * 6 // 256)
    content = part10(dataset)
    gateway.archive.store(content)
    path, host = f"{SERIES}/instances/{U}.1.9", gateway.url.removeprefix("http://").split(":")
    idle = [_asked(host[0], int(host[1]), path) for _ in range(10)]
    try:
        for one in idle:
            assert one.recv(12) == b"HTTP/1.1 200"
        with client.stream("GET", path, headers=WHOLE, timeout=20) as answer:
            assert len(answer.read()) > len(content)
        # And whoever goes on after a while gets the rest.
        received = b""
        while content[-1000:] not in received:
            received = received[-2000:] + idle[0].recv(1 << 20)
    finally:
        for one in idle:
            one.close()


@pytest.mark.usefixtures("changing")
def test_readers_who_stop_between_two_objects_keep_no_connection(gateway: Running, client: httpx.Client) -> None:
    for number in (7, 8, 9):
        dataset = image(mrn="A", study=U, series=f"{U}.1", instance=f"{U}.1.{number}")
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 1024, 1024, 2
        dataset.PixelData = bytes(1024 * 1024 * 2 * 2)
        gateway.archive.store(part10(dataset))
    host, port = gateway.url.removeprefix("http://").split(":")
    with ExitStack() as idle:
        for _ in range(8):
            reader = idle.enter_context(_asked(host, int(port), SERIES))
            assert reader.recv(12) == b"HTTP/1.1 200"
        with client.stream("GET", SERIES, headers=WHOLE, timeout=20) as answer:
            assert len(answer.read()) > 12 << 20


@pytest.mark.usefixtures("changing")
def test_a_client_that_takes_nothing_for_too_long_is_cut_off(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "WRITE_SECONDS", 0.5)
    dataset = image(mrn="A", study=U, series=f"{U}.1", instance=f"{U}.1.9")
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 1024, 1024, 10
    dataset.PixelData = bytes(1024 * 1024 * 2 * 10)
    gateway.archive.store(part10(dataset))
    host, port = gateway.url.removeprefix("http://").split(":")
    idle = _asked(host, int(port), f"{SERIES}/instances/{U}.1.9")
    try:
        assert idle.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: not gateway.gateway.crowd._under, "the answer to end")
        received = sum(len(chunk) for chunk in iter(lambda: idle.recv(1 << 20), b""))
        assert received < len(dataset.PixelData)
    finally:
        idle.close()


def _asked(host: str, port: int, path: str) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    made.settimeout(20)
    made.connect((host, port))
    lines = (f"GET {path} HTTP/1.1", f"Host: {host}", f"Accept: {WHOLE['Accept']}", "Authorization: Bearer one-study")
    made.sendall("\r\n".join((*lines, "", "")).encode())
    return made


def test_without_a_cache_everything_is_served_as_well(
    overwriting: Overwriting, gateway: Running, tmp_path: Path
) -> None:
    with gateway.store.read() as connection:
        (held,) = studies.with_uid(connection, U)
    with serving(overwriting.archive, tmp_path) as made:
        made.gateway.flights.cache.limit = 0
        made.store.transact(lambda connection: studies.put(connection, held, digest="d"))
        with made.client() as client:
            for _ in range(2):
                assert f"{U}.1.1".encode() in client.get(frame(1), headers=FRAMES).content
                assert len(client.get(f"{SERIES}/metadata").json()) == 2
    assert not (tmp_path / "cache").exists()


def test_a_grant_that_asks_for_too_much_at_once_is_told_to_wait(gateway: Running, client: httpx.Client) -> None:
    with ExitStack() as under_way:
        for _ in range(AT_ONCE):
            under_way.enter_context(gateway.gateway.crowd.passed("g"))
        refused = client.get(frame(1), headers=FRAMES)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert [record.outcome for record in gateway.records] == ["failed"]
    assert client.get(frame(1), headers=FRAMES).status_code == 200
