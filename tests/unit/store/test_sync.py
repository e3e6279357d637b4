"""Marks, claims and leases: nothing is lost and nothing is done twice at once (app.store.sync)."""

from __future__ import annotations

from app.store import sync
from app.store.database import Store
from app.store.sync import Position


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
