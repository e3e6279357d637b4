"""Migrations with data in the tables, on both engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.store import resources, schema
from app.store.database import Store
from app.store.query import Query
from tests import processes


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def first(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store with the tables of the first migration."""
    if request.param == "sqlite":
        url, drop = f"sqlite:///{tmp_path / 'old.sqlite'}", lambda: None
    else:
        cluster = request.getfixturevalue("postgres")
        name = f"old_{os.getpid()}_{processes.free_port()}"
        url, drop = cluster.create(name), lambda: cluster.drop(name)
    store = Store(url)
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    with store.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    yield store
    store.close()
    drop()


ROWS = """
    INSERT INTO resource (resource_type, resource_id, version, updated, deleted, body, patient_id, sort, natural_key)
    VALUES ('Patient', 'a', 1, 100, false, :one, 'a', 0, NULL),
           ('ImagingStudy', 'b', 3, 300, false, :three, 'a', 7, 'study:b'),
           ('Task', 'c', 2, 250, true, :none, NULL, 0, NULL)
"""
VERSIONS = """
    INSERT INTO resourceversion (resource_type, resource_id, version, updated, deleted, body, cause)
    VALUES ('Patient', 'a', 1, 100, false, :one, 'create by x'),
           ('ImagingStudy', 'b', 1, 110, false, :one, 'create by x'),
           ('ImagingStudy', 'b', 2, 200, false, :two, 'arrival'),
           ('ImagingStudy', 'b', 3, 300, false, :three, 'update by y'),
           ('Task', 'c', 1, 120, false, :one, 'create by x'),
           ('Task', 'c', 2, 250, true, :none, 'delete by x')
"""


def test_resources_and_their_history_outlive_the_change_to_numbered_rows(first: Store) -> None:
    bodies = {"one": b"1", "two": b"2", "three": b"3", "none": b""}

    def fill(connection: sa.Connection) -> None:
        for text in (ROWS, VERSIONS):
            names = [name for name in bodies if f":{name}" in text]
            connection.execute(sa.text(text), {name: bodies[name] for name in names})

    first.transact(fill)
    schema.migrate(first)
    schema.require_current(first)
    with first.read() as connection:
        study = resources.current(connection, "ImagingStudy", "b")
        assert study is not None
        assert (study.version, study.updated, study.body, study.patient_id) == (3, 300, b"3", "a")
        assert (study.method, study.cause) == ("PUT", "update by y")
        assert resources.by_natural_key(connection, "study:b") == study
        past = resources.history(connection, resource_type="ImagingStudy", resource_id="b", limit=9)
        assert [(hit.stored.version, hit.stored.body) for hit in past] == [(3, b"3"), (2, b"2"), (1, b"1")]
        at = resources.history(connection, resource_type="ImagingStudy", resource_id="b", at=(200, 201), limit=9)
        assert [hit.stored.version for hit in at] == [2]
        task = resources.current(connection, "Task", "c")
        assert task is not None
        assert (task.deleted, task.method) == (True, "DELETE")
        everything = resources.history(connection, limit=99)
        assert [(hit.stored.resource_id, hit.stored.version) for hit in everything] == [
            *(("b", 3), ("c", 2), ("b", 2), ("c", 1), ("b", 1), ("a", 1)),
        ]
        # The natural date and the patient are kept; what the index lost is taken from the bodies again.
        assert resources.index_digest(connection) == ""
        assert [hit.stored for hit in resources.search(connection, Query("ImagingStudy"), limit=9)] == [study]


def test_the_number_of_the_last_file_is_the_head_that_alembic_finds() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    assert schema.head() == ScriptDirectory.from_config(config).get_current_head()
