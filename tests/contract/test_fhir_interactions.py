"""History, conditions, deletions, headers and forms of answers (https://hl7.org/fhir/R4/http.html)."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.fhir import validation
from tests.contract.conftest import Server, caller

JSON = "application/fhir+json"
SENT = {"Content-Type": JSON}
IDENTIFIED = {"identifier": [{"system": "urn:mrn", "value": "7"}]}


def patient(**more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", **more}


def put(client: httpx.Client, resource: dict[str, Any], **headers: str) -> httpx.Response:
    address = f"/fhir/{resource['resourceType']}/{resource['id']}"
    return client.put(address, content=json.dumps(resource), headers={**SENT, **headers})


def post(client: httpx.Client, resource: dict[str, Any], **headers: str) -> httpx.Response:
    return client.post(f"/fhir/{resource['resourceType']}", content=json.dumps(resource), headers={**SENT, **headers})


def versions(bundle: dict[str, Any]) -> list[tuple[str, str]]:
    return [(entry["request"]["method"], entry["response"]["etag"]) for entry in bundle.get("entry", [])]


# --- service root ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R4")
def test_head_answers_with_the_headers_of_get(client: httpx.Client) -> None:
    put(client, patient(id="p1"))
    for address in ("/fhir/Patient/p1", "/fhir/Patient", "/fhir/metadata"):
        got, asked = client.get(address), client.head(address)
        assert (asked.status_code, asked.content) == (200, b"")
        for name in ("content-length", "content-type", "etag", "vary"):
            assert asked.headers.get(name) == got.headers.get(name)


@pytest.mark.requirement("R4")
def test_a_browser_of_another_origin_may_use_tokens_but_no_cookies(server: Server) -> None:
    origin = {"Origin": "https://app.example"}
    with server.client() as client:
        allowed = client.options("/fhir/Patient/p1", headers=origin)
        assert allowed.status_code == 204
        assert {"If-Match", "Prefer", "Authorization"} <= set(
            allowed.headers["access-control-allow-headers"].split(", ")
        )
        answer = client.get("/fhir/Patient/none", headers=origin)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (404, "*")
        assert "ETag" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        assert "access-control-allow-origin" not in client.get("/v/s/fhir/Patient/none", headers=origin).headers


@pytest.mark.requirement("R5")
def test_the_request_id_comes_back_and_stands_in_audit_and_outcome(server: Server) -> None:
    with server.client() as client:
        answer = client.get("/fhir/Patient/none", headers={"X-Request-Id": "order-7"})
    assert (answer.headers["x-request-id"], answer.json()["id"]) == ("order-7", "order-7")
    assert [record.request_id for record in server.records] == ["order-7"]


@pytest.mark.requirement("R6")
def test_larger_answers_are_compressed_for_those_who_ask(client: httpx.Client) -> None:
    plain = client.get("/fhir/metadata", headers={"Accept-Encoding": "identity"})
    with client.stream("GET", "/fhir/metadata", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == plain.content
    assert len(raw) * 5 < len(plain.content)
    refused = client.get("/fhir/metadata", headers={"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in refused.headers
    assert {"Accept", "Accept-Encoding", "Authorization"} <= set(plain.headers["vary"].split(", "))


@pytest.mark.requirement("R8")
def test_links_and_locations_have_the_public_base(client: httpx.Client) -> None:
    made = post(client, patient())
    assert made.headers["location"].startswith("http://localhost:8080/fhir/Patient/")
    found = client.get("/fhir/Patient").json()
    assert found["link"][0]["url"].startswith("http://localhost:8080/fhir/Patient")


# --- versions --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("I3")
def test_what_has_not_changed_since_is_not_sent_again(client: httpx.Client) -> None:
    made = put(client, patient(id="p1"))
    since = {"If-Modified-Since": made.headers["last-modified"]}
    assert client.get("/fhir/Patient/p1", headers=since).status_code == 304
    early = {"If-Modified-Since": "Thu, 01 Jan 2015 00:00:00 GMT"}
    assert client.get("/fhir/Patient/p1", headers=early).status_code == 200
    assert client.get("/fhir/Patient/p1", headers=early | {"If-None-Match": 'W/"1"'}).status_code == 304
    assert client.get("/fhir/Patient/p1", headers=since | {"If-None-Match": 'W/"9"'}).status_code == 200
    assert client.get("/fhir/Patient/p1", headers={"If-Modified-Since": "yesterday"}).status_code == 200


@pytest.mark.requirement("I4", "I5", "I12")
def test_the_history_of_a_resource_tells_its_deletion_and_its_return(client: httpx.Client) -> None:
    first = put(client, patient(id="p1")).content
    put(client, patient(id="p1", active=True))
    assert client.delete("/fhir/Patient/p1").status_code == 204
    assert client.delete("/fhir/Patient/p1").status_code == 204
    assert client.get("/fhir/Patient/p1").status_code == 410
    assert client.get("/fhir/Patient?_id=p1").json()["total"] == 0
    history = client.get("/fhir/Patient/p1/_history").json()
    assert versions(history) == [("DELETE", 'W/"3"'), ("PUT", 'W/"2"'), ("PUT", 'W/"1"')]
    assert (history["type"], history["total"], "resource" in history["entry"][0]) == ("history", 3, False)
    assert client.get("/fhir/Patient/p1/_history/1").content == first
    assert client.get("/fhir/Patient/p1/_history/3").status_code == 410
    assert client.get("/fhir/Patient/p1/_history/4").status_code == 404
    again = put(client, patient(id="p1"))
    assert (again.status_code, again.headers["etag"]) == (201, 'W/"4"')
    assert client.get("/fhir/Patient?_id=p1").json()["total"] == 1
    assert validation.validate(client.get("/fhir/Patient/p1/_history").json(), "Bundle") == []


@pytest.mark.requirement("I5", "I6")
def test_histories_are_paged_newest_first_and_take_since_and_at(client: httpx.Client) -> None:
    for number in range(5):
        post(client, patient(name=[{"family": f"F{number}"}]))
    put(client, {"resourceType": "Device", "id": "d1"})
    seen: list[str] = []
    address: str | None = "/fhir/Patient/_history?_count=2"
    while address:
        page = client.get(address.replace("http://localhost:8080", "")).json()
        seen += [entry["resource"]["name"][0]["family"] for entry in page["entry"]]
        address = next((link["url"] for link in page["link"] if link["relation"] == "next"), None)
    assert seen == ["F4", "F3", "F2", "F1", "F0"]
    everything = client.get("/fhir/_history").json()
    assert [entry["resource"]["resourceType"] for entry in everything["entry"]] == ["Device", *["Patient"] * 5]
    latest = client.get("/fhir/Patient/_history?_count=1").json()["entry"][0]["response"]["lastModified"]
    assert client.get("/fhir/Patient/_history", params={"_since": "2999"}).json()["total"] == 0
    assert client.get("/fhir/Patient/_history", params={"_since": latest}).json()["total"] >= 1
    assert client.get("/fhir/Patient/_history", params={"_at": "2015"}).json()["total"] == 0
    assert client.get("/fhir/Patient/_history", params={"_at": latest}).json()["total"] == 5
    assert client.get("/fhir/Patient/_history?family=x").status_code == 400


@pytest.mark.requirement("I6", "S20")
def test_a_history_shows_only_what_the_caller_may_read(server: Server) -> None:
    server.callers["one"] = caller("patient/Patient.rs", patient_id="p1")
    with server.client() as everything, server.client("one") as client:
        for name in ("p1", "p2"):
            put(everything, patient(id=name))
        everything.delete("/fhir/Patient/p2")
        seen = client.get("/fhir/Patient/_history").json()
        assert [entry["resource"]["id"] for entry in seen["entry"]] == ["p1"]
        assert client.get("/fhir/_history").json()["total"] == 1
        assert client.get("/fhir/Patient/p1/_history").json()["total"] == 1
        assert client.get("/fhir/Patient/p2/_history").status_code == 403
        assert client.get("/fhir/Device/_history").status_code == 403


@pytest.mark.requirement("I10")
def test_if_match_guards_put_patch_and_delete_and_never_creates(client: httpx.Client) -> None:
    stale = {"If-Match": 'W/"9"'}
    assert put(client, patient(id="p1"), **stale).status_code == 412
    assert client.get("/fhir/Patient/p1").status_code == 404
    put(client, patient(id="p1"))
    change = json.dumps([{"op": "add", "path": "/active", "value": True}])
    kind = {"Content-Type": "application/json-patch+json"}
    assert client.patch("/fhir/Patient/p1", content=change, headers=stale | kind).status_code == 412
    assert client.delete("/fhir/Patient/p1", headers=stale).status_code == 412
    assert client.delete("/fhir/Patient/none", headers=stale).status_code == 412
    assert client.patch("/fhir/Patient/p1", content=change, headers=kind | {"If-Match": 'W/"1"'}).status_code == 200
    assert put(client, patient(id="p1"), **{"If-None-Match": "*"}).status_code == 412
    assert client.delete("/fhir/Patient/p1", headers={"If-Match": 'W/"2"'}).status_code == 204


# --- conditions ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("C1")
def test_a_conditional_create_makes_one_resource(client: httpx.Client) -> None:
    condition = {"If-None-Exist": "identifier=urn:mrn|7"}
    first = post(client, patient(**IDENTIFIED), **condition)
    again = post(client, patient(**IDENTIFIED), **condition)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["location"] == first.headers["location"]
    post(client, patient(**IDENTIFIED))
    assert post(client, patient(**IDENTIFIED), **condition).status_code == 412


@pytest.mark.requirement("C1")
def test_equal_conditional_creates_at_once_make_one_resource(server: Server) -> None:
    def attempt(_: int) -> int:
        with server.client() as client:
            return post(client, patient(**IDENTIFIED), **{"If-None-Exist": "identifier=urn:mrn|7"}).status_code

    with ThreadPoolExecutor(12) as pool:
        assert sorted(pool.map(attempt, range(12))) == [*[200] * 11, 201]
    with server.client() as client:
        assert client.get("/fhir/Patient?_summary=count").json()["total"] == 1


@pytest.mark.requirement("C2")
def test_a_conditional_update_creates_updates_or_refuses(client: httpx.Client) -> None:
    address = "/fhir/Patient?identifier=urn:mrn|7"

    def update(**more: Any) -> httpx.Response:
        return client.put(address, content=json.dumps(patient(**IDENTIFIED, **more)), headers=SENT)

    made = update()
    assert made.status_code == 201
    own = made.json()["id"]
    assert (update(active=True).status_code, update(active=True, id=own).status_code) == (200, 200)
    assert update(id="other").status_code == 400
    client.delete(f"/fhir/Patient/{own}")
    named = update(id="mine")
    assert (named.status_code, named.json()["id"]) == (201, "mine")
    post(client, patient(**IDENTIFIED))
    assert update().status_code == 412
    put(client, patient(id="taken"))
    unmatched = client.put("/fhir/Patient?identifier=urn:mrn|8", content=json.dumps(patient(id="taken")), headers=SENT)
    assert unmatched.status_code == 409


@pytest.mark.requirement("C3")
def test_conditional_patch_and_delete_reach_the_one_that_matches(client: httpx.Client) -> None:
    change, kind = json.dumps([{"op": "add", "path": "/active", "value": True}]), "application/json-patch+json"
    address = "/fhir/Patient?identifier=urn:mrn|7"
    assert client.patch(address, content=change, headers={"Content-Type": kind}).status_code == 404
    made = post(client, patient(**IDENTIFIED)).json()
    assert client.patch(address, content=change, headers={"Content-Type": kind}).json()["active"] is True
    assert client.delete(address).status_code == 204
    assert client.get(f"/fhir/Patient/{made['id']}").status_code == 410
    assert client.delete(address).status_code == 204
    for _ in range(2):
        post(client, patient(**IDENTIFIED))
    assert (
        client.delete(address).status_code
        == client.patch(address, content=change, headers={"Content-Type": kind}).status_code
        == 412
    )


@pytest.mark.requirement("C4")
@pytest.mark.parametrize("criteria", ["", "nonsense=1", "_count=1", "identifier=", "_sort=name"])
def test_a_condition_that_restricts_nothing_is_refused(client: httpx.Client, criteria: str) -> None:
    put(client, patient(id="p1"))
    lenient = {"Prefer": "handling=lenient"}
    answers = [
        client.delete(f"/fhir/Patient?{criteria}", headers=lenient),
        client.put(f"/fhir/Patient?{criteria}", content=json.dumps(patient()), headers=SENT | lenient),
        post(client, patient(), **{"If-None-Exist": criteria, **lenient}),
    ]
    assert {answer.status_code for answer in answers} <= {400, 412}
    assert client.get("/fhir/Patient?_summary=count").json()["total"] == 1


def test_a_condition_sees_only_what_its_caller_may_find(server: Server) -> None:
    server.callers["one"] = caller("patient/Observation.cruds", patient_id="p1")
    code = {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]}

    def observed(owner: str) -> dict[str, Any]:
        subject = {"reference": f"Patient/{owner}"}
        return {"resourceType": "Observation", "status": "final", "code": code, "subject": subject, **IDENTIFIED}

    with server.client() as everything, server.client("one") as client:
        post(everything, observed("p2"))
        condition = {"If-None-Exist": "identifier=urn:mrn|7"}
        assert post(client, observed("p1"), **condition).status_code == 201
        assert client.delete("/fhir/Observation?identifier=urn:mrn|7").status_code == 204
        assert everything.get("/fhir/Observation?_summary=count").json()["total"] == 1


@pytest.mark.requirement("T4")
def test_a_conditional_reference_outside_a_transaction_is_refused(client: httpx.Client) -> None:
    link = {"reference": "Organization?identifier=urn:mrn|7"}
    assert post(client, patient(managingOrganization=link)).status_code == 422
    assert post(client, patient(name=[{"text": "Who is it?"}])).status_code == 201


# --- deletions -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("I13")
def test_what_others_refer_to_is_not_deleted(client: httpx.Client) -> None:
    put(client, {"resourceType": "Organization", "id": "o1", "name": "Clinic"})
    put(client, patient(id="p1", managingOrganization={"reference": "Organization/o1"}))
    refused = client.delete("/fhir/Organization/o1")
    assert (refused.status_code, "Patient" in refused.text) == (409, True)
    assert client.get("/fhir/Organization/o1").status_code == 200
    client.delete("/fhir/Patient/p1")
    assert client.delete("/fhir/Organization/o1").status_code == 204
    assert client.delete("/fhir/Organization/o1?_cascade=delete").status_code == 400


# --- parts and other forms -------------------------------------------------------------------------------------


@pytest.mark.requirement("S17")
def test_a_read_shows_the_parts_that_are_asked_for_and_they_cannot_be_written_back(client: httpx.Client) -> None:
    put(client, patient(id="p1", active=True, name=[{"family": "F"}]))
    part = client.get("/fhir/Patient/p1?_elements=active").json()
    assert (set(part), part["meta"]["tag"][0]["code"]) == ({"resourceType", "id", "meta", "active"}, "SUBSETTED")
    assert put(client, part).status_code == 422
    assert client.get("/fhir/Patient/p1?_summary=count").status_code == 400


def test_a_binary_is_given_and_taken_as_what_it_holds(client: httpx.Client) -> None:
    content = bytes(range(256))
    made = client.post("/fhir/Binary", content=content, headers={"Content-Type": "image/png"})
    address = f"/fhir/Binary/{made.json()['id']}"
    assert base64.b64decode(made.json()["data"]) == content
    for accept in ("image/png", "image/*", "text/html, image/png;q=0.5"):
        raw = client.get(address, headers={"Accept": accept})
        assert (raw.content, raw.headers["content-type"]) == (content, "image/png")
        assert "sandbox" in raw.headers["content-security-policy"]
    assert client.get(address, headers={"Accept": JSON}).json()["contentType"] == "image/png"
    assert client.get(address, headers={"Accept": "*/*"}).headers["content-type"] == JSON
    assert client.get(address, headers={"Accept": "image/jpeg"}).status_code == 406
    assert client.post("/fhir/Binary", content=content).status_code == 415


@pytest.mark.requirement("I11")
def test_of_many_writers_with_one_version_one_wins_and_no_version_is_missing(server: Server) -> None:
    def race(client: httpx.Client, change: Callable[[int], httpx.Response]) -> list[int]:
        with ThreadPoolExecutor(8) as pool:
            return sorted(answer.status_code for answer in pool.map(change, range(8)))

    with server.client() as client:
        put(client, patient(id="p1"))

        def write(number: int) -> httpx.Response:
            return put(client, patient(id="p1", name=[{"family": f"F{number}"}]), **{"If-Match": 'W/"1"'})

        assert race(client, write) == [200, *[412] * 7]
        assert versions(client.get("/fhir/Patient/p1/_history").json()) == [("PUT", 'W/"2"'), ("PUT", 'W/"1"')]
