"""Which pages of other origins may read DICOMweb: those of registered apps (Fetch standard, section 3.3)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.smart import clients
from app.store.database import Store

KNOWN_SECONDS: Final = 2.0
"""An app that is registered or disabled is noticed after so long."""
# In a viewer session the page is our own, and the cookie is for nobody else.
OPEN: Final = re.compile(r"/dicom-web(?:/|$)")
EXPOSED: Final = (
    "Accept-Ranges, Content-Location, Content-Range, ETag, Location, Retry-After, Warning, WWW-Authenticate, "
    "X-Request-Id"
)
METHODS: Final = "GET, HEAD, POST"
HEADERS: Final = (
    "Accept, Authorization, Content-Type, DPoP, If-Match, If-None-Match, If-Range, Prefer, Range, X-Request-Id"
)
PREFLIGHT_SECONDS: Final = 600
Header = tuple[bytes, bytes]


class Registered:
    """Answers preflights, and adds to answers what lets a registered app's page read them; never for cookies."""

    def __init__(self, app: ASGIApp, store: Store) -> None:
        """`app` is what comes after."""
        self._app, self._store = app, store
        self._origins, self._read_at = frozenset[str](), float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if not OPEN.match(scope["path"]):
            await self._app(scope, receive, send)
            return
        origin, asked = _header(scope, b"origin"), _header(scope, b"access-control-request-method")
        is_known = origin is not None and origin in await self._known()
        if scope["method"] == "OPTIONS" and origin is not None and asked is not None:
            await _preflight(send, origin if is_known else None)
            return
        told = [_pair("Access-Control-Allow-Origin", origin), _pair("Access-Control-Expose-Headers", EXPOSED)]
        added = told if is_known else []

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*_varied(message.get("headers", ())), *added]
            await send(message)

        await self._app(scope, receive, marked)

    async def _known(self) -> frozenset[str]:
        if time.monotonic() - self._read_at > KNOWN_SECONDS:
            self._origins, self._read_at = await run_in_threadpool(self._read), time.monotonic()
        return self._origins

    def _read(self) -> frozenset[str]:
        with self._store.read() as connection:
            return clients.origins(connection)


async def _preflight(send: Send, origin: str | None) -> None:
    """Nothing about anybody is told, so no credential is asked for; another origin gets no leave."""
    headers = [_pair("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")]
    if origin is not None:
        headers += [
            _pair("Access-Control-Allow-Origin", origin),
            _pair("Access-Control-Allow-Methods", METHODS),
            _pair("Access-Control-Allow-Headers", HEADERS),
            _pair("Access-Control-Max-Age", str(PREFLIGHT_SECONDS)),
        ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _varied(headers: Iterable[Header]) -> list[Header]:
    """The same answer has other headers for another origin, so a cache must know that they differ."""
    kept = list(headers)
    for at, (name, value) in enumerate(kept):
        if name.lower() == b"vary":
            kept[at] = (name, value + b", Origin")
            return kept
    return [*kept, (b"vary", b"Origin")]


def _header(scope: Scope, name: bytes) -> str | None:
    found = [value.decode("latin-1") for each, value in scope["headers"] if each == name]
    return found[0] if len(found) == 1 else None


def _pair(name: str, value: str | None) -> Header:
    return name.lower().encode(), (value or "").encode("latin-1")
