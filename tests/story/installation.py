"""A whole installation as an integrator runs it: `isocenter migrate`, `isocenter serve`, an Orthanc of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.demo import play
from app.demo.story import Places
from app.settings import Settings
from tests import processes

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "app.cli")


@dataclass
class Installation:
    """One installation in its own folder; it can be killed and started again."""

    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    children: list[int] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        names = {name.removeprefix("ISOCENTER_").lower(): value for name, value in self.environment.items()}
        return Settings(**{name: value for name, value in names.items() if name != "config"})  # type: ignore[arg-type]

    @property
    def base(self) -> str:
        return self.environment["ISOCENTER_PUBLIC_URL"]

    @property
    def places(self) -> Places:
        return play.places(self.settings)

    def isocenter(self, *words: str, text: str = "") -> str:
        """Run one command of the command line to its end; its standard output."""
        done = subprocess.run(
            [*COMMAND, *words], env=os.environ | self.environment, cwd=ROOT, input=text, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def start(self) -> None:
        self.starts += 1
        log = self.folder / f"serve-{self.starts}.log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "serve"], env=os.environ | self.environment, cwd=ROOT, stdout=output, stderr=output,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        processes.answers(self.process, log, self._ready, "isocenter serve")

    def _ready(self) -> bool:
        try:
            ready = httpx.get(f"{self.base}/ready", timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        return ready.is_success and ready.json()["status"] == "ready" and _listening(self.settings.dicom_port)

    def kill(self) -> None:
        """kill -9 to the supervisor and every role at once; nobody gets to say goodbye."""
        assert self.process is not None
        for pid in [self.process.pid, *_roles(self.process.pid)]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process is not None:
            processes.stop(self.process, 30)

    def logs(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("serve-*.log")))


@contextmanager
def installed(folder: Path, database_url: str = "", **more: str) -> Iterator[Installation]:
    """A migrated installation, not yet started; stopped at the end whatever happened."""
    http = processes.free_port()
    environment = {
        "ISOCENTER_DEMO": "true",
        "ISOCENTER_CONFIG": str(folder / "isocenter.toml"),
        "ISOCENTER_DATA_DIR": str(folder / "data"),
        "ISOCENTER_OHIF_DIR": str(ROOT / "var" / "ohif"),
        "ISOCENTER_PUBLIC_URL": f"http://localhost:{http}",
        "ISOCENTER_PORT": str(http),
        "ISOCENTER_DICOM_PORT": str(processes.free_port()),
        "ISOCENTER_ORTHANC_HTTP_PORT": str(processes.free_port()),
        "ISOCENTER_ORTHANC_DICOM_PORT": str(processes.free_port()),
        "ISOCENTER_SECRET_KEY": "a secret key for tests only, long enough",
        **({"ISOCENTER_DATABASE_URL": database_url} if database_url else {}),
        **more,
    }
    made = Installation(folder, environment)
    made.isocenter("migrate")
    try:
        yield made
    finally:
        made.stop()


def _listening(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _roles(supervisor: int) -> list[int]:
    """Every process below the supervisor that is ours; its Orthanc is told by its parent's death."""
    found: list[int] = []
    for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        if b"Orthanc" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            found += [int(pid), *_roles(int(pid))]
    return found
