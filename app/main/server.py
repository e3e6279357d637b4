"""The HTTP server: every part mounted at its address, one error translation, one request id."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access import Access
from app.fhir import rest
from app.fhir import site as here
from app.fhir.calls import Door, Hook
from app.fhir.validation import Json
from app.main import http, probes, watch
from app.main.auditing import Auditor
from app.main.house import House
from app.settings import Settings
from app.smart import tokens
from app.store import audit_log, keys
from app.store.database import Store
from app.viewer import sessions
from app.workflow import guards, orders, reports, site, steps

if TYPE_CHECKING:
    from fastapi import FastAPI

DISCOVERY = "/fhir/.well-known/"
IN_SESSION = re.compile(r"/v/(?P<session>[^/]+)/fhir(?:/|$)")


def create_app(settings: Settings) -> ASGIApp:
    """The whole HTTP interface; the database must be at head and is closed with the app.

    FHIR comes before the framework, whose own middleware costs as much as reading a resource.
    """
    here.settle(settings.fhir_base, settings.zone)
    store = Store(settings.database)
    house = House(store, settings, site.of(settings), Auditor(store))
    fhir, in_session = _fhir(house, house.by_token(), read_only=False), _session_fhir(house)

    def close() -> None:
        fhir.close()
        in_session.close()
        house.auditor.close()
        store.close()

    return Front(Others(house, close), http.RequestId(fhir), http.RequestId(in_session))


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


class Others:
    """Everything but FHIR: the probes, the process's own life, and the framework with what it serves."""

    def __init__(self, house: House, close: Callable[[], None]) -> None:
        """`close` ends what the other parts have open."""
        self.house, self._close = house, close
        self._probes = {route.path: route for route in probes.routes(house.store, house.settings)}
        self._framework: FastAPI | None = None
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif probe := self._probes.get(scope["path"]):
            # With an application named, a route raises what it refuses; and the log shows the route.
            scope["app"], scope["route"] = self, probe
            await http.RequestId(probe.handle)(scope, receive, send)
        else:
            app = self._framework or await self._loaded()
            is_dicomweb = app.state.is_dicomweb(scope["path"])
            await (app.state.dicomweb if is_dicomweb else app)(scope, receive, send)

    async def _loaded(self) -> FastAPI:
        """In a thread, so that FHIR is served meanwhile."""
        async with self._loading:
            if self._framework is None:
                self._framework = await run_in_threadpool(_framework, self.house)
            return self._framework

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._framework is not None:
            await self._framework.state.gateway.close()
        self._close()
        await send({"type": "lifespan.shutdown.complete"})


def _framework(house: House) -> FastAPI:
    # Loaded late: an api process that only serves FHIR never needs it (docs/decisions/0078).
    from app.main import framework

    return framework.build(house)


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
        operations={"sync-status": lambda connection: watch.told(connection, house.settings)},
        read_only=read_only,
    )
    return rest.Interface(door)


def _hooks(where: site.Site) -> dict[str, Hook]:
    def ordered(connection: Connection, caller: Access, order: Json, before: Json | None) -> None:
        orders.received(where, connection, caller, order, before)

    return {"ServiceRequest": ordered, "DiagnosticReport": reports.received, "Task": steps.received}


def _bearer(connection: Connection, request: Request) -> Access:
    return tokens.find(connection, tokens.bearer(request))
