"""Fixtures for every test: the store, empty and migrated, on both engines."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from app.store import schema
from app.store.database import Store
from tests import processes
from tests.processes import program


@dataclass(frozen=True, slots=True)
class Postgres:
    """A throw-away cluster on a free loopback port, with a migrated template database."""

    port: int

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://isocenter@127.0.0.1:{self.port}/{name}"

    def create(self, name: str, template: str = "template1") -> str:
        with psycopg.connect(f"postgresql://isocenter@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, name: str) -> None:
        with psycopg.connect(f"postgresql://isocenter@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _postgres_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not found:
        pytest.fail("PostgreSQL is not installed: run `make setup-test`")
    return found[-1].parent


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One cluster for the session."""
    with cluster() as made:
        yield made


@contextmanager
def cluster() -> Iterator[Postgres]:
    """PostgreSQL refuses to run as root, so root runs it as `postgres`."""
    programs = _postgres_programs()
    folder = Path(tempfile.mkdtemp(prefix="isocenter-pg-"))
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")
    data, port = folder / "data", processes.free_port()
    log = Path(tempfile.mkdtemp(prefix="isocenter-pglog-")) / "postgres.log"
    initdb = [*user, programs / "initdb", "-D", data, "-U", "isocenter", "--auth=trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/")
    settings = ["-c", "fsync=off", "-c", f"unix_socket_directories={folder}", "-c", "listen_addresses=127.0.0.1"]
    server = [*user, programs / "postgres", "-D", data, "-p", str(port), *settings, "-c", "max_connections=200"]
    with processes.running([str(part) for part in server], log, cwd=Path("/")) as process:
        ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        processes.answers(process, log, lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL")
        made = Postgres(port)
        _migrate(made.create("template_isocenter"))
        yield made
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(log.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated, empty database; the test runs once on each engine."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "isocenter.sqlite")
        yield f"sqlite:///{tmp_path / 'isocenter.sqlite'}"
        return
    cluster: Postgres = request.getfixturevalue("postgres")
    name = f"test_{os.getpid()}_{processes.free_port()}"
    yield cluster.create(name, "template_isocenter")
    cluster.drop(name)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """An open store on a migrated, empty database."""
    opened = Store(database_url)
    yield opened
    opened.close()


def _migrate(url: str) -> None:
    opened = Store(url)
    schema.migrate(opened)
    opened.close()


FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for a module: while it lives, Playwright holds the event loop and nobody else can run one."""
    binary = program("/usr/bin/chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page in a context of its own: no cookie of another test is there."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    yield context.new_page()
    context.close()
