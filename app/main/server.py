"""The HTTP server: every part mounted at its address, one error translation, one request id."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from sqlalchemy.engine import Connection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access import Access
from app.audit import Record
from app.dicom import gateway
from app.dicom.gateway import Gateway, Parts
from app.fhir import resources, rest
from app.fhir import site as here
from app.fhir.calls import Door, Hook
from app.fhir.mapping import report, worklist
from app.fhir.validation import Json
from app.main import demo_ehr, http, launches, probes
from app.main.auditing import Auditor
from app.settings import Settings
from app.smart import server as smart
from app.smart import tokens
from app.store import audit_log, keys, sync
from app.store.database import Store
from app.viewer import launch as viewer_launch
from app.viewer import routes as viewer
from app.viewer import sessions
from app.workflow import guards, orders, reports, site, steps

DISCOVERY = "/fhir/.well-known/"
IN_SESSION = re.compile(r"/v/(?P<session>[^/]+)/fhir(?:/|$)")


@dataclass(frozen=True, slots=True)
class House:
    """What main hands to the parts."""

    store: Store
    settings: Settings
    site: site.Site
    gateway: Gateway
    auditor: Auditor

    def audit(self, record: Record) -> None:
        """Keep an audit record, soon."""
        self.auditor.note(record)


def create_app(settings: Settings) -> ASGIApp:
    """The whole HTTP interface; the database must be at head and is closed with the app.

    FHIR comes before the framework, whose own middleware costs as much as reading a resource.
    """
    here.settle(settings.fhir_base, settings.zone)
    store = Store(settings.database)
    auditor = Auditor(store)
    house = House(store, settings, site.of(settings), _gateway(store, settings, auditor), auditor)

    fhir, in_session = _fhir(house, _by_token(store), read_only=False), _session_fhir(house)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncGenerator[None]:
        yield
        await house.gateway.close()
        fhir.close()
        in_session.close()
        auditor.close()
        store.close()

    app = FastAPI(title="Isocenter", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.house = house
    _mount(app, house)
    http.install(app)
    return Front(app, http.RequestId(fhir), http.RequestId(in_session))


class Front:
    """Leads what is under a FHIR base straight to it: the framework's own routing costs more than most reads."""

    def __init__(self, app: ASGIApp, fhir: ASGIApp, in_session: ASGIApp) -> None:
        """`in_session` serves `/v/{session}/fhir`."""
        self.app, self.fhir, self.in_session = app, fhir, in_session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        path: str = scope.get("path", "")
        if scope["type"] != "http" or path.startswith(DISCOVERY):
            await self.app(scope, receive, send)
        elif path == "/fhir" or path.startswith("/fhir/"):
            scope["root_path"] = "/fhir"
            await self.fhir(scope, receive, send)
        elif found := IN_SESSION.match(path):
            scope["root_path"], scope["path_params"] = found[0].rstrip("/"), {"session": found["session"]}
            await self.in_session(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _mount(app: FastAPI, house: House) -> None:
    """Everything but FHIR."""
    store, settings = house.store, house.settings
    by_token = _by_token(store)
    by_cookie = sessions.authenticate(store, settings)
    people = smart.PatientReader(_patient_label, _study_label)
    app.include_router(probes.routes(store, settings))
    app.include_router(smart.routes(store=store, settings=settings, audit=house.audit, patients=people), prefix="/auth")
    app.include_router(smart.discovery(settings))
    app.include_router(launches.routes(store, settings, by_token, house.audit))
    app.include_router(gateway.routes(house.gateway, by_token, lambda _: settings.dicomweb_base), prefix="/dicom-web")
    app.include_router(gateway.routes(house.gateway, by_cookie, _session_base), prefix="/v/{session}/dicom-web")
    exchange = viewer_launch.own_server(settings)
    app.include_router(viewer.routes(store=store, settings=settings, http=exchange, audit=house.audit))
    if settings.demo:
        demo_ehr.mount(app, store, settings)


def _session_fhir(house: House) -> rest.Interface:
    return _fhir(house, sessions.authenticate(house.store, house.settings), read_only=True)


def _fhir(house: House, authenticate: Callable[[Request], Access], *, read_only: bool) -> rest.Interface:
    door = Door(
        store=house.store,
        settings=house.settings,
        authenticate=authenticate,
        hooks=_hooks(house.site),
        guards=guards.GUARDS,
        delete_guards=guards.DELETE_GUARDS,
        audit=house.audit,
        audit_in=audit_log.add,
        recognize=None if read_only else _bearer,
        settle_audit=house.auditor.flush,
        key=keys.wrapping_secret(house.settings),
        read_only=read_only,
    )
    return rest.Interface(door)


def _hooks(where: site.Site) -> dict[str, Hook]:
    def ordered(connection: Connection, caller: Access, order: Json, before: Json | None) -> None:
        orders.received(where, connection, caller, order, before)

    return {"ServiceRequest": ordered, "DiagnosticReport": reports.received, "Task": steps.received}


def _gateway(store: Store, settings: Settings, auditor: Auditor) -> Gateway:
    def stored(orthanc_id: str) -> None:
        store.transact(lambda connection: sync.mark(connection, [orthanc_id], "stored through the gateway"))

    password = settings.orthanc_password.get_secret_value()
    return Gateway(Parts(store, settings.orthanc_root, settings.orthanc_username, password, auditor.note, stored))


def _bearer(connection: Connection, request: Request) -> Access:
    return tokens.find(connection, tokens.bearer(request))


def _by_token(store: Store) -> Callable[[Request], Access]:
    known = tokens.authenticate(store)
    return lambda request: known(tokens.bearer(request))


def _session_base(request: Request) -> str:
    house: House = request.app.state.house
    origin = house.settings.viewer_url or house.settings.public_url
    return f"{origin}/v/{request.path_params['session']}/dicom-web"


def _patient_label(connection: Connection, patient_id: str) -> str:
    patient = resources.read(connection, "Patient", patient_id) or {}
    return report.shown_name(patient.get("name", [])) or "a patient"


def _study_label(connection: Connection, imaging_study_id: str) -> str:
    study = resources.read(connection, "ImagingStudy", imaging_study_id) or {}
    modalities = ", ".join(coding["code"] for coding in study.get("modality", []))
    described = study.get("description") or worklist.concept_text(next(iter(study.get("procedureCode", [])), None))
    parts = [modalities, described, (study.get("started") or "")[:10]]
    return " ".join(part for part in parts if part) or "one study"
