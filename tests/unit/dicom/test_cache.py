"""What the cache gives back is what was put into it, whatever happened to its files in between."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.dicom import cache as caching
from app.dicom.cache import HEAD, Cache, Large
from tests.processes import wait_until

MEGABYTE = 1 << 20


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 64 * MEGABYTE)


def files(cache: Cache) -> list[Path]:
    return sorted(path for path in cache.folder.rglob("*") if path.is_file())


def another(cache: Cache) -> Cache:
    """What a second process, or the next start, has of the same folder."""
    return Cache(cache.folder, cache.limit)


def test_what_was_put_is_found_by_its_name_alone(cache: Cache) -> None:
    cache.put("a", b"one")
    cache.put("b", b"")
    assert (cache.get("a"), cache.at_once("a"), cache.get("b")) == (b"one", b"one", b"")
    assert (cache.get("c"), cache.at_once("c")) == (None, None)
    assert cache.has("a")
    assert not cache.has("c")


def test_without_a_limit_nothing_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 0)
    cache.put("a", b"one")
    assert cache.get("a") is None
    assert not cache.folder.exists()


def test_another_process_finds_it_and_reads_it_whole_before_it_believes_it(cache: Cache) -> None:
    cache.put("a", b"one")
    other = another(cache)
    assert other.at_once("a") is None
    assert other.get("a") == b"one"
    assert other.at_once("a") == b"one"


def test_only_the_owner_may_look_into_it(cache: Cache) -> None:
    cache.put("a", b"one")
    (path,) = files(cache)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, cache.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("size", [100, 3 * MEGABYTE])
@pytest.mark.parametrize("at", [0, 5, 9, 20, HEAD.size + 50, -1])
def test_a_changed_byte_is_noticed_and_the_file_removed(cache: Cache, size: int, at: int) -> None:
    cache.put("a", bytes(size))
    (path,) = files(cache)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert another(cache).get("a") is None
    assert files(cache) == []


@pytest.mark.parametrize("length", [0, 10, HEAD.size, HEAD.size + 99])
def test_a_cut_file_is_noticed_even_by_who_wrote_it(cache: Cache, length: int) -> None:
    cache.put("a", bytes(100))
    (path,) = files(cache)
    os.truncate(path, length)
    assert cache.at_once("a") is None
    assert cache.get("a") is None
    cache.put("a", b"again")
    assert cache.get("a") == b"again"


def test_a_file_under_another_name_is_not_taken_for_it(cache: Cache) -> None:
    cache.put("a", b"one")
    cache.put("b", b"two")
    one, two = (cache._path(name) for name in "ab")
    two.unlink()
    one.rename(two)
    assert another(cache).get("b") is None


def test_a_large_entry_is_read_piece_by_piece(cache: Cache) -> None:
    content = os.urandom(3 * MEGABYTE)
    cache.put("a", content)
    for found in (cache.get("a"), another(cache).get("a"), cache.at_once("a")):
        assert isinstance(found, Large)
        assert (found.read(0, 10), found.read(2 * MEGABYTE, 9 * MEGABYTE)) == (content[:10], content[2 * MEGABYTE :])
        found.close()
        found.close()


def test_a_large_entry_can_still_be_read_when_it_was_removed_meanwhile(cache: Cache) -> None:
    cache.put("a", bytes(3 * MEGABYTE))
    found = cache.get("a")
    assert isinstance(found, Large)
    files(cache)[0].unlink()
    assert found.read(2 * MEGABYTE, 10) == bytes(10)
    found.close()


def test_what_was_unused_for_longest_makes_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 4 * MEGABYTE)
    for number in range(16):
        cache.put(str(number), bytes(200_000))
        long_ago = time.time() - 1000 + number
        os.utime(cache._path(str(number)), (long_ago, long_ago))
    assert cache.get("0") == bytes(200_000)
    for number in range(16, 28):
        cache.put(str(number), bytes(200_000))
    cache.make_room()
    size = sum(path.stat().st_size for path in files(cache))
    assert 2 * MEGABYTE < size <= 4 * MEGABYTE
    assert cache.has("0")
    assert not cache.has("1")
    assert cache.has("27")


def test_the_limit_holds_for_what_a_former_process_left(tmp_path: Path) -> None:
    former = Cache(tmp_path / "cache", 64 * MEGABYTE)
    for number in range(20):
        former.put(str(number), bytes(MEGABYTE))
    Cache(former.folder, 10 * MEGABYTE).put("new", b"new")
    assert sum(path.stat().st_size for path in files(former)) <= 10 * MEGABYTE


def test_an_entry_that_would_fill_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 4 * MEGABYTE)
    cache.put("a", bytes(MEGABYTE))
    assert cache.get("a") is None


def test_a_folder_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    cache = Cache(tmp_path / "cache", MEGABYTE)
    cache.put("a", b"one")
    assert cache.get("a") is None


def test_an_entry_in_use_is_used_lately(cache: Cache) -> None:
    cache.put("a", b"one")
    (path,) = files(cache)
    os.utime(path, (1000, path.stat().st_mtime))
    assert another(cache).get("a") == b"one"
    assert path.stat().st_atime > time.time() - 60


WRITER = """
import sys, os
from pathlib import Path
from app.dicom.cache import Cache
cache = Cache(Path(sys.argv[1]), 256 << 20)
print("ready", flush=True)
while True:
    for number in range(40):
        cache.put(str(number), bytes([number]) * (200_000 + number))
"""


@pytest.fixture
def writers(cache: Cache) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen([sys.executable, "-c", WRITER, str(cache.folder)], stdout=-1) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def test_two_processes_write_the_same_entries_and_die_at_any_moment(
    cache: Cache, writers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Cache(cache.folder, 256 * MEGABYTE)
    wait_until(lambda: reader.get("39"), "the last entry")
    for process in writers:
        for number in range(40):
            assert another(reader).get(str(number)) in {None, bytes([number]) * (200_000 + number)}
        process.send_signal(signal.SIGKILL)
        process.wait()
    for number in range(40):
        assert another(reader).get(str(number)) == bytes([number]) * (200_000 + number)
    # What was being written when they died is removed, once it is old enough to be nobody's.
    traces = [path for path in files(reader) if path.name.startswith(".")]
    monkeypatch.setattr(caching, "TRACE_SECONDS", -1)
    reader.make_room()
    assert not any(path.exists() for path in traces)
    assert len(files(reader)) == 40


def test_a_half_written_entry_is_never_seen(cache: Cache) -> None:
    """A process that dies between its first byte and its last leaves the former entry, or none."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom app.dicom import cache\n"
        "def dies(file, content):\n    os.write(file, content[: len(content) // 2]); os.kill(os.getpid(), 9)\n"
        "cache._write_all = dies\n"
        "cache.Cache(Path(sys.argv[1]), 64 << 20).put('a', b'x' * 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(cache.folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert cache.get("a") is None
    assert len(files(cache)) == 1
    cache.put("a", b"one")
    assert another(cache).get("a") == b"one"
