"""What is on its way from the archive: each thing once, for all who wait for it, and then in the cache."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import structlog
from starlette.concurrency import run_in_threadpool

from app.dicom.cache import WHOLE, Cache, Entry, Large

log = structlog.get_logger(__name__)

LARGEST: Final = 16 << 20
"""Things up to this size pass through memory on their way into the cache."""
LARGE: Final = 2
"""So many large things are read into memory side by side."""
HELD: Final = 64 << 20
"""So many bytes wait in memory to be written into the cache; what comes beyond is not kept."""
WAITING: Final = 24
"""So many things are fetched ahead of being asked for."""
AHEAD_THREADS: Final = 2
ERRANDS: Final = 4
"""So many launches are prepared for at a time."""


class Flights:
    """The way into the cache, of one process."""

    def __init__(self, cache: Cache) -> None:
        """Starts no thread before it is used."""
        self.cache = cache
        self.largest = min(LARGEST, cache.limit // 8) if cache.limit else WHOLE
        self.roomy = asyncio.Semaphore(LARGE)
        self._lock = threading.Lock()
        self._asked: dict[str, asyncio.Task[bytes | None]] = {}
        self._ahead: dict[str, Future[bytes | None]] = {}
        self._writing: dict[str, bytes] = {}
        self._held = self._errands = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cache-writer")
        self._fetchers = ThreadPoolExecutor(AHEAD_THREADS, thread_name_prefix="cache-ahead")

    def close(self) -> None:
        """Finish what is being written; fetch nothing more."""
        self._fetchers.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)

    async def get(self, name: str, fetch: Callable[[], Awaitable[bytes | None]]) -> Entry | None:
        """The entry, else what `fetch` brings, which is then kept; None when that is too large for memory."""
        found = self._writing.get(name) or self.cache.at_once(name)
        if found is None and self.cache.has(name):
            found = await run_in_threadpool(self.cache.get, name)
        if found is None and (early := self._ahead.get(name)) is not None:
            found = await self._early(early)
        return await self._fetched(name, fetch) if found is None else found

    async def _early(self, early: Future[bytes | None]) -> bytes | None:
        """What is being fetched ahead, unless it has not begun or fails."""
        if early.cancel():
            return None
        try:
            return await asyncio.shield(asyncio.wrap_future(early))
        except Exception:  # noqa: BLE001 - whoever asks now gets the failure of their own attempt
            return None

    async def _fetched(self, name: str, fetch: Callable[[], Awaitable[bytes | None]]) -> Entry | None:
        task = self._asked.get(name)
        if task is None:
            task = self._asked[name] = asyncio.ensure_future(self._flight(name, fetch))
            task.add_done_callback(lambda ended: self._landed(name, ended))
        # It goes on for the others, and for the cache, when one who waits has gone.
        content = await asyncio.shield(task)
        if content is None or len(content) <= WHOLE:
            return content
        await run_in_threadpool(self._settle)
        kept = await run_in_threadpool(self.cache.get, name)
        return kept if isinstance(kept, Large) else content

    async def _flight(self, name: str, fetch: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        content = await fetch()
        if content is not None:
            self.keep(name, content)
        return content

    def _landed(self, name: str, task: asyncio.Task[bytes | None]) -> None:
        self._asked.pop(name, None)
        if not task.cancelled():
            # Looked at, so that a failure nobody waits for any more is not reported as lost.
            task.exception()

    def keep(self, name: str, content: bytes) -> None:
        """Write it into the cache, soon."""
        if not self.cache.limit or name in self._writing:
            return
        with self._lock:
            if self._held + len(content) > HELD:
                return
            self._held += len(content)
            self._writing[name] = content
        self._writer.submit(self._write, name, content)

    def _write(self, name: str, content: bytes) -> None:
        try:
            self.cache.put(name, content)
        finally:
            with self._lock:
                self._held -= len(content)
                self._writing.pop(name, None)

    def _settle(self) -> None:
        self._writer.submit(int).result()

    def soon(self, work: Callable[[], None]) -> None:
        """Do something in a thread that nobody waits for; when much is under way already it is left out."""
        with self._lock:
            if not self.cache.limit or self._errands >= ERRANDS:
                return
            self._errands += 1
        self._fetchers.submit(self._errand, work)

    def _errand(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whoever asks later gets the failure of their own attempt
            log.warning("nothing fetched ahead", error=type(error).__name__)
        finally:
            with self._lock:
                self._errands -= 1

    def ahead(self, name: str, fetch: Callable[[], bytes]) -> bool:
        """Fetch what will be asked for soon, in a thread; whether there is room for it."""
        if not self.cache.limit or name in self._asked or name in self._ahead or self.cache.has(name):
            return True
        with self._lock:
            if len(self._ahead) >= WAITING:
                return False
            future = self._ahead[name] = self._fetchers.submit(self._ahead_of, name, fetch)
        future.add_done_callback(lambda _: self._ahead.pop(name, None))
        return True

    def _ahead_of(self, name: str, fetch: Callable[[], bytes]) -> bytes | None:
        content = fetch()
        self.keep(name, content)
        return content
