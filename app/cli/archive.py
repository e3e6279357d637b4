"""`isocenter sync`: the archive and what is published of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import typer
from sqlalchemy.engine import Connection

from app.cli.shared import open_archive, open_store, show, transact
from app.settings import Settings
from app.store import sync
from app.store.database import Store
from app.workflow import arrivals, changes, site, sweep
from app.workflow.arrivals import Archive

sync_commands = typer.Typer(no_args_is_help=True, help="The archive and what is published of it.")


# --- the archive -----------------------------------------------------------------------------------------------


@sync_commands.command("status")
def sync_status() -> None:
    """Show where the reading of the archive stands, as JSON."""
    show(transact(_sync_status))


def _sync_status(connection: Connection) -> Mapping[str, Any]:
    read, swept = sync.position(connection, changes.CHANGES), sync.position(connection, sweep.SWEEP)
    studies = sync.present(connection)
    return {
        "cursor": read.value,
        "epoch": read.epoch,
        "waiting": sync.waiting(connection),
        "studies": len(studies),
        "instances": sum(studies.values()),
        "last_sweep": swept.detail or {},
    }


@sync_commands.command("reconcile")
def sync_reconcile(accept_missing: bool = False) -> None:
    """Compare everything with the archive and repair what differs; prints the drift before and after, as JSON.

    Studies that disappeared in a mass, or with the archive's database, are withdrawn only with --accept-missing.
    """
    settings = Settings()
    store = open_store(settings)
    try:
        with open_archive(settings) as orthanc:
            at = Archive(store, orthanc, site.of(settings))
            before = sweep.sweep(at, thorough=True, accept_missing=accept_missing)
            _settled(at)
            after = sweep.sweep(at, thorough=False)
    finally:
        store.close()
    show({"before": asdict(before), "after": asdict(after)})


@sync_commands.command("rebuild")
def sync_rebuild() -> None:
    """Map every study of the archive again, after a change of the maps; only what differs becomes a new version."""
    settings = Settings()
    store = Store(settings.database)
    try:
        with open_archive(settings) as orthanc:
            count = store.transact(sync.forget_digests)
            _settled(Archive(store, orthanc, site.of(settings)))
    finally:
        store.close()
    show({"rebuilt": count})


def _settled(at: Archive) -> None:
    """Look at every marked study that is due, beside whatever worker runs; wait out the grace of missing ones."""
    deadline = time.monotonic() + at.site.settings.delete_grace + 60
    while time.monotonic() < deadline:
        if not arrivals.rebuild_one(at) and transact(sync.waiting) == 0:
            return
        time.sleep(0.1)
