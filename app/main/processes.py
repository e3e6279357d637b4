"""Supervision of one installation on one machine: our own Orthanc and a process for each role.

A process that ends is started again, ever more slowly; all of them end with the supervisor, kill -9 included.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import structlog

from app.errors import ConfigurationError
from app.settings import Settings

log = structlog.get_logger(__name__)

ORTHANC_USER = "isocenter"
PLUGIN = "libOrthancDicomWeb.so"
PLUGIN_FOLDERS = (
    Path("/usr/share/orthanc/plugins"),
    Path("/usr/lib/orthanc/plugins"),
    Path("/usr/local/share/orthanc/plugins"),
)
PR_SET_PDEATHSIG = 1
STOP_SECONDS = 12
PORT_SECONDS = 15
START_SECONDS = 60
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0


@dataclass(slots=True)
class Child:
    """One supervised program and how often it has failed in a row."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    output: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started: float = 0.0
    next_start: float = 0.0

    def start(self) -> None:
        """Start the program in its own session; it dies with us."""
        sink = self.output.open("ab") if self.output else None
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own program or Orthanc
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT if sink else None,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        finally:
            if sink is not None:
                sink.close()
        self.started = time.monotonic()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(slots=True)
class Supervisor:
    """The children of one installation."""

    children: list[Child] = field(default_factory=list[Child])

    def run(self, stop: threading.Event) -> None:
        """Keep every child running until `stop` is set, then end them in reverse order."""
        try:
            while not stop.wait(0.2):
                self.look()
        finally:
            self.end()

    def add(self, child: Child) -> None:
        """Start a child and keep it."""
        child.start()
        self.children.append(child)

    def look(self) -> None:
        """Start again what has ended."""
        moment = time.monotonic()
        for child in self.children:
            if child.process is None or child.process.poll() is None:
                continue
            if child.next_start == 0.0:
                child.failures = 0 if moment - child.started > LONGEST_PAUSE * 2 else child.failures + 1
                pause = min(FIRST_PAUSE * 2 ** max(child.failures - 1, 0), LONGEST_PAUSE)
                child.next_start = moment + pause
                log.warning("process ended", name=child.name, status=child.process.returncode, restart_in=pause)
            elif moment >= child.next_start:
                child.next_start = 0.0
                child.start()

    def end(self) -> None:
        """Ask every child to end, wait, insist."""
        for child in reversed(self.children):
            _end(child)
        self.children.clear()


def _end(child: Child) -> None:
    process = child.process
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def role(name: str, environment: Mapping[str, str], logs: Path | None) -> Child:
    """A process of one role of this server; it logs to stderr, or into a folder."""
    output = logs / f"{name}.log" if logs else None
    return Child(name, [sys.executable, "-m", "app.main.role", name], environment, output)


# --- the managed Orthanc ---------------------------------------------------------------------------------------


def orthanc(settings: Settings) -> tuple[Child, Mapping[str, str]]:
    """Our own Orthanc, and the settings by which the other processes reach it."""
    binary = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugin = next((folder / PLUGIN for folder in PLUGIN_FOLDERS if (folder / PLUGIN).exists()), None)
    if binary is None or plugin is None:
        raise ConfigurationError(
            "install Orthanc with `apt install orthanc orthanc-dicomweb`, or set ISOCENTER_ORTHANC_URL"
        )
    folder = settings.data_dir.resolve() / "orthanc"
    folder.mkdir(parents=True, exist_ok=True)
    password = _password(folder / "password")
    configuration = folder / "orthanc.json"
    configuration.touch(mode=0o600)
    configuration.write_text(json.dumps(orthanc_configuration(settings, folder, plugin, password), indent=2))
    reach = {
        "ISOCENTER_ORTHANC_URL": f"http://127.0.0.1:{settings.orthanc_http_port}",
        "ISOCENTER_ORTHANC_USERNAME": ORTHANC_USER,
        "ISOCENTER_ORTHANC_PASSWORD": password,
    }
    return Child("orthanc", [binary, str(configuration)], {}, folder / "orthanc.log"), reach


