"""The search index made anew: whole, beside writers, and demanded when it does not fit."""

from __future__ import annotations

import threading

import pytest

from app.errors import ConfigurationError
from app.fhir import rebuild, registry, resources
from app.store import resources as rows
from app.store.database import Store
from app.store.query import Index


def put(store: Store, resource_id: str, family: str) -> None:
    patient = {"resourceType": "Patient", "id": resource_id, "name": [{"family": family}]}
    store.transact(lambda connection: resources.put(connection, patient, cause="test"))


def found(store: Store, family: str) -> list[str]:
    with store.read() as connection:
        return sorted(one["id"] for one in resources.find(connection, "Patient", [("family", family)]))


def forget(store: Store, resource_id: str) -> None:
    """As an index made for other parameters would be."""

    def work(connection: rows.Connection) -> None:
        stored = rows.current(connection, "Patient", resource_id)
        assert stored is not None
        rows.reindex(connection, [(stored, Index())])

    store.transact(work)


def test_a_process_serves_only_with_an_index_that_fits(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="isocenter index rebuild"):
        rebuild.require_current(store)
    rebuild.rebuild(store)
    rebuild.require_current(store)
    store.transact(lambda connection: rows.set_index_digest(connection, "another"))
    with pytest.raises(ConfigurationError):
        rebuild.require_current(store)


def test_a_rebuild_finds_everything_again_and_leaves_out_what_is_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "BATCH", 2)
    for number in range(5):
        put(store, f"p{number}", "Muster")
        forget(store, f"p{number}")
    put(store, "gone", "Muster")

    def delete(connection: rows.Connection) -> None:
        stored = rows.current(connection, "Patient", "gone", for_update=True)
        assert stored is not None
        rows.write(connection, [resources.deleted(stored, cause="test")])

    store.transact(delete)
    assert found(store, "Muster") == []
    told: list[tuple[str, int]] = []
    assert rebuild.rebuild(store, lambda kind, done: told.append((kind, done))) == 5
    assert found(store, "Muster") == [f"p{number}" for number in range(5)]
    assert {kind for kind, _ in told} == set(registry.offers())
    assert max(done for _, done in told) == 5


def test_what_is_written_meanwhile_is_found_as_it_was_written_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "BATCH", 1)
    for number in range(20):
        put(store, f"p{number}", "Before")
    writer = threading.Thread(target=lambda: [put(store, f"p{number}", "After") for number in reversed(range(20))])
    writer.start()
    rebuild.rebuild(store)
    writer.join()
    assert found(store, "Before") == []
    assert len(found(store, "After")) == 20
