"""The roles of a server, each a module of this package; a process loads only what its role needs."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.fhir import site

if TYPE_CHECKING:
    from app.settings import Settings

ROLES = ("api", "edge", "worker")


def run(name: str, settings: Settings) -> None:
    """Run a role until a signal. Each role is a module of this package, loaded only here."""
    site.settle(settings.fhir_base, settings.zone)
    with loading():
        module = importlib.import_module(f"app.main.{name}")
    module.run(settings)


@contextmanager
def loading() -> Generator[None]:
    """Modules are no garbage: to look for some while they load would take a fifth of a start (docs/decisions/0078)."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