def reach(settings: Settings) -> tuple[str, str, str]:
    """(address, user, password) of the archive in use, the managed one's from the data folder."""
    if settings.orthanc_url:
        return settings.orthanc_url, settings.orthanc_username, settings.orthanc_password.get_secret_value()
    password = settings.data_dir / "orthanc" / "password"
    if not password.exists():
        raise ConfigurationError(
            "no archive has been started in this data folder: run `isocenter serve` or `demo` first"
        )
    return settings.orthanc_root, ORTHANC_USER, password.read_text()


def orthanc_configuration(settings: Settings, folder: Path, plugin: Path, password: str) -> dict[str, object]:
    """Orthanc's own settings: private HTTP with one credential, storage open to modalities, nothing else."""
    return {
        "Name": "Isocenter archive",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": settings.orthanc_http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {ORTHANC_USER: password},
        "DicomAet": "ORTHANC",
        "DicomPort": settings.orthanc_dicom_port,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": False,
        "DicomAlwaysAllowGet": False,
        "DicomCheckModalityHost": False,
        "DefaultEncoding": "Utf8",
        "OverwriteInstances": False,
        "StableAge": 10,
        "HttpThreadsCount": 16,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
    }


def _password(path: Path) -> str:
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(24))
    return path.read_text()


# --- ports and readiness ---------------------------------------------------------------------------------------


def require_free(ports: Mapping[str, tuple[str, int]]) -> None:
    """Wait a moment for each port to be free; ConfigurationError names the setting of one that stays taken."""
    deadline = time.monotonic() + PORT_SECONDS
    for name, (host, port) in ports.items():
        while not _free(host, port):
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"port {port} is in use: stop what listens there or set {name} to another port"
                )
            time.sleep(0.2)


def _free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def ports(settings: Settings) -> dict[str, tuple[str, int]]:
    """Every address this installation listens on, by the setting that moves it."""
    own = {
        "ISOCENTER_PORT": (settings.host, settings.port),
        "ISOCENTER_DICOM_PORT": (settings.dicom_host, settings.dicom_port),
    }
    if settings.orthanc_url:
        return own
    return own | {
        "ISOCENTER_ORTHANC_HTTP_PORT": ("127.0.0.1", settings.orthanc_http_port),
        "ISOCENTER_ORTHANC_DICOM_PORT": ("0.0.0.0", settings.orthanc_dicom_port),  # noqa: S104 - only probed
    }


def wait_for_port(what: str, where: tuple[str, int], child: Child) -> None:
    """Wait until something listens; ConfigurationError when its process ends first or takes too long."""
    _wait(what, lambda: not _free(*where), child)


def wait_for(what: str, address: str, child: Child, auth: tuple[str, str] | None = None) -> None:
    """Wait until an HTTP address answers well; ConfigurationError when its process ends first or takes too long."""

    def answers() -> bool:
        try:
            return httpx.get(address, auth=auth, timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    _wait(what, answers, child)


def _wait(what: str, ready: Callable[[], bool], child: Child) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if child.process is not None and child.process.poll() is not None:
            hint = f": see {child.output}" if child.output else ""
            raise ConfigurationError(f"{what} ended while starting{hint}")
        if ready():
            return
        time.sleep(0.1)
    raise ConfigurationError(f"{what} did not answer within {START_SECONDS} s")


def start_all(settings: Settings, supervisor: Supervisor, *, logs: Path | None = None) -> Mapping[str, str]:
    """Start everything of role `all` in order and return the environment the processes got."""
    require_free(ports(settings))
    reach: dict[str, str] = {}
    if not settings.orthanc_url:
        child, found = orthanc(settings)
        supervisor.add(child)
        reach = dict(found)
        auth = (ORTHANC_USER, reach["ISOCENTER_ORTHANC_PASSWORD"])
        wait_for("Orthanc", f"{reach['ISOCENTER_ORTHANC_URL']}/system", child, auth)
    for name in ("api", "edge", "worker"):
        supervisor.add(role(name, reach, logs))
    api, edge, _ = supervisor.children[-3:]
    wait_for("the HTTP server", f"http://{settings.host}:{settings.port}/health", api)
    wait_for_port("the DICOM service", (settings.dicom_host, settings.dicom_port), edge)
    return reach
