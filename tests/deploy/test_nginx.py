"""The gateway behind the shipped nginx configuration: what was green stays green, and nothing leaks by it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy import nginx
from tests.deploy.nginx import Front
from tests.orthanc import gateway, phantoms, test_gateway
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.conftest import orthanc
from tests.orthanc.gateway import Running, U, Z
from tests.orthanc.test_gateway import client
from tests.processes import wait_until

__all__ = ["client", "orthanc"]

pytestmark = pytest.mark.orthanc

FRAME = f"/dicom-web/studies/{U}/series/{U}.1/instances/{U}.1.1/frames/1"

# Every test of the gateway itself, once more with nginx between: `running` below is the one they get.
globals().update({name: getattr(test_gateway, name) for name in dir(test_gateway) if name.startswith("test_")})


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    return nginx.prepared(tmp_path_factory.mktemp("nginx"))


@pytest.fixture(scope="module")
def running(orthanc: Archive, front: Front, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("behind")
    with gateway.serving(orthanc, folder, front.url) as behind:
        for study in list(behind.archive.study_ids()):
            behind.archive.delete_study(study)
        gateway.fill(behind.archive, behind.store)
        with nginx.serving(front, behind.address.removeprefix("http://")):
            yield behind
        for study in list(behind.archive.study_ids()):
            behind.archive.delete_study(study)


def curl(front: Front, path: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = ["curl", "-sS", "--noproxy", "*", "--cacert", str(front.certificate), *options, f"{front.tls}{path}"]
    return subprocess.run(command, capture_output=True, check=False, timeout=30)


@pytest.mark.parametrize(
    ("versions", "http"),
    [(("--tlsv1.0", "--tls-max", "1.1", "--ciphers", "ALL:@SECLEVEL=0"), ""), (("--tlsv1.2", "--tls-max", "1.2"), "2"),
     (("--tlsv1.3",), "2"), (("--tlsv1.3", "--http1.1"), "1.1")],
)  # fmt: skip
def test_tls_begins_at_1_2_and_carries_http_2(
    running: Running, front: Front, versions: tuple[str, ...], http: str
) -> None:
    told = ("-o", "/dev/null", "-w", "%{http_version} %{http_code}")
    done = curl(front, FRAME, *versions, "-H", "Authorization: Bearer one-study", *told)
    if http:
        assert done.stdout.decode() == f"{http} 200", done.stderr
    else:
        assert b"alert protocol version" in done.stderr


def test_plain_http_only_leads_to_https(running: Running, front: Front) -> None:
    answer = httpx.get(f"http://127.0.0.1:{front.redirect_port}/dicom-web/studies?PatientID=A", trust_env=False)
    assert answer.status_code == 308
    assert answer.headers["location"] == "https://localhost/dicom-web/studies?PatientID=A"
    assert curl(front, "/nothing", "-I").stdout.lower().count(b"strict-transport-security") == 1


def test_the_request_line_arrives_as_it_was_written(running: Running) -> None:
    """nginx would tidy it up: then another address would be decided than the one that was asked."""
    crooked = {
        f"/dicom-web/studies/{U}/../{Z}/metadata": 400,
        f"/dicom-web/studies/{U}//series": 400,
        f"/dicom-web/./studies/{U}/metadata": 400,
        f"/dicom-web/studies/{U}/%2e%2e/{Z}/metadata": 400,
        f"/dicom-web/studies%2F{U}/metadata": 400,
        f"/ohif/../dicom-web/studies/{U}/metadata": 404,
        f"/dicom-web/../_kept/{'a' * 32}": 404,
        f"/_kept/../_kept/{'a' * 32}": 404,
        f"/_kept/{'a' * 32}": 404,
        "/_kept/": 404,
    }
    found = {path: running.raw(path)[0] for path in crooked}
    assert found == crooked


def test_a_frame_is_kept_for_all_and_shown_to_those_who_may(running: Running, front: Front) -> None:
    path = FRAME.replace("frames/1", "frames/2")
    with running.client() as client, running.client("system") as other:
        first, second, third = client.get(path), client.get(path), other.get(path)
    assert front.kept[-3:] == ["MISS", "HIT", "HIT"]
    direct = httpx.get(running.address + path, headers={"Authorization": "Bearer one-study"}, trust_env=False)
    for answer in (first, second, third):
        assert answer.content == direct.content
        for name in ("content-type", "etag", "cache-control", "vary", "x-content-type-options"):
            assert answer.headers[name] == direct.headers[name], name
    before = len(front.kept)
    denied = {"later": 403, "observations": 403, "made-up": 401}
    for grant, status in denied.items():
        with running.client(grant) as client:
            refused = client.get(path)
        assert (refused.status_code, U in refused.text) == (status, False)
    with running.client() as client:
        assert client.get(path, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert len(front.kept) == before


def test_pictures_are_kept_by_what_they_show(running: Running, front: Front) -> None:
    instance = FRAME.removesuffix("/frames/1")
    with running.client() as client:
        large, small, again = (
            client.get(f"{instance}/rendered?viewport={size}", headers={"Accept": "image/png"}) for size in
            ("8,8", "2,2", "8,8")
        )  # fmt: skip
    assert front.kept[-3:] == ["MISS", "MISS", "HIT"]
    assert again.content == large.content != small.content
    assert again.headers["content-type"] == "image/png"


def test_what_the_archive_no_longer_holds_is_not_sent(running: Running, front: Front) -> None:
    gone = f"{U}.2.9"
    image = phantoms.image(mrn="A", study=U, series=f"{U}.2", instance=gone)
    stored = running.archive.store(phantoms.part10(image))
    with running.client() as client:
        path = f"/dicom-web/studies/{U}/series/{U}.2/instances/{gone}/frames/1"
        wait_until(lambda: client.get(path).status_code == 200, "the new instance to be known")
        assert client.get(path).status_code == 200
        assert front.kept[-1] == "HIT"
        running.archive.delete_instance(stored.orthanc_id)
        wait_until(lambda: client.get(path).status_code == 404, "the instance to be gone")


def test_nothing_kept_is_sent_while_nobody_decides(running: Running, front: Front, tmp_path: Path) -> None:
    with running.client() as client:
        assert client.get(FRAME).status_code == 200
        name = client.get(FRAME).headers["etag"].strip('"')
    alone = nginx.prepared(tmp_path)
    shutil.copytree(front.folder / "kept", alone.folder / "kept", dirs_exist_ok=True)
    assert any(
        name in path.read_bytes().decode("latin-1") for path in (alone.folder / "kept").rglob("*") if path.is_file()
    )
    with nginx.serving(alone, "127.0.0.1:1"):
        headers = {"Authorization": "Bearer one-study"}
        assert httpx.get(alone.url + FRAME, headers=headers, trust_env=False).status_code == 502
        assert httpx.get(f"{alone.url}/_kept/{name}", headers=headers, trust_env=False).status_code == 404


def test_a_client_cannot_have_its_answer_sent_by_name(running: Running, front: Front) -> None:
    """Only nginx says that nginx stands there; and whoever reaches the server past it gets a name, not bytes."""
    with running.client() as client:
        for claimed in ("1", "/_kept", ""):
            answer = client.get(f"/dicom-web/studies/{U}/metadata", headers={"X-Isocenter-Accel": claimed})
            assert (answer.status_code, "x-accel-redirect" in answer.headers) == (200, False)
        past = httpx.get(running.address + FRAME, headers={**client.headers, "X-Isocenter-Accel": "1"}, trust_env=False)
    assert past.content == b""
    assert past.headers["x-accel-redirect"].startswith("/_kept/")


def test_an_upload_is_refused_before_it_is_sent(running: Running, front: Front) -> None:
    """Nothing of a body is kept on nginx's disk, and nobody without a grant gets to send one."""
    with socket.create_connection(("127.0.0.1", front.plain_port), timeout=20) as connection:
        head = "POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n"
        kind = 'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n\r\n--b\r\n'
        connection.sendall((head + kind).encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
    assert [path for name in ("body", "proxy") for path in (front.folder / name).rglob("*") if path.is_file()] == []


def test_no_log_holds_a_query_a_token_or_a_handle(running: Running, front: Front, tmp_path: Path) -> None:
    asked = ["/dicom-web/studies?PatientName=Secret*", "/v/l/Secret", "/launch?iss=a&launch=Secret", f"/Secret{FRAME}"]
    lost = nginx.prepared(tmp_path)
    with nginx.serving(lost, "127.0.0.1:1"):
        for base in (front.url, lost.url):
            answers = [
                httpx.get(base + path, headers={"Authorization": "Bearer Secret"}, trust_env=False) for path in asked
            ]
            assert {answer.status_code for answer in answers} == ({401, 404} if base == front.url else {502})
    for logs in (front.logs, lost.logs):
        assert '"part":"/dicom-web"' in logs
        assert "Secret" not in logs
        assert U not in logs
    assert "Secret" not in (tmp_path / "nginx.out").read_text()
