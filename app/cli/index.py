"""`isocenter index`: what searches find resources by."""

from __future__ import annotations

import sys

import typer

from app.cli.shared import open_store, show, transact
from app.fhir import rebuild as index
from app.settings import Settings

index_commands = typer.Typer(no_args_is_help=True, help="What searches find resources by.")


@index_commands.command("status")
def index_status() -> None:
    """Show whether the search index fits this release, as JSON."""
    show(transact(lambda connection: {"current": index.is_current(connection)}))


@index_commands.command("rebuild")
def index_rebuild() -> None:
    """Make the search index anew from the stored resources; the server may run meanwhile."""
    store = open_store(Settings())
    try:
        show({"resources": index.rebuild(store, progress)})
    finally:
        store.close()


def progress(kind: str, done: int) -> None:
    """One line that a terminal overwrites; nothing in a log."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} resources, {kind}          ")
