"""`isocenter sync`: the archive and what is published of it.

Whoever leads does the work: a running server, else this command itself; requests and marks are rows, so either goes on
where the other stopped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from types import TracebackType
from typing import Annotated, Any, Literal, Protocol, Self

import typer

from app.cli.shared import open_archive, open_store, show
from app.errors import ArchiveUnavailable, IsocenterError
from app.main import watch
from app.settings import Settings
from app.store import requests, sync, truth
from app.store.requests import Request
from app.workflow import site, sweep, worker
from app.workflow.site import Archive

sync_commands = typer.Typer(no_args_is_help=True, help="The archive and what is published of it.")

TELL_SECONDS = 5.0
"""So often a log that is no terminal gets a line."""
STEP_SECONDS = 0.02


@sync_commands.command("status")
def sync_status() -> None:
    """Show where keeping in step with the archive stands, as JSON."""
    settings = Settings()
    store = open_store(settings)
    try:
        show(watch.of(store, settings).told())
    finally:
        store.close()


Reason = Literal["unknown", "retention", "quality", "safety", "worklist", "never-existed"]


@sync_commands.command("reconcile")
def sync_reconcile(
    accept_missing: Annotated[
        bool, typer.Option("--accept-missing", help="Withdraw what is missing although it is held back.")
    ] = False,
    reason: Annotated[Reason, typer.Option(help="Why it went: a reason of the delete policy.")] = "unknown",
) -> None:
    """Compare everything with the archive and repair what differs; prints the drift before and after, as JSON.

    Studies that disappeared in a mass, or with the archive's database, are withdrawn only with --accept-missing.
    """
    detail: dict[str, Any] = {"accept_missing": accept_missing, "reason": reason} if accept_missing else {}
    answer = _done("reconcile", detail)
    show({name: answer[name] for name in ("before", "after", "failing", "note") if name in answer})


@sync_commands.command("rebuild")
def sync_rebuild() -> None:
    """Map every study of the archive again, after a change of the maps; only what differs becomes a new version.

    Stopped half-way it goes on when it is called again.
    """
    answer = _done("rebuild", {"version": version("isocenter")})
    show({"rebuilt": answer["rebuilt"], "failing": answer["failing"]})


def _done(kind: str, detail: dict[str, Any]) -> dict[str, Any]:
    """Ask, and wait for whoever does it."""
    settings = Settings()
    store = open_store(settings)
    try:
        with open_archive(settings) as orthanc, _hand(Archive(store, orthanc, site.of(settings))) as hand:
            request_id = store.transact(lambda connection: requests.ask(connection, kind, detail))
            answer = _waited(hand, request_id).answer
    finally:
        store.close()
    if "error" in answer:
        raise ArchiveUnavailable(answer["error"])
    return answer


def _waited(hand: _Hand, request_id: int) -> Request:
    with _Progress() as progress:
        while True:
            with hand.at.store.read() as connection:
                request = requests.read(connection, request_id)
                left = truth.unsettled(connection, int(request.answer["marked"])) if request and request.taken else 0
            if request is None:
                raise IsocenterError("the request is gone")
            progress.show(request, left)
            if request.done is not None:
                return request
            time.sleep(hand.step())


# --- a hand where no server is -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Hand:
    """This process as one that could do the work: it does when nobody else leads."""

    at: Archive
    owner: str
    rebuilder: worker.Rebuilder
    turn: Callable[[], float]
    turned: float = 0.0
    leads: bool = False

    def step(self) -> float:
        """Do a little; how many seconds to pause."""
        if time.monotonic() - self.turned >= sweep.PAUSE:
            self.at.store.transact(lambda tx: sync.live(tx, self.owner, seconds=worker.LIFE_SECONDS))
            try:
                self.turn()
            except ArchiveUnavailable:
                # The request itself has the reason.
                self.leads = False
            with self.at.store.read() as connection:
                self.leads = truth.leads(connection, self.owner)
            self.turned = time.monotonic()
        if not self.leads:
            return sweep.PAUSE / 2
        self.rebuilder.turn()
        return STEP_SECONDS


@contextmanager
def _hand(at: Archive) -> Generator[_Hand]:
    owner = worker.born(at)
    rebuilder = worker.Rebuilder(at, owner)
    try:
        yield _Hand(at, owner, rebuilder, sweep.turns(at, owner))
    finally:
        rebuilder.close()
        worker.dead(at, owner)


# --- how far it is -----------------------------------------------------------------------------------------------


class _Bar(Protocol):
    """What we use of click's progress bar."""

    length: int | None
    pos: int

    def update(self, n_steps: int) -> None: ...

    def render_finish(self) -> None: ...


@dataclass(slots=True)
class _Progress:
    """How many of the marked studies have been looked at: a bar on a terminal, now and then a line in a log."""

    bar: _Bar | None = None
    told: float = field(default_factory=time.monotonic)
    shown: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.render_finish()

    def show(self, request: Request, left: int) -> None:
        """Standard error gets it: standard output is the answer's."""
        studies = int(request.answer.get("studies", 0))
        done = max(0, studies - left)
        if not studies:
            return
        if not sys.stderr.isatty():
            self._tell(done, studies, last=request.done is not None)
            return
        if self.bar is None:
            made: Any = typer.progressbar(length=studies, label="studies", file=sys.stderr, show_pos=True)
            self.bar = made
            made.render_progress()
        if self.bar is not None:
            self.bar.update(done - self.bar.pos)

    def _tell(self, done: int, studies: int, *, last: bool) -> None:
        moment = time.monotonic()
        if moment - self.told >= TELL_SECONDS or (last and self.shown):
            sys.stderr.write(f"{done} of {studies} studies\n")
            self.told, self.shown = moment, True
