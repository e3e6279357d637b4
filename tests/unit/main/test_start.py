"""What an api process has in memory before anybody asks it for more than FHIR (docs/decisions/0078)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pydantic import SecretStr

from app.fhir import rebuild
from app.main.prepare import prepare
from app.settings import Settings

LATE = (
    *("alembic", "mako", "pydicom", "numpy", "PIL", "highdicom", "pynetdicom", "dicomweb_client", "requests"),
    *("aiohttp", "httpx", "fastapi", "authlib", "joserfc", "argon2", "jinja2", "typst", "fhir", "prometheus_client"),
    *("app.console", "app.demo", "app.dicom.gateway", "app.main.demo_ehr", "app.main.framework"),
)
PROGRAM = """
import asyncio, json, sys
from app.cli import app
from app.fhir import rebuild
from app.main.api import create_app, prepare
from app.settings import Settings

settings = Settings()
rebuild.require_served(settings)
prepare(settings)
server = create_app(settings)


async def asked(path):
    told = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        told.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "root_path": ""}
    scope |= {"query_string": b"", "headers": []}
    await server(scope, receive, send)
    return told[0]["status"]


paths = ("/health", "/fhir/metadata", "/fhir/ImagingStudy/1", *sys.argv[1:])
statuses = [asyncio.run(asked(path)) for path in paths]
print(json.dumps({"statuses": statuses, "modules": sorted(sys.modules)}))
"""


def started(folder: Path, *more: str) -> tuple[list[int], set[str]]:
    """The statuses of some requests to a new api process, and the names of LATE that it has loaded then."""
    url = f"sqlite:///{folder / 'isocenter.sqlite'}"
    known = Settings(database_url=SecretStr(url), data_dir=folder)
    rebuild.upgrade(known)
    # The first start of all makes a key; every other one finds it.
    prepare(known)
    settings = {"ISOCENTER_DATABASE_URL": url, "ISOCENTER_DATA_DIR": str(folder)}
    command = [sys.executable, "-c", PROGRAM, *more]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["statuses"], set(LATE) & set(answer["modules"])


def test_an_api_process_that_serves_fhir_has_not_loaded_what_fhir_does_not_need(tmp_path: Path) -> None:
    statuses, loaded = started(tmp_path)
    assert statuses == [200, 200, 401]
    assert loaded == set()


def test_what_is_loaded_late_serves_its_first_request(tmp_path: Path) -> None:
    statuses, loaded = started(tmp_path, "/auth/jwks", "/dicom-web/studies", "/nowhere", "/metrics")
    assert statuses == [200, 200, 401, 200, 401, 404, 200]
    assert {"fastapi", "app.dicom.gateway", "prometheus_client"} <= loaded
