"""What the caller takes, and which of the forms on offer that is (PS3.18 sections 8.3.3, 8.4.1 and 8.7.5 to 8.7.8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from starlette.requests import Request

from app.dicom import multipart
from app.dicom.multipart import MediaType
from app.errors import BadRequest, NotAcceptable

ANY: Final = "*/*"
RELATED: Final = "multipart/related"
UTF_8: Final = frozenset({"utf-8", "utf8", "iso_ir 192", "*"})


@dataclass(frozen=True, slots=True)
class Form:
    """One way to send an answer: a media type, alone or as the parts of a multipart body."""

    media_type: str
    is_multipart: bool = False

    def __str__(self) -> str:
        return f'{RELATED}; type="{self.media_type}"' if self.is_multipart else self.media_type


@dataclass(frozen=True, slots=True)
class Wanted:
    """One media range of the caller's."""

    range: MediaType
    but: frozenset[str] = frozenset()
    """Types, or ranges of them, that the caller takes in no case (quality 0)."""

    @property
    def transfer_syntax(self) -> str | None:
        """The transfer syntax asked for, `*` for any."""
        return self.range.transfer_syntax

    def takes(self, form: Form) -> bool:
        """Whether this range includes the form."""
        if form.is_multipart and self.range.type == RELATED:
            return names(self.range.part, form.media_type)
        own = RELATED if form.is_multipart else form.media_type
        return names(self.range.type, own) and not self._excludes(own) and not self._excludes(form.media_type)

    def _excludes(self, media_type: str) -> bool:
        # The more specific range decides (RFC 9110 section 12.5.1).
        return any(names(one, media_type) and one.count("*") < self.range.type.count("*") for one in self.but)


def names(pattern: str, media_type: str) -> bool:
    """Whether a media range includes a type."""
    return pattern in {ANY, media_type} or (pattern.endswith("/*") and media_type.startswith(pattern[:-1]))


def wanted(request: Request) -> list[Wanted]:
    """What the caller takes, most wanted first: by the `accept` parameter, then by the Accept header."""
    asked, header = _parameter(request, "accept"), ",".join(request.headers.getlist("accept"))
    taken = _ranges(header) if header.strip() else [Wanted(MediaType(ANY))]
    if not asked:
        return taken
    # What the header does not take cannot be meant by the address either.
    both = [one for one in _ranges(asked) if any(_covers(other, one) for other in taken)]
    if not both:
        raise NotAcceptable("the accept parameter and the Accept header have no media type in common")
    return both + taken


def select(request: Request, offered: Sequence[Form]) -> tuple[Wanted, Form]:
    """The caller's best range that is on offer, and what is offered for it; earlier forms are liked better."""
    for one in wanted(request):
        for form in offered:
            if one.takes(form):
                return one, form
    raise NotAcceptable(f"this is sent as {' or '.join(map(str, offered))}")


def must_take_text(request: Request, *media_types: str) -> str:
    """The one of these types that the caller takes; text is sent in UTF-8 only."""
    charset = _parameter(request, "charset") or request.headers.get("accept-charset", "")
    if charset and not {one.partition(";")[0].strip(' "').lower() for one in charset.split(",")} & UTF_8:
        raise NotAcceptable("text is sent in UTF-8")
    return select(request, [Form(one) for one in media_types])[1].media_type


def _ranges(header: str) -> list[Wanted]:
    ranges = sorted(multipart.ranges(header), key=lambda ranked: -ranked[0])
    but = frozenset(media_type.type for quality, media_type in ranges if quality == 0)
    return [Wanted(media_type, but) for quality, media_type in ranges if quality > 0]


def _covers(header: Wanted, asked: Wanted) -> bool:
    if not names(header.range.type, asked.range.type):
        return False
    return header.range.type != RELATED or names(header.range.part, asked.range.part) or "*" in asked.range.part


def _parameter(request: Request, name: str) -> str:
    found: list[str] = []
    for pair in request.url.query.split("&"):
        key, _, value = pair.partition("=")
        if key == name:
            try:
                # A plus is one: everybody writes application/dicom+json as it is.
                found.append(unquote(value, errors="strict"))
            except UnicodeDecodeError as error:
                raise BadRequest("the query cannot be read") from error
    return ",".join(found)
