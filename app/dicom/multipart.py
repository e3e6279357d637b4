"""Media types and multipart/related bodies of DICOMweb (PS3.18 section 8.7, RFC 2046 section 5.1, RFC 2387)."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field

from app.dicom.spool import Content, Spool
from app.errors import BadRequest, TooLarge

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a pattern
MEDIA_TYPE = re.compile(rf"\s*({TOKEN})/({TOKEN})")
# A bare parameter value may hold a slash: `type=application/dicom` is not well-formed, but everybody sends it.
PARAMETER = re.compile(rf"""\s*;\s*({TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]+))""")
COMMA = re.compile(r"\s*(?:,|$)")
QUALITY = re.compile(r"[01](?:\.[0-9]{0,9})?|\.[0-9]{1,9}")
MAX_HEADER = 4096
BOUNDARY = re.compile(r"[ -~]{0,69}[!-~]")
"""RFC 2046 allows fewer characters; some clients use more."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """A media type or range with its parameters; names and the types themselves are lower case."""

    type: str
    parameters: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def part(self) -> str:
        """What the parts of a multipart are; otherwise the type itself."""
        return self.parameters.get("type", "*/*").lower() if self.type == "multipart/related" else self.type

    @property
    def transfer_syntax(self) -> str | None:
        """The transfer syntax asked for, `*` for any."""
        return self.parameters.get("transfer-syntax")


def media_types(header: str) -> list[MediaType]:
    """The ranges of an Accept header, most wanted first; one that cannot be read raises."""
    found = sorted(ranges(header), key=lambda ranked: -ranked[0])
    return [media_type for quality, media_type in found if quality > 0]


def ranges(header: str) -> list[tuple[float, MediaType]]:
    """The ranges of an Accept header as written, each with its quality; one that cannot be read raises."""
    if len(header) > MAX_HEADER:
        raise BadRequest("the Accept header is too long")
    found: list[tuple[float, MediaType]] = []
    at = 0
    while at < len(header):
        media_type, at = _media_type(header, at)
        comma = COMMA.match(header, at)
        if comma is None:
            raise BadRequest("the Accept header cannot be read")
        at = comma.end()
        found.append((_quality(media_type), media_type))
    return found


def content_type(header: str) -> MediaType:
    """The one media type of a Content-Type header."""
    media_type, at = _media_type(header, 0)
    if header[at:].strip(" ;"):
        raise BadRequest("the Content-Type header cannot be read")
    return media_type


def _media_type(header: str, at: int) -> tuple[MediaType, int]:
    start = MEDIA_TYPE.match(header, at)
    if start is None:
        raise BadRequest("a media type cannot be read")
    parameters: dict[str, str] = {}
    at = start.end()
    while parameter := PARAMETER.match(header, at):
        quoted, bare = parameter[2], parameter[3]
        parameters[parameter[1].lower()] = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = parameter.end()
    # Some put the part's own parameters into the quoted type: type="application/dicom; transfer-syntax=*".
    if ";" in (inner := parameters.get("type", "")):
        nested, _ = _media_type(inner, 0)
        parameters = {**nested.parameters, **parameters, "type": nested.type}
    return MediaType(f"{start[1]}/{start[2]}".lower(), parameters), at


def _quality(media_type: MediaType) -> float:
    written = media_type.parameters.get("q", "1")
    if not QUALITY.fullmatch(written):
        raise BadRequest("the Accept header has a quality that is no number from 0 to 1")
    return min(float(written), 1.0)


def boundary() -> str:
    """A line no content holds."""
    return f"isocenter-{secrets.token_hex(16)}"


def part_head(mark: str, media_type: str, location: str = "") -> bytes:
    """What comes before the bytes of one part."""
    location_line = f"Content-Location: {location}\r\n" if location else ""
    return f"--{mark}\r\nContent-Type: {media_type}\r\n{location_line}\r\n".encode()


def tail(mark: str) -> bytes:
    """What ends the whole body."""
    return f"--{mark}--\r\n".encode()


def joined(mark: str, media_type: str, contents: Iterable[bytes]) -> Iterable[bytes]:
    """A body of parts that are at hand."""
    for content in contents:
        yield part_head(mark, media_type) + content + b"\r\n"
    yield tail(mark)


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a body may be."""

    body: int
    part: int
    parts: int
    header: int = 8192
    """Of the headers of one part, and of a boundary line."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its media type and content, and what is wrong with how it was wrapped."""

    media_type: MediaType
    content: Content
    fault: str = ""


