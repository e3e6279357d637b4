"""The roles of a server, each a module of this package; a process loads only what its role needs."""

from __future__ import annotations

import importlib

from app.fhir import site
from app.settings import Settings

ROLES = ("api", "edge", "worker")


def run(name: str, settings: Settings) -> None:
    """Run a role until a signal. Each role is a module of this package, loaded only here."""
    site.settle(settings.fhir_base, settings.zone)
    importlib.import_module(f"app.main.{name}").run(settings)
