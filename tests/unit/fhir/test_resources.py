"""Bytes in, bytes out: what the store keeps of a resource, and what it finds again."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from app import errors
from app.fhir import resources, search
from app.fhir.registry import offers
from app.store import resources as rows
from app.store.database import Store
from app.store.query import Place
from app.store.resources import Stored

Json = dict[str, Any]

PATIENT = (
    b'{ "resourceType" : "Patient", "name":[ {"family" : "M\xc3\xbcller",\n "given":["Eva"]} ],"birthDate": "1980-02" }'
)
STUDY: Json = {
    "resourceType": "ImagingStudy",
    "id": "s1",
    "identifier": [
        {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"},
        {"system": "urn:isocenter:accession", "value": "A1"},
    ],
    "status": "available",
    "subject": {"reference": "Patient/p1"},
    "started": "2024-03-01T10:00:00+01:00",
    "endpoint": [{"reference": "Endpoint/e1"}],
    "series": [
        {
            "uid": "1.2.3.4",
            "modality": {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CT"},
            "bodySite": {"system": "http://snomed.info/sct", "code": "51185008"},
            "instance": [
                {
                    "uid": "1.2.3.4.5",
                    "sopClass": {"system": "urn:ietf:rfc:3986", "code": "urn:oid:1.2.840.10008.5.1.4.1.1.2"},
                }
            ],
        }
    ],
}


def put(store: Store, resource: Json, natural_key: str | None = None) -> Stored:
    return store.transact(lambda tx: resources.put(tx, resource, cause="test", natural_key=natural_key))


def keep(store: Store, resource_type: str, resource_id: str | None, body: bytes) -> Stored:
    """A client's version, the first or the next."""
    draft = resources.accepted(resource_type, body)

    def work(connection: Connection) -> Stored:
        known = rows.current(connection, resource_type, resource_id, for_update=True) if resource_id else None
        if known is None:
            change = resources.created(resource_type, draft, cause="test", resource_id=resource_id)
        else:
            change = resources.replaced(known, draft, cause="test")
        return rows.write(connection, [change])[0] if change else known

    return store.transact(work)


def find(store: Store, resource_type: str, *criteria: tuple[str, str]) -> list[str]:
    with store.read() as connection:
        return [found["id"] for found in resources.find(connection, resource_type, criteria)]


def test_a_created_resource_keeps_the_clients_bytes_but_for_id_and_meta(store: Store) -> None:
    stored = keep(store, "Patient", None, PATIENT)
    inside = b'[ {"family" : "M\xc3\xbcller",\n "given":["Eva"]} ]'
    assert stored.body.startswith(f'{{"resourceType":"Patient","id":"{stored.resource_id}","meta":{{'.encode())
    assert inside in stored.body
    read = orjson.loads(stored.body)
    assert read.pop("meta") == {"versionId": "1", "lastUpdated": resources.instant(stored.updated)}
    assert {**orjson.loads(PATIENT), "id": stored.resource_id} == read


def test_id_and_meta_stay_where_the_client_put_them_and_its_other_meta_is_kept(store: Store) -> None:
    body = b'{"active":true,"meta":{"tag":[{"code":"x"}],"versionId":"9"},"id":"p1","resourceType":"Patient"}'
    stored = keep(store, "Patient", "p1", body)
    assert stored.version == 1
    when = resources.instant(stored.updated)
    meta = f'"meta":{{"tag":[{{"code":"x"}}],"versionId":"1","lastUpdated":"{when}"}}'
    assert stored.body == f'{{"active":true,{meta},"id":"p1","resourceType":"Patient"}}'.encode()


@pytest.mark.parametrize(
    "body",
    [
        b'{"resourceType":"Patient","active":true,"gender":"female"}',
        b'{"resourceType":"Patient", "active" : true ,\n "gender":"female"}',
        b'{"resourceType":"Patient","active":true,"gender":"female"}\n',
        b'{ "active":true,"resourceType":"Patient","gender":"female"}',
        b'{"resourceType":"Patient","active":true,"gender":"female","id":"another"}',
        b'{"resourceType":"Patient","active":true,"gender":"female","id":"p9"}',
        b'{"resourceType":"Patient","id":"p9","active":true,"gender":"female"}',
        b'{"resourceType":"Patient","active":true,"gender":"female","meta":{"versionId":"7"}}',
    ],
)
def test_wherever_a_body_has_its_type_id_and_meta_the_stored_one_has_each_once(store: Store, body: bytes) -> None:
    stored = keep(store, "Patient", "p9", body)
    assert stored.body.startswith(b"{")
    assert stored.body.endswith(b"}")
    pairs: list[tuple[str, Any]] = json.loads(stored.body, object_pairs_hook=list)
    assert sorted(name for name, _ in pairs) == ["active", "gender", "id", "meta", "resourceType"]
    found = dict(pairs)
    assert (found["id"], dict(found["meta"])["versionId"], found["active"], found["gender"]) == (
        "p9",
        "1",
        True,
        "female",
    )


