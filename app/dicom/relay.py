"""How the bytes of an answer come: from the cache or the archive, framed, with validators (RFC 2387, RFC 9110)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app.dicom import admission, conditional
from app.dicom import multipart as mime
from app.dicom.cache import PROGRAM, WHOLE, Large
from app.dicom.conditional import Verdict
from app.dicom.flights import Flights
from app.dicom.orthanc import Orthanc
from app.dicom.upstream import CHUNK, Opened, Upstream
from app.errors import BadRequest, NotAcceptable

PRIVATE = {
    "Vary": "Authorization, Cookie, Accept",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
HEADERS = {"Cache-Control": "private, no-store", **PRIVATE}
"""Of what must not be kept: lists, metadata, answers to a write."""
VALIDATED = {"Cache-Control": "private, no-cache", **PRIVATE}
"""Of bytes that never change under their entity tag: kept, but asked for again each time."""
WRITE_SECONDS = 60.0
"""A client that takes nothing for so long has gone."""


@dataclass(frozen=True, slots=True)
class Way:
    """What a retrieve needs: the ways to the bytes, the address of the service, what was asked and what it is of."""

    orthanc: Orthanc
    upstream: Upstream
    base: str
    flights: Flights
    request: Request
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """The archive's name of each instance's file, by Orthanc id."""
    follow: Callable[[int], None] = lambda _: None
    """Hears which stored frame is asked for, counted from 0: the next ones may be wanted soon."""
    proxy: str = ""
    """Where the proxy before us keeps what is sent by name; empty when there is none."""


@dataclass(frozen=True, slots=True)
class Transcoding:
    """An instance that the archive has to put into another transfer syntax."""

    orthanc_id: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Made:
    """Bytes that are made here of one instance: what is made of it, as a name, and how."""

    orthanc_id: str
    name: str
    make: Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of an answer: where it lies in the archive, how it is made, or its bytes."""

    media_type: str
    source: str | Transcoding | Made | bytes
    location: str = ""
    """Its own address, where it has one (Content-Location)."""

    @property
    def kind(self) -> str:
        """The media type without its parameters."""
        return self.media_type.partition(";")[0]

    @property
    def is_kept(self) -> bool:
        """Whole files are the archive's to keep."""
        return not isinstance(self.source, bytes) and not (isinstance(self.source, str) and self.source[-5:] == "/file")

    def name(self, versions: Mapping[str, str]) -> str:
        """What these bytes are and nothing else is; empty when that is not known."""
        match self.source:
            case bytes():
                return ""
            case str():
                _, _, orthanc_id, rest = self.source.split("/", 3)
                # A frame as it is stored does not depend on what it is called.
                made = rest if rest.endswith("/raw") else f"{rest} {self.kind}"
            case Transcoding(orthanc_id, syntax):
                made = f"transcoded {syntax}"
            case Made(orthanc_id, name):
                made = f"{PROGRAM} {name}"
        known = versions.get(orthanc_id)
        return f"{known} {made}" if known else ""


class Relay(StreamingResponse):
    """A streamed answer that lets go of its sources however it ends, and of a client that takes nothing."""

    def __init__(self, body: Body, media_type: str, headers: Mapping[str, str]) -> None:
        """`body` is closed with the answer."""
        super().__init__(body.chunks(), media_type=media_type, headers=headers)
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def patiently(message: Message) -> None:
            async with asyncio.timeout(WRITE_SECONDS):
                await send(message)

        try:
            with suppress(TimeoutError):
                await super().__call__(scope, receive, patiently)
        finally:
            self._body.close()


Content = bytes | Large | Opened


class Body:
    """The bytes of an answer, piece after piece; the next piece is on its way while one is sent."""

    def __init__(self, way: Way, pieces: Sequence[Piece], first: Content, mark: str = "") -> None:
        """Takes `first` over, the content of the first piece. Without a boundary there is one piece and no framing."""
        self._way, self._pieces, self._mark = way, pieces, mark
        self._content: Content = first
        self._next: asyncio.Task[Content] | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """All of it."""
        for number, piece in enumerate(self._pieces):
            if self._next is not None:
                self._content, self._next = await self._next, None
            if number + 1 < len(self._pieces):
                self._next = asyncio.create_task(_begun(self._way, self._pieces[number + 1]))
            if self._mark:
                yield mime.part_head(self._mark, piece.media_type, piece.location)
            async for chunk in _chunks(self._content):
                yield chunk
            if self._mark:
                yield b"\r\n"
        if self._mark:
            yield mime.tail(self._mark)

    def close(self) -> None:
        """Let go of what is open; safe to repeat."""
        _close(self._content)
        if self._next is not None:
            self._next.add_done_callback(_drop)
            self._next.cancel()


async def _begun(way: Way, piece: Piece) -> Content:
    """The content of a piece whose turn is still to come, already on its way."""
    content = await fetched(way, piece)
    if isinstance(content, Opened):
        content.begin()
    return content


def _drop(task: asyncio.Task[Content]) -> None:
    if not task.cancelled() and task.exception() is None:
        _close(task.result())


def _close(content: Content) -> None:
    if not isinstance(content, bytes):
        content.close()


