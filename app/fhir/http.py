"""The HTTP of FHIR's REST interface: media types, versions in headers, bodies (https://hl7.org/fhir/R4/http.html#general)."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache, partial

import msgspec
from starlette.types import Receive, Send

from app.errors import BadRequest, NotAcceptable, TooLarge, UnsupportedMediaType
from app.fhir.capability import FHIR_VERSION
from app.fhir.outcome import MEDIA_TYPE
from app.fhir.resources import MAX_BODY
from app.store.resources import Stored

Headers = Mapping[str, str]
Criteria = Sequence[tuple[str, str]]

_JSON = frozenset({"application/fhir+json", "application/json", "text/json"})
_ACCEPTED = _JSON | {"*/*", "application/*"}
_VERSIONS = frozenset({"4.0", FHIR_VERSION})
_ETAG = re.compile(r'(?:W/)?"(\d{1,9})"', re.ASCII)
FORM = "application/x-www-form-urlencoded"
FORMATS = ("_format", "_pretty")
"""Parameters about the answer's form, taken by every interaction."""
COMPRESSED_FROM = 1024
"""Bytes; below it gzip gains nothing."""
WORKED_IN_LOOP = 256 * 1024
_VARY = b"Accept, Accept-Encoding, Authorization, Cookie"


async def body(receive: Receive, headers: Headers) -> bytes:
    """The raw body; TooLarge as soon as it is known to be, UnsupportedMediaType for one that is compressed."""
    if headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise UnsupportedMediaType("send the body without Content-Encoding")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY:
        raise _too_large()
    parts: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadRequest("the client went away before its request was complete")
        part = message.get("body", b"")
        length += len(part)
        if length > MAX_BODY:
            raise _too_large()
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large() -> TooLarge:
    return TooLarge(f"a request body may have at most {MAX_BODY} bytes")


def negotiate(headers: Headers, criteria: Criteria) -> None:
    """NotAcceptable unless the client takes FHIR R4 as JSON; `_format` counts more than Accept."""
    wanted = single(criteria, "_format")
    if single(criteria, "_pretty") not in {"", "true", "false"}:
        raise BadRequest("_pretty must be true or false")
    if wanted:
        # A "+" that was not encoded arrives as a blank.
        if wanted.strip().replace(" ", "+").partition(";")[0] not in _JSON | {"json"}:
            raise NotAcceptable(f"this server writes {MEDIA_TYPE} only")
        return
    accept = headers.get("accept", "*/*")
    if accept not in _ACCEPTED and not any(
        kind in _ACCEPTED and version in _VERSIONS for kind, version in ranges(accept)
    ):
        raise NotAcceptable(f"this server writes {MEDIA_TYPE}; fhirVersion=4.0 only")


def single(criteria: Criteria, name: str) -> str:
    """The value of a parameter that may be given once."""
    values = [value for word, value in criteria if word == name]
    if len(values) > 1:
        raise BadRequest(f"{name} must be given once")
    return values[0] if values else ""


def is_json(headers: Headers) -> bool:
    """Whether the body says it is JSON of FHIR R4 in UTF-8."""
    kind, parameters = media(headers.get("content-type", ""))
    version = parameters.get("fhirversion", FHIR_VERSION)
    return kind in _JSON and parameters.get("charset", "utf-8").lower() == "utf-8" and version in _VERSIONS


def require_json(headers: Headers) -> None:
    """UnsupportedMediaType unless the body says it is JSON of FHIR R4 in UTF-8."""
    if not is_json(headers):
        raise UnsupportedMediaType(f"send {MEDIA_TYPE} in UTF-8")


def require_form(headers: Headers) -> None:
    """UnsupportedMediaType unless the body says it is a form."""
    if media(headers.get("content-type", ""))[0] != FORM:
        raise UnsupportedMediaType(f"send {FORM}")


def if_match(headers: Headers) -> int | None:
    """The version the client believes to be current; None when it does not say."""
    text = headers.get("if-match")
    if text is None:
        return None
    found = _ETAG.fullmatch(text.strip())
    if found is None:
        raise BadRequest('If-Match must be a version such as W/"3"')
    return int(found[1])