def test_new_ids_are_uuids_that_begin_with_the_time() -> None:
    first = [uuid.UUID(resources.new_id()) for _ in range(20)]
    later = uuid.UUID(resources.new_id())
    assert len({*first, later}) == 21
    assert {(one.version, one.variant) for one in (*first, later)} == {(7, uuid.RFC_4122)}
    assert all(one.int >> 80 <= later.int >> 80 for one in first)


def test_equal_content_makes_no_new_version_and_another_decimal_precision_does(store: Store) -> None:
    def observe(value: str) -> bytes:
        quantity = f'"valueQuantity":{{"value":{value},"unit":"mm"}}'
        return f'{{"resourceType":"Observation","id":"o","status":"final","code":{{"text":"x"}},{quantity}}}'.encode()

    def update(body: bytes) -> int:
        return keep(store, "Observation", "o", body).version

    assert [update(observe(value)) for value in ("12.50", "12.50", "12.5")] == [1, 1, 2]
    assert update(observe("12.5").replace(b",", b" ,\n")) == 2


def test_a_decimal_of_ours_is_written_and_read_with_its_digits(store: Store) -> None:
    quantity = {"value": Decimal("12.50"), "unit": "mm"}
    stored = put(
        store,
        {"resourceType": "Observation", "id": "o", "status": "final", "code": {"text": "x"}, "valueQuantity": quantity},
    )
    assert b'"value":12.50,' in stored.body
    with store.read() as connection:
        read = resources.read(connection, "Observation", "o")
    assert read is not None
    assert str(read["valueQuantity"]["value"]) == "12.50"


def test_an_invalid_resource_is_refused_with_the_path_of_each_fault_and_nothing_is_stored(store: Store) -> None:
    body = b'{"resourceType":"Patient","id":"p1","gender":"x","birthDate":"yesterday"}'
    with pytest.raises(errors.Unprocessable) as refused:
        keep(store, "Patient", "p1", body)
    assert {issue.expression for issue in refused.value.issues} == {"Patient.gender", "Patient.birthDate"}
    with store.read() as connection:
        assert resources.read(connection, "Patient", "p1") is None


