"""One real Orthanc for the session, on free loopback ports and in a throw-away folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.processes import answers, free_port, program, running

PLUGINS = Path("/usr/share/orthanc/plugins")


@dataclass(frozen=True, slots=True)
class Orthanc:
    """Where the archive of this test run listens, and how to log in."""

    url: str
    dicom_host: str
    dicom_port: int
    aet: str
    username: str
    password: str

    def client(self) -> httpx.Client:
        """An HTTP client that is logged in; close it after use."""
        return httpx.Client(
            base_url=self.url,
            auth=(self.username, self.password),
            headers={"Accept-Encoding": "identity"},
            timeout=30,
            trust_env=False,
        )


def configuration(archive: Orthanc, folder: Path) -> dict[str, object]:
    """Orthanc's settings: loopback only, stable after a second, DICOMweb on, no other plugin."""
    return {
        "Name": "isocenter-test",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": int(archive.url.rsplit(":", 1)[1]),
        "DicomPort": archive.dicom_port,
        "DicomAet": archive.aet,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {archive.username: archive.password},
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomCheckModalityHost": False,
        "StableAge": 1,
        "SynchronousCMove": True,
        "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True},
    }


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    binary = program("/usr/sbin/Orthanc")
    folder = tmp_path_factory.mktemp("orthanc")
    archive = Orthanc(
        f"http://127.0.0.1:{free_port()}", "127.0.0.1", free_port(), "ORTHANC", "isocenter", "test-secret"
    )
    settings, log = folder / "orthanc.json", folder / "orthanc.log"
    settings.write_text(json.dumps(configuration(archive, folder)))
    with running([binary, str(settings)], log) as process, archive.client() as client:

        def up() -> bool:
            try:
                return client.get("/system").status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

        answers(process, log, up, "Orthanc")
        yield archive


@pytest.fixture
def clean_orthanc(orthanc: Orthanc) -> Iterator[Orthanc]:
    """The session's Orthanc, emptied after the test."""
    yield orthanc
    with orthanc.client() as client:
        for patient in client.get("/patients").raise_for_status().json():
            client.delete(f"/patients/{patient}").raise_for_status()
        client.delete("/changes").raise_for_status()
