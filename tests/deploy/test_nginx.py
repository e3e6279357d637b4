"""The gateway behind the shipped nginx configuration: what was green stays green, and nothing leaks by it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy import nginx
from tests.deploy.nginx import Front
from tests.orthanc import gateway, test_gateway
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.conftest import orthanc
from tests.orthanc.gateway import Running, U, Z
from tests.orthanc.test_gateway import client

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
        with nginx.serving(front, behind.address.removeprefix("http://"), folder / "cache" / "dicomweb"):
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
        f"/dicom-web/../_cache/{U}": 404,
        "/_cache/../_cache/x": 404,
        "/_cache/x": 404,
    }
    found = {path: running.raw(path)[0] for path in crooked}
    assert found == crooked


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
    with nginx.serving(lost, "127.0.0.1:1", tmp_path / "none"):
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
