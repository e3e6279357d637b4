"""Binary as what it holds: raw content in and out (https://hl7.org/fhir/R4/binary.html#rest)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import NotAcceptable, UnsupportedMediaType
from app.fhir import http, resources

_CODE = re.compile(r"[a-z0-9!#$&^_.+\-]+/[a-z0-9!#$&^_.+\-]+")
_RANGE = re.compile(rf"{_CODE.pattern}|[a-z]+/\*")
_FHIR = re.compile(r"application/(fhir\+)?(json|xml)|text/(json|xml)|application/\*|\*/\*")


@dataclass(frozen=True, slots=True)
class Content:
    """Raw bytes and the headers that say what they are."""

    body: bytes
    headers: Mapping[str, str]


def content(body: bytes, headers: Mapping[str, str]) -> Content | None:
    """What a Binary holds, for a client whose Accept names its media type; None when it takes the FHIR form."""
    wanted = {name for name, _ in http.ranges(headers.get("accept", ""))}
    if not takes(headers) or any(_FHIR.fullmatch(name) for name in wanted):
        return None
    resource = resources.loads(body)
    kind: str = resource.get("contentType", "")
    if not {kind, f"{kind.partition('/')[0]}/*"} & wanted:
        raise NotAcceptable(f"this Binary is {kind}")
    if not kind.isascii():
        raise NotAcceptable("no header can say what this Binary is: ask for application/fhir+json")
    try:
        held = base64.b64decode(resource.get("data", ""))
    except binascii.Error as error:
        raise NotAcceptable("this Binary has no content that could be decoded") from error
    # A page that somebody stored must not run as one of ours.
    safe = {"Content-Disposition": "attachment", "Content-Security-Policy": "sandbox; default-src 'none'"}
    return Content(held, {"Content-Type": kind, "X-Content-Type-Options": "nosniff", **safe})


def takes(headers: Mapping[str, str]) -> bool:
    """Whether Accept names a media type that only raw content can have."""
    names = [name for name, _ in http.ranges(headers.get("accept", ""))]
    return any(_RANGE.fullmatch(name) and not _FHIR.fullmatch(name) for name in names)


def wrapped(headers: Mapping[str, str], body: bytes, resource_id: str) -> bytes:
    """Raw content as the JSON of a Binary."""
    kind = http.media(headers.get("content-type", ""))[0]
    if not _CODE.fullmatch(kind):
        raise UnsupportedMediaType("say in Content-Type what the content is")
    identity = {"id": resource_id} if resource_id else {}
    context = headers.get("x-security-context")
    secured = {"securityContext": {"reference": context}} if context else {}
    data = {"data": base64.b64encode(body).decode()} if body else {}
    return resources.dumps({"resourceType": "Binary", **identity, "contentType": kind, **secured, **data})
