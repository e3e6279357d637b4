"""Keeps the processes of one installation running; all of them end with the supervisor, kill -9 included.

A process that ends is started again, ever more slowly. Roles are forked from a server that has loaded their modules
once, so that a start costs a moment and not three times the loading.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import structlog

from app.main import logs, role
from app.settings import Settings

log = structlog.get_logger(__name__)

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 12
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0


class Running(Protocol):
    """A process that was started."""

    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        ...

    def ask(self) -> None:
        """SIGTERM."""
        ...

    def insist(self) -> None:
        """SIGKILL."""
        ...


@dataclass(slots=True)
class Child:
    """One supervised process and how often it has failed in a row; `output` is where it logs, None for stderr."""

    name: str
    launch: Callable[[], Running]
    output: Path | None = None
    running: Running | None = None
    failures: int = 0
    started: float = 0.0
    next_start: float = 0.0

    def start(self) -> None:
        """Start the process."""
        self.running = self.launch()
        self.started, self.next_start = time.monotonic(), 0.0

    @property
    def ended(self) -> bool:
        """Whether the process was started and is over."""
        return self.running is not None and self.running.status() is not None


@dataclass(slots=True)
class Supervisor:
    """The children of one installation."""

    children: list[Child] = field(default_factory=list[Child])

    def run(self, stop: threading.Event) -> None:
        """Keep every child running until `stop` is set, then end them in reverse order."""
        try:
            while not stop.wait(0.2):
                self.look()
        finally:
            self.end()

    def add(self, child: Child) -> Child:
        """Start a child and keep it."""
        child.start()
        self.children.append(child)
        return child

    def look(self) -> None:
        """Start again what has ended."""
        moment = time.monotonic()
        for child in self.children:
            if not child.ended:
                continue
            if child.next_start == 0.0:
                child.failures = 0 if moment - child.started > LONGEST_PAUSE * 2 else child.failures + 1
                pause = min(FIRST_PAUSE * 2 ** max(child.failures - 1, 0), LONGEST_PAUSE)
                child.next_start = moment + pause
                log.warning("process ended", name=child.name, restart_in=pause)
            elif moment >= child.next_start:
                child.start()

    def end(self) -> None:
        """Ask every child to end, one after the other in reverse order; insist after STOP_SECONDS."""
        for child in reversed(self.children):
            _end(child)
        self.children.clear()


def _end(child: Child) -> None:
    if child.running is None or child.ended:
        return
    child.running.ask()
    deadline = time.monotonic() + STOP_SECONDS
    while not child.ended and time.monotonic() < deadline:
        time.sleep(0.05)
    if not child.ended:
        child.running.insist()


# --- programs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is not ours."""

    process: subprocess.Popen[bytes]

    def status(self) -> int | None:
        """Running."""
        return self.process.poll()

    def ask(self) -> None:
        """Running."""
        self.process.terminate()

    def insist(self) -> None:
        """Running."""
        self.process.kill()
        self.process.wait()


def program(name: str, command: Sequence[str], output: Path, environment: Mapping[str, str]) -> Child:
    """A program in its own session that dies with us, with our environment and what is added to it."""

    def launch() -> Running:
        with output.open("ab") as sink:
            process = subprocess.Popen(  # noqa: S603 - Orthanc, found by its own name
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return Program(process)

    return Child(name, launch, output)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# --- roles ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forked:
    """A role of this server."""

    process: BaseProcess

    def status(self) -> int | None:
        """Running."""
        return self.process.exitcode

    def ask(self) -> None:
        """Running."""
        self.process.terminate()

    def insist(self) -> None:
        """Running."""
        self.process.kill()
        self.process.join()


def roles(settings: Settings, folder: Path | None) -> list[Child]:
    """A process for each role; it logs to stderr, or into a folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"app.main.{name}" for name in role.ROLES])
    outputs = {name: folder / f"{name}.log" if folder else None for name in role.ROLES}

    def launch(name: str) -> Callable[[], Running]:
        def start() -> Running:
            process = context.Process(target=_role, args=(name, settings, outputs[name]), name=name)
            process.start()
            return Forked(process)

        return start

    return [Child(name, launch(name), outputs[name]) for name in role.ROLES]


def _role(name: str, settings: Settings, output: Path | None) -> None:
    _die_with_parent()
    with suppress(PermissionError):
        os.setsid()
    if output is not None:
        sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(sink, sys.stdout.fileno())
        os.dup2(sink, sys.stderr.fileno())
    logs.guarded(lambda: role.run(name, settings))
