"""POST /launches: a trusted EHR or RIS opens one study for one of its users."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from msgspec.structs import replace

from app import audit
from app.access import Access
from app.audit import Record
from app.errors import BadRequest, IsocenterError, TooLarge
from app.settings import Settings
from app.store.database import Store
from app.viewer.registration import CLIENT_ID
from app.workflow import launches

MAX_BODY = 64 * 1024


async def body_of(request: Request) -> bytes:
    """The raw body, at most MAX_BODY."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY:
            raise TooLarge(f"at most {MAX_BODY} bytes")
    return content


def routes(
    store: Store, settings: Settings, authenticate: Callable[[Request], Access], tell: Callable[[Record], None]
) -> APIRouter:
    """The one route."""
    router = APIRouter()
    ids = (CLIENT_ID, f"{settings.viewer_url or settings.public_url}/v/l")

    @router.post("/launches")
    def create(request: Request, body: Annotated[bytes, Depends(body_of)]) -> Response:
        access = authenticate(request)
        record = Record("viewer", "open-launch", "allowed", request_id=request.state.request_id)
        try:
            wanted = launches.parse(object_of(body), CLIENT_ID)
            opened = store.transact(lambda tx: launches.create(tx, settings, access, wanted, ids))
        except IsocenterError:
            tell(audit.of(access, replace(record, outcome="denied")))
            raise
        tell(audit.of(access, record))
        return Response(json.dumps(opened), 201, {"Cache-Control": "no-store"}, "application/json")

    return router


def object_of(body: bytes) -> object:
    """The JSON of a body; BadRequest for one that cannot be read or kept."""
    try:
        found: object = json.loads(body)
        text = json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error
    # Like a lone surrogate, NUL is legal in JSON and illegal in what keeps it.
    if b"\\u0000" in text:
        raise BadRequest("the body has a NUL character")
    return found
