"""Where the body of an upload waits until it is stored: one nameless file on disk, whatever its size (RFC 9110 8.6)."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.errors import BadRequest, TooSlow, Unavailable

BLOCK = 1 << 20
RESERVE = 64 << 20
"""So much of the disk is left to others."""
FULL_SECONDS = 60
BUSY_SECONDS = 5


class Spool:
    """One file that holds what came. Close it after use."""

    def __init__(self, folder: Path | None = None) -> None:
        """Without a folder the system's one for temporary files is used."""
        try:
            if folder is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Without a name, the file ends with the process, however that ends.
            self._file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed with the spool
        except OSError as error:
            raise Unavailable("there is no place to receive this", retry_after=FULL_SECONDS) from error
        self._pending = bytearray()
        self.size = 0

    async def write(self, octets: bytes | bytearray) -> None:
        """Add at the end; in a thread, since a disk may make one wait."""
        self._pending += octets
        self.size += len(octets)
        if len(self._pending) >= BLOCK:
            await self.flush()

    async def flush(self) -> None:
        """Bring what was written to where it can be read."""
        pending, self._pending = self._pending, bytearray()
        await run_in_threadpool(self._write, memoryview(pending))

    def _write(self, octets: memoryview) -> None:
        try:
            while octets:
                octets = octets[self._file.write(octets) :]
        except OSError as error:
            raise Unavailable("there is no room to receive this", retry_after=FULL_SECONDS) from error

    def piece(self, at: int, size: int) -> bytes:
        """Bytes that are written; fewer at the end of the file."""
        return os.pread(self._file.fileno(), size, at)

    def close(self) -> None:
        """Let go of the file, which ends it."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Content:
    """A stretch of a spool. Iterating reads it block by block, as often as wanted."""

    spool: Spool
    at: int
    size: int

    def piece(self, at: int, size: int) -> bytes:
        """Bytes from `at` within the stretch; fewer at its end."""
        return self.spool.piece(self.at + at, max(min(size, self.size - at), 0))

    def __iter__(self) -> Iterator[bytes]:
        """The whole stretch, in blocks."""
        for at in range(0, self.size, BLOCK):
            yield self.piece(at, BLOCK)


def check_room(folder: Path | None, wanted: int) -> None:
    """Refuse what will not fit before it is sent."""
    if folder is None or not folder.exists():
        return
    held = os.statvfs(folder)
    if held.f_bavail * held.f_frsize < wanted + RESERVE:
        raise Unavailable("there is no room to receive this", retry_after=FULL_SECONDS)


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow an upload may be."""

    idle: float = 30.0
    """Seconds without a byte, and what is given beyond the pace."""
    slowest: int = 16 << 10
    """Bytes per second on the whole."""


async def paced(body: AsyncIterator[bytes], pace: Pace) -> AsyncIterator[bytes]:
    """The chunks of a body; one that stops, crawls or breaks off raises."""
    began, received = time.monotonic(), 0
    while True:
        late = began + pace.idle + received / pace.slowest - time.monotonic()
        try:
            async with asyncio.timeout(max(min(late, pace.idle), 0)):
                chunk = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TooSlow("the upload is too slow") from None
        except ClientDisconnect:
            raise BadRequest("the upload broke off") from None
        received += len(chunk)
        yield chunk


class Gate:
    """How many uploads are received and stored at the same time. Used in one event loop only."""

    def __init__(self, together: int = 8, each: int = 4) -> None:
        """`together` in all, `each` under one grant."""
        self._together, self._each = together, each
        self._under: Counter[str] = Counter()

    @contextmanager
    def passed(self, grant: str) -> Generator[None]:
        """While an upload goes on; raises when there are too many."""
        if self._under.total() >= self._together or self._under[grant] >= self._each:
            raise Unavailable("too many uploads at the same time", retry_after=BUSY_SECONDS)
        self._under[grant] += 1
        try:
            yield
        finally:
            self._under[grant] -= 1
            self._under += Counter()
