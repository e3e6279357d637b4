"""The whole server as a process of its own, in front of a real archive of four studies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hostile.credentials import Credential, Mint, minted
from tests.hostile.server import serving
from tests.hostile.world import World, seeded
from tests.orthanc.conftest import Orthanc, orthanc
from tests.processes import free_port

__all__ = ["orthanc"]


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
    folder = tmp_path_factory.mktemp("served")
    log = folder / "serve.log"
    with seeded(orthanc, folder, free_port()) as world:
        credentials, mint = minted(world)
        with serving(world, log):
            yield Served(world, credentials, mint, log)
