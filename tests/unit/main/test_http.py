"""What a client and the log get to know of a failure nobody foresaw."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import httpx
import pytest
from fastapi import FastAPI

from app.main import http

SECRET = "Mustermann^Erika"


def failing() -> FastAPI:
    app = FastAPI()

    @app.get("/fhir/Patient/1")
    @app.get("/launches")
    def fail() -> None:
        raise RuntimeError(SECRET)

    http.install(app)
    return app


async def asked(path: str) -> httpx.Response:
    # The transport raises whatever the application lets through to the web server, which would print a trace of it.
    transport = httpx.ASGITransport(failing(), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get(path, headers={"X-Request-Id": "mine"})


@pytest.mark.parametrize("path", ["/fhir/Patient/1", "/launches"])
def test_an_unforeseen_failure_is_answered_with_the_request_id_and_nothing_of_it_reaches_the_web_server(
    path: str,
) -> None:
    response = asyncio.run(asked(path))

    assert response.status_code == 500
    assert response.headers["X-Request-Id"] == "mine"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert SECRET not in response.text
    assert "mine" in json.dumps(response.json())


def test_a_failure_is_logged_with_its_kind_and_place_only_and_so_is_the_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asyncio.run(asked("/launches"))

    told = "".join(capsys.readouterr())
    assert SECRET not in told
    assert "RuntimeError" in told
    assert '"status":500' in told


def test_what_a_library_logs_with_a_trace_becomes_one_line_without_its_values() -> None:
    program = (
        "import logging\n"
        "from app.main import logs\n"
        "logs.configure()\n"
        "try:\n"
        f"    raise ValueError({SECRET!r})\n"
        "except ValueError:\n"
        f"    logging.getLogger('uvicorn.error').exception('of %s', {SECRET!r})\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert SECRET not in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "ERROR uvicorn.error" in ran.stderr
    assert "ValueError at" in ran.stderr


def test_an_address_with_a_nul_is_refused_before_anything_looks_it_up() -> None:
    assert asyncio.run(asked("/v/%00/")).status_code == 400
