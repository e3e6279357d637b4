"""What a caller with a narrow grant cannot learn or change, and what no client can bring down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import psycopg
import pytest
from sqlalchemy.engine import Connection

from app.errors import Unavailable
from app.fhir import resources
from app.store.database import limited, run
from app.workflow import guards, orders
from tests.contract.conftest import Server, caller

Json = dict[str, Any]
FHIR = {"Content-Type": "application/fhir+json"}
JSON_PATCH = {"Content-Type": "application/json-patch+json"}


def put(client: httpx.Client, resource: Json, **headers: str) -> httpx.Response:
    address = f"/fhir/{resource['resourceType']}/{resource['id']}"
    return client.put(address, content=orjson.dumps(resource), headers=FHIR | headers)


def seeded(client: httpx.Client, *resources: Json) -> None:
    for resource in resources:
        assert put(client, resource).status_code in {200, 201}


def patient(identity: str) -> Json:
    return {"resourceType": "Patient", "id": identity, "name": [{"family": f"Family {identity}"}]}


def observation(identity: str, owner: str, **more: Any) -> Json:
    about = {"status": "final", "code": {"text": "Length"}, "subject": {"reference": f"Patient/{owner}"}}
    return {"resourceType": "Observation", "id": identity, **about, **more}


@pytest.fixture
def narrow(server: Server, client: httpx.Client) -> Iterator[httpx.Client]:
    """An app that may do everything with one patient's data, beside another patient's."""
    server.callers["narrow"] = caller("patient/*.cruds", patient_id="mine")
    seeded(client, patient("mine"), patient("other"), observation("o1", "mine"), observation("o2", "other"))
    with server.client("narrow") as opened:
        yield opened


# --- conditions as an oracle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{"If-Match": 'W/"1"'}, {"If-Match": 'W/"7"'}, {"If-None-Match": "*"}])
def test_no_condition_tells_a_narrow_caller_what_others_have(narrow: httpx.Client, headers: dict[str, str]) -> None:
    there, missing = (put(narrow, observation(name, "mine"), **headers) for name in ("o2", "nowhere"))
    assert (there.status_code, missing.status_code) == (403, 403)


@pytest.mark.parametrize("tag", ['W/"1"', 'W/"7"'])
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_no_version_tells_a_narrow_patch_or_delete_what_others_have(
    narrow: httpx.Client, method: str, tag: str
) -> None:
    body = b'[{"op":"test","path":"/status","value":"final"}]' if method == "PATCH" else b""
    for name in ("o2", "nowhere"):
        answer = narrow.request(
            method, f"/fhir/Observation/{name}", content=body, headers={"If-Match": tag, **JSON_PATCH}
        )
        assert answer.status_code == 403


def test_a_conditional_update_does_not_tell_which_ids_are_taken(narrow: httpx.Client) -> None:
    answers = [
        narrow.put("/fhir/Observation?code=none", content=orjson.dumps(observation(name, "mine")), headers=FHIR)
        for name in ("o2", "nowhere")
    ]
    assert [answer.status_code for answer in answers] == [403, 403]


def test_a_conditional_update_in_a_transaction_does_not_tell_which_ids_are_taken(narrow: httpx.Client) -> None:
    statuses: list[int] = []
    for name in ("o2", "nowhere"):
        entry = {
            "resource": observation(name, "mine"),
            "request": {"method": "PUT", "url": "Observation?code=none"},
        }
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
        statuses.append(narrow.post("/fhir", content=orjson.dumps(bundle), headers=FHIR).status_code)
    assert statuses == [403, 403]


# --- what must not fail ---------------------------------------------------------------------------------------------


def transaction(client: httpx.Client, *resources: Json) -> httpx.Response:
    entries = [{"resource": one, "request": {"method": "POST", "url": one["resourceType"]}} for one in resources]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    return client.post("/fhir", content=orjson.dumps(bundle), headers=FHIR)


def test_a_conditional_reference_to_a_type_that_is_not_served_is_refused(client: httpx.Client) -> None:
    about = observation("", "mine", focus=[{"reference": "Questionnaire?url=x"}])
    del about["id"]
    assert 400 <= transaction(client, about).status_code < 500


@pytest.mark.parametrize("literal", ["1" + "0" * 400, "1e400", "1e-400", "-" + "9" * 900])
def test_a_number_that_no_float_can_hold_is_answered(client: httpx.Client, literal: str) -> None:
    body = orjson.dumps(observation("big", "mine", valueQuantity={"value": 12345})).replace(b"12345", literal.encode())
    answer = client.put("/fhir/Observation/big", content=body, headers=FHIR)
    assert answer.status_code in {201, 422, 400}
    assert client.get("/fhir/Observation", params={"value-quantity": literal}).status_code in {200, 400}


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:60-14:00", "9999", "0001"])
def test_dates_at_the_ends_of_the_calendar_are_answered(client: httpx.Client, moment: str) -> None:
    answer = put(client, observation("edge", "mine", effectiveDateTime=moment))
    assert answer.status_code in {201, 422}
    for word in ("date", "_lastUpdated", "date:missing"):
        for prefix in ("", "ap", "ge", "ne"):
            assert client.get("/fhir/Observation", params={word: prefix + moment}).status_code in {200, 400}
    for word in ("_since", "_at"):
        assert client.get("/fhir/Observation/_history", params={word: moment}).status_code in {200, 400}


@pytest.mark.parametrize(
    "since",
    [
        "Mon, 01 Jan 0001 00:00:00 +1400",
        "Mon, 01 Jan 2020 00:00:00 +99999999999999",
        "1 2 3 4 5 6",
        "Mon, 01 Jan 2020 99:00:00 GMT",
        ",",
        "99999999999999999999",
    ],
)
def test_any_text_in_if_modified_since_is_answered(client: httpx.Client, since: str) -> None:
    seeded(client, patient("mine"))
    assert client.get("/fhir/Patient/mine", headers={"If-Modified-Since": since}).status_code in {200, 304}


def test_a_media_type_outside_of_latin_1_is_answered(client: httpx.Client) -> None:
    held = {"resourceType": "Binary", "id": "b", "contentType": "text/plain;x=ş€", "data": "aGVsbG8="}
    if put(client, held).status_code == 201:
        assert client.get("/fhir/Binary/b", headers={"Accept": "text/*"}).status_code in {200, 406}


@pytest.mark.parametrize("surrogate", [rb"\ud800", rb"\udfff"])
def test_a_lone_surrogate_anywhere_in_a_bundle_is_refused(client: httpx.Client, surrogate: bytes) -> None:
    entry = {
        "fullUrl": "urn:uuid:1",
        "resource": observation("x", "mine", note=[{"text": "MARK"}]),
        "request": {"method": "POST", "url": "Observation"},
    }
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
    for mark in (b"MARK", b"urn:uuid:1", b"Length"):
        body = orjson.dumps(bundle).replace(mark, mark + surrogate)
        assert client.post("/fhir", content=body, headers=FHIR).status_code in {200, 400, 422}
    for name in (b"url", b"POST"):
        body = orjson.dumps(bundle).replace(b'"' + name, b'"' + surrogate + name)
        assert client.post("/fhir", content=body, headers=FHIR).status_code in {200, 400, 422}
    patch = rb'[{"op":"add","path":"/language","value":"%s"}]' % surrogate
    seeded(client, patient("mine"))
    assert client.patch("/fhir/Patient/mine", content=patch, headers=JSON_PATCH).status_code in {400, 422}
    patch = rb'[{"op":"add","path":"/%s","value":"x"}]' % surrogate
    assert client.patch("/fhir/Patient/mine", content=patch, headers=JSON_PATCH).status_code in {400, 422}


# --- types that belong to nobody ----------------------------------------------------------------------------------


def test_a_device_inside_another_patient_is_not_shared(narrow: httpx.Client, client: httpx.Client) -> None:
    implant = {"resourceType": "Device", "id": "d2", "serialNumber": "S", "patient": {"reference": "Patient/other"}}
    own = {"resourceType": "Device", "id": "d1", "patient": {"reference": "Patient/mine"}}
    scanner = {"resourceType": "Device", "id": "scanner", "serialNumber": "S"}
    seeded(client, implant, own, scanner)
    assert narrow.get("/fhir/Device/d2").status_code == 403
    assert narrow.get("/fhir/Device/d2/_history").status_code == 403
    found = narrow.get("/fhir/Device?_total=accurate").json()
    assert found["total"] == 2
    assert sorted(entry["resource"]["id"] for entry in found["entry"]) == ["d1", "scanner"]
    assert {one.status_code for one in (narrow.get("/fhir/Device/d1"), narrow.get("/fhir/Device/scanner"))} == {200}
    assert put(narrow, {**implant, "patient": {"reference": "Patient/mine"}}).status_code == 403
    assert put(narrow, {**own, "patient": {"reference": "Patient/other"}}).status_code == 403
    assert put(narrow, {**own, "serialNumber": "2"}).status_code == 200


def test_a_grant_for_one_patient_does_not_change_what_all_patients_share(
    narrow: httpx.Client, client: httpx.Client
) -> None:
    house = {"resourceType": "Organization", "id": "house", "name": "House"}
    seeded(client, house)
    assert narrow.get("/fhir/Organization/house").status_code == 200
    assert narrow.get("/fhir/Organization/nowhere").status_code == 404
    assert put(narrow, {**house, "name": "Mine"}).status_code == 403
    assert put(narrow, {**house, "id": "nowhere"}).status_code == 403
    assert narrow.delete("/fhir/Organization/house").status_code == 403
    del house["id"]
    assert narrow.post("/fhir/Organization", content=orjson.dumps(house), headers=FHIR).status_code == 403
    assert client.get("/fhir/Organization?_total=accurate").json()["total"] == 1


# --- history ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "count"), [("/fhir/Observation/_history", 1), ("/fhir/_history", 2)])
def test_a_history_does_not_tell_that_others_have_versions(narrow: httpx.Client, address: str, count: int) -> None:
    page = narrow.get(address, params={"_count": count}).json()
    assert (page["total"], len(page["entry"])) == (count, count)
    assert "next" not in {link["relation"] for link in page["link"]}
    page = narrow.get(address, params={"_count": count - 1}).json()
    assert len(page.get("entry", [])) == count - 1


def test_a_history_under_a_criterion_has_full_pages(server: Server, client: httpx.Client) -> None:
    server.callers["some"] = caller("user/Observation.rs?code=http://loinc.org|1")
    coded = {"coding": [{"system": "http://loinc.org", "code": "1"}]}
    seeded(client, observation("a", "mine", code=coded), *(observation(f"x{n}", "other") for n in range(5)))
    seeded(client, observation("b", "mine", code=coded), observation("x9", "other"))
    with server.client("some") as some:
        page = some.get("/fhir/Observation/_history?_count=1").json()
        [following] = [link["url"] for link in page["link"] if link["relation"] == "next"]
        rest = some.get(following.removeprefix("http://localhost:8080")).json()
    assert [entry["resource"]["id"] for one in (page, rest) for entry in one["entry"]] == ["b", "a"]
    assert "next" not in {link["relation"] for link in rest["link"]}


# --- what costs too much --------------------------------------------------------------------------------------------


def test_a_patch_cannot_copy_a_long_text_until_memory_ends(client: httpx.Client) -> None:
    seeded(client, observation("long", "mine", note=[{"text": "x" * 1_000_000}]))
    copies = [{"op": "copy", "from": "/note/0", "path": "/note/-"}] * 1000
    answer = client.patch("/fhir/Observation/long", content=orjson.dumps(copies), headers=JSON_PATCH)
    assert answer.status_code == 422
    assert "copy at most" in answer.json()["issue"][0]["diagnostics"]


def test_a_form_of_many_megabytes_is_refused_unread(client: httpx.Client) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for body in (b"%41" * 1_000_000 + b"=1", b"name=" + b"%41" * 1_000_000):
        assert client.post("/fhir/Patient/_search", content=body, headers=form).status_code == 413


def test_a_long_unknown_word_is_refused_without_a_guess(client: httpx.Client) -> None:
    answer = client.post("/fhir/Patient/_search", data={"a" * 900_000: "1"})
    assert answer.status_code == 400
    assert len(answer.content) < 10_000


def test_the_same_include_many_times_costs_no_more_than_once(client: httpx.Client) -> None:
    seeded(client, patient("mine"), observation("o1", "mine"))
    once = client.get("/fhir/Patient", params="_revinclude=*")
    twice = client.get("/fhir/Patient", params="_revinclude=*&_revinclude=*")
    assert len(once.json()["entry"]) == len(twice.json()["entry"]) == 2
    many = client.post("/fhir/Patient/_search", data={"_revinclude:iterate": ["*"] * 900})
    assert (many.status_code, many.json()["issue"][0]["code"]) == (400, "too-costly")


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_a_bundle_of_reads_has_an_answer_of_a_bounded_size(client: httpx.Client, kind: str) -> None:
    seeded(client, {"resourceType": "Binary", "id": "b", "contentType": "a/b", "data": "AAAA" * 1_250_000})
    entries = [{"request": {"method": "GET", "url": "Binary/b"}}] * 20
    bundle = {"resourceType": "Bundle", "type": kind, "entry": entries}
    answer = client.post("/fhir", content=orjson.dumps(bundle), headers=FHIR, timeout=60)
    assert len(answer.content) < 80_000_000
    statuses = [entry["response"]["status"][:3] for entry in answer.json().get("entry", [])]
    assert [*statuses[-1:], str(answer.status_code)] == (["413", "200"] if kind == "batch" else ["413"])


def test_what_a_write_looks_for_is_bounded_in_time(server: Server) -> None:
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c"

    def work(connection: Connection) -> None:
        with limited(connection, 0.2):
            run(connection, endless).fetchall()

    with pytest.raises(Unavailable):
        server.store.transact(work)
    assert server.store.transact(lambda connection: run(connection, "SELECT 1").fetchone()[0]) == 1


# --- the past of others -----------------------------------------------------------------------------------------------


def test_nobody_records_a_provenance_of_what_is_hidden_from_them(
    server: Server, narrow: httpx.Client, client: httpx.Client
) -> None:
    server.guards.update(guards.GUARDS)

    def recorded(by: httpx.Client, observed: str) -> int:
        record = {
            "resourceType": "Provenance",
            "target": [{"reference": "Patient/mine"}, {"reference": f"Observation/{observed}"}],
            "recorded": "2020-01-01T00:00:00Z",
            "agent": [{"who": {"display": "somebody"}}],
        }
        return by.post("/fhir/Provenance", content=orjson.dumps(record), headers=FHIR).status_code

    assert recorded(narrow, "o2") == 403
    assert client.delete("/fhir/Observation/o2").status_code == 204
    assert recorded(narrow, "o1") == 201


# --- ids that stand for something ------------------------------------------------------------------------------------


def study(owner: str, uid: str) -> Json:
    identifier = [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}]
    about = {"status": "cancelled", "identifier": identifier, "subject": {"reference": f"Patient/{owner}"}}
    return {"resourceType": "ImagingStudy", "id": "s", **about}


def test_a_deleted_study_does_not_come_back_as_another_patients(server: Server, client: httpx.Client) -> None:
    server.guards.update(guards.GUARDS)
    server.delete_guards.update(guards.DELETE_GUARDS)
    key = orders.natural_key("1.2.3", "mine")
    server.store.transact(lambda c: resources.put(c, study("mine", "1.2.3"), cause="order", natural_key=key))
    assert client.delete("/fhir/ImagingStudy/s").status_code == 204
    assert put(client, study("other", "1.2.9")).status_code == 409
    assert put(client, study("mine", "1.2.9")).status_code == 409
    assert put(client, study("mine", "1.2.3")).status_code == 201


# SQLite has one writer.
@pytest.mark.parametrize("database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_writes_that_block_each_other_again_and_again_are_told_to_come_later(server: Server) -> None:
    tries: list[int] = []

    def work(_connection: Connection) -> None:
        tries.append(1)
        raise psycopg.errors.DeadlockDetected

    with pytest.raises(Unavailable):
        server.store.transact(work)
    assert len(tries) > 1
