"""Looks at what an application really serves below the gateway's addresses, and complains of all the table lacks."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message

from app.dicom import paths
from app.errors import IsocenterError
from tests.hostile.routes import METHODS, shapes

MOUNTS = ("/dicom-web", "/v/nobody/dicom-web")
SOURCES = tuple(Path(__file__).parents[2] / "app" / part for part in ("dicom", "main", "viewer"))
# What Orthanc, its plugins and other DICOMweb servers serve.
FOREIGN = (
    "instances", "patients", "series", "studies", "servers", "tools/find", "tools/lookup", "tools/execute-script",
    "changes", "exports", "jobs", "wado", "system", "statistics", "modalities", "peers", "plugins", "queries",
    "app/explorer.html", "studies/1.2/archive", "studies/1.2/media", "workitems", "capabilities", "conformance",
    "bulk/1", "aets", "rs/studies", "studies/1.2/reports", "metrics-prometheus", "ohif", "viewer", "dicom-web/studies",
    "health", "admission", "auth",
)  # fmt: skip


async def complaints(app: ASGIApp, sources: Iterable[Path] = SOURCES) -> list[str]:
    """What is served below the mounts and does not stand in the table, or stands there and asks for no credential."""
    found: list[str] = []
    for mount, method, path in requests(sources):
        status = await asked(app, method, mount + path)
        if (problem := _problem(method, path, status)) is not None:
            found.append(f"{method} {mount}{path} {problem}")
    return [*found, *beside(app)]


def requests(sources: Iterable[Path]) -> list[tuple[str, str, str]]:
    """Mount, method and path: addresses by every method at both mounts, mere words by GET."""
    words, addresses = candidates(sources)
    return [*product(MOUNTS, METHODS, addresses), *product(MOUNTS[:1], ("GET",), words)]


def _problem(method: str, path: str, status: int) -> str | None:
    try:
        allowed = paths.allowed(path.encode())
    except IsocenterError as error:
        return None if status == error.status else f"is not in the table and answers {status}, not {error.status}"
    if method not in allowed:
        return None if status == 405 else f"is not offered and answers {status}, not 405"
    if method == "OPTIONS" or paths.is_root(path.encode()):
        # What the service offers is told to everybody: it is the same for all, and about nobody.
        return None if status in {200, 204} else f"describes the service and answers {status}"
    return None if status == 401 else f"answers {status} without a credential"


def candidates(sources: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Every word of the sources that could be a segment, alone and below a study; and every address in them."""
    words, addresses = set[str](), set(FOREIGN)
    files = (file for source in sources for file in (source.rglob("*.py") if source.is_dir() else [source]))
    for text in (text for file in files for text in _texts(file)):
        if below := text.partition("/dicom-web/")[2]:
            addresses.add(below.replace("{", "").replace("}", ""))
        elif text.isascii() and text.replace("-", "").replace("_", "").isalnum() and text.islower():
            words.add(text)
    served = {shape.template.format(study="1.2.3", series="1.2.3.4", instance="1.2.3.4.5") for shape in shapes()}
    below_study = (f"/studies/1.2.3/{word}" for word in sorted(words))
    ours = [*(f"/{address}" for address in sorted(addresses)), *sorted(served), "", "/"]
    return [*(f"/{word}" for word in sorted(words)), *below_study], ours


def _texts(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 80:
            yield node.value


def beside(app: ASGIApp) -> list[str]:
    """Routes of a framework, wherever in the application they hang, that lie below the gateway's addresses."""
    routes = (route for route in _routes(app, set()) if "/dicom-web" in getattr(route, "path", ""))
    return [f"{getattr(route, 'path', '')} is a route beside the table" for route in routes]


def _routes(thing: Any, seen: set[int]) -> Iterator[BaseRoute]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, BaseRoute):
        yield thing
    for one in _inside(thing):
        yield from _routes(one, seen)


def _inside(thing: Any) -> Iterable[Any]:
    if isinstance(thing, list | tuple):
        return thing
    if isinstance(thing, dict):
        return thing.values()
    known = type(thing).__module__.startswith(("app.", "starlette.", "fastapi.", "tests."))
    return vars(thing).values() if known and hasattr(thing, "__dict__") and not isinstance(thing, type) else ()


async def asked(app: ASGIApp, method: str, path: str) -> int:
    """The status of one request without a credential."""
    told: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        told.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
        "headers": [], "scheme": "http", "server": ("localhost", 80), "client": ("127.0.0.1", 1), "http_version": "1.1",
    }  # fmt: skip
    await app(scope, receive, send)
    return int(told[0]["status"])
