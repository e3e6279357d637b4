"""A real HTTP server around the FHIR interface, and golden files."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy.engine import Connection
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import ASGIApp

from app.access import Access, parse_scopes
from app.audit import Record
from app.errors import Unauthenticated
from app.fhir.calls import DeleteGuard, Door, Guard, Hook
from app.fhir.rest import Interface
from app.main.http import RequestId
from app.main.server import Front
from app.settings import Settings
from app.store.database import Store
from app.workflow import standing
from tests.processes import wait_until

PUBLISHED = Path(__file__).parents[2] / "capability" / "published"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite the published files instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Compare with a published file; `pytest tests/contract --golden` rewrites it for review in the diff."""

    def compare(name: str, value: Any) -> None:
        path, text = PUBLISHED / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        if request.config.getoption("--golden", default=False):
            path.write_text(text)
        assert path.read_text() == text, f"{name} has changed: review it and run pytest tests/contract --golden"

    return compare


def caller(scope: str, **about: Any) -> Access:
    """Someone whose token bears these scopes."""
    scopes, rights = parse_scopes(scope)
    return Access(client_id=about.pop("client_id", "app"), scopes=scopes, rights=rights, **about)


@dataclass(slots=True)
class Server:
    """The FHIR interface on a free port: `callers` are its bearer tokens, `records` its audit trail."""

    store: Store
    settings: Settings
    callers: dict[str, Access] = field(default_factory=lambda: {"all": caller("system/*.cruds")})
    hooks: dict[str, Hook] = field(default_factory=dict)
    guards: dict[str, Guard] = field(default_factory=dict)
    delete_guards: dict[str, DeleteGuard] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    url: str = ""

    def client(self, token: str | None = "all") -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False)

    def authenticate(self, request: Request) -> Access:
        found = self.callers.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if found is None:
            raise Unauthenticated
        return found

    def in_step(self, connection: Connection) -> dict[str, Any]:
        """Where keeping in step stands, with an archive whose last change has the number 7."""
        return standing.of(connection, self.settings, standing.Seen(7)).told()

    def app(self) -> ASGIApp:
        return RequestId(Front(Starlette(), Interface(self.door()), Interface(self.door(read_only=True))))

    def door(self, *, read_only: bool = False) -> Door:
        return Door(
            store=self.store,
            settings=self.settings,
            authenticate=self.authenticate,
            recognize=None if read_only else lambda _, request: self.authenticate(request),
            hooks=self.hooks,
            guards=self.guards,
            delete_guards=self.delete_guards,
            audit=self.records.append,
            key=b"k" * 32,
            operations={"sync-status": self.in_step},
            read_only=read_only,
        )


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    """The interface on both engines."""
    served = Server(store, Settings(public_url="http://localhost:8080"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(served.app(), log_level="warning", ws="none", lifespan="off")
        process = uvicorn.Server(config)
        thread = threading.Thread(target=process.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: process.started, "the HTTP server")
        served.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield served
        process.should_exit = True
        thread.join()


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A caller who may do everything."""
    with server.client() as opened:
        yield opened
