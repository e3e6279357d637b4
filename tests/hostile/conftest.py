"""The whole server as a process of its own, in front of a real archive of four studies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.hostile.credentials import Credential, Mint, minted
from tests.hostile.world import World, seeded
from tests.orthanc.conftest import Orthanc, orthanc
from tests.processes import answers, free_port, running

__all__ = ["orthanc"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Served:
    """The running server, what it holds, and who may ask."""

    world: World
    credentials: list[Credential]
    mint: Mint
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.world.settings.port

    def named(self, name: str) -> Credential:
        return next(credential for credential in self.credentials if credential.name == name)


@pytest.fixture(scope="session")
def served(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    log = folder / "serve.log"
    with seeded(orthanc, folder, port) as world:
        credentials, mint = minted(world)
        environment = {
            "ISOCENTER_CONFIG": str(folder / "none.toml"),
            "ISOCENTER_OHIF_DIR": str(ROOT / "var" / "ohif"),
            "ISOCENTER_DATA_DIR": str(folder),
            "ISOCENTER_PORT": str(port),
            "ISOCENTER_PUBLIC_URL": world.settings.public_url,
            "ISOCENTER_ORTHANC_URL": orthanc.url,
            "ISOCENTER_ORTHANC_USERNAME": orthanc.username,
            "ISOCENTER_ORTHANC_PASSWORD": orthanc.password,
        }
        command = [sys.executable, "-m", "app.cli", "serve", "--role", "api"]
        with running(command, log, environment={**os.environ, **environment}, cwd=ROOT) as process:

            def up() -> bool:
                try:
                    return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success
                except httpx.TransportError:
                    return False

            answers(process, log, up, "isocenter serve")
            yield Served(world, credentials, mint, log)