def is_known(headers: Headers, stored: Stored) -> bool:
    """Whether the client has what it would get: If-None-Match, and only without it If-Modified-Since."""
    tags = headers.get("if-none-match")
    if tags is not None:
        known = [tag.strip() for tag in tags.split(",")]
        return any(tag == "*" or ((found := _ETAG.fullmatch(tag)) and int(found[1]) == stored.version) for tag in known)
    since = headers.get("if-modified-since")
    if since is None:
        return False
    try:
        moment = parsedate_to_datetime(since)
    except (ValueError, OverflowError):
        # RFC 9110 13.1.3: what is no HTTP date is ignored.
        return False
    return stored.updated // 1000 <= int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())


def preferences(headers: Headers) -> dict[str, str]:
    """The parts of Prefer (RFC 7240), such as return=minimal and handling=lenient."""
    pairs = (part.strip().partition("=") for part in re.split(r"[,;]", headers.get("prefer", "")))
    return {name.lower(): value.strip('"') for name, _, value in pairs if name}


def version_headers(stored: Stored) -> dict[str, str]:
    """ETag and Last-Modified."""
    return {"ETag": f'W/"{stored.version}"', "Last-Modified": http_date(stored.updated)}


def http_date(milliseconds: int) -> str:
    """A moment as RFC 9110 writes it."""
    return _dated(milliseconds // 1000)


@lru_cache(maxsize=4096)
def _dated(seconds: int) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


class Asked(msgspec.Struct, frozen=True):
    """How the client wants its answer."""

    is_head: bool = False
    is_pretty: bool = False
    takes_gzip: bool = False


async def answer(send: Send, request: Asked, status: int, content: bytes, headers: Headers) -> None:
    """Send a response; `_pretty=true` indents it, gzip shrinks it. A HEAD request gets its headers alone."""
    if content and request.is_pretty and "Content-Type" not in headers:
        content = await _worked(partial(msgspec.json.format, indent=2), content)
    rows = [(b"cache-control", b"private, no-cache"), (b"vary", _VARY)]
    if content and "Content-Type" not in headers:
        rows.append((b"content-type", b"application/fhir+json"))
    if request.takes_gzip and len(content) >= COMPRESSED_FROM:
        content = await _worked(_gzip, content)
        rows.append((b"content-encoding", b"gzip"))
    if status not in {204, 304}:
        rows.append((b"content-length", b"%d" % len(content)))
    rows += [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": rows})
    await send({"type": "http.response.body", "body": b"" if request.is_head else content})


async def _worked(work: Callable[[bytes], bytes], content: bytes) -> bytes:
    """Large answers are changed in a thread, so that the event loop stays free for others."""
    return work(content) if len(content) <= WORKED_IN_LOOP else await asyncio.to_thread(work, content)


def takes_gzip(headers: Headers) -> bool:
    """Whether Accept-Encoding names gzip without refusing it."""
    for part in headers.get("accept-encoding", "").split(","):
        coding, _, weight = part.strip().partition(";")
        if coding.strip().lower() in {"gzip", "*"}:
            return not weight or weight.replace(" ", "").removeprefix("q=").rstrip("0").rstrip(".") not in {"", "0"}
    return False


def _gzip(content: bytes) -> bytes:
    # Level 1: a study of 144 KB shrinks to a twentieth in 0.2 ms; level 6 takes three times as long for a third less.
    shrinker = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return shrinker.compress(content) + shrinker.flush()


def ranges(accept: str) -> Iterator[tuple[str, str]]:
    """Media type and FHIR version of each range that is not refused by q=0."""
    for part in accept.split(","):
        kind, parameters = media(part)
        if parameters.get("q", "1").rstrip("0").rstrip(".") not in {"", "0"}:
            yield kind, parameters.get("fhirversion", FHIR_VERSION)


def media(text: str) -> tuple[str, dict[str, str]]:
    """A media type and its parameters, both in lower case."""
    kind, *rest = (part.strip() for part in text.split(";"))
    pairs = (part.partition("=") for part in rest)
    return kind.lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
