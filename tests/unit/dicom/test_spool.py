"""A spool holds what was written, without a name; uploads keep a pace and a number."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect

from app.dicom import spool
from app.dicom.spool import BLOCK, Content, Gate, Pace, Spool, paced
from app.errors import BadRequest, TooSlow, Unavailable


def test_what_was_written_is_read_back_in_any_piece(tmp_path: Path) -> None:
    octets = os.urandom(3 * BLOCK + 17)
    held = Spool(tmp_path / "spool")

    async def write() -> None:
        for at in range(0, len(octets), 100_000):
            await held.write(octets[at : at + 100_000])
        await held.flush()

    asyncio.run(write())
    assert held.size == len(octets)
    assert b"".join(Content(held, 5, BLOCK + 9)) == octets[5 : BLOCK + 14]
    content = Content(held, 100, 50)
    assert (content.piece(40, 50), content.piece(60, 5)) == (octets[140:150], b"")
    # Nobody finds it, not even while it is open.
    assert list((tmp_path / "spool").iterdir()) == []
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    held.close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        Spool(tmp_path / "file")


def test_what_will_not_fit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    spool.check_room(tmp_path, 1)
    spool.check_room(None, 1 << 60)
    with pytest.raises(Unavailable):
        spool.check_room(tmp_path, 1 << 60)


async def trickle(chunks: int, pause: float, ending: Exception | None = None) -> AsyncIterator[bytes]:
    for _ in range(chunks):
        await asyncio.sleep(pause)
        yield b"x" * 10
    if ending is not None:
        raise ending


async def taken(body: AsyncIterator[bytes], pace: Pace) -> bytes:
    return b"".join([chunk async for chunk in paced(body, pace)])


def test_an_upload_that_keeps_the_pace_is_taken() -> None:
    assert asyncio.run(taken(trickle(5, 0), Pace(idle=5, slowest=1))) == b"x" * 50


@pytest.mark.parametrize(("pause", "pace"), [(5.0, Pace(idle=0.05, slowest=1)), (0.02, Pace(idle=0.1, slowest=10_000))])
def test_an_upload_that_stops_or_crawls_ends(pause: float, pace: Pace) -> None:
    with pytest.raises(TooSlow):
        asyncio.run(taken(trickle(1000, pause), pace))


def test_an_upload_that_breaks_off_is_a_bad_request() -> None:
    with pytest.raises(BadRequest):
        asyncio.run(taken(trickle(1, 0, ClientDisconnect()), Pace()))


def test_uploads_are_counted_in_all_and_under_each_grant() -> None:
    gate = Gate(together=3, each=2)
    with gate.passed("a"), gate.passed("a"):
        with pytest.raises(Unavailable), gate.passed("a"):
            pass
        with gate.passed("b"), pytest.raises(Unavailable), gate.passed("c"):
            pass
    with gate.passed("a"), gate.passed("b"), gate.passed("c"):
        pass
