"""The store's transactions, on both engines."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.errors import ConfigurationError
from app.store import schema
from app.store.database import Store, insert, upsert
from app.store.tables import counter


def test_a_failed_piece_of_work_leaves_nothing_and_tells_its_caller(store: Store) -> None:
    def work(connection: sa.Connection) -> None:
        connection.execute(counter.insert().values(name="a", value=1))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.transact(work)
    with store.read() as connection:
        assert connection.execute(sa.select(counter)).all() == []


def test_work_that_shares_a_commit_fails_alone(store: Store) -> None:
    start, failures = threading.Barrier(8), []

    def run(number: int) -> None:
        def work(connection: sa.Connection) -> None:
            connection.execute(counter.insert().values(name=f"n{number}", value=number))
            if number % 2:
                raise ValueError(str(number))

        start.wait()
        try:
            store.transact(work)
        except ValueError as error:
            failures.append(int(str(error)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as connection:
        kept = {row.value for row in connection.execute(sa.select(counter))}
    assert kept == {0, 2, 4, 6}
    assert sorted(failures) == [1, 3, 5, 7]


def test_two_processes_worth_of_stores_count_without_losing_one(store: Store) -> None:
    other = Store(store.url.render_as_string(hide_password=False))
    store.transact(lambda connection: upsert(connection, counter, {"name": "n", "value": 0}, keys=("name",)))

    def add(connection: sa.Connection) -> None:
        connection.execute(counter.update().values(value=counter.c.value + 1))

    def run(which: Store) -> None:
        for _ in range(25):
            which.transact(add)

    threads = [threading.Thread(target=run, args=(which,)) for which in (store, other, store, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    with store.read() as connection:
        assert connection.execute(sa.select(counter.c.value)).scalar_one() == 100


def test_a_row_inserted_twice_is_one_row(store: Store) -> None:
    for _ in range(2):
        store.transact(
            lambda connection: connection.execute(
                insert(connection, counter).values(name="once", value=1).on_conflict_do_nothing()
            )
        )
    with store.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(counter)).scalar_one() == 1


def test_an_unmigrated_database_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    fresh = Store(f"sqlite:///{tmp_path / 'fresh.sqlite'}")
    with pytest.raises(ConfigurationError, match="isocenter migrate"):
        schema.require_current(fresh)
    schema.migrate(fresh)
    schema.require_current(fresh)
    fresh.close()


def test_the_migrations_make_exactly_the_declared_tables(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, counter.metadata) == []


def test_submitted_work_is_durable_when_its_future_tells_so(store: Store) -> None:
    futures = [
        store.submit(
            lambda connection, number=number: connection.execute(
                insert(connection, counter).values(name=f"n{number}", value=number)
            )
        )
        for number in range(20)
    ]
    for future in futures:
        future.result(timeout=30)
    with store.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(counter)).scalar_one() == 20


def test_work_that_is_alone_and_fails_leaves_the_writer_ready(store: Store) -> None:
    def fail(connection: sa.Connection) -> None:
        connection.execute(insert(connection, counter).values(name="lost", value=1))
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            store.submit(fail).result(timeout=30)
    store.transact(lambda connection: upsert(connection, counter, {"name": "kept", "value": 1}, keys=("name",)))
    with store.read() as connection:
        assert connection.execute(sa.select(counter.c.name)).scalars().all() == ["kept"]


def test_a_read_within_a_read_and_one_that_ends_in_another_thread_disturb_nobody(store: Store) -> None:
    with store.read() as outer:
        assert outer.execute(sa.select(counter)).all() == []
        with store.read() as inner:
            assert inner.execute(sa.select(counter)).all() == []
        assert outer.execute(sa.select(counter)).all() == []
    reading = store.read()
    connection = reading.__enter__()
    threads = [threading.Thread(target=reading.__exit__, args=(None, None, None))]
    assert connection.execute(sa.select(counter)).all() == []
    for thread in threads:
        thread.start()
        thread.join()
    with store.read() as again:
        assert again.execute(sa.select(counter)).all() == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_reading_connection_to_sqlite_cannot_write(store: Store) -> None:
    with pytest.raises(sa.exc.OperationalError, match="readonly"), store.read() as connection:
        connection.execute(counter.insert().values(name="no", value=1))
