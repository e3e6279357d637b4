"""Pages of registered apps may read DICOMweb, pages of others may not (Fetch standard; the whole server)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from sqlalchemy.engine import Connection

from app.main.server import create_app
from app.settings import Settings
from app.smart import clients
from app.smart.clients import Client
from app.store import schema
from app.store.database import Store
from tests.processes import wait_until

APP, PHONE = "https://app.example.org", "org.example.phone:/back"
ASKED = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,range"}
REFUSED = "/dicom-web/studies/1.2/metadata"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("cors"), orthanc_url="http://127.0.0.1:1")
    store = Store(settings.database)
    schema.migrate(store)
    store.transact(register)
    config = uvicorn.Config(create_app(settings), log_level="critical", lifespan="on")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started, "the server")
        with httpx.Client(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", trust_env=False, timeout=30
        ) as client:
            yield client
        server.should_exit = True
        thread.join()
    store.close()


def register(connection: Connection) -> None:
    uris = (f"{APP}:443/callback?x=1", "http://localhost:3000/", PHONE)
    clients.register(connection, Client("app", "App", "public", uris, scope="patient/*.rs"))
    gone = Client("gone", "Gone", "public", ("https://gone.example.org/",), scope="patient/*.rs")
    clients.register(connection, gone)
    clients.disable(connection, "gone")


def allowed(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize("origin", [APP, "http://localhost:3000"])
def test_a_registered_origin_may_ask_without_a_credential_and_learns_nothing(client: httpx.Client, origin: str) -> None:
    response = client.options(REFUSED, headers={"Origin": origin, **ASKED})
    assert (response.status_code, response.content) == (204, b"")
    told = allowed(response)
    assert told["access-control-allow-origin"] == origin
    assert {"GET", "HEAD", "POST"} == set(told["access-control-allow-methods"].split(", "))
    assert {"Authorization", "Range", "If-None-Match", "Accept"} <= set(
        told["access-control-allow-headers"].split(", ")
    )
    assert "access-control-allow-credentials" not in told
    assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "https://gone.example.org", f"{APP}.evil.example", APP.upper(), "http://app.example.org",
     f"{APP}:8443", "org.example.phone://", "*", f"{APP}, https://evil.example"],
)  # fmt: skip
def test_another_origin_gets_no_leave_neither_before_nor_with_the_answer(client: httpx.Client, origin: str) -> None:
    assert allowed(client.options(REFUSED, headers={"Origin": origin, **ASKED})) == {}
    response = client.get(REFUSED, headers={"Origin": origin})
    assert response.status_code == 401
    assert allowed(response) == {}
    assert "Origin" in response.headers["vary"]


def test_a_page_reads_refusals_too_and_the_headers_it_needs(client: httpx.Client) -> None:
    for path, status in ((REFUSED, 401), ("/dicom-web/x", 404), ("/dicom-web/studies/..x", 400), ("/dicom-web/", 200)):
        response = client.get(path, headers={"Origin": APP})
        assert response.status_code == status, path
        told = allowed(response)
        assert told["access-control-allow-origin"] == APP
        assert {"ETag", "Content-Location", "Warning", "Retry-After"} <= set(
            told["access-control-expose-headers"].split(", ")
        )


def test_without_an_origin_nothing_is_said_but_that_it_would_matter(client: httpx.Client) -> None:
    response = client.get(REFUSED)
    assert allowed(response) == {}
    assert "Origin" in response.headers["vary"]


def test_no_other_page_reads_a_viewer_session(client: httpx.Client) -> None:
    path = "/v/abc/dicom-web/studies"
    assert allowed(client.get(path, headers={"Origin": APP, "Cookie": "viewer=x"})) == {}
    assert allowed(client.options(path, headers={"Origin": APP, **ASKED})) == {}


def test_the_archives_own_addresses_are_nowhere(client: httpx.Client) -> None:
    for path in ("/wado?requestType=WADO&objectUID=1.2", "/wado", "/instances", "/dicom-web/servers", "/tools/find"):
        assert client.get(path).status_code == 404, path
