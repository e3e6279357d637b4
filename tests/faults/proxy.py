"""A network that fails on demand: a TCP proxy on loopback that passes, cuts, stalls, slows or breaks off."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
PIECE = 1400
"""What a slow network carries at once: about one packet."""
AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER so that closing a socket resets the connection, as a cable that is pulled does in the end."""


@dataclass
class _State:
    """How the network is now; only the proxy's own thread touches it."""

    refused: bool = False
    delay: float = 0.0
    left: int | None = None
    """How many bytes of answers pass until their connection breaks."""
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    word: bytes = b""
    """Answers to requests that say this are kept back."""
    kept: int = 0
    passing: asyncio.Event = field(default_factory=asyncio.Event)
    said: bytes | None = None
    """What every request is answered with, instead of what stands behind."""
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass
class _Connection:
    """One connection: whether its next answer is kept back."""

    kept: bool = False


class Proxy:
    """Listens on a free loopback port and passes what it gets to another; its methods change the network at once."""

    def __init__(self, target: int) -> None:
        """`target` is the loopback port behind."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._state = _State()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._run, name="proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    # --- the network ---------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Everything passes again; what was stalled goes on, and who was told nonsense must call anew."""

        def now() -> None:
            if self._state.said is not None:
                self._reset()
            self._restore()

        self._change(now)

    def cut(self) -> None:
        """Reset every connection, and every new one, until the network is restored."""

        def now() -> None:
            self._state.refused = True
            self._reset()

        self._change(now)

    def stall(self) -> None:
        """Keep connections open and carry nothing: nobody learns that something is wrong."""
        self._change(self._state.flowing.clear)

    def slow(self, delay: float) -> None:
        """Carry packet by packet, each `delay` seconds late."""

        def now() -> None:
            self._state.delay = delay

        self._change(now)

    def break_after(self, count: int) -> None:
        """Let so many bytes of answers pass, then reset that one connection in the midst of its answer."""

        def now() -> None:
            self._state.left = count

        self._change(now)

    def keep_back(self, word: bytes) -> None:
        """Hand requests that say this over, and keep their answers until the network is restored."""

        def now() -> None:
            self._state.word = word
            self._state.passing.clear()

        self._change(now)

    def say(self, status: str, body: bytes, media_type: str = "application/json") -> None:
        """Answer every request on new connections with this; whoever stands behind hears nothing of it."""

        def now() -> None:
            head = f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
            self._state.said = head.encode() + body
            self._reset()

        self._change(now)

    @property
    def keeps(self) -> int:
        """How many answers have been kept back so far."""
        return self._state.kept

    def _change(self, work: Callable[[], None]) -> None:
        done = threading.Event()

        def now() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(now)
        assert done.wait(10), "the proxy's thread does not answer"

    # --- its own thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._restore()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener))
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._close())
            self._loop.close()

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._restore()
        self._reset()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)

    def _restore(self) -> None:
        self._state.refused, self._state.delay, self._state.left = False, 0.0, None
        self._state.word, self._state.said = b"", None
        self._state.passing.set()
        self._state.flowing.set()

    def _reset(self) -> None:
        for writer in list(self._state.writers):
            _abort(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)
        if self._state.refused:
            _abort(writer)
            return
        if self._state.said is not None:
            self._state.writers.add(writer)
            await self._talk(reader, writer)
            self._state.writers.discard(writer)
            return
        try:
            behind, to = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _abort(writer)
            return
        pair = {writer, to}
        self._state.writers |= pair
        connection = _Connection()
        pumps = [asyncio.create_task(self._pump(reader, to, connection, answers=False))]
        pumps.append(asyncio.create_task(self._pump(behind, writer, connection, answers=True)))
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for one in pumps:
            one.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._state.writers -= pair
        for one in pair:
            one.close()
            with suppress(OSError):
                await one.wait_closed()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, connection: _Connection, *, answers: bool
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if answers and connection.kept:
                    self._state.kept += 1
                    await self._state.passing.wait()
                    connection.kept = False
                connection.kept |= not answers and bool(self._state.word) and self._state.word in data
                for piece in self._pieces(data):
                    if self._state.delay:
                        await asyncio.sleep(self._state.delay)
                    await self._state.flowing.wait()
                    if answers and self._breaks(len(piece)):
                        _abort(sink)
                        return
                    sink.write(piece)
                    await sink.drain()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while (said := self._state.said) is not None:
                head = await reader.readuntil(b"\r\n\r\n")
                if found := LENGTH.search(head):
                    await reader.readexactly(int(found[1]))
                writer.write(said)
                await writer.drain()
        _abort(writer)

    def _pieces(self, data: bytes) -> list[bytes]:
        size = PIECE if self._state.delay or self._state.left is not None else len(data)
        return [data[at : at + size] for at in range(0, len(data), size)]

    def _breaks(self, size: int) -> bool:
        if self._state.left is None:
            return False
        self._state.left -= size
        if self._state.left > 0:
            return False
        self._state.left = None
        return True


def _abort(writer: asyncio.StreamWriter) -> None:
    held = writer.get_extra_info("socket")
    if held is not None and held.fileno() >= 0:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()