async def _chunks(content: Content, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
    match content:
        case bytes():
            yield content[start:stop]
        case Large():
            stop = content.length if stop is None else stop
            while start < stop:
                chunk = await run_in_threadpool(content.read, start, min(4 * CHUNK, stop - start))
                start += len(chunk)
                yield chunk
        case Opened():
            async for chunk in content.chunks():
                yield chunk


class Span(Body):
    """A part of one piece (RFC 9110 section 14)."""

    def __init__(self, content: bytes | Large, start: int, stop: int) -> None:
        """Takes `content` over."""
        self._content: Content = content
        self._next = None
        self._span = start, stop

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the span."""
        async for chunk in _chunks(self._content, *self._span):
            yield chunk


async def single(way: Way, piece: Piece) -> Response:
    """One piece as the whole body."""
    etag = _etag(way, "", [piece])
    if (early := _unneeded(way, etag)) is not None:
        return early
    if way.proxy and etag and piece.is_kept:
        return admission.handed_over(way.proxy, etag, piece.media_type, _validated(etag))
    _follow(way, piece)
    content = await fetched(way, piece)
    headers = _validated(etag)
    if isinstance(content, Opened):
        # Its length is the archive's promise, not yet known to be kept: no ranges.
        return Relay(Body(way, [piece], content), piece.media_type, headers)
    length = len(content) if isinstance(content, bytes) else content.length
    verdict = _decided(way, etag, length)
    headers |= {"Accept-Ranges": "bytes"} if etag else {}
    if verdict.status != 200:
        headers["Content-Range"] = verdict.content_range(length)
        span = Span(content, verdict.start, verdict.stop)
        headers["Content-Length"] = str(verdict.stop - verdict.start)
        answer = Relay(span, piece.media_type, headers)
        answer.status_code = verdict.status
        return answer
    if isinstance(content, bytes):
        return Response(content, media_type=piece.media_type, headers=headers)
    return Relay(Body(way, [piece], content), piece.media_type, headers | {"Content-Length": str(length)})


async def multipart(way: Way, media_type: str, pieces: Sequence[Piece]) -> Response:
    """The pieces as the parts of a multipart/related body (RFC 2387)."""
    etag = _etag(way, media_type, pieces)
    if (early := _unneeded(way, etag)) is not None:
        return early
    # Equal tags mean equal bytes, the boundary among them; nobody who made the content could know it.
    mark = f"isocenter-{etag[1:-1]}" if etag else mime.boundary()
    kind, headers = f'multipart/related; type="{media_type}"; boundary={mark}', _validated(etag)
    if way.proxy and etag and len(pieces) == 1 and pieces[0].is_kept:
        return admission.handed_over(way.proxy, etag, kind, headers)
    _follow(way, pieces[-1])
    # The first part is fetched before a word is said, so that its failure can still be told as a status.
    content = await fetched(way, pieces[0])
    if isinstance(content, bytes) and len(pieces) == 1:
        head = mime.part_head(mark, pieces[0].media_type, pieces[0].location)
        return Response(b"".join((head, content, b"\r\n", mime.tail(mark))), media_type=kind, headers=headers)
    return Relay(Body(way, pieces, content, mark), kind, headers)


# --- validators ------------------------------------------------------------------------------------------------


def _etag(way: Way, media_type: str, pieces: Sequence[Piece]) -> str:
    """A strong entity tag out of what the content was made from; empty when a piece is not known by name."""
    digest = hashlib.blake2b(f"{PROGRAM} {media_type}".encode(), digest_size=16)
    for piece in pieces:
        name = piece.name(way.versions)
        if not name:
            return ""
        digest.update(f"\n{name}\t{piece.media_type}\t{piece.location}".encode())
    return f'"{digest.hexdigest()}"'


def _validated(etag: str) -> dict[str, str]:
    return {**VALIDATED, "ETag": etag} if etag else dict(HEADERS)


def _decided(way: Way, etag: str, length: int | None) -> Verdict:
    if not etag:
        return conditional.WHOLE
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in way.request.scope["headers"]}
    return conditional.decide(way.request.method, headers, etag, length)


def _unneeded(way: Way, etag: str) -> Response | None:
    """The answer without a body, when the caller's conditions ask for one."""
    verdict = _decided(way, etag, None)
    return None if verdict.status == 200 else Response(status_code=verdict.status, headers=_validated(etag))


def _follow(way: Way, piece: Piece) -> None:
    if isinstance(piece.source, str) and piece.source.endswith("/raw"):
        way.follow(int(piece.source.split("/")[-2]))


# --- content ---------------------------------------------------------------------------------------------------


async def fetched(way: Way, piece: Piece) -> Content:
    """The content of a piece. What the cache keeps is asked of the archive once for all who wait for it."""
    if isinstance(piece.source, bytes):
        return piece.source
    name = piece.name(way.versions) if piece.is_kept else ""
    if not name:
        return await _asked(way, piece)
    found = await way.flights.get(name, lambda: _small(way, piece))
    return await _asked(way, piece) if found is None else found


async def _small(way: Way, piece: Piece) -> bytes | None:
    """The content, unless there is too much of it to hold in memory."""
    content = await _asked(way, piece, way.flights.largest)
    if isinstance(content, Opened):
        content.close()
        return None
    return content


async def _asked(way: Way, piece: Piece, largest: int = WHOLE) -> bytes | Opened:
    match piece.source:
        case bytes():
            return piece.source
        case str():
            opened = await way.upstream.open(piece.source, accept=piece.kind)
            if opened.length is None or opened.length > largest:
                return opened
            if opened.length <= WHOLE:
                return await opened.read()
            async with way.flights.roomy:
                return await opened.read()
        case Transcoding(orthanc_id, syntax):
            return await run_in_threadpool(transcoded, way.orthanc, orthanc_id, syntax)
        case Made():
            return await piece.source.make()


def transcoded(orthanc: Orthanc, orthanc_id: str, syntax: str) -> bytes:
    """The file in another transfer syntax; 406 when the archive cannot make it."""
    try:
        return orthanc.transcoded(orthanc_id, syntax)
    except BadRequest as error:
        raise NotAcceptable("the archive cannot transcode this object: ask for transfer-syntax=*") from error
