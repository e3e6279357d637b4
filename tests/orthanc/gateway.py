"""A gateway on a free port in front of the session's Orthanc, with two patients and a twin Study UID."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI, Request

from app.access import Access, parse_scopes
from app.audit import Record
from app.dicom.cache import Cache
from app.dicom.gateway import Gateway, Parts, Service
from app.dicom.orthanc import Orthanc
from app.errors import IsocenterError, Unauthenticated
from app.fhir import catalogue, resources
from app.main.http import translate
from app.settings import Settings
from app.store import schema, sync
from app.store.database import Store
from app.workflow import arrivals, site
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.phantoms import image, part10
from tests.processes import wait_until

# Granted, another of the same patient (whose UID begins alike), another patient's, and one UID of two patients.
U, V, Z, TWIN = "1.2.3", "1.2.34", "1.2.5", "1.2.7"
SITE = site.of(Settings())
STUDIES = ((U, "A", "p1"), (V, "A", "p1"), (Z, "B", "p2"), (TWIN, "A", "p1"), (TWIN, "B", "p2"))


def scoped(scope: str, **bounds: object) -> Access:
    scopes, rights = parse_scopes(scope)
    return Access("app", grant_id="g", scopes=scopes, rights=rights, **bounds)  # type: ignore[arg-type]


GRANTS = {
    "one-study": scoped("patient/ImagingStudy.rs", patient_id="p1", studies=frozenset({U})),
    "identifier": scoped(f"patient/ImagingStudy.rs?identifier=urn:dicom:uid|urn:oid:{U}", patient_id="p1"),
    "writer": scoped("patient/ImagingStudy.rus", patient_id="p1", studies=frozenset({U})),
    "patient": scoped("patient/ImagingStudy.rs", patient_id="p1"),
    "patient-writer": scoped("patient/ImagingStudy.rus", patient_id="p1"),
    "twin": scoped("patient/ImagingStudy.rs", patient_id="p1", studies=frozenset({TWIN})),
    "system": scoped("system/ImagingStudy.rs"),
    "observations": scoped("patient/Observation.rs", patient_id="p1"),
    "later": scoped("patient/ImagingStudy.rs", patient_id="p1", studies=frozenset({"1.2.99"})),
}


@dataclass(slots=True)
class Running:
    """The gateway under test, and what it told."""

    url: str
    store: Store
    archive: Orthanc
    gateway: Gateway
    records: list[Record] = field(default_factory=list)
    dirty: list[str] = field(default_factory=list)
    address: str = ""
    """Where the server itself listens: `url` may be a proxy's before it."""

    def client(self, grant: str = "one-study") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {grant}"}, trust_env=False)

    def raw(self, path: str, grant: str = "one-study", method: str = "GET", accept: str = "*/*") -> tuple[int, bytes]:
        """A request whose path no client library has tidied."""
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            lines = (f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", f"Accept: {accept}")
            head = "\r\n".join((*lines, f"Authorization: Bearer {grant}", "", ""))
            connection.sendall(head.encode())
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        head_bytes, _, body = answer.partition(b"\r\n\r\n")
        return int(head_bytes.split()[1]), body


@contextmanager
def filled(archive: Archive, folder: Path) -> Iterator[Running]:
    """A gateway before nothing but these studies, which go with it."""
    with serving(archive, folder) as running:
        empty(running.archive)
        fill(running.archive, running.store)
        yield running
        empty(running.archive)


def empty(archive: Orthanc) -> None:
    for study in list(archive.study_ids()):
        archive.delete_study(study)


def fill(archive: Orthanc, store: Store) -> None:
    for study_uid, mrn, patient_id in STUDIES:
        for series in (1, 2):
            for number in (1, 2):
                uid = f"{study_uid}.{series}"
                dataset = image(mrn=mrn, study=study_uid, series=uid, instance=f"{uid}.{number}", frames=3)
                dataset.SeriesNumber = series
                archive.store(part10(dataset))
        identifier = {"system": "urn:isocenter:mrn", "value": mrn}
        name = {"family": "Patient", "given": [mrn]}
        register(store, patient_id, identifier=[identifier], name=[name], birthDate="1970-01-01", gender="other")
    publish(archive, store)


def register(store: Store, patient_id: str, **elements: object) -> None:
    """A Patient as a client registers one."""
    patient = {"resourceType": "Patient", "id": patient_id, **elements}
    store.transact(lambda connection: resources.put(connection, patient, cause="test"))


def publish(archive: Orthanc, store: Store) -> None:
    """Tell of every study that the archive holds, as the worker does."""
    at = site.Archive(store, archive, SITE)
    store.transact(lambda connection: sync.mark(connection, list(archive.study_ids()), "test"))
    while arrivals.rebuild_one(at):
        pass


def by_bearer(request: Request) -> Access:
    header = request.headers.get("authorization", "")
    access = GRANTS.get(header.removeprefix("Bearer "))
    if access is None:
        raise Unauthenticated
    return access


def by_cookie(request: Request) -> Access:
    cookie = SimpleCookie(request.headers.get("cookie", "")).get("viewer")
    access = GRANTS.get(cookie.value) if cookie else None
    if access is None:
        raise Unauthenticated
    return access


def application(gateway: Gateway, url: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.close()

    app = FastAPI(lifespan=lifespan)

    app.exception_handler(IsocenterError)(translate)
    app.mount("/dicom-web", Service(gateway, by_bearer, lambda _: f"{url}/dicom-web"))
    in_session = Service(gateway, by_cookie, lambda request: f"{url}/v/{request.path_params['session']}/dicom-web")
    app.mount("/v/{session}/dicom-web", in_session)
    return app


@contextmanager
def serving(archive: Archive, folder: Path, public: str = "") -> Iterator[Running]:
    """`public` is the address that clients use, when it is that of a proxy which may keep images."""
    database = f"sqlite:///{folder / 'store.sqlite'}"
    store = Store(database)
    schema.migrate(store)
    records: list[Record] = []
    dirty: list[str] = []
    known = catalogue.of(SITE.worklist)
    parts = Parts(store, archive.url, archive.username, archive.password, records.append, dirty.append, known)
    gateway = Gateway(replace(parts, cache=Cache(folder / "cache", 64 << 20), accel="/_kept" if public else ""))
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    url = public or address
    config = uvicorn.Config(application(gateway, url), log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "the gateway to listen")
    with Orthanc(archive.url, archive.username, archive.password) as orthanc:
        yield Running(url, store, orthanc, gateway, records, dirty, address)
    server.should_exit = True
    thread.join(10)
    listener.close()
    store.close()
