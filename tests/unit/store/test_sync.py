"""Marks, claims and leases: nothing is lost and nothing is done twice at once (app.store.sync)."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import sync
from app.store.database import Store, now
from app.store.sync import Position
from app.store.tables import dirty_study


def mark(store: Store, *ids: str, delay_ms: int = 0) -> None:
    store.transact(lambda tx: sync.mark(tx, ids, "test", delay_ms=delay_ms))


def test_two_workers_claim_different_studies(store: Store) -> None:
    mark(store, "a", "b")
    first, second, third = (store.transact(sync.claim) for _ in range(3))
    assert first
    assert second
    assert {first.orthanc_id, second.orthanc_id} == {"a", "b"}
    assert third is None


def test_a_mark_made_while_a_study_is_looked_at_outlives_the_look(store: Store) -> None:
    mark(store, "a")
    claimed = store.transact(sync.claim)
    assert claimed
    mark(store, "a")
    store.transact(lambda tx: sync.clean(tx, claimed))
    again = store.transact(sync.claim)
    assert again
    store.transact(lambda tx: sync.clean(tx, again))
    assert store.transact(sync.waiting) == 0


def test_a_delay_holds_also_for_a_study_that_is_being_looked_at(store: Store) -> None:
    mark(store, "a")
    claimed = store.transact(sync.claim)
    assert claimed
    mark(store, "a", delay_ms=60_000)
    store.transact(lambda tx: sync.clean(tx, claimed))
    assert store.transact(sync.claim) is None
    mark(store, "a")
    assert store.transact(sync.claim)


def test_a_study_put_off_is_due_at_once_when_marked_meanwhile(store: Store) -> None:
    mark(store, "a")
    claimed = store.transact(sync.claim)
    assert claimed
    mark(store, "a")
    store.transact(lambda tx: sync.postpone(tx, claimed, 60_000))
    assert store.transact(sync.claim)


def test_a_claim_that_ran_out_can_neither_clean_nor_own(store: Store) -> None:
    mark(store, "a")
    old = store.transact(sync.claim)
    assert old
    store.transact(lambda tx: tx.execute(sync.dirty_study.update().values(claimed_until=0, due=0)))
    new = store.transact(sync.claim)
    assert new
    # Two claims within one millisecond would bear one name.
    assert new.until >= old.until
    if new.until > old.until:
        store.transact(lambda tx: sync.clean(tx, old))
        assert not store.transact(lambda tx: sync.owned(tx, old))
    assert store.transact(lambda tx: sync.owned(tx, new))


def test_a_lease_has_one_owner_and_its_number_grows_with_each(store: Store) -> None:
    def hold(owner: str, seconds: float) -> int | None:
        return store.transact(lambda tx: sync.hold(tx, "sweep", owner, seconds=seconds))

    assert hold("a", 60) == 1
    assert hold("b", 60) is None
    assert hold("a", -1) == 1
    assert hold("b", 60) == 2
    assert not store.transact(lambda tx: sync.require(tx, "sweep", 1))
    assert store.transact(lambda tx: sync.require(tx, "sweep", 2))


def test_a_position_is_kept(store: Store) -> None:
    to = Position(7, "e", {"hold": "x"})
    store.transact(lambda tx: sync.move(tx, "changes", to))
    assert store.transact(lambda tx: sync.position(tx, "changes")) == to
    assert store.transact(lambda tx: sync.position(tx, "other")).value == 0


# --- pace ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> int:
    """A time that stands still, so that what is due can be told exactly."""
    at = now()
    monkeypatch.setattr(sync, "now", lambda: at)
    return at


def due(store: Store, still: int) -> tuple[int, int]:
    """When the only study is due and at the latest, in ms from now."""
    with store.read() as connection:
        row = connection.execute(sa.select(dirty_study.c.due, dirty_study.c.latest)).one()
    return row[0] - still, row[1] - still


def paced(store: Store, delay_ms: int, latest_ms: int) -> None:
    store.transact(lambda tx: sync.mark_each(tx, [sync.Mark("a", "test", delay_ms, latest_ms)]))


def test_later_marks_put_a_study_off_but_never_beyond_its_time(store: Store, still: int) -> None:
    paced(store, 2000, 9000)
    assert due(store, still) == (2000, 9000)
    paced(store, 5000, 60_000)
    assert due(store, still) == (5000, 9000)
    paced(store, 20_000, 60_000)
    assert due(store, still) == (9000, 9000)
    mark(store, "a")
    assert due(store, still) == (0, 0)


def test_marks_made_while_somebody_looks_have_a_time_of_their_own(store: Store, still: int) -> None:
    paced(store, 0, 0)
    claimed = store.transact(sync.claim)
    assert claimed
    paced(store, 3000, 8000)
    store.transact(lambda tx: sync.clean(tx, claimed))
    assert due(store, still) == (3000, 8000)


def test_what_has_just_happened_goes_before_a_comparison(store: Store) -> None:
    store.transact(lambda tx: sync.mark(tx, ["old"], "sweep", priority=sync.RESYNC))
    store.transact(lambda tx: sync.mark(tx, ["new"], "change"))
    found = store.transact(lambda tx: sync.claim_some(tx, "", 5))
    assert [one.orthanc_id for one in found] == ["new", "old"]


def test_the_oldest_mark_that_nobody_dealt_with_tells_the_lag(store: Store) -> None:
    assert store.transact(sync.oldest) is None
    mark(store, "a")
    first = store.transact(sync.oldest)
    assert first is not None
    mark(store, "a")
    claimed = store.transact(sync.claim)
    assert claimed
    assert store.transact(sync.oldest) == first
    store.transact(lambda tx: sync.clean(tx, claimed))
    assert store.transact(sync.oldest) is None


def test_of_the_change_log_the_newest_rows_of_this_database_stay(store: Store) -> None:
    def fill(tx: Connection) -> None:
        sync.hear(tx, "old", [sync.Change(1, "NewStudy", "a", "a")])
        sync.hear(tx, "new", [sync.Change(number, "NewStudy", "b", "b") for number in (1, sync.KEPT, sync.KEPT + 5)])
        sync.hear(tx, "new", [sync.Change(sync.KEPT + 5, "NewStudy", "another", "b")])
        sync.forget_changes(tx, "new", sync.KEPT + 5)

    store.transact(fill)
    with store.read() as connection:
        assert sync.heard(connection, "old", 0) == {}
        assert sync.heard(connection, "new", 0) == {sync.KEPT: "b", sync.KEPT + 5: "b"}
