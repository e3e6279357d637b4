"""The answer to a HEAD: the headers of the same GET, and nothing is read that would not be sent (RFC 9110 9.3.2)."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send


class _Enough(Exception):
    """The headers are sent."""


class Headless(Response):
    """Another answer without its body; that one lets go of its sources as if the client had left."""

    def __init__(self, whole: Response) -> None:
        """Takes `whole` over."""
        super().__init__(status_code=whole.status_code)
        self.raw_headers, self._whole = whole.raw_headers, whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def once(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise _Enough

        try:
            await self._whole(scope, receive, once)
        except _Enough:
            return
        except BaseExceptionGroup as group:
            # A streamed answer runs in a task group.
            _, others = group.split(_Enough)
            if others is not None:
                raise others from None
