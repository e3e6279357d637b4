"""Bytes that a proxy keeps: it sends them itself, but asks us before each time it does (nginx's X-Accel-Redirect).

The proxy keeps them under the entity tag, which only an admitted request is told, never under an address.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

MARK = "x-isocenter-accel"
"""The proxy sets this on requests that it can answer so, and overwrites what its clients send by that name."""


def place(configured: str, request: Request) -> str:
    """The proxy's internal location for this request; empty when its answer must carry the bytes."""
    offered = request.method == "GET" and request.headers.get(MARK) == "1"
    return configured if offered else ""


def handed_over(location: str, etag: str, media_type: str, headers: Mapping[str, str]) -> Response:
    """Leave the bytes under this entity tag to the proxy: it has them, or asks again for them with If-Match."""
    return Response(headers={**headers, "X-Accel-Redirect": f"{location}/{etag[1:-1]}"}, media_type=media_type)
