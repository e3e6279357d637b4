"""The real `isocenter` command in processes that start at once: forked from one that has loaded its modules.

A round of chaos kills and starts workers again and again; loading the modules takes seconds, and a fork of what was
loaded runs the same code. `python -m tests.faults.nursery` is that process: a line of JSON asks, a line answers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import stop, wait_until

ROOT = Path(__file__).parents[2]
PATIENCE = 12.0
"""So many seconds a supervisor waits for a process that was asked to end."""


# --- who asks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """One running `isocenter` command."""

    nursery: Nursery
    pid: int
    output: Path
    """What it prints, without the suffix `.out`; its log has the suffix `.err`."""

    def printed(self) -> str:
        """What it printed so far."""
        return self.output.with_suffix(".out").read_text()

    def told(self) -> str:
        """The end of its log."""
        return self.output.with_suffix(".err").read_text(errors="replace")[-2000:]

    def ended(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self.nursery.ask(status=self.pid)

    def kill(self) -> None:
        """kill -9; back when it is gone."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and insist as a supervisor does when it does not."""
        os.kill(self.pid, signal.SIGTERM)
        try:
            self.wait(PATIENCE)
        except AssertionError:
            self.kill()

    def freeze(self) -> None:
        """Let it stand still with all it holds, as a virtual machine that is moved does."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on; it does not know how long it stood."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self, seconds: float) -> int:
        """Its exit status, when it has ended by itself."""
        wait_until(lambda: self.ended() is not None, f"the end of {self.output.name}", seconds)
        status = self.ended()
        assert status is not None
        return status

    def _signal(self, number: int) -> None:
        if self.ended() is None:
            os.kill(self.pid, number)
            self.wait(30)


@dataclass(frozen=True, slots=True)
class Nursery:
    """The process that has loaded everything."""

    process: subprocess.Popen[bytes]

    def isocenter(self, *words: str, environment: Mapping[str, str], output: Path) -> Process:
        """Start `isocenter …` with this environment added to ours; what it says goes to files."""
        pid = self.ask(words=words, environment=dict(environment), output=str(output))
        return Process(self, pid, output)

    def ask(self, **question: Any) -> Any:
        """One question, one answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question).encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the nursery has ended"
        return json.loads(answer)


@contextmanager
def nursery() -> Iterator[Nursery]:
    """The nursery for the time of the block; whatever it started ends with it."""
    command = [sys.executable, "-m", "tests.faults.nursery"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Nursery(process)
    finally:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        stop(process)
        process.stdout.close()


# --- who is asked ------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer until the input ends, then let nothing of it run on."""
    import app.cli.archive
    import app.fhir.rebuild
    import app.main.worker  # noqa: F401 - loaded once, here

    ended: dict[int, int | None] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "words" in question:
            pid = _start(question)
            ended[pid] = None
            answer: int | None = pid
        else:
            _reap(ended)
            answer = ended[question["status"]]
        print(json.dumps(answer), flush=True)
    for pid, status in ended.items():
        if status is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _reap(ended: dict[int, int | None]) -> None:
    for pid in [pid for pid, status in ended.items() if status is None]:
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            ended[pid] = os.waitstatus_to_exitcode(status)


def _start(question: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = _become(question)
    finally:
        # Whatever happened, this is a copy: what stands below in the parent is not its business.
        os._exit(status)


def _become(question: Mapping[str, Any]) -> int:
    from app import cli

    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    printed, told = (
        os.open(question["output"] + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for suffix in (".out", ".err")
    )
    for target, source in ((0, nothing), (1, printed), (2, told)):
        os.dup2(source, target)
    os.environ.update(question["environment"])
    sys.argv = ["isocenter", *question["words"]]
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main()
