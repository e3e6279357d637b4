"""Chromium without a graphics card, and the whole HTTP server with a real archive of two phantom studies."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn
from pydicom.dataset import Dataset

from app.dicom import phantom
from app.dicom.orthanc import Orthanc
from app.fhir import rebuild
from app.main.prepare import prepare
from app.main.server import create_app
from app.settings import Settings
from app.smart import clients, launches
from app.smart.clients import Client
from app.smart.launches import LaunchContext
from app.store import studies
from app.store.database import Store
from app.store.studies import HeldStudy
from app.viewer.registration import CLIENT_ID
from tests.orthanc import gateway
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.conftest import orthanc
from tests.processes import wait_until

__all__ = ["orthanc"]

VIEWER = Path(os.environ.get("ISOCENTER_OHIF_DIR", Path(__file__).parents[2] / "var" / "ohif"))
ADAM, BERTA = "2.25.4711", "2.25.4712"
PATIENTS = {ADAM: "Phantom^Adam", BERTA: "Phantom^Berta"}


@dataclass(frozen=True, slots=True)
class House:
    """The server under its name localhost; 127.0.0.1 is another site."""

    url: str
    store: Store
    settings: Settings

    def held(self, study_uid: str) -> HeldStudy:
        """The study as it is published."""
        with self.store.read() as connection:
            (found,) = studies.with_uid(connection, study_uid)
        return found

    def open(self, study_uid: str = ADAM, *, kind: Any = "launch", user_name: str = "Rita Radiologist") -> str:
        """The address of a launch, made as a trusted EHR makes it."""
        held = self.held(study_uid)
        context = LaunchContext(
            client_id=CLIENT_ID,
            user_id="ehr:7",
            fhir_user="Practitioner/7",
            user_name=user_name,
            patient_id=held.patient_id,
            imaging_study_id=held.imaging_study_id,
            study_uid=study_uid,
            order_id=f"o{study_uid[-1]}",
            made_by="ehr",
        )
        value = self.store.transact(lambda connection: launches.open_launch(connection, context, kind=kind))
        if kind == "viewer":
            return f"{self.url}/v/l/{value}"
        return f"{self.url}/launch?{urlencode({'iss': self.settings.fhir_base, 'launch': value})}"


@pytest.fixture(scope="session")
def house(orthanc: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    if not (VIEWER / "manifest.json").is_file():
        pytest.fail(f"OHIF is not in {VIEWER}: run `make setup`")
    listener = socket.create_server(("127.0.0.1", 0))
    settings = _settings(orthanc, listener.getsockname()[1], tmp_path_factory.mktemp("house"))
    rebuild.upgrade(settings)
    store = Store(settings.database)
    prepare(settings)
    ehr = Client("ehr", "EHR", "symmetric", scope="isocenter/launch user/ImagingStudy.u")
    store.transact(lambda connection: clients.ensure_client(connection, ehr))
    with Orthanc(orthanc.url, orthanc.username, orthanc.password) as archive:
        for study_uid in PATIENTS:
            _acquire(archive, store, study_uid)
        gateway.publish(archive, store)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "the server to listen")
    yield House(settings.public_url, store, settings)
    server.should_exit = True
    thread.join(10)
    listener.close()
    store.close()


def _settings(orthanc: Archive, port: int, folder: Path) -> Settings:
    return Settings(
        port=port,
        public_url=f"http://localhost:{port}",
        data_dir=folder,
        ohif_dir=VIEWER,
        orthanc_url=orthanc.url,
        orthanc_username=orthanc.username,
        orthanc_password=orthanc.password,  # type: ignore[arg-type]
    )


def _acquire(archive: Orthanc, store: Store, study_uid: str) -> None:
    """A small CT of the phantom in the archive, and its patient in the store."""
    common = Dataset()
    common.SpecificCharacterSet = "ISO_IR 192"
    common.StudyInstanceUID, common.StudyID, common.AccessionNumber = study_uid, "1", f"A{study_uid[-1]}"
    common.PatientID, common.PatientName = f"MRN{study_uid[-1]}", PATIENTS[study_uid]
    common.PatientBirthDate, common.PatientSex, common.ReferringPhysicianName = "19700101", "O", ""
    common.StudyDate, common.StudyTime, common.Modality = "20260301", "101500", "CT"
    common.StudyDescription, common.SeriesDescription, common.SeriesNumber = "CT of a phantom", "axial", 1
    series = phantom.Series(common, f"{study_uid}.1", datetime(2026, 3, 1, 10, 15), seed=study_uid)  # type: ignore[arg-type] # noqa: DTZ001
    for image in phantom.images("CT", phantom.Phantom(slices=6), series):
        content = BytesIO()
        image.save_as(content, enforce_file_format=True)
        archive.store(content.getvalue())
    family, _, given = PATIENTS[study_uid].partition("^")
    identifier = {"system": "urn:isocenter:mrn", "value": f"MRN{study_uid[-1]}"}
    name = {"family": family, "given": [given]}
    gateway.register(store, f"p{study_uid[-1]}", identifier=[identifier], name=[name])


@dataclass(slots=True)
class Ehr:
    """A page with one link, reachable by two names: another port is the same site, another host is not."""

    port: int
    link: str = ""

    def address(self, host: str) -> str:
        return f"http://{host}:{self.port}/"


class _EhrPage(BaseHTTPRequestHandler):
    def __init__(self, ehr: Ehr, *args: Any) -> None:
        self.ehr = ehr
        super().__init__(*args)

    def do_GET(self) -> None:
        body = f'<!doctype html><a id="open" href="{self.ehr.link.replace("&", "&amp;")}">Open</a>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def ehr() -> Iterator[Ehr]:
    """An EHR's page in the browser, which opens launches by an ordinary link."""
    shown = Ehr(0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_EhrPage, shown))
    shown.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield shown
    server.shutdown()
    server.server_close()
    thread.join(5)
