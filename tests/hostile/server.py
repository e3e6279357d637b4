"""The HTTP server as a process of its own, as an integrator starts it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.hostile.world import World
from tests.processes import answers, running

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(world: World, log: Path, **more: str) -> Iterator[int]:
    """`isocenter serve --role api` for the time of the block; its process id."""
    settings = world.settings
    environment = {
        "ISOCENTER_CONFIG": str(settings.data_dir / "none.toml"),
        "ISOCENTER_OHIF_DIR": str(ROOT / "var" / "ohif"),
        "ISOCENTER_DATA_DIR": str(settings.data_dir),
        "ISOCENTER_PORT": str(settings.port),
        "ISOCENTER_PUBLIC_URL": settings.public_url,
        "ISOCENTER_ORTHANC_URL": settings.orthanc_url,
        "ISOCENTER_ORTHANC_USERNAME": settings.orthanc_username,
        "ISOCENTER_ORTHANC_PASSWORD": settings.orthanc_password.get_secret_value(),
        **more,
    }
    command = [sys.executable, "-m", "app.cli", "serve", "--role", "api"]
    with running(command, log, environment={**os.environ, **environment}, cwd=ROOT) as process:

        def up() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{settings.port}/health", trust_env=False).is_success
            except httpx.TransportError:
                return False

        answers(process, log, up, "isocenter serve")
        yield process.pid