@pytest.mark.parametrize("body", [b'{"resourceType":"Device","id":"p1"}', b"[]", b"{"])
def test_a_body_must_be_a_resource_of_its_type(store: Store, body: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        keep(store, "Patient", "p1", body)


def test_two_first_writers_of_our_own_end_as_two_versions(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        stored = pool.map(
            lambda n: put(store, {"resourceType": "Patient", "id": "p1", "name": [{"family": f"F{n}"}]}, "k"), range(8)
        )
        assert sorted(one.version for one in stored) == list(range(1, 9))


def test_of_several_stored_at_once_the_one_that_somebody_stored_first_gets_a_next_version(store: Store) -> None:
    def patient(number: str, family: str) -> dict[str, Any]:
        identifier = {"system": "urn:mrn", "value": number}
        return {"resourceType": "Patient", "id": number, "identifier": [identifier], "name": [{"family": family}]}

    made = [resources.own(patient(one, "Ours"), cause="test", natural_key=f"patient:{one}") for one in ("1", "2")]
    store.transact(lambda connection: resources.put(connection, patient("2", "Theirs"), cause="test"))
    store.transact(lambda connection: resources.put_all(connection, made))
    with store.read() as connection:
        [first] = resources.identified_by(connection, "Patient", "urn:mrn", "1")
        [second] = resources.identified_by(connection, "Patient", "urn:mrn", "2")
        assert resources.identified_by(connection, "Patient", "urn:other", "1") == []
        assert resources.own_unless_there(connection, patient("1", "Again"), cause="test") is None
        assert resources.own_unless_there(connection, patient("3", "New"), cause="test") is not None
    assert [one["name"][0]["family"] for one in (first, second)] == ["Ours", "Ours"]
    assert [one["meta"]["versionId"] for one in (first, second)] == ["1", "2"]


def test_an_edit_changes_the_named_elements_and_no_other_byte(store: Store) -> None:
    body = b'{"resourceType":"ServiceRequest","id":"r","status":"active","intent":"order",'
    body += b'"subject":{ "reference" : "Patient/p1" },"code":{"text" :"CT"}}'
    keep(store, "ServiceRequest", "r", body)
    identifier = [{"value": "A1"}]
    edited = store.transact(lambda tx: resources.edit(tx, "ServiceRequest", "r", {"identifier": identifier}, cause="t"))
    assert edited.version == 2
    assert b'"subject":{ "reference" : "Patient/p1" },"code":{"text" :"CT"}' in edited.body
    assert edited.body.endswith(b',"identifier":[{"value":"A1"}]}')
    again = store.transact(lambda tx: resources.edit(tx, "ServiceRequest", "r", {"identifier": identifier}, cause="t"))
    assert again == edited
    removed = store.transact(lambda tx: resources.edit(tx, "ServiceRequest", "r", {"identifier": None}, cause="t"))
    assert (removed.version, b"identifier" in removed.body) == (3, False)


def test_an_edit_outside_the_fact_book_or_of_nothing_or_invalid_is_refused(store: Store) -> None:
    put(store, STUDY)
    for changes, refusal in (({"series": []}, errors.Conflict), ({"status": "lost"}, errors.Unprocessable)):
        with pytest.raises(refusal):
            store.transact(lambda tx, changes=changes: resources.edit(tx, "ImagingStudy", "s1", changes, cause="t"))
    with pytest.raises(errors.NotFound):
        store.transact(lambda tx: resources.edit(tx, "ImagingStudy", "s2", {"status": "available"}, cause="t"))


def test_a_natural_key_finds_its_resource_and_stays_when_the_next_version_does_not_name_it(store: Store) -> None:
    put(store, STUDY, "study 1.2.3")
    put(store, {**STUDY, "status": "cancelled"})
    with store.read() as connection:
        found = resources.by_natural_key(connection, "study 1.2.3")
        assert found is not None
        assert (found["id"], found["status"]) == ("s1", "cancelled")
        assert resources.by_natural_key(connection, "another") is None
    with pytest.raises(errors.Conflict):
        put(store, {**STUDY, "id": "s2"}, "study 1.2.3")
    put(store, {**STUDY, "id": "s2"})
    with pytest.raises(errors.Conflict):
        put(store, {**STUDY, "id": "s2", "description": "x"}, "study 1.2.3")


def test_the_facts_of_a_study_are_its_patient_its_uid_and_its_tokens(store: Store) -> None:
    put(store, STUDY)
    with store.read() as connection:
        facts = resources.facts(connection, "ImagingStudy", "s1")
        assert resources.facts(connection, "ImagingStudy", "none").patient_id is None
    assert (facts.patient_id, facts.study_uids) == ("p1", frozenset({"1.2.3"}))
    assert facts.index["identifier"] == {("urn:dicom:uid", "urn:oid:1.2.3"), ("urn:isocenter:accession", "A1")}
    assert facts.index["patient"] == {("Patient", "p1")}


STUDY_IS_FOUND_BY = [
    (("identifier", "urn:oid:1.2.3"), True),
    (("identifier", "urn:dicom:uid|urn:oid:1.2.3"), True),
    (("identifier", "urn:isocenter:accession|"), True),
    (("identifier", "|A1"), False),
    (("identifier", "B2,A1"), True),
    (("identifier:not", "A1"), False),
    (("identifier:not", "B2"), True),
    (("status", "available"), True),
    (("status", "http://hl7.org/fhir/imagingstudy-status|available"), True),
    (("modality", "CT"), True),
    (("modality", "MR"), False),
    (("bodysite", "http://snomed.info/sct|51185008"), True),
    (("instance", "1.2.3.4.5"), True),
    (("dicom-class", "urn:oid:1.2.840.10008.5.1.4.1.1.2"), True),
    (("patient", "p1"), True),
    (("patient", "Patient/p1"), True),
    (("patient:Patient", "p1"), True),
    (("subject:Patient", "p1"), True),
    (("subject", "Device/p1"), False),
    (("endpoint", "Endpoint/e1"), True),
    (("encounter:missing", "true"), True),
    (("encounter:missing", "false"), False),
    (("started", "2024-03-01"), True),
    (("started", "2024"), True),
    (("started", "2024-03-01T09:00:00Z"), True),
    (("started", "2024-03-01T10:00:00 01:00"), True),
    (("started", "ne2024-03-01"), False),
    (("started", "gt2024-03-01"), False),
    (("started", "ge2024-03-01"), True),
    (("started", "lt2024-03-01"), False),
    (("started", "le2024-03-01"), True),
    (("started", "sa2024-02-29"), True),
    (("started", "eb2024-03-02"), True),
    (("started", "ap2024-03-02"), True),
    (("started", "2023,2024"), True),
    (("_id", "s0,s1"), True),
    (("_lastUpdated", "gt2020"), True),
    (("_lastUpdated", "lt2020"), False),
]


def test_a_study_is_found_by(store: Store) -> None:
    put(store, STUDY)
    for criterion, found in STUDY_IS_FOUND_BY:
        assert find(store, "ImagingStudy", criterion) == (["s1"] if found else []), criterion


PATIENT_IS_FOUND_BY = [
    (("name", "MULLER"), True),
    (("name", "ev"), True),
    (("family", "uller"), False),
    (("family:contains", "uLLe"), True),
    (("family:exact", "Müller"), True),
    (("family:exact", "müller"), False),
    (("family", "100%"), False),
    (("phone", "555"), True),
    (("email", "555"), False),
    (("birthdate", "1980"), True),
    (("birthdate", "1980-02-01"), False),
    (("deceased", "false"), True),
    (("active", "true"), True),
    (("address-city", "zurich"), True),
    (("gender", "female"), True),
    (("_tag", "x"), True),
]


def test_a_patient_is_found_by(store: Store) -> None:
    patient: Json = {**orjson.loads(PATIENT), "id": "p1", "meta": {"tag": [{"code": "x"}]}, "active": True}
    patient |= {"telecom": [{"system": "phone", "value": "555"}], "address": [{"city": "Zürich"}], "gender": "female"}
    put(store, patient)
    for criterion, found in PATIENT_IS_FOUND_BY:
        assert find(store, "Patient", criterion) == (["p1"] if found else []), criterion


def test_criteria_are_anded_and_an_old_version_is_not_found(store: Store) -> None:
    put(store, STUDY)
    put(store, {**STUDY, "status": "cancelled"})
    assert find(store, "ImagingStudy", ("status", "available")) == []
    assert find(store, "ImagingStudy", ("status", "cancelled"), ("modality", "CT")) == ["s1"]
    assert find(store, "ImagingStudy", ("status", "cancelled"), ("modality", "MR")) == []


def test_undated_resources_come_last_in_both_directions(store: Store) -> None:
    for number, started in (("a", "2024-01-01"), ("b", None), ("c", "1950-01-01")):
        put(
            store,
            {**STUDY, "id": number, "started": started}
            if started
            else {name: value for name, value in {**STUDY, "id": number}.items() if name != "started"},
        )
    assert find(store, "ImagingStudy", ("_sort", "-started")) == ["a", "c", "b"]
    assert find(store, "ImagingStudy", ("_sort", "started")) == ["c", "a", "b"]


def test_one_of_two_dates_does_not_lend_its_bounds_to_the_other(store: Store) -> None:
    for started in ("2019-05-01", "2022-06-01", "2024-02-29"):
        put(store, {**STUDY, "id": f"s{started[:4]}", "started": started})
    for value, expected in (
        ("2024-02-29,lt2020", ["s2024", "s2019"]),
        ("lt2020,2024-02-29", ["s2024", "s2019"]),
        ("sa2024-01,eb2020", ["s2024", "s2019"]),
        ("lt2020", ["s2019"]),
        ("lt2023,gt2024", ["s2022", "s2019"]),
    ):
        assert find(store, "ImagingStudy", ("started", value)) == expected, value


def test_a_text_longer_than_an_index_row_is_kept_whole_and_found_by_its_beginning(store: Store) -> None:
    text = "ü" * 9000
    put(
        store, {"resourceType": "Observation", "id": "o", "status": "final", "code": {"text": "x"}, "valueString": text}
    )
    assert find(store, "Observation", ("value-string", "UUU")) == ["o"]
    assert find(store, "Observation", ("value-string:exact", text)) == ["o"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    days=st.lists(st.one_of(st.none(), st.integers(1, 4)), max_size=12),
    count=st.integers(1, 5),
    order=st.sampled_from(["-authored", "authored", "-_lastUpdated", "-authored,_id", "status,-_id"]),
)
def test_pages_together_are_the_whole_each_resource_once(
    store: Store, days: list[int | None], count: int, order: str
) -> None:
    tag = str(uuid.uuid4())
    for number, day in enumerate(days):
        dated = {} if day is None else {"authoredOn": f"2024-01-0{day}"}
        put(store, {**ORDER, **dated, "id": f"{tag[:30]}-{number}", "meta": {"tag": [{"code": tag}]}})
    query = search.parse(offers()["ServiceRequest"], [("_tag", tag), ("_sort", order)]).query
    with store.read() as connection:
        whole = [hit.stored.resource_id for hit in rows.search(connection, query, limit=100)]
        paged: list[str] = []
        after: Place | None = None
        while page := rows.search(connection, query, limit=count, after=after):
            paged += [hit.stored.resource_id for hit in page]
            after = page[-1].place
    assert paged == whole
    assert len(set(whole)) == len(days)


ORDER: Json = {
    "resourceType": "ServiceRequest",
    "status": "active",
    "intent": "order",
    "subject": {"reference": "Patient/p1"},
}
