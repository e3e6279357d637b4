"""The HTTP of FHIR's REST interface: media types, versions in headers, bodies (https://hl7.org/fhir/R4/http.html#general)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime

import msgspec
from fastapi import Request, Response

from app.errors import BadRequest, NotAcceptable, TooLarge, UnsupportedMediaType
from app.fhir.capability import FHIR_VERSION
from app.fhir.outcome import MEDIA_TYPE
from app.fhir.resources import MAX_BODY
from app.store.resources import Stored

_JSON = frozenset({"application/fhir+json", "application/json", "text/json"})
_ACCEPTED = _JSON | {"*/*", "application/*"}
_VERSIONS = frozenset({"4.0", FHIR_VERSION})
_ETAG = re.compile(r'(?:W/)?"(\d{1,9})"', re.ASCII)
FORM = "application/x-www-form-urlencoded"
FORMATS = ("_format", "_pretty")
"""Parameters about the answer's form, taken by every interaction."""


async def body(request: Request) -> bytes:
    """The raw body; TooLarge as soon as it is known to be."""
    parts: list[bytes] = []
    length = 0
    async for part in request.stream():
        length += len(part)
        if length > MAX_BODY:
            raise TooLarge(f"a request body may have at most {MAX_BODY} bytes")
        parts.append(part)
    return b"".join(parts)


def negotiate(request: Request) -> None:
    """NotAcceptable unless the client takes FHIR R4 as JSON; `_format` counts more than Accept."""
    if "\0" in request.scope["path"]:
        raise BadRequest("an address has no NUL character")
    # A "+" that was not encoded arrives as a blank.
    wanted = request.query_params.get("_format", "").strip().replace(" ", "+")
    if wanted:
        if wanted.partition(";")[0] not in _JSON | {"json"}:
            raise NotAcceptable(f"this server writes {MEDIA_TYPE} only")
        return
    ranges = list(_ranges(request.headers.get("accept", "*/*")))
    if not any(kind in _ACCEPTED and version in _VERSIONS for kind, version in ranges):
        raise NotAcceptable(f"this server writes {MEDIA_TYPE}; fhirVersion=4.0 only")


def require_json(request: Request) -> None:
    """UnsupportedMediaType unless the body says it is JSON of FHIR R4 in UTF-8."""
    kind, parameters = _media(request.headers.get("content-type", ""))
    version = parameters.get("fhirversion", FHIR_VERSION)
    if kind not in _JSON or parameters.get("charset", "utf-8").lower() != "utf-8" or version not in _VERSIONS:
        raise UnsupportedMediaType(f"send {MEDIA_TYPE} in UTF-8")


def require_form(request: Request) -> None:
    """UnsupportedMediaType unless the body says it is a form."""
    if _media(request.headers.get("content-type", ""))[0] != FORM:
        raise UnsupportedMediaType(f"send {FORM}")


def if_match(request: Request) -> int | None:
    """The version the client believes to be current; None when it does not say."""
    text = request.headers.get("if-match")
    if text is None:
        return None
    found = _ETAG.fullmatch(text.strip())
    if found is None:
        raise BadRequest('If-Match must be a version such as W/"3"')
    return int(found[1])


def is_known(request: Request, stored: Stored) -> bool:
    """Whether If-None-Match names the version the client would get."""
    tags = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    return any(tag == "*" or ((found := _ETAG.fullmatch(tag)) and int(found[1]) == stored.version) for tag in tags)


def preference(request: Request) -> str:
    """What a write shall return: minimal, representation or OperationOutcome."""
    for part in re.split(r"[,;]", request.headers.get("prefer", "")):
        name, _, value = part.strip().partition("=")
        if name == "return" and value in {"minimal", "representation", "OperationOutcome"}:
            return value
    return "representation"


def version_headers(stored: Stored) -> dict[str, str]:
    """ETag and Last-Modified."""
    modified = datetime.fromtimestamp(stored.updated // 1000, UTC)
    return {"ETag": f'W/"{stored.version}"', "Last-Modified": format_datetime(modified, usegmt=True)}


def answer(request: Request, content: bytes, headers: dict[str, str], status: int = 200) -> Response:
    """The response; `_pretty=true` indents it. What a HEAD request gets is its length alone."""
    if content and request.query_params.get("_pretty") == "true":
        content = msgspec.json.format(content, indent=2)
    kept = {"Cache-Control": "private, no-cache", "Vary": "Accept, Authorization, Cookie", **headers}
    if content:
        kept["Content-Type"] = MEDIA_TYPE
    if request.method == "HEAD":
        return Response(b"", status, {**kept, "Content-Length": str(len(content))})
    return Response(content, status, kept)


def _ranges(accept: str) -> Iterator[tuple[str, str]]:
    """Media type and FHIR version of each range that is not refused by q=0."""
    for part in accept.split(","):
        kind, parameters = _media(part)
        if parameters.get("q", "1").rstrip("0").rstrip(".") not in {"", "0"}:
            yield kind, parameters.get("fhirversion", FHIR_VERSION)


def _media(text: str) -> tuple[str, dict[str, str]]:
    kind, *rest = (part.strip() for part in text.split(";"))
    pairs = (part.partition("=") for part in rest)
    return kind.lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
