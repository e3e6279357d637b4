"""Launches: taken once, by nobody after their time (checklist X02)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.errors import NotFound
from app.smart import launches
from app.smart.launches import LaunchContext
from app.store.database import Store
from app.store.tables import launch

CONTEXT = LaunchContext("viewer", "ada", "Practitioner/1", "Ada", "p1", "i1", "1.2.3", None, "ehr")


def opened(store: Store, seconds: int = 60) -> str:
    return store.transact(lambda c: launches.open_launch(c, CONTEXT, kind="viewer", seconds=seconds))


def taken(store: Store, value: str) -> LaunchContext | None:
    try:
        return store.transact(lambda c: launches.take_launch(c, value, kind="viewer"))
    except NotFound:
        return None


def test_a_launch_is_looked_at_often_and_taken_once(store: Store) -> None:
    value = opened(store)
    with store.read() as connection:
        assert launches.peek_launch(connection, value, kind="viewer") == CONTEXT
        assert launches.peek_launch(connection, value, kind="viewer") == CONTEXT
    assert taken(store, value) == CONTEXT
    assert taken(store, value) is None


def test_of_many_at_once_one_takes_it(store: Store) -> None:
    value = opened(store)
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda _: taken(store, value), range(6)))
    assert [context for context in got if context] == [CONTEXT]


def test_unknown_expired_and_other_kinds_are_told_apart_by_nobody(store: Store) -> None:
    said = set()
    late = opened(store)
    store.transact(lambda c: c.execute(launch.update().values(expires=launch.c.created)))
    for value, kind in ((late, "viewer"), ("unknown", "viewer"), (opened(store), "launch")):
        with pytest.raises(NotFound) as caught, store.read() as connection:
            launches.peek_launch(connection, value, kind=kind)
        said.add(str(caught.value))
    assert len(said) == 1


def test_the_value_is_nowhere_in_the_store(store: Store) -> None:
    value = opened(store)
    with store.read() as connection:
        row = connection.execute(launch.select()).one()
    assert value not in repr(row)
    assert row.expires - row.created == 60_000
