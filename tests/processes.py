"""Starts the real programs that tests talk to, waits until they answer, and stops them by process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(path: str) -> str:
    """The path of an installed program; a missing one is an error, never a silent skip."""
    found = shutil.which(path)
    if found:
        return found
    pytest.fail(f"{path} is not installed: run `make setup-test`")


def wait_until(condition: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """The first true value of `condition`, or a failure that says what was waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for: {what}")


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program for the time of the block, in its own process group, its output in `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes], seconds: float = 10.0) -> None:
    """Ask the process group to end, then insist."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(seconds)


def answers(
    process: subprocess.Popen[bytes], log: Path, probe: Callable[[], bool], what: str, seconds: float = 60.0
) -> None:
    """Wait until `probe` is true; a program that ended meanwhile fails at once with the tail of its log."""

    def ready() -> bool:
        if process.poll() is not None:
            tail = log.read_text(errors="replace")[-2000:]
            raise AssertionError(f"{what} ended with {process.returncode}:\n{tail}")
        return probe()

    wait_until(ready, f"{what} to answer", seconds)
