"""Media types and multipart/related bodies of DICOMweb (PS3.18 section 8.7, RFC 2387, RFC 9110 section 12.5.1)."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import BinaryIO

from app.errors import BadRequest, TooLarge

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a pattern
MEDIA_TYPE = re.compile(rf"\s*({TOKEN})/({TOKEN})")
# A bare parameter value may hold a slash: `type=application/dicom` is not well-formed, but everybody sends it.
PARAMETER = re.compile(rf"""\s*;\s*({TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]+))""")
COMMA = re.compile(r"\s*(?:,|$)")
QUALITY = re.compile(r"[01](?:\.[0-9]{0,9})?|\.[0-9]{1,9}")
MAX_HEADER = 4096


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
    """How large a multipart body may be."""

    body: int
    part: int
    parts: int
    header: int = 8192
    memory: int = 8 << 20
    """A part larger than this goes to a file."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its media type, size, and content ready to read. Close the content after use."""

    media_type: MediaType
    size: int
    content: BinaryIO


class PartReader:
    """Splits a streamed multipart/related body into spooled parts, within limits."""

    def __init__(self, mark: str, limits: Limits) -> None:
        """`mark` is the boundary parameter of the Content-Type."""
        if not 1 <= len(mark) <= 70 or not mark.isascii() or not mark.isprintable():
            raise BadRequest("the multipart boundary is missing or malformed")
        self._mark = b"\r\n--" + mark.encode()
        self._limits = limits
        # The first boundary may open the body without a line break before it.
        self._buffer = bytearray(b"\r\n")
        self._received = 0
        self.parts: list[Part] = []

    async def read(self, body: AsyncIterable[bytes]) -> list[Part]:
        """All parts of the body; a body that breaks off or breaks a limit raises, and leaves nothing open."""
        chunks = aiter(body)
        try:
            await self._until_mark(chunks, None)
            while await self._another(chunks):
                await self._part(chunks)
        except BaseException:
            self.close()
            raise
        return self.parts

    def close(self) -> None:
        """Let go of every part."""
        for part in self.parts:
            part.content.close()

    async def _part(self, chunks: AsyncIterator[bytes]) -> None:
        if len(self.parts) >= self._limits.parts:
            raise TooLarge(f"more than {self._limits.parts} parts")
        media_type = part_media_type(await self._head(chunks))
        content = SpooledTemporaryFile(max_size=self._limits.memory)  # noqa: SIM115 - closed with the reader
        try:
            size = await self._until_mark(chunks, content)
        except BaseException:
            content.close()
            raise
        content.seek(0)
        self.parts.append(Part(media_type, size, content))  # pyright: ignore[reportArgumentType]

    async def _more(self, chunks: AsyncIterator[bytes]) -> None:
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            raise BadRequest("the multipart body ends before its last boundary") from None
        self._received += len(chunk)
        if self._received > self._limits.body:
            raise TooLarge(f"the body is larger than {self._limits.body} bytes")
        self._buffer += chunk

    async def _until_mark(self, chunks: AsyncIterator[bytes], content: SpooledTemporaryFile[bytes] | None) -> int:
        size = 0
        while True:
            at = self._buffer.find(self._mark)
            # Keep back what could be the start of a boundary.
            ready = at if at >= 0 else max(len(self._buffer) - len(self._mark), 0)
            size += ready
            if size > self._limits.part:
                raise TooLarge(f"a part is larger than {self._limits.part} bytes")
            if content is not None:
                content.write(self._buffer[:ready])
            del self._buffer[:ready]
            if at >= 0:
                del self._buffer[: len(self._mark)]
                return size
            await self._more(chunks)

    async def _another(self, chunks: AsyncIterator[bytes]) -> bool:
        while b"\r\n" not in self._buffer[: self._limits.header] and not self._buffer.startswith(b"--"):
            if len(self._buffer) > self._limits.header:
                raise BadRequest("a multipart boundary line does not end")
            await self._more(chunks)
        if self._buffer.startswith(b"--"):
            return False
        line, _, _ = self._buffer.partition(b"\r\n")
        if line.strip():
            raise BadRequest("a multipart boundary line has more on it")
        # The line break stays: a part without headers has its empty line at once.
        del self._buffer[: len(line)]
        return True

    async def _head(self, chunks: AsyncIterator[bytes]) -> bytes:
        while (at := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > self._limits.header:
                raise BadRequest("the headers of a part are too long")
            await self._more(chunks)
        head = bytes(self._buffer[:at])
        # The line break before the content may also be the one before a boundary that follows at once.
        del self._buffer[: at + 2]
        if not self._buffer.startswith(self._mark):
            del self._buffer[:2]
        return head


def part_media_type(head: bytes) -> MediaType:
    """The Content-Type among a part's headers; a part without one is taken as DICOM."""
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-type":
            return content_type(value)
    return MediaType("application/dicom")
