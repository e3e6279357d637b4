"""Everything but FHIR, served by FastAPI: logins, launches, the viewer, DICOMweb. Loaded when it is first asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.types import Receive, Scope, Send

from app.dicom import stow
from app.dicom.cache import Cache
from app.dicom.gateway import Gateway, Parts, Service
from app.dicom.multipart import Limits
from app.dicom.stow import Rules
from app.errors import BadRequest
from app.fhir import catalogue
from app.main import cors, demo_ehr, http, launches
from app.main.house import House
from app.settings import Settings
from app.smart import server as smart
from app.store import sync
from app.viewer import launch as viewer_launch
from app.viewer import routes as viewer
from app.viewer import sessions
from app.workflow import choosing

IS_DICOMWEB = re.compile(r"(?:/v/(?P<session>[^/]+))?/dicom-web(?:/|$)")


@dataclass(frozen=True, slots=True)
class Place:
    """How the log names an address."""

    path: str


OPEN, IN_SESSION = Place("/dicom-web/{rest:path}"), Place("/v/{session}/dicom-web/{rest:path}")


def build(house: House) -> FastAPI:
    """The framework's application; whoever ends it closes `state.gateway`."""
    app = FastAPI(title="Isocenter", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.house, app.state.gateway = house, _gateway(house)
    app.state.is_dicomweb = IS_DICOMWEB.match
    app.state.dicomweb = cors.Registered(http.RequestId(DicomWeb(app.state.gateway, house)), house.store)
    _mount(app, house)
    http.install(app)
    app.add_exception_handler(RequestValidationError, _misunderstood)
    return app


async def _misunderstood(request: Request, _error: Exception) -> Response:
    return await http.translate(request, BadRequest("The request cannot be understood."))


def _mount(app: FastAPI, house: House) -> None:
    """Every part at its address."""
    store, settings = house.store, house.settings
    by_token = house.by_token()
    people = smart.PatientReader(choosing.patient_label, choosing.label_of, choosing.RECORDS)
    app.include_router(smart.routes(store=store, settings=settings, audit=house.audit, patients=people), prefix="/auth")
    app.include_router(smart.discovery(settings))
    app.include_router(launches.routes(store, settings, by_token, house.audit))
    exchange = viewer_launch.own_server(settings)
    soon = app.state.gateway.prepare
    app.include_router(viewer.routes(store=store, settings=settings, http=exchange, audit=house.audit, entered=soon))
    if settings.demo:
        demo_ehr.mount(app, store, settings)


def _rules(settings: Settings) -> Rules:
    size = settings.store_mb << 20
    limits = Limits(body=size, part=size, parts=stow.LIMITS.parts)
    return Rules(limits, classes=stow.accepted_classes(settings.store_sop_classes), folder=settings.data_dir / "spool")


def _gateway(house: House) -> Gateway:
    store, settings = house.store, house.settings

    def stored(orthanc_id: str) -> None:
        store.transact(lambda connection: sync.mark(connection, [orthanc_id], "stored through the gateway"))

    password = settings.orthanc_password.get_secret_value()
    return Gateway(
        Parts(
            store,
            settings.orthanc_root,
            settings.orthanc_username,
            password,
            house.audit,
            stored,
            catalogue.of(house.site.worklist),
            rules=_rules(settings),
            cache=Cache(settings.web_cache, settings.cache_mb << 20),
            at_once=settings.requests_per_grant,
            accel=settings.accel_redirect,
        )
    )


class DicomWeb:
    """Leads straight to the gateway: the framework's own routing costs as much as sending a small frame."""

    def __init__(self, desk: Gateway, house: House) -> None:
        """With the bearer token at one address, and in a viewer session by its cookie."""
        settings = house.settings
        origin = settings.viewer_url or settings.public_url
        by_cookie = sessions.authenticate(house.store, settings)

        def in_session(request: Request) -> str:
            return f"{origin}/v/{request.path_params['session']}/dicom-web"

        # A bearer token is found in memory on SQLite; a session's cookie may have its last use written.
        in_loop = house.store.sqlite
        self._open = Service(desk, house.by_token(), lambda _: settings.dicomweb_base, in_loop=in_loop)
        self._in_session = Service(desk, by_cookie, in_session)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI, for an address that IS_DICOMWEB matches."""
        found = IS_DICOMWEB.match(scope["path"])
        session = found["session"] if found else None
        scope["path_params"] = {"session": session} if session else {}
        scope["route"] = IN_SESSION if session else OPEN
        await (self._in_session if session else self._open)(scope, receive, send)
