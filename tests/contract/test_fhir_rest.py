"""Read, create and update over HTTP (https://hl7.org/fhir/R4/http.html)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import orjson
import pytest

from app.fhir import definitions, outcome, validation
from app.fhir.registry import INTERACTIONS, offers
from tests.contract.conftest import Server

PATIENT = {"resourceType": "Patient", "id": "p1", "name": [{"family": "Muster"}]}
JSON = "application/fhir+json"


def put(client: httpx.Client, resource: dict[str, Any], **headers: str) -> httpx.Response:
    address = f"/fhir/{resource['resourceType']}/{resource['id']}"
    return client.put(address, content=orjson.dumps(resource), headers={"Content-Type": JSON, **headers})


class Scenario(NamedTuple):
    name: str
    method: str
    url: str
    body: bytes
    headers: dict[str, str]
    status: int
    contains: str


def scenario(name: str, method: str, url: str, status: int, contains: str, **more: Any) -> Scenario:
    return Scenario(name, method, f"/fhir{url}", more.get("body", b""), more.get("headers", {}), status, contains)


SENT = {"Content-Type": JSON}
VALID = b'{"resourceType":"Patient","id":"p9"}'
WRONG = b'{"resourceType":"Patient","id":"p9","gender":"x","name":[{"family":7}]}'
SCENARIOS = [
    scenario("the capability statement is public", "GET", "/metadata", 200, '"fhirVersion":"4.0.1"'),
    scenario("there is no terminology", "GET", "/metadata?mode=terminology", 200, "TerminologyCapabilities"),
    scenario("an unknown mode is refused", "GET", "/metadata?mode=x", 400, "mode"),
    scenario("the statement cannot be changed", "PUT", "/metadata", 405, "not-supported"),
    scenario("read", "GET", "/Patient/p1", 200, "Muster"),
    scenario("read indented", "GET", "/Patient/p1?_pretty=true", 200, '  "resourceType": "Patient"'),
    scenario("nothing there", "GET", "/Patient/none", 404, "not-found"),
    scenario("an illegal id", "GET", "/Patient/%C3%BC_!", 404, "not-found"),
    scenario("an unknown type", "GET", "/Foo/1", 404, "not-supported"),
    scenario("types are case-sensitive", "GET", "/patient/p1", 404, "not-supported"),
    scenario("an unknown type, written", "POST", "/Foo", 404, "not-supported"),
    scenario("the root is for Bundles", "POST", "/", 400, "not JSON", body=b"{", headers=SENT),
    scenario("an unknown operation", "GET", "/Patient/$nothing", 404, "not-supported"),
    scenario("an unknown operation of an instance", "POST", "/Patient/p1/$nothing", 404, "not-supported"),
    scenario("a version", "GET", "/Patient/p1/_history/1", 200, '"versionId":"1"'),
    scenario("a version that never was", "GET", "/Patient/p1/_history/7", 404, "not-found"),
    scenario("a version that is no number", "GET", "/Patient/p1/_history/x", 404, "not-found"),
    scenario("a patch of no known kind", "PATCH", "/Patient/p1", 415, "json-patch", body=b"[]"),
    scenario("a post to an instance", "POST", "/Patient/p1", 405, "not-supported"),
    scenario("a compressed body", "POST", "/Patient", 415, "Content-Encoding", headers={"Content-Encoding": "gzip"}),
    scenario("two formats", "GET", "/Patient/p1?_format=json&_format=json", 400, "_format"),
    scenario("an unclear _pretty", "GET", "/Patient/p1?_pretty=maybe", 400, "_pretty"),
    scenario("a search parameter at a read", "GET", "/Patient/p1?family=x", 400, "http.family"),
    scenario("xml by Accept", "GET", "/Patient/p1", 406, "json", headers={"Accept": "application/fhir+xml"}),
    scenario("turtle by Accept", "GET", "/metadata", 406, "json", headers={"Accept": "text/turtle"}),
    scenario("xml by _format", "GET", "/Patient/p1?_format=xml", 406, "json"),
    scenario("json by _format", "GET", "/Patient/p1?_format=json", 200, "Muster", headers={"Accept": "text/html"}),
    scenario("plus as blank", "GET", "/Patient/p1?_format=application/fhir+json", 200, "Muster"),
    scenario("R4", "GET", "/Patient/p1", 200, "Muster", headers={"Accept": f"{JSON}; fhirVersion=4.0"}),
    scenario("R5", "GET", "/Patient/p1", 406, "4.0", headers={"Accept": f"{JSON}; fhirVersion=5.0"}),
    scenario("a browser", "GET", "/Patient/p1", 200, "Muster", headers={"Accept": "text/html,*/*;q=0.8"}),
    scenario("nothing wanted", "GET", "/Patient/p1", 406, "json", headers={"Accept": "*/*;q=0"}),
    scenario("text", "POST", "/Patient", 415, "send", body=VALID, headers={"Content-Type": "text/plain"}),
    scenario("latin", "POST", "/Patient", 415, "UTF-8", body=VALID, headers={"Content-Type": f"{JSON};charset=latin1"}),
    scenario("no content type", "PUT", "/Patient/p9", 415, "send", body=VALID),
    scenario("no json", "POST", "/Patient", 400, "not JSON", body=b"{", headers=SENT),
    scenario("another type", "POST", "/Device", 400, "resourceType", body=VALID, headers=SENT),
    scenario("another id", "PUT", "/Patient/p8", 400, "Patient.id", body=VALID, headers=SENT),
    scenario("faults, first", "PUT", "/Patient/p9", 422, "Patient.gender", body=WRONG, headers=SENT),
    scenario("faults, second", "PUT", "/Patient/p9", 422, "Patient.name[0].family", body=WRONG, headers=SENT),
    scenario(
        "a stale version",
        "PUT",
        "/Patient/p1",
        412,
        "If-Match",
        body=VALID.replace(b"p9", b"p1"),
        headers=SENT | {"If-Match": 'W/"7"'},
    ),
    scenario(
        "a missing version", "PUT", "/Patient/p9", 412, "If-Match", body=VALID, headers=SENT | {"If-Match": 'W/"1"'}
    ),
    scenario("no version", "PUT", "/Patient/p9", 400, "If-Match", body=VALID, headers=SENT | {"If-Match": "x"}),
    scenario("a foreign form", "POST", "/Patient/_search", 415, "form", body=b"{}", headers=SENT),
]


@pytest.mark.requirement("R2", "R3", "R9", "R10", "I2", "I16")
def test_every_answer_to_a_request_is_as_agreed(server: Server) -> None:
    with server.client() as client:
        assert put(client, PATIENT).status_code == 201
        failures = [name for name in (_failure(client, case) for case in SCENARIOS) if name]
    assert failures == []


def _failure(client: httpx.Client, case: Scenario) -> str:
    answer = client.request(case.method, case.url, content=case.body, headers={**case.headers, "X-Request-Id": "abc-1"})
    told = f"{case.name}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code != case.status or case.contains not in answer.text:
        return told
    if not answer.headers["content-type"].startswith(JSON):
        return told
    resource = orjson.loads(answer.content)
    if answer.is_error and (resource["id"], resource["resourceType"]) != ("abc-1", "OperationOutcome"):
        return told
    return "" if not validation.validate(resource) else f"{told}: invalid answer"


@pytest.mark.requirement("I1", "I7")
def test_a_create_gets_an_id_of_ours_a_location_and_an_etag(client: httpx.Client) -> None:
    body = b'{"resourceType": "Patient", "id":"mine", "active" : true}'
    answer = client.post("/fhir/Patient", content=body, headers=SENT)
    created = answer.json()
    assert answer.status_code == 201
    assert created["id"] != "mine"
    assert answer.headers["location"] == f"http://localhost:8080/fhir/Patient/{created['id']}/_history/1"
    assert answer.headers["etag"] == 'W/"1"'
    assert answer.headers["last-modified"].endswith("GMT")
    read = client.get(f"/fhir/Patient/{created['id']}")
    assert read.content == answer.content
    assert read.headers["etag"] == 'W/"1"'


def test_head_has_the_headers_of_get_and_no_body(client: httpx.Client) -> None:
    put(client, PATIENT)
    get, head = client.get("/fhir/Patient/p1"), client.head("/fhir/Patient/p1")
    assert head.content == b""
    assert {name: head.headers[name] for name in ("etag", "content-length", "content-type")} == {
        name: get.headers[name] for name in ("etag", "content-length", "content-type")
    }


def test_a_known_version_is_not_sent_again(client: httpx.Client) -> None:
    put(client, PATIENT)
    answer = client.get("/fhir/Patient/p1", headers={"If-None-Match": 'W/"1"'})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", 'W/"1"')
    assert client.get("/fhir/Patient/p1", headers={"If-None-Match": 'W/"2"'}).status_code == 200


@pytest.mark.requirement("I8")
def test_prefer_says_what_a_write_returns(client: httpx.Client) -> None:
    assert put(client, PATIENT, Prefer="return=minimal").content == b""
    assert (
        put(client, {**PATIENT, "active": True}, Prefer="return=OperationOutcome").json()["resourceType"]
        == "OperationOutcome"
    )
    assert put(client, {**PATIENT, "active": False}, Prefer="return=representation").json()["active"] is False


@pytest.mark.requirement("I9")
def test_the_same_content_again_is_no_new_version(client: httpx.Client) -> None:
    first = put(client, PATIENT)
    again = put(client, first.json())
    assert (first.status_code, again.status_code, again.headers["etag"]) == (201, 200, 'W/"1"')
    assert client.get("/fhir/Patient/p1/_history/2").status_code == 404


@pytest.mark.requirement("I4")
def test_an_old_version_stays_as_it_was(client: httpx.Client) -> None:
    first = put(client, PATIENT).content
    put(client, {**PATIENT, "active": True})
    assert client.get("/fhir/Patient/p1/_history/1").content == first


@pytest.mark.requirement("I11")
def test_of_concurrent_puts_with_the_same_version_exactly_one_wins(server: Server) -> None:
    with server.client() as client:
        put(client, PATIENT)

        def attempt(number: int) -> int:
            return put(client, {**PATIENT, "name": [{"family": f"F{number}"}]}, **{"If-Match": 'W/"1"'}).status_code

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(attempt, range(8))) == [200, *[412] * 7]
        assert client.get("/fhir/Patient/p1").headers["etag"] == 'W/"2"'


@pytest.mark.requirement("I17")
def test_a_resource_above_the_limit_is_refused_with_the_limit(client: httpx.Client) -> None:
    body = b'{"resourceType":"Patient","name":[{"family":"' + b"x" * (16 * 1024 * 1024) + b'"}]}'
    answer = client.post("/fhir/Patient", content=body, headers=SENT)
    assert (answer.status_code, str(16 * 1024 * 1024) in answer.text) == (413, True)


TRIED = {
    "read": ("GET", "/{type}/none"),
    "vread": ("GET", "/{type}/none/_history/1"),
    "update": ("PUT", "/{type}/none"),
    "patch": ("PATCH", "/{type}/none"),
    "delete": ("DELETE", "/{type}/none"),
    "create": ("POST", "/{type}"),
    "search-type": ("GET", "/{type}?_count=1"),
    "history-instance": ("GET", "/{type}/none/_history"),
    "history-type": ("GET", "/{type}/_history"),
}


@pytest.mark.requirement("R1", "R7")
def test_every_interaction_is_served_exactly_where_the_fact_book_offers_it(client: httpx.Client) -> None:
    assert set(TRIED) == set(INTERACTIONS)
    stated = client.get("/fhir/metadata").json()["rest"][0]["resource"]
    served = {row["type"]: {interaction["code"] for interaction in row["interaction"]} for row in stated}
    for resource_type, offer in offers().items():
        assert served[resource_type] == offer.interactions
        for interaction, (method, address) in TRIED.items():
            status = client.request(method, "/fhir" + address.replace("{type}", resource_type)).status_code
            assert (status == 405) is (interaction not in offer.interactions), (resource_type, interaction, status)
    unserved = definitions.resource_types() - served.keys()
    assert {client.get(f"/fhir/{resource_type}").status_code for resource_type in sorted(unserved)} == {404}


def test_a_405_names_what_is_allowed(server: Server) -> None:
    with server.client() as client:
        assert client.post("/fhir/Patient/p1").headers["allow"] == "DELETE, GET, HEAD, PATCH, PUT"
        assert client.put("/fhir/ValueSet/v1").headers["allow"] == "GET, HEAD"
        assert client.put("/v/s/fhir/Patient/p1").headers["allow"] == "GET, HEAD"


def test_the_read_only_mount_reads_and_its_links_use_the_public_base(server: Server) -> None:
    with server.client() as client:
        put(client, PATIENT)
        assert client.get("/v/s/fhir/Patient/p1").status_code == 200
        found = client.get("/v/s/fhir/Patient?_id=p1").json()
        assert found["entry"][0]["fullUrl"] == "http://localhost:8080/fhir/Patient/p1"
        assert [client.post(f"/v/s/fhir/Patient{more}").status_code for more in ("", "/_search")] == [405, 405]
        stated = client.get("/v/s/fhir/metadata").json()["rest"][0]["resource"][0]
        assert [row["code"] for row in stated["interaction"]] == ["read", "vread", "search-type"]


def test_a_hook_runs_in_the_transaction_and_the_answer_shows_its_edit(server: Server) -> None:
    from app.fhir import resources

    seen: list[tuple[Any, Any]] = []

    def number(connection: Any, access: Any, now: dict[str, Any], before: dict[str, Any] | None) -> None:
        seen.append((now["status"], before and before["status"]))
        resources.edit(connection, "ServiceRequest", now["id"], {"identifier": [{"value": "A1"}]}, cause="hook")

    server.hooks["ServiceRequest"] = number
    order = {"resourceType": "ServiceRequest", "id": "r1", "status": "draft", "intent": "order"}
    order["subject"] = {"reference": "Patient/p1"}
    with server.client() as client:
        first = put(client, order)
        assert (first.json()["identifier"], first.headers["etag"]) == ([{"value": "A1"}], 'W/"2"')
        put(client, {**first.json(), "status": "active"})
    assert seen == [("draft", None), ("active", "draft")]


def test_a_guard_or_a_hook_that_refuses_leaves_nothing_behind(server: Server) -> None:
    from app import errors

    def refuse(connection: Any, access: Any, now: Any, before: Any) -> None:
        raise errors.Conflict("the workflow owns it")

    server.guards["Device"] = server.hooks["Patient"] = refuse
    with server.client() as client:
        assert put(client, {"resourceType": "Device", "id": "d1"}).status_code == 409
        assert put(client, PATIENT).status_code == 409
        assert client.get("/fhir/Patient/p1").status_code == client.get("/fhir/Device/d1").status_code == 404


@pytest.mark.requirement("P3")
def test_without_a_token_everything_but_the_statement_is_401(server: Server) -> None:
    with server.client(None) as client:
        assert client.get("/fhir/metadata").status_code == 200
        answers = [client.get("/fhir/Patient/p1"), client.get("/fhir/Patient"), put(client, PATIENT)]
        assert {(one.status_code, one.headers["www-authenticate"]) for one in answers} == {(401, "Bearer")}
    assert [record.outcome for record in server.records] == ["denied"] * 3


@pytest.mark.requirement("P2")
def test_every_interaction_and_denial_is_audited_without_names_or_values(server: Server) -> None:
    with server.client() as client:
        put(client, PATIENT)
        client.get("/fhir/Patient?family=Muster")
        client.get("/fhir/Patient/none")
    told = [(record.action, record.outcome, record.target, record.patient_id) for record in server.records]
    assert told == [
        ("update", "allowed", "Patient/p1", "p1"),
        ("search-type", "allowed", "Patient", None),
        ("read", "failed", "Patient/none", None),
    ]
    assert "Muster" not in repr(server.records)


def test_the_published_statement_is_what_is_served_and_valid(server: Server, golden: Any) -> None:
    with server.client(None) as client:
        stated = client.get("/fhir/metadata").json()
    assert validation.validate(stated, "CapabilityStatement") == []
    stated["software"].pop("version")
    golden("capability-statement.json", stated)


def test_an_unexpected_error_says_nothing_of_itself() -> None:
    status, body, _ = outcome.render(RuntimeError("Muster, Eva"), "abc")
    assert (status, b"Muster" in body, b"abc" in body) == (500, False, True)
