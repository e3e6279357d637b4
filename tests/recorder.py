"""Keeps every FHIR answer that a test run sees, for the judges: `pytest -p tests.recorder --record FOLDER`.

The tests speak HTTP through httpx and, for foreign clients, through requests: both are listened to where an answer
arrives, so that a server in this process and one in its own are judged alike. An answer is kept once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

SHARE = re.compile(r"/v/[^/]+/")
"""A viewer session's address is a secret while it lives."""


class Recorder:
    """One file per process of the run; a line is one answer: which test, what was asked, the status, the body."""

    def __init__(self, path: Path) -> None:
        self.seen: set[bytes] = set()
        self.output = gzip.open(path, "at", compresslevel=1, encoding="utf-8")  # noqa: SIM115 - closed with the run

    def keep(self, method: str, url: str, status: int, media_type: str, body: bytes) -> None:
        digest = hashlib.sha256(body).digest()
        if not media_type.startswith("application/fhir+json") or not body or digest in self.seen:
            return
        self.seen.add(digest)
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        asked = f"{method} {SHARE.sub('/v/…/', url.partition('://')[2].partition('/')[2])}"
        self.output.write(json.dumps({"test": test, "asked": asked, "status": status, "body": body.decode()}) + "\n")

    def close(self) -> None:
        self.output.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="keep every FHIR answer in this folder, for scripts/judge.py")


def pytest_configure(config: pytest.Config) -> None:
    folder: Path | None = config.getoption("--record")
    if folder is None:
        return
    worker = getattr(config, "workerinput", {}).get("workerid", "main")
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(folder / f"{worker}.jsonl.gz")
    config.add_cleanup(recorder.close)
    for undo in listen(recorder):
        config.add_cleanup(undo)


def listen(recorder: Recorder) -> Iterator[Callable[[], None]]:
    """Hear what the two clients receive; what is handed back ends it."""

    def from_httpx(response: httpx.Response) -> None:
        try:
            body = response.content
        except httpx.ResponseNotRead:
            return
        request, kind = response.request, response.headers.get("content-type", "")
        recorder.keep(request.method, str(request.url), response.status_code, kind, body)

    def from_requests(response: requests.Response) -> None:
        kind, method = response.headers.get("content-type", ""), response.request.method or ""
        recorder.keep(method, response.url, response.status_code, kind, response.content)

    yield _after(httpx.Client, "send", from_httpx)
    yield _after(requests.Session, "send", from_requests)
    heard = httpx.AsyncClient.send

    async def send(*args: Any, **kwargs: Any) -> httpx.Response:
        response = await heard(*args, **kwargs)
        from_httpx(response)
        return response

    httpx.AsyncClient.send = send  # type: ignore[method-assign]
    yield lambda: setattr(httpx.AsyncClient, "send", heard)


def _after(client: type[Any], name: str, hear: Callable[[Any], None]) -> Callable[[], None]:
    original = getattr(client, name)

    def send(*args: Any, **kwargs: Any) -> Any:
        response = original(*args, **kwargs)
        hear(response)
        return response

    setattr(client, name, send)
    return lambda: setattr(client, name, original)
