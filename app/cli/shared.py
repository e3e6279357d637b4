"""What the commands share: the store with its schema checked, the archive, JSON on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import typer
from sqlalchemy.engine import Connection

from app.dicom.orthanc import Orthanc
from app.fhir import site
from app.main import processes
from app.settings import Settings
from app.store import schema
from app.store.database import Store


def open_store(settings: Settings) -> Store:
    """The store, its schema at head: before a process starts or a command looks into it."""
    site.settle(settings.fhir_base, settings.zone)
    store = Store(settings.database)
    try:
        schema.require_current(store)
    except Exception:
        store.close()
        raise
    return store


def transact(work: Callable[[Connection], Any]) -> Any:
    """Run `work` in one transaction of this installation's store."""
    store = open_store(Settings())
    try:
        return store.transact(work)
    finally:
        store.close()


def open_archive(settings: Settings) -> Orthanc:
    """The archive in use, configured or managed."""
    return Orthanc(*processes.reach(settings))


def show(value: object) -> None:
    """One JSON line."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))
