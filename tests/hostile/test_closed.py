"""Nothing is served below the gateway's addresses but the table, and the suite would notice if something were."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.dicom import paths
from app.fhir import rebuild
from app.main.prepare import prepare
from app.main.server import create_app
from app.settings import Settings
from tests.hostile import closed, routes
from tests.processes import free_port


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ASGIApp]:
    folder = tmp_path_factory.mktemp("closed")
    settings = Settings(data_dir=folder, orthanc_url=f"http://127.0.0.1:{free_port()}")
    rebuild.upgrade(settings)
    prepare(settings)
    made = create_app(settings)
    yield made
    asyncio.run(ended(made))


async def ended(app: ASGIApp) -> None:
    """Shut down as a web server does."""

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.shutdown"}

    async def send(_: object) -> None:
        """Nobody listens."""

    await app({"type": "lifespan"}, receive, send)


def test_nothing_is_served_beside_the_table(app: ASGIApp) -> None:
    assert len(closed.requests(closed.SOURCES)) > 1000
    assert asyncio.run(closed.complaints(app)) == []


def test_every_row_of_the_table_is_attacked() -> None:
    assert routes.unattacked() == []
    assert len(routes.shapes()) >= 26


# --- the suite would notice: each way to add an unguarded address -------------------------------------------------


def test_a_route_of_the_framework_below_the_gateway_is_noticed(app: ASGIApp) -> None:
    asyncio.run(closed.asked(app, "GET", "/dicom-web/studies"))
    framework = app.app._framework  # type: ignore[attr-defined]

    @framework.get("/dicom-web/spare/{study}")
    def spare(study: str) -> str:
        return study

    assert closed.beside(app) == ["/dicom-web/spare/{study} is a route beside the table"]
    framework.router.routes.pop()
    assert closed.beside(app) == []


def test_an_address_answered_before_the_gateway_is_noticed(app: ASGIApp, tmp_path: Path) -> None:
    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        leaks = scope["type"] == "http" and scope["path"] == "/dicom-web/spare"
        await (PlainTextResponse("a secret") if leaks else app)(scope, receive, send)

    source = tmp_path / "front.py"
    source.write_text('ADDRESS = "spare"')
    found = asyncio.run(closed.complaints(front, [source]))
    assert "GET /dicom-web/spare is not in the table and answers 200, not 404" in found
    assert all("/dicom-web/spare" in complaint for complaint in found)


def test_a_row_that_asks_for_no_credential_is_noticed(app: ASGIApp) -> None:
    async def careless(scope: Scope, receive: Receive, send: Send) -> None:
        leaks = scope["type"] == "http" and scope["path"].endswith("/thumbnail")
        await (PlainTextResponse("a picture") if leaks else app)(scope, receive, send)

    found = asyncio.run(closed.complaints(careless, []))
    assert "GET /dicom-web/studies/1.2.3/thumbnail answers 200 without a credential" in found


def test_a_row_without_an_example_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(paths.SUFFIXES, "spare", "rendered")
    assert routes.unattacked() == ["suffix spare"]
    monkeypatch.setitem(paths.SEARCHES, ("people",), "study")
    assert routes.unattacked() == ["row ('people',)", "suffix spare"]
