"""Whether an answer is needed at all, and which bytes of it (RFC 9110 sections 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

TAGS = re.compile(r'\s*(?:(?:W/)?"[!#-~\x80-\xff]*"\s*(?:,\s*|$))+')
TAG = re.compile(r'(?:W/)?"[!#-~\x80-\xff]*"')
ONE_RANGE = re.compile(r"bytes=\s*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The status to answer with, and for 206 the first byte and the one after the last."""

    status: int = 200
    start: int = 0
    stop: int = 0

    def content_range(self, length: int) -> str:
        """The Content-Range of a 206 or a 416."""
        return f"bytes {self.start}-{self.stop - 1}/{length}" if self.status == 206 else f"bytes */{length}"


WHOLE = Verdict()


def decide(method: str, headers: Mapping[str, str], etag: str, length: int | None = None) -> Verdict:
    """What to send of a representation with this strong entity tag; without a length there are no ranges.

    `headers` by lower-case name. Dates are not looked at: what we send has no Last-Modified.
    """
    if "if-match" in headers and not _matches(headers["if-match"], etag, weakly=False):
        return Verdict(412)
    if method in {"GET", "HEAD"} and _matches(headers.get("if-none-match", ""), etag, weakly=True):
        return Verdict(304)
    # A HEAD has no bytes to choose from, and a list of ranges may be answered whole.
    found = ONE_RANGE.fullmatch(headers.get("range", "")) if method == "GET" and length is not None else None
    if found is None or length is None or headers.get("if-range", etag).strip() != etag:
        return WHOLE
    return _span(found, length)


def _span(found: re.Match[str], length: int) -> Verdict:
    if found[3] is not None:
        start, stop = max(length - int(found[3]), 0), length
    else:
        start, stop = int(found[1]), min(int(found[2]) + 1, length) if found[2] else length
        if found[2] and int(found[2]) < start:
            # A last byte before the first is no range at all, and such a header is ignored.
            return WHOLE
    return Verdict(206, start, stop) if start < stop else Verdict(416)


def _matches(header: str, etag: str, *, weakly: bool) -> bool:
    if header.strip() == "*":
        return True
    if not TAGS.fullmatch(header):
        return False
    tags = TAG.findall(header)
    return etag in ({tag.removeprefix("W/") for tag in tags} if weakly else tags)
