"""A bounded store of bytes on disk that several processes share, each entry named by the content it was made from.

A name never stands for other bytes, so nothing has to be told when the archive changes: what is gone or replaced is
asked for by another name. Entries appear whole or not at all, and a file that is not what was written is not used.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

PROGRAM: Final = version("isocenter")
"""Part of the name of all that is made here: another version may make it otherwise."""
HEAD: Final = struct.Struct("<4sIQ16s")
"""Mark, checksum of the content, its length, and what the name was made from."""
MARK: Final = b"ISC1"
WHOLE = 2 << 20
"""Entries up to this size are read in one piece."""
KEPT = 0.9
"""So much of the limit is left in use when room is made."""
SHARE = 16
"""A process looks at the folder when it has written so small a part of the limit."""
LARGEST = 8
"""An entry takes at most this part of the limit."""
TOUCH_SECONDS = 60.0
"""An entry's last use is written at most this often."""
TRACE_SECONDS = 600.0
"""An unfinished file that old belongs to a process that died."""
CHECKED = 100_000
NOT_NOW: Final = getattr(os, "RWF_NOWAIT", 0)


@dataclass(slots=True)
class Large:
    """An entry too large for one piece, open for reading. Close it after use."""

    file: int
    length: int

    def read(self, start: int, size: int) -> bytes:
        """Bytes from `start` on; fewer only at the end."""
        return os.pread(self.file, min(size, self.length - start), HEAD.size + start)

    def close(self) -> None:
        """Let go of the file; safe to repeat."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


Entry = bytes | Large


class Cache:
    """The entries of one folder. Safe to share between threads; a folder that fails costs speed, never an answer."""

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit` in bytes; 0 keeps nothing."""
        self.folder, self.limit = folder, limit
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        self._checked: OrderedDict[str, tuple[int, int, int]] = OrderedDict()
        self._written = limit

    def get(self, name: str) -> Entry | None:
        """The entry. May wait for the disk."""
        return self._opened(name, at_once=False) if self.limit else None

    def at_once(self, name: str) -> Entry | None:
        """The entry, if it is in memory and known to be whole: for callers that cannot wait."""
        return self._opened(name, at_once=True) if self.limit and NOT_NOW else None

    def has(self, name: str) -> bool:
        """Whether there is a file for this name."""
        return bool(self.limit) and self._path(name).exists()

    def put(self, name: str, content: bytes) -> None:
        """Keep an entry, and make room for it."""
        if not self.limit or len(content) > self.limit // LARGEST:
            return
        try:
            self._write(name, content)
            self._written += len(content) + HEAD.size
            if self._written >= self.limit // SHARE:
                self.make_room()
        except OSError as error:
            log.warning("cache not written", error=type(error).__name__, number=error.errno)

    def make_room(self) -> None:
        """Remove what was unused for longest until the rest is well within the limit."""
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            self._written = 0
            found = sorted(_files(self.folder))
            excess = sum(size for _, size, _ in found)
            if excess <= self.limit:
                return
            excess -= int(self.limit * KEPT)
            for _, size, path in found:
                if excess <= 0:
                    return
                # Another process may have removed it.
                with suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108 - many
                excess -= size
        finally:
            self._sweeping.release()

    def _path(self, name: str) -> Path:
        digest = hashlib.blake2b(name.encode(), digest_size=20).hexdigest()
        return self.folder / digest[:2] / digest[2:]

    def _opened(self, name: str, *, at_once: bool) -> Entry | None:
        path = str(self._path(name))
        known = self._checked.get(path)
        if at_once and known is None:
            return None
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        keep_open = False
        try:
            found = self._read(file, path, name, at_once=at_once)
            keep_open = isinstance(found, Large)
        except OSError:
            return None
        else:
            return found
        finally:
            if not keep_open:
                os.close(file)

    def _read(self, file: int, path: str, name: str, *, at_once: bool) -> Entry | None:
        status = os.fstat(file)
        identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._checked.get(path) != identity:
            if at_once or not _is_whole(file, status.st_size, name):
                self._refuse(path, at_once=at_once)
                return None
            self._remember(path, identity)
        if time.time() - status.st_atime > TOUCH_SECONDS:
            os.utime(file, ns=(time.time_ns(), status.st_mtime_ns))
        length = status.st_size - HEAD.size
        if length > WHOLE:
            return Large(file, length)
        if not at_once:
            content = os.pread(file, length, HEAD.size)
            return content if len(content) == length else None
        buffer = bytearray(length)
        # What is not in the system's memory raises.
        return bytes(buffer) if os.preadv(file, [buffer], HEAD.size, NOT_NOW) == length else None

    def _refuse(self, path: str, *, at_once: bool) -> None:
        if at_once:
            return
        log.warning("cache entry damaged")
        with suppress(OSError):
            os.unlink(path)  # noqa: PTH108

    def _remember(self, path: str, identity: tuple[int, int, int]) -> None:
        with self._lock:
            self._checked[path] = identity
            while len(self._checked) > CHECKED:
                self._checked.popitem(last=False)

    def _write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        for folder in (self.folder, path.parent):
            folder.mkdir(mode=0o700, parents=folder is self.folder, exist_ok=True)
        trace = path.parent / f".{os.getpid()}-{threading.get_ident()}"
        head = HEAD.pack(MARK, zlib.crc32(content), len(content), _named(name))
        file = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(file, head)
            _write_all(file, content)
            # No fsync: after a crash of the machine the checksum tells what was lost.
            status = os.fstat(file)
            os.rename(trace, path)  # noqa: PTH104
        except OSError:
            with suppress(OSError):
                trace.unlink()
            raise
        finally:
            os.close(file)
        self._remember(str(path), (status.st_ino, status.st_mtime_ns, status.st_size))


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _named(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _is_whole(file: int, size: int, name: str) -> bool:
    head = os.pread(file, HEAD.size, 0)
    if len(head) < HEAD.size:
        return False
    mark, checksum, length, named = HEAD.unpack(head)
    if (mark, length, named) != (MARK, size - HEAD.size, _named(name)):
        return False
    found, at = 0, 0
    while at < length:
        piece = os.pread(file, min(WHOLE, length - at), HEAD.size + at)
        if not piece:
            return False
        found, at = zlib.crc32(piece, found), at + len(piece)
    return found == checksum


def _files(folder: Path) -> Iterator[tuple[float, int, str]]:
    """When each entry was last used, its size and its place; what a dead process left is removed."""
    with suppress(FileNotFoundError), os.scandir(folder) as groups:
        for group in groups:
            if group.is_dir(follow_symlinks=False):
                yield from _group(group.path)


def _group(folder: str) -> Iterator[tuple[float, int, str]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if entry.name.startswith(".") and time.time() - status.st_mtime > TRACE_SECONDS:
                    os.unlink(entry.path)  # noqa: PTH108
                else:
                    yield status.st_atime, status.st_size, entry.path


OFF: Final = Cache(Path(), 0)
"""Keeps nothing."""
