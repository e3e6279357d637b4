"""Streams from the archive: a small aiohttp pool that asks for bytes as they are (RFC 9110 section 12.5.3)."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import aiohttp
from starlette.concurrency import run_in_threadpool

from app.dicom.orthanc import refuse
from app.errors import ArchiveUnavailable

CONNECTIONS = 4
"""With those of the REST client fewer than Orthanc's ten threads."""
CHUNK = 1 << 16
AHEAD = 1 << 20
"""So much of an answer waits in memory for its reader."""
PATIENCE = 0.5
"""A reader that takes nothing for so many seconds is slow."""
SPOOLED = 256 << 20
"""So much waits on disk for a slow reader; of a larger object the rest comes at the reader's own pace."""
BYTES, VALUE = ("/file", "/raw"), "/content/"
TEXTS = frozenset({"application/json", "text/html", "text/plain"})
TIMEOUT = aiohttp.ClientTimeout(total=None, connect=30, sock_connect=5, sock_read=60)


class Opened:
    """An answer whose status was good and whose body is still to come. Close it, read or not."""

    def __init__(self, response: aiohttp.ClientResponse, spool: Path | None = None) -> None:
        """Takes the response over; what a slow reader leaves waiting is spooled into the folder."""
        self._response, self._spool = response, spool
        self._pump: Pump | None = None
        self.length = response.content_length
        """How many bytes there are, if the archive told."""

    async def read(self) -> bytes:
        """The whole body, for what is small."""
        try:
            return await self._response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            failed = _let_go(error)
        finally:
            self.close()
        raise ArchiveUnavailable(f"the archive broke off ({failed})")

    def begin(self) -> Pump:
        """Read ahead from now on: what waits unread for its turn would keep a connection from everybody."""
        if self._pump is None:
            self._pump = Pump(self._response, self._spool)
        return self._pump

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body. If the archive breaks off, so does the reader."""
        try:
            async for chunk in self.begin().chunks():
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the connection; safe to repeat."""
        if self._pump is not None:
            self._pump.close()
        self._response.close()


class Pump:
    """Reads ahead of its reader: a little in memory, and when the reader is slow the rest into a file.

    The archive has few connections, and readers may be slow for hours.
    """

    def __init__(self, response: aiohttp.ClientResponse, spool: Path | None) -> None:
        """Reads at once; must be closed."""
        self._response, self._folder = response, spool
        self._ready: deque[bytes] = deque()
        self._waiting = self._written = self._taken = 0
        self._file: IO[bytes] | None = None
        self._more, self._room = asyncio.Event(), asyncio.Event()
        self._failed = ""
        self._task = asyncio.create_task(self._run())

    async def chunks(self) -> AsyncIterator[bytes]:
        """What was read, in order."""
        while (chunk := await self._next()) is not None:
            yield chunk

    def close(self) -> None:
        """Stop reading and let go of the file; safe to repeat."""
        self._task.cancel()
        if self._file is not None:
            self._file.close()

    async def _next(self) -> bytes | None:
        while True:
            if self._ready:
                chunk = self._ready.popleft()
                self._waiting -= len(chunk)
                self._room.set()
                return chunk
            if self._file is not None and self._taken < self._written:
                chunk = await run_in_threadpool(os.pread, self._file.fileno(), CHUNK, self._taken)
                self._taken += len(chunk)
                self._room.set()
                return chunk
            if self._task.done():
                if self._failed:
                    raise ArchiveUnavailable(f"the archive broke off ({self._failed})")
                return None
            self._more.clear()
            await self._more.wait()

    async def _run(self) -> None:
        try:
            async for chunk in self._response.content.iter_chunked(CHUNK):
                await self._take(chunk)
            self._response.release()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._failed = _let_go(error)
        finally:
            # The reader looks once more when the task is over.
            asyncio.get_running_loop().call_soon(self._more.set)

    async def _take(self, chunk: bytes) -> None:
        if self._file is None and self._waiting >= AHEAD and not await self._has_room():
            if self._folder is not None:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with the pump
        if self._file is None:
            self._ready.append(chunk)
            self._waiting += len(chunk)
        else:
            while self._written - self._taken >= SPOOLED:
                self._room.clear()
                await self._room.wait()
            await run_in_threadpool(os.pwrite, self._file.fileno(), chunk, self._written)
            self._written += len(chunk)
        self._more.set()

    async def _has_room(self) -> bool:
        self._room.clear()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._room.wait()
        except TimeoutError:
            return False
        return True


def _is_no_content(path: str, response: aiohttp.ClientResponse) -> bool:
    if path.endswith(BYTES) and response.content_length == 0:
        return True
    return response.content_type in TEXTS and (path.endswith(BYTES) or VALUE in path)


def _let_go(error: BaseException) -> str:
    """What went wrong. The stream keeps its error, and the error all that was read: megabytes until the collector."""
    error.__traceback__ = None
    return type(error).__name__


class Upstream:
    """The connection pool of one event loop."""

    def __init__(self, url: str, username: str = "", password: str = "", spool: Path | None = None) -> None:
        """`url` is Orthanc's REST root; paths are only ever built by us. `spool` is a folder for what must wait."""
        self._url, self._spool = url, spool
        # With gzip Orthanc compresses every answer anew, which costs ten times the transfer.
        self._headers = {"Accept-Encoding": "identity"}
        if username:
            self._headers["Authorization"] = aiohttp.encode_basic_auth(username, password)
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self, path: str, accept: str = "*/*") -> Opened:
        """GET; a status that is not good raises before anything is read."""
        try:
            response = await self._pool().get(self._url + path, headers={"Accept": accept})
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ArchiveUnavailable(f"the archive does not answer ({type(error).__name__})") from error
        if response.status != 200:
            response.close()
            refuse(response.status)
            raise ArchiveUnavailable(f"the archive answered {response.status}")
        if _is_no_content(path, response):
            # A page of some proxy between, for example: it would be kept as if it were an image.
            response.close()
            raise ArchiveUnavailable("the archive answered something that is no image")
        return Opened(response, self._spool)

    async def close(self) -> None:
        """Let go of every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _pool(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            self._loop = loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=0.5),
                headers=self._headers,
                timeout=TIMEOUT,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session
