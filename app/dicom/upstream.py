"""Streams from the archive: a small aiohttp pool that asks for bytes as they are (RFC 9110 section 12.5.3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp

from app.dicom.orthanc import refuse
from app.errors import ArchiveUnavailable

CONNECTIONS = 5
"""With those of the REST client fewer than Orthanc's ten threads."""
CHUNK = 1 << 16
TIMEOUT = aiohttp.ClientTimeout(total=None, connect=30, sock_connect=5, sock_read=60)


class Opened:
    """An answer whose status was good and whose body is still to come. Close it, read or not."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        """Takes the response over."""
        self._response = response

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body. If the archive breaks off, so does the reader."""
        try:
            async for chunk in self._response.content.iter_chunked(CHUNK):
                yield chunk
            self._response.release()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the connection; safe to repeat."""
        self._response.close()


class Upstream:
    """The connection pool of one event loop."""

    def __init__(self, url: str, username: str = "", password: str = "") -> None:
        """`url` is Orthanc's REST root; paths are only ever built by us."""
        self._url = url
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
        return Opened(response)

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
