"""One installation on one machine: our own Orthanc, the ports, and the order in which everything starts."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
from pydantic import SecretStr

from app.errors import ConfigurationError
from app.main import supervisor as supervision
from app.main.supervisor import Child, Supervisor
from app.settings import Settings

ORTHANC_USER = "isocenter"
PLUGIN = "libOrthancDicomWeb.so"
PLUGIN_FOLDERS = (
    Path("/usr/share/orthanc/plugins"),
    Path("/usr/lib/orthanc/plugins"),
    Path("/usr/local/share/orthanc/plugins"),
)
PORT_SECONDS = 15
START_SECONDS = 60
TRIES = 3
"""A process that ended so often while starting will not start."""


# --- the managed Orthanc ---------------------------------------------------------------------------------------


def orthanc(settings: Settings) -> tuple[Child, Settings]:
    """Our own Orthanc, and the settings with which the roles reach it."""
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
    reached = {
        "orthanc_url": f"http://127.0.0.1:{settings.orthanc_http_port}",
        "orthanc_username": ORTHANC_USER,
        "orthanc_password": SecretStr(password),
    }
    # DCMTK inside: without it every image takes a tenth of a second (docs/sync.md).
    at_once = {"TCP_NODELAY": "1"}
    child = supervision.program("orthanc", [binary, str(configuration)], folder / "orthanc.log", at_once)
    return child, settings.model_copy(update=reached)


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


def answers(address: str, auth: tuple[str, str] | None = None) -> Callable[[], bool]:
    """Whether an HTTP address answers well."""

    def ask() -> bool:
        try:
            return httpx.get(address, auth=auth, timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    return ask


def wait_for(what: str, ready: Callable[[], bool], child: Child, supervisor: Supervisor) -> None:
    """Wait until a process is ready; ConfigurationError when it keeps ending or takes too long.

    An archive that was killed with us may hold its files a moment longer than its ports: it is started again.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and child.failures < TRIES:
        if not child.ended and ready():
            return
        supervisor.look()
        time.sleep(0.1)
    hint = f": see {child.output}" if child.output else ""
    raise ConfigurationError(f"{what} does not start{hint}")


def start_all(settings: Settings, supervisor: Supervisor, *, logs: Path | None = None) -> None:
    """Start everything of role `all` and wait until it answers; each role logs to stderr or into the folder."""
    require_free(ports(settings))
    archive = None
    if not settings.orthanc_url:
        archive, settings = orthanc(settings)
        supervisor.add(archive)
    # The roles load while Orthanc starts; whoever needs the archive first tries again.
    api, edge, _ = [supervisor.add(child) for child in supervision.roles(settings, logs)]
    if archive is not None:
        auth = (settings.orthanc_username, settings.orthanc_password.get_secret_value())
        wait_for("Orthanc", answers(f"{settings.orthanc_url}/system", auth), archive, supervisor)
    wait_for("the HTTP server", answers(f"http://{settings.host}:{settings.port}/health"), api, supervisor)
    listens = (settings.dicom_host, settings.dicom_port)
    wait_for("the DICOM service", lambda: not _free(*listens), edge, supervisor)
