"""The viewer's door on a free port: authorization server, gateway and viewer as the server joins them."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from app.audit import Record
from app.dicom.gateway import Gateway, Parts, Service
from app.errors import IsocenterError
from app.fhir import catalogue
from app.settings import Settings
from app.smart import clients, launches, users
from app.smart import server as smart
from app.smart.clients import Client
from app.smart.launches import LaunchContext
from app.smart.users import User
from app.store.database import Store
from app.viewer import launch, registration, sessions
from app.viewer.routes import routes
from app.workflow import choosing, site
from tests.processes import wait_until

STUDY = "1.2.840.10008.99.1"
PASSWORD = "correct horse battery"
NOWHERE = ("http://127.0.0.1:1", "", "")
"""An archive that these tests never ask."""


@dataclass
class Site:
    """One running server; its name is localhost, so that 127.0.0.1 is another site."""

    url: str
    store: Store
    settings: Settings
    records: list[Record] = field(default_factory=list)

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def open(self, kind: Any = "launch", **about: Any) -> str:
        """The address a launch is opened at, made as a trusted EHR makes it."""
        context = LaunchContext(
            **{
                "client_id": registration.CLIENT_ID,
                "user_id": "ehr:7",
                "fhir_user": "Practitioner/7",
                "user_name": "Rita Radiologist",
                "patient_id": "p1",
                "imaging_study_id": "i1",
                "study_uid": STUDY,
                "order_id": "o1",
                "made_by": "ehr",
                **about,
            }
        )
        value = self.store.transact(lambda connection: launches.open_launch(connection, context, kind=kind))
        if kind == "viewer":
            return f"{self.url}/v/l/{value}"
        return f"{self.url}/launch?{urlencode({'iss': self.settings.fhir_base, 'launch': value})}"


def application(settings: Settings, store: Store, records: list[Record], gateway: Gateway) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.close()

    app = FastAPI(lifespan=lifespan)

    def told(_request: Request, error: IsocenterError) -> JSONResponse:
        return JSONResponse({"title": str(error)}, error.status, media_type="application/problem+json")

    app.exception_handler(IsocenterError)(told)
    readers = smart.PatientReader(lambda _c, _i: "", lambda _c, _i: "", choosing.RECORDS)
    authorization = smart.routes(store=store, settings=settings, audit=records.append, patients=readers)
    app.include_router(authorization, prefix="/auth")
    by_cookie = sessions.authenticate(store, settings)

    def base(request: Request) -> str:
        return f"{settings.public_url}/v/{request.path_params['session']}/dicom-web"

    app.mount("/v/{session}/dicom-web", Service(gateway, by_cookie, base))
    http = launch.own_server(settings)
    app.include_router(routes(store=store, settings=settings, http=http, audit=records.append))
    return app


@contextmanager
def serving(store: Store, folder: Path, viewer: Path, archive: tuple[str, str, str] = NOWHERE) -> Iterator[Site]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = Settings(
        port=port,
        public_url=f"http://localhost:{port}",
        data_dir=folder,
        ohif_dir=viewer,
        secret_key="a secret of the tests that is long enough",  # type: ignore[arg-type]
    )
    records: list[Record] = []
    store.transact(lambda connection: clients.ensure_client(connection, registration.viewer_client(settings)))
    ehr = Client("ehr", "EHR", "symmetric", scope="isocenter/launch user/ImagingStudy.u")
    store.transact(lambda connection: clients.ensure_client(connection, ehr))
    reader = User("rita", "Rita Local", "radiologist", "Practitioner/rita")
    store.transact(lambda connection: users.add(connection, reader, PASSWORD))
    known = catalogue.of(site.of(settings).worklist)
    gateway = Gateway(Parts(store, *archive, records.append, lambda _study: None, known))
    config = uvicorn.Config(application(settings, store, records, gateway), log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "the server to listen")
    yield Site(settings.public_url, store, settings, records)
    server.should_exit = True
    thread.join(10)
    listener.close()
