"""Effects are done in order per key, at least once, and asked for once (app.store.outbox)."""

from __future__ import annotations

import pytest

from app.store import outbox
from app.store.database import Store
from app.store.outbox import Claimed, Effect


def add(store: Store, key: str, once: str) -> None:
    store.transact(lambda tx: outbox.add(tx, Effect("print", key, once, {"n": once})))


def claim(store: Store) -> Claimed | None:
    return store.transact(lambda tx: outbox.claim(tx, ("print",)))


def finish(store: Store, effect: Claimed) -> None:
    store.transact(lambda tx: outbox.done(tx, effect.id))


def test_of_one_key_nothing_overtakes(store: Store) -> None:
    for once in ("1", "2"):
        add(store, "a", once)
    add(store, "b", "3")
    first, other = claim(store), claim(store)
    assert first
    assert other
    assert (first.payload["n"], other.payload["n"]) == ("1", "3")
    assert claim(store) is None
    finish(store, first)
    second = claim(store)
    assert second
    assert second.payload["n"] == "2"


def test_the_same_effect_is_asked_for_once_even_when_it_is_done(store: Store) -> None:
    add(store, "a", "1")
    add(store, "a", "1")
    effect = claim(store)
    assert effect
    finish(store, effect)
    add(store, "a", "1")
    assert claim(store) is None
    assert store.transact(outbox.pending) == {}


def test_what_failed_is_tried_again_later_and_still_blocks_its_key(store: Store) -> None:
    add(store, "a", "1")
    add(store, "a", "2")
    effect = claim(store)
    assert effect
    store.transact(lambda tx: outbox.failed(tx, effect, "ArchiveUnavailable"))
    assert claim(store) is None
    store.transact(lambda tx: tx.execute(outbox.outbox.update().values(due=0)))
    again = claim(store)
    assert again
    assert (again.id, again.attempts) == (effect.id, 2)


def test_an_effect_of_a_transaction_that_failed_never_was(store: Store) -> None:
    def work(connection: object) -> None:
        outbox.add(connection, Effect("print", "a", "1", {}))  # type: ignore[arg-type]
        raise LookupError

    with pytest.raises(LookupError):
        store.transact(work)
    assert claim(store) is None
