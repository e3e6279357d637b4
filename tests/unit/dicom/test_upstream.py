"""What the archive streams reaches its reader whole, and a slow reader keeps no connection from others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from app.dicom import upstream
from app.dicom.upstream import AHEAD, CHUNK, Upstream
from app.errors import ArchiveUnavailable

CONTENT = bytes(range(256)) * (24 * AHEAD // 256)
"""More than the system holds between two ends of a connection."""
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def sends(content: bytes, announced: int, done: asyncio.Event | None = None) -> Handler:
    """An archive that answers every request with these bytes, and says when it has got rid of them."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {announced}\r\n\r\n".encode() + content)
        try:
            await writer.drain()
            if done is not None:
                done.set()
        except ConnectionError:
            pass
        finally:
            writer.close()

    return answer


async def reading(handler: Handler, work: Callable[[Upstream], Awaitable[None]], spool: Path | None = None) -> None:
    server = await asyncio.start_server(handler, "127.0.0.1", 0, limit=CHUNK)
    async with server:
        pool = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", spool=spool)
        try:
            await work(pool)
        finally:
            await pool.close()


def test_what_is_streamed_arrives_whole() -> None:
    async def work(pool: Upstream) -> None:
        opened = await pool.open("/instances/1/file")
        assert opened.length == len(CONTENT)
        assert b"".join([chunk async for chunk in opened.chunks()]) == CONTENT
        assert await (await pool.open("/instances/1/file")).read() == CONTENT

    asyncio.run(reading(sends(CONTENT, len(CONTENT)), work))


def test_for_a_reader_that_waits_the_rest_is_taken_from_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "PATIENCE", 0.05)

    async def whole() -> None:
        done = asyncio.Event()

        async def work(pool: Upstream) -> None:
            chunks = (await pool.open("/instances/1/file")).chunks()
            received = [await anext(chunks)]
            async with asyncio.timeout(10):
                await done.wait()
            # It has no name, so that nothing of it stays whatever happens.
            assert list((tmp_path / "spool").iterdir()) == []
            received += [chunk async for chunk in chunks]
            assert b"".join(received) == CONTENT

        await reading(sends(CONTENT, len(CONTENT), done), work, tmp_path / "spool")

    asyncio.run(whole())


def test_beyond_what_may_be_spooled_the_archive_waits_for_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "PATIENCE", 0.01)
    monkeypatch.setattr(upstream, "SPOOLED", CHUNK)

    async def work(pool: Upstream) -> None:
        received = bytearray()
        async for chunk in (await pool.open("/instances/1/file")).chunks():
            received += chunk
            if len(received) < 4 * CHUNK:
                await asyncio.sleep(0.05)
        assert received == CONTENT

    asyncio.run(reading(sends(CONTENT, len(CONTENT)), work))


def test_a_stream_that_breaks_off_is_no_whole_answer() -> None:
    async def work(pool: Upstream) -> None:
        with pytest.raises(ArchiveUnavailable):
            async for _ in (await pool.open("/instances/1/file")).chunks():
                pass
        with pytest.raises(ArchiveUnavailable):
            await (await pool.open("/instances/1/file")).read()

    asyncio.run(reading(sends(CONTENT[: 2 * AHEAD], len(CONTENT)), work))
