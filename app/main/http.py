"""What every request passes: a request id, a line in the log, and errors in the form of the protocol asked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Iterable
from http import HTTPStatus
from time import perf_counter

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.dicom import unread
from app.errors import BadRequest, IsocenterError, MethodNotAllowed, Unauthenticated, Unavailable
from app.fhir import outcome
from app.main import logs

log = structlog.get_logger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,64}")
NOSNIFF = (b"x-content-type-options", b"nosniff")
FHIR = re.compile(r"(/v/[^/]+)?/fhir(/|$)")
OAUTH = {400: "invalid_request", 401: "invalid_client", 403: "access_denied", 503: "temporarily_unavailable"}


class RequestId:
    """Takes the caller's X-Request-Id or makes one, answers with it, and logs the request without its query."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` is what comes after."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id
        began, reply = perf_counter(), _Reply(send, request_id)
        try:
            _refuse_nul(scope)
            await self.app(scope, receive, reply.send)
        except Exception as error:
            if reply.status:
                raise
            # Answered here: beyond us the web server prints a trace and cuts the connection.
            response = await translate(Request(scope, receive), error)
            await unread.answer(response, scope, receive, reply.send)
        finally:
            logs.tell({
                "event": "request",
                "method": scope["method"],
                "route": _route(scope),
                "status": reply.status,
                "ms": round((perf_counter() - began) * 1000, 1),
                "request_id": request_id,
            })  # fmt: skip


def _refuse_nul(scope: Scope) -> None:
    if "\0" in scope["path"]:
        raise BadRequest("an address has no NUL character")


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's, when it is a plain one; else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return value.decode()
    return os.urandom(16).hex()


class _Reply:
    """The answer on its way out: gets the headers every answer has, and its status is remembered."""

    __slots__ = ("_request_id", "_send", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self.status = 0
        self._send = send
        self._request_id = request_id

    def send(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            # A list of our own: an answer may be sent more than once.
            headers = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode())]
            if NOSNIFF not in headers:
                headers.append(NOSNIFF)
            message["headers"] = headers
        return self._send(message)


def install(app: Starlette) -> None:
    """Put the request id before everything and the error translation behind everything."""
    for kind in (IsocenterError, HTTPException):
        app.add_exception_handler(kind, translate)
    app.add_middleware(RequestId)


async def translate(request: Request, error: Exception) -> Response:
    """What a client gets to know of an error, in the form of the protocol it speaks."""
    request_id = getattr(request.state, "request_id", "")
    path = request.url.path
    if not isinstance(error, IsocenterError | HTTPException):
        log.error("request failed", error=type(error).__name__, where=errors.place(error), request_id=request_id)
    if FHIR.match(path):
        status, body, headers = outcome.render(error, request_id)
        return Response(body, status, headers)
    status, detail, headers = _told(error)
    if path.startswith("/auth/"):
        body = {"error": OAUTH.get(status, "invalid_request"), "error_description": detail, "request_id": request_id}
        return _json(status, body, "application/json", headers)
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return _json(status, problem | {"request_id": request_id}, "application/problem+json", headers)


def _told(error: Exception) -> tuple[int, str, dict[str, str]]:
    match error:
        case Unauthenticated():
            return error.status, str(error), {"WWW-Authenticate": 'Bearer realm="isocenter"'}
        case Unavailable():
            return error.status, str(error), {"Retry-After": str(error.retry_after)}
        case MethodNotAllowed():
            return error.status, str(error), {"Allow": error.allow}
        case IsocenterError() if error.status < 500:
            return error.status, str(error), {}
        case HTTPException():
            return error.status_code, HTTPStatus(error.status_code).phrase, dict(error.headers or {})
        case _:
            return 500, "The server failed; the request id finds the reason in its log.", {}


def _json(status: int, body: object, media_type: str, headers: dict[str, str]) -> Response:
    return Response(json.dumps(body), status, {**headers, "Cache-Control": "no-store"}, media_type)


def _route(scope: Scope) -> str:
    # The template, not the address: an address may hold a session or a one-time handle.
    return getattr(scope.get("route"), "path", "unmatched")
