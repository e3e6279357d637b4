"""`python -m app.main.role NAME`: one role as a process of its own, with only what that role needs loaded."""

from __future__ import annotations

import importlib
import sys

from app.main import logs
from app.settings import Settings

ROLES = ("api", "edge", "worker")


def run(name: str, settings: Settings) -> None:
    """Run a role until a signal. Each role is a module of this package, loaded only here."""
    importlib.import_module(f"app.main.{name}").run(settings)


if __name__ == "__main__":
    logs.guarded(lambda: run(sys.argv[1], Settings()))
