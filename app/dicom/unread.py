"""Answers to requests whose body is not read to its end: told at once, then the connection ends (RFC 9112 9.6)."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

LINGER_SECONDS = 3.0
LINGER_BYTES = 32 << 20
"""So long the rest of the body is read and dropped: closing at once would take the answer from who still sends."""


class Unread:
    """The body of a request, watched: how much of it may still come."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        """Stays with the request, for whoever answers an error."""
        self._receive = receive
        headers = dict(scope["headers"])
        self.more = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        # Who waits to be asked has sent nothing yet.
        self._sending = headers.get(b"expect", b"").lower() != b"100-continue"
        scope["unread"] = self

    async def receive(self) -> Message:
        """ASGI."""
        self._sending = True
        message = await self._receive()
        self.more = message.get("more_body", False)
        return message

    async def drop(self) -> None:
        """Read on for a little while."""
        dropped = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._sending and self.more and dropped < LINGER_BYTES:
                    dropped += len((await self.receive()).get("body", b""))


async def answer(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a short answer; when the body is not read, tell that the connection ends, and let it end well."""
    body: Unread | None = scope.get("unread")
    if body is None or not body.more:
        await response(scope, receive, send)
        return
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    await body.drop()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
