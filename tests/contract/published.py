"""A database that holds HL7's examples and everything that is published, made once per engine and copied for each test.

A module that imports `database_url` from here runs its tests on copies of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from app.fhir import conformance, resources, validation
from app.fhir.registry import offers
from app.settings import Settings
from app.store.database import Store
from tests import processes
from tests.conftest import Postgres

EXAMPLES = Path(__file__).parents[1] / "data" / "fhir" / "examples"
SETTINGS = Settings(public_url="http://localhost:8080")
TEMPLATE = "template_published"


def seed(store: Store, settings: Settings = SETTINGS) -> None:
    store.transact(lambda connection: conformance.seed(connection, settings))


def _fill(url: str) -> None:
    store = Store(url)
    seed(store)
    store.transact(_put_examples)
    store.close()


def _put_examples(connection: Connection) -> None:
    for path in sorted(EXAMPLES.glob("*.json")):
        resource = resources.loads(path.read_bytes())
        offer = offers().get(resource["resourceType"])
        if offer and "create" in offer.interactions and not validation.validate(resource):
            resources.put(connection, resource, cause="test")


@cache
def _sqlite_template(empty: Path) -> Path:
    path = empty.with_name("published.sqlite")
    shutil.copy(empty, path)
    _fill(f"sqlite:///{path}")
    return path


@cache
def _postgres_template(cluster: Postgres) -> str:
    _fill(cluster.create(TEMPLATE, "template_isocenter"))
    return TEMPLATE


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a copy; the test runs once on each engine."""
    if request.param == "sqlite":
        template = _sqlite_template(request.getfixturevalue("sqlite_template"))
        shutil.copy(template, tmp_path / "isocenter.sqlite")
        yield f"sqlite:///{tmp_path / 'isocenter.sqlite'}"
        return
    cluster: Postgres = request.getfixturevalue("postgres")
    name = f"test_{os.getpid()}_{processes.free_port()}"
    yield cluster.create(name, _postgres_template(cluster))
    cluster.drop(name)
