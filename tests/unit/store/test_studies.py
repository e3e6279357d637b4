"""Whose study it is, on both engines."""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from app.store import studies
from app.store.database import Store
from app.store.studies import HeldInstance, HeldStudy, Stowed
from app.store.tables import instance, study

MINE = HeldStudy("o1", "1.2.3", "imaging-1", "p1")
TWIN = HeldStudy("o2", "1.2.3", "imaging-2", "p2")
OTHER = HeldStudy("o3", "1.2.4", "imaging-3", "p1")


def fill(store: Store, *held: HeldStudy) -> None:
    for one in held:
        store.transact(lambda connection, one=one: studies.put(connection, one, digest="d"))


def test_a_uid_of_two_patients_names_two_studies(store: Store) -> None:
    fill(store, MINE, TWIN, OTHER)
    with store.read() as connection:
        assert sorted(studies.with_uid(connection, "1.2.3"), key=lambda one: one.orthanc_id) == [MINE, TWIN]
        assert studies.with_uid(connection, "1.2") == []


def test_a_missing_study_is_not_found_until_it_is_back(store: Store) -> None:
    fill(store, MINE)
    store.transact(lambda connection: connection.execute(sa.update(study).values(missing_since=1)))
    with store.read() as connection:
        assert studies.with_uid(connection, "1.2.3") == []
    fill(store, MINE)
    with store.read() as connection:
        assert studies.with_uid(connection, "1.2.3") == [MINE]


def test_the_instances_of_a_study_are_replaced_as_a_whole(store: Store) -> None:
    first = HeldInstance("i1", "o1", "1.2.3.1", "1.2.3.1.1", "1.2.840.10008.5.1.4.1.1.2", "CT")
    second = dataclasses.replace(first, orthanc_id="i2", sop_uid="1.2.3.1.2")
    for held in ([first], [second], [], [first, second]):
        store.transact(lambda connection, held=held: studies.put_instances(connection, "o1", held))
    with store.read() as connection:
        assert connection.scalars(sa.select(instance.c.orthanc_id).order_by(instance.c.orthanc_id)).all() == [
            "i1",
            "i2",
        ]


def test_of_a_large_study_only_the_instances_that_differ_are_written(store: Store) -> None:
    held = [HeldInstance(f"i{number}", "o1", "1.2", f"1.2.{number}", "1.3", "CT", "file") for number in range(500)]
    store.transact(lambda connection: studies.put_instances(connection, "o1", held))
    watch = sa.text("CREATE TABLE written AS SELECT * FROM instance WHERE 1 = 0")
    store.transact(lambda connection: connection.execute(watch))
    store.transact(lambda connection: connection.execute(sa.text(TRIGGERS[store.sqlite])))
    later = [*held[1:], dataclasses.replace(held[0], file="another"), dataclasses.replace(held[0], orthanc_id="new")]
    store.transact(lambda connection: studies.put_instances(connection, "o1", later))
    with store.read() as connection:
        assert sorted(connection.execute(sa.text("SELECT orthanc_id FROM written")).scalars()) == ["i0", "new"]
        assert connection.execute(sa.select(sa.func.count()).select_from(instance)).scalar_one() == 501


TRIGGERS = {
    True: """CREATE TRIGGER watch AFTER INSERT ON instance
        BEGIN INSERT INTO written SELECT * FROM instance WHERE orthanc_id = new.orthanc_id; END""",
    False: """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO written SELECT * FROM instance WHERE orthanc_id = new.orthanc_id; RETURN NULL; END';
        CREATE TRIGGER watch AFTER INSERT ON instance FOR EACH ROW EXECUTE FUNCTION note()""",
}


def test_who_stored_an_object_is_remembered_and_an_attempt_that_failed_leaves_who_was_before(store: Store) -> None:
    who = Stowed("1.2.3.9.1", "1.2.3", "g", "app", "Practitioner/1", "00" * 32)
    again, third = (dataclasses.replace(who, grant_id=grant) for grant in "hi")
    before = [store.transact(lambda connection, one=one: studies.record_stow(connection, one)) for one in (who, again)]
    assert before == [None, who]

    def after_undoing(one: Stowed, former: Stowed | None) -> Stowed | None:
        store.transact(lambda connection: studies.undo_stow(connection, one, former))
        with store.read() as connection:
            return studies.stowed(connection, who.sop_uid)

    assert after_undoing(third, None) == again
    assert after_undoing(again, who) == who
    assert after_undoing(who, None) is None