class PartReader:
    """Splits a streamed multipart body into parts on a spool, within limits."""

    def __init__(self, mark: str, limits: Limits, spool: Spool) -> None:
        """`mark` is the boundary parameter of the Content-Type."""
        if not BOUNDARY.fullmatch(mark):
            raise BadRequest("the multipart boundary is missing or malformed")
        self._marks = [b"\r\n--" + one.encode() for one in _spellings(mark)]
        self._limits, self._spool = limits, spool
        # The first boundary may open the body without a line break before it.
        self._buffer = bytearray(b"\r\n")
        self._received = 0

    async def read(self, body: AsyncIterable[bytes], default: MediaType) -> list[Part]:
        """All parts of the body, of which those without a type have the default one.

        A body that breaks off or breaks a limit raises.
        """
        chunks, parts = aiter(body), list[Part]()
        await self._until_mark(chunks, keep=False)
        while await self._another(chunks):
            if len(parts) >= self._limits.parts:
                raise TooLarge(f"more than {self._limits.parts} parts")
            parts.append(await self._part(chunks, default))
        async for chunk in chunks:
            self._count(chunk)
        await self._spool.flush()
        return parts

    async def _part(self, chunks: AsyncIterator[bytes], default: MediaType) -> Part:
        headers = part_headers(await self._head(chunks))
        kind = headers.get("content-type", "")
        at = self._spool.size
        await self._until_mark(chunks, keep=True)
        content = Content(self._spool, at, self._spool.size - at)
        return Part(content_type(kind) if kind else default, content, _fault(headers, content.size))

    def _count(self, chunk: bytes) -> None:
        self._received += len(chunk)
        if self._received > self._limits.body:
            raise TooLarge(f"the body is larger than {self._limits.body} bytes")

    async def _more(self, chunks: AsyncIterator[bytes]) -> bool:
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            return False
        self._count(chunk)
        self._buffer += chunk
        return True

    async def _must_have_more(self, chunks: AsyncIterator[bytes]) -> None:
        if not await self._more(chunks):
            raise BadRequest("the multipart body ends before its last boundary")

    async def _until_mark(self, chunks: AsyncIterator[bytes], *, keep: bool) -> None:
        size = 0
        while True:
            found = self._found()
            # Keep back what could be the start of a boundary.
            ready = found[0] if found else max(len(self._buffer) - max(map(len, self._marks)), 0)
            size += ready
            if size > self._limits.part:
                raise TooLarge(f"a part is larger than {self._limits.part} bytes")
            if keep and ready:
                await self._spool.write(self._buffer[:ready])
            del self._buffer[:ready]
            if found:
                # Whichever spelling comes first is the body's own.
                self._marks = [found[1]]
                del self._buffer[: len(found[1])]
                return
            await self._must_have_more(chunks)

    def _found(self) -> tuple[int, bytes] | None:
        places = [(at, mark) for mark in self._marks if (at := self._buffer.find(mark)) >= 0]
        return min(places) if places else None

    async def _another(self, chunks: AsyncIterator[bytes]) -> bool:
        """Whether a part follows the boundary just read; what follows it on its line may only be space."""
        most = self._limits.header + 2
        while (end := self._buffer.find(b"\r\n", 0, most)) < 0 and len(self._buffer) < most:
            if not await self._more(chunks):
                break
        line = bytes(self._buffer[: end if end >= 0 else None])
        if line[:2] == b"--" and not line[2:].strip(b" \t"):
            return False
        if end < 0 or line.strip(b" \t"):
            raise BadRequest("a multipart boundary line has more on it or does not end")
        # The line break stays: a part without headers has its empty line at once.
        del self._buffer[: len(line)]
        return True

    async def _head(self, chunks: AsyncIterator[bytes]) -> bytes:
        most = self._limits.header + 4
        while (at := self._buffer.find(b"\r\n\r\n", 0, most)) < 0:
            if len(self._buffer) >= most:
                raise BadRequest("the headers of a part are too long")
            await self._must_have_more(chunks)
        head = bytes(self._buffer[:at])
        # The line break before the content may also be the one before a boundary that follows at once.
        del self._buffer[: at + 2]
        while len(self._buffer) < len(self._marks[0]):
            await self._must_have_more(chunks)
        if not self._buffer.startswith(self._marks[0]):
            del self._buffer[:2]
        return head


def part_headers(head: bytes) -> dict[str, str]:
    """The headers of a part by lower-case name; a line that is none, or one that is there twice, raises."""
    headers: dict[str, str] = {}
    lines = re.sub(r"\r\n[ \t]+", " ", head.decode("latin-1")).split("\r\n")
    for line in filter(None, lines):
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or not re.fullmatch(TOKEN, name) or name in headers:
            raise BadRequest("a part has a header that cannot be read")
        headers[name] = value.strip()
    return headers


def _fault(headers: Mapping[str, str], size: int) -> str:
    """Why a part's content is not what it should be."""
    encoding = headers.get("content-transfer-encoding", "binary").lower()
    if encoding not in {"binary", "8bit", "7bit"}:
        return "it is encoded"
    told = headers.get("content-length")
    return "it has another length than it tells" if told is not None and told != str(size) else ""


def _spellings(mark: str) -> list[str]:
    # An apostrophe belongs to a boundary, but some mean it as a quotation mark.
    quoted = len(mark) > 2 and mark[0] == mark[-1] == "'"
    return [mark, mark[1:-1]] if quoted else [mark]
