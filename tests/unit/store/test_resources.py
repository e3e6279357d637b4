"""Rows of resources: versions, conflicts, locks, history and the index kept beside them, on both engines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa

from app.errors import Conflict, Unavailable
from app.store import resources
from app.store.database import Store, run
from app.store.query import Clause, Date, Index, Query, Target, Text, Token
from app.store.resources import Change, Stored

DAY = 86_400_000


def study(number: int, at: int = 1000, **more: object) -> Change:
    """The first version of a study of one of three patients."""
    new = Stored("ImagingStudy", f"s{number}", 1, at, False, b'{"version":1}', method="POST", cause="create")
    return Change(new, about(number), **more)  # pyright: ignore[reportArgumentType]


def about(number: int, status: str = "available") -> Index:
    return Index(
        tokens=frozenset({("identifier", "urn:dicom:uid", f"urn:oid:1.{number}"), ("status", "", status)}),
        references=frozenset({("patient", "Patient", f"p{number % 3}")}),
        dates=frozenset({("started", number * DAY, number * DAY + 1000)}),
        strings=frozenset({("description", f"head {number}", f"Head {number}")}),
        numbers=frozenset({("size", float(number), float(number), "", "")}),
        patient_id=f"p{number % 3}",
        sort=number * DAY,
    )


def written(store: Store, *changes: Change) -> list[Stored]:
    return store.transact(lambda connection: resources.write(connection, changes))


def replaced(store: Store, resource_id: str, index: Index, *, at: int = 2000, deleted: bool = False) -> Stored:
    def work(connection: sa.Connection) -> Stored:
        before = resources.current(connection, "ImagingStudy", resource_id, for_update=True)
        assert before is not None
        method = "DELETE" if deleted else "PUT"
        body = b"" if deleted else f'{{"version":{before.version + 1}}}'.encode()
        new = replace(before, version=before.version + 1, updated=at, deleted=deleted, body=body, method=method)
        return resources.write(connection, [Change(new, index, before)])[0]

    return store.transact(work)


def found(store: Store, *clauses: Clause) -> list[str]:
    with store.read() as connection:
        query = Query("ImagingStudy", clauses, natural="started")
        return [hit.stored.resource_id for hit in resources.search(connection, query, limit=100)]


def rows_of(store: Store, rid: int) -> int:
    with store.read() as connection:
        tables = ("indextoken", "indexreference", "indexdate", "indexstring", "indexnumber")
        return sum(
            run(connection, f"SELECT count(*) FROM {table} WHERE rid = ?", (rid,)).fetchone()[0] for table in tables
        )


def test_every_version_is_kept_and_only_the_current_one_is_found(store: Store) -> None:
    (first,) = written(store, study(1))
    assert first.rid > 0
    second = replaced(store, "s1", about(1, "cancelled"))
    assert (second.rid, second.version, second.patient_id) == (first.rid, 2, "p1")
    assert found(store, Clause((Token("status", None, "cancelled"),))) == ["s1"]
    assert found(store, Clause((Token("status", None, "available"),))) == []
    with store.read() as connection:
        assert resources.version(connection, "ImagingStudy", "s1", 1) == first
        assert resources.version(connection, "ImagingStudy", "s1", 2) == second
        assert resources.version(connection, "ImagingStudy", "s1", 3) is None
        assert resources.current(connection, "ImagingStudy", "s1") == second


def test_a_deleted_resource_keeps_its_number_and_its_patient_and_leaves_the_index(store: Store) -> None:
    (first,) = written(store, study(1))
    gone = replaced(store, "s1", Index(), deleted=True)
    assert (gone.rid, gone.version, gone.deleted, gone.body, gone.patient_id) == (first.rid, 2, True, b"", "p1")
    assert rows_of(store, first.rid) == 0
    assert found(store) == []
    back = replaced(store, "s1", about(1), at=3000)
    assert (back.rid, back.version, back.deleted) == (first.rid, 3, False)
    assert found(store) == ["s1"]


def test_what_did_not_change_in_the_index_is_not_written_again(store: Store) -> None:
    (one,) = written(store, study(1))
    before = rows_of(store, one.rid)
    counted: list[int] = []

    def work(connection: sa.Connection) -> None:
        held = resources.current(connection, "ImagingStudy", "s1", for_update=True)
        assert held is not None
        changes = connection.connection.driver_connection.total_changes if store.sqlite else 0
        resources.write(connection, [Change(replace(held, version=2), about(1, "cancelled"), held)])
        counted.append(connection.connection.driver_connection.total_changes - changes if store.sqlite else 4)

    store.transact(work)
    assert rows_of(store, one.rid) == before
    # The version moved aside, the new one, one token gone and one come.
    assert counted == [4]


def test_thousands_are_written_at_once_with_their_numbers(store: Store) -> None:
    changes = [study(number) for number in range(2500)]
    done = written(store, *changes)
    assert [one.resource_id for one in done] == [change.new.resource_id for change in changes]
    assert len({one.rid for one in done}) == 2500
    with store.read() as connection:
        assert resources.count(connection, Query("ImagingStudy")) == 2500
        held = resources.several(connection, "ImagingStudy", ["s7", "s2499", "nobody"])
        assert [(one.resource_id, one.rid) for one in held] == [("s2499", done[2499].rid), ("s7", done[7].rid)]

    def again(connection: sa.Connection) -> None:
        pairs = [("ImagingStudy", f"s{number}") for number in range(2500)]
        known = resources.currents(connection, pairs, for_update=True)
        some = [
            Change(replace(known[pair], version=2, updated=5000), about(number, "cancelled"), known[pair])
            for number, pair in enumerate(pairs)
        ]
        resources.write(connection, some)

    store.transact(again)
    with store.read() as connection:
        cancelled = Query("ImagingStudy", (Clause((Token("status", "", "cancelled"),)),))
        assert resources.count(connection, cancelled) == 2500


@pytest.mark.parametrize("which", ["id", "natural key"])
def test_an_id_or_a_natural_key_that_is_taken_is_a_conflict_and_leaves_nothing(store: Store, which: str) -> None:
    written(store, study(1, natural_key="one"))
    clash = study(1) if which == "id" else study(2, natural_key="one")
    for changes in ((clash,), (study(8), clash, study(9))):
        with pytest.raises(Conflict):
            written(store, *changes)
    assert found(store) == ["s1"]


def test_a_natural_key_stays_unless_another_is_given_and_is_never_shared(store: Store) -> None:
    written(store, study(1, natural_key="one"), study(2, natural_key="two"))
    replaced(store, "s1", about(1))

    def claim(connection: sa.Connection) -> None:
        before = resources.current(connection, "ImagingStudy", "s1", for_update=True)
        assert before is not None
        resources.write(connection, [Change(replace(before, version=3), about(1), before, natural_key="two")])

    with pytest.raises(Conflict, match="natural key"):
        store.transact(claim)
    with store.read() as connection:
        holder = resources.by_natural_key(connection, "one")
        assert holder is not None
        assert (holder.resource_id, holder.version) == ("s1", 2)


def test_a_version_written_over_another_than_the_one_read_is_a_conflict(store: Store) -> None:
    (first,) = written(store, study(1))
    replaced(store, "s1", about(1))
    with pytest.raises(Conflict, match="changed meanwhile"):
        written(store, Change(replace(first, version=2), about(1), first))


def test_of_many_that_create_the_same_one_does(store: Store) -> None:
    outcomes: list[str] = []
    together(8, lambda _: outcomes.append(outcome(lambda: written(store, study(1, natural_key="one")))))
    assert sorted(outcomes) == ["conflict"] * 7 + ["done"]


def test_versions_count_without_a_gap_when_many_write_in_opposite_order(store: Store) -> None:
    written(store, study(1), study(2))

    def work(number: int, connection: sa.Connection) -> None:
        pairs = [("ImagingStudy", "s1"), ("ImagingStudy", "s2")]
        known = resources.currents(connection, pairs[:: -1 if number % 2 else 1], for_update=True)
        changes = [Change(replace(one, version=one.version + 1), about(1), one) for one in known.values()]
        resources.write(connection, changes)

    together(6, lambda number: [store.transact(lambda c: work(number, c)) for _ in range(5)])
    with store.read() as connection:
        assert [one.version for one in resources.several(connection, "ImagingStudy", ["s1", "s2"])] == [31, 31]
        past = resources.history(connection, resource_type="ImagingStudy", resource_id="s1", limit=100)
    assert [hit.stored.version for hit in past] == list(range(31, 0, -1))


def test_equal_texts_wait_for_each_other(store: Store) -> None:
    def create_once(connection: sa.Connection) -> None:
        resources.lock(connection, "identifier=1")
        query = Query("ImagingStudy", (Clause((Token("status", None, "available"),)),))
        if not resources.count(connection, query):
            resources.write(connection, [study(threading.get_native_id())])

    together(6, lambda _: store.transact(create_once))
    assert len(found(store)) == 1


def test_history_pages_newest_first_without_repeating_or_leaving_out(store: Store) -> None:
    written(store, *(study(number, at=1000 + number) for number in range(6)))
    for number in range(4):
        replaced(store, f"s{number}", about(number), at=2000)
    replaced(store, "s0", Index(), at=3000, deleted=True)
    seen: list[tuple[str, int]] = []
    after = None
    while True:
        with store.read() as connection:
            hits = resources.history(connection, types=["ImagingStudy", "Patient"], limit=3, after=after)
        seen += [(hit.stored.resource_id, hit.stored.version) for hit in hits]
        if len(hits) < 3:
            break
        after = hits[-1].place
    assert seen[0] == ("s0", 3)
    assert len(seen) == len(set(seen)) == 11
    with store.read() as connection:
        everything = resources.history(connection, limit=100)
        assert [(hit.stored.resource_id, hit.stored.version) for hit in everything] == seen
        since = resources.history(connection, resource_type="ImagingStudy", since=2000, limit=100)
        assert {hit.stored.version for hit in since} == {2, 3}
        assert [hit.stored.method for hit in everything][:2] == ["DELETE", "PUT"]


def test_history_tells_what_was_current_at_a_moment(store: Store) -> None:
    written(store, study(1, at=1000))
    replaced(store, "s1", about(1), at=2000)
    replaced(store, "s1", about(1), at=3000)

    def versions(lo: int, hi: int) -> list[int]:
        with store.read() as connection:
            hits = resources.history(connection, resource_type="ImagingStudy", resource_id="s1", at=(lo, hi), limit=9)
            return [hit.stored.version for hit in hits]

    assert versions(500, 900) == []
    assert versions(1500, 1600) == [1]
    assert versions(1500, 2001) == [2, 1]
    assert versions(2500, 9000) == [3, 2]
    assert versions(8000, 9000) == [3]


def test_references_lead_both_ways(store: Store) -> None:
    done = written(store, *(study(number) for number in range(5)))
    with store.read() as connection:
        rids = [one.rid for one in done[:3]]
        assert resources.targets(connection, "ImagingStudy", "patient", rids, 10) == [
            ("Patient", "p0"),
            ("Patient", "p1"),
            ("Patient", "p2"),
        ]
        assert len(resources.targets(connection, "ImagingStudy", "patient", rids, 2)) == 2
        pairs = [("Patient", "p0"), ("Patient", "p1"), ("Group", "p2")]
        assert resources.referrers(connection, "ImagingStudy", "patient", pairs, 10) == ["s0", "s1", "s3", "s4"]


def test_an_index_is_filled_again_while_others_write(store: Store) -> None:
    done = written(store, *(study(number) for number in range(3)))
    replaced(store, "s2", about(2, "cancelled"))

    def again(connection: sa.Connection) -> None:
        resources.reindex(connection, [(one, about(number, "seen")) for number, one in enumerate(done)])
        resources.set_index_digest(connection, "abc")

    with store.read() as connection:
        assert resources.index_digest(connection) == ""
        walked = resources.walk(connection, "ImagingStudy", done[0].rid, 5)
    assert [one.resource_id for one in walked] == ["s1", "s2"]
    store.transact(again)
    assert sorted(found(store, Clause((Token("status", None, "seen"),)))) == ["s0", "s1"]
    # What was read before somebody changed it is not indexed by what it said then.
    assert found(store, Clause((Token("status", None, "cancelled"),))) == ["s2"]
    with store.read() as connection:
        assert resources.index_digest(connection) == "abc"


def test_values_longer_than_a_key_are_found_by_their_beginning(store: Store) -> None:
    long = "ü" * 3000
    index = Index(
        tokens=frozenset({("identifier", long, long)}),
        references=frozenset({("of", "", long)}),
        strings=frozenset({("name", long, long)}),
    )
    written(store, Change(Stored("Basic", "b", 1, 1, False, b"{}"), index))
    with store.read() as connection:
        for condition in (
            Token("identifier", long, long),
            Target("of", "", long),
            Text("name", "starts", long),
            Text("name", "exact", long),
        ):
            assert resources.count(connection, Query("Basic", (Clause((condition,)),))) == 1


def test_a_search_that_takes_too_long_ends_with_a_reason(store: Store) -> None:
    written(store, *(study(number) for number in range(1500)))
    with pytest.raises(Unavailable, match="too long"), store.read(seconds=0.05) as connection:
        run(connection, "SELECT count(*) FROM indextoken a, indextoken b, indextoken c").fetchone()
    with store.read() as connection:
        assert resources.count(connection, Query("ImagingStudy", (Clause((Date("started", "lt", DAY, DAY),)),))) == 1


def outcome(act: Callable[[], object]) -> str:
    try:
        act()
    except Conflict:
        return "conflict"
    return "done"


def together(number: int, act: Callable[[int], object]) -> None:
    """Run at once in so many threads; their failures are ours."""
    start, failures = threading.Barrier(number), list[Exception]()

    def run_one(which: int) -> None:
        start.wait()
        try:
            act(which)
        except Exception as error:  # noqa: BLE001 - told at the end
            failures.append(error)

    threads = [threading.Thread(target=run_one, args=(which,)) for which in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
