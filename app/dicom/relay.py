"""How the bytes of an answer come: each piece fetched by Orthanc id, framed and streamed (RFC 2387, RFC 9110)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.dicom import multipart as mime
from app.dicom.orthanc import Orthanc
from app.dicom.upstream import Opened, Upstream
from app.errors import BadRequest, NotAcceptable

HEADERS = {
    "Cache-Control": "private, no-store",
    "Vary": "Authorization, Cookie, Accept",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Way:
    """What a retrieve needs: both ways to the archive and the address of the service."""

    orthanc: Orthanc
    upstream: Upstream
    base: str


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


class Relay(StreamingResponse):
    """A streamed answer that lets go of the archive's connection however it ends."""

    def __init__(self, body: AsyncIterator[bytes], opened: Opened, media_type: str) -> None:
        """`opened` is the first upstream answer, which the body reads."""
        super().__init__(body, media_type=media_type, headers=HEADERS)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._opened.close()


async def single(way: Way, piece: Piece) -> Response:
    """One piece as the whole body."""
    content = await _content(way, piece)
    if isinstance(content, bytes):
        return Response(content, media_type=piece.media_type, headers=HEADERS)
    return Relay(content.chunks(), content, piece.media_type)


async def multipart(way: Way, media_type: str, pieces: Sequence[Piece]) -> Response:
    """The pieces as the parts of a multipart/related body (RFC 2387)."""
    mark = mime.boundary()
    # The first part is fetched before a word is said, so that its failure can still be told as a status.
    content = await _content(way, pieces[0])
    body = _parts(way, mark, pieces, content)
    kind = f'multipart/related; type="{media_type}"; boundary={mark}'
    if isinstance(content, bytes):
        return StreamingResponse(body, media_type=kind, headers=HEADERS)
    return Relay(body, content, kind)


async def _parts(way: Way, mark: str, pieces: Sequence[Piece], first: bytes | Opened) -> AsyncIterator[bytes]:
    for number, piece in enumerate(pieces):
        content = await _content(way, piece) if number else first
        yield mime.part_head(mark, piece.media_type, piece.location)
        if isinstance(content, bytes):
            yield content
        else:
            async for chunk in content.chunks():
                yield chunk
        yield b"\r\n"
    yield mime.tail(mark)


async def _content(way: Way, piece: Piece) -> bytes | Opened:
    match piece.source:
        case bytes():
            return piece.source
        case str():
            return await way.upstream.open(piece.source, accept=piece.media_type.partition(";")[0])
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
