"""The audit trail over FHIR: each record an AuditEvent, found by its parameters, shown to whom it concerns."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from app.audit import Record
from app.fhir import audit_events, validation
from app.fhir.mapping import audit_event as mapping
from app.fhir.registry import offer
from app.store import audit_log
from app.store.database import Store
from tests.contract.conftest import Server, caller

Json = dict[str, Any]

START = 1_780_000_000_000
STUDY = "1.2.826.0.1.3680043.8.498.1"
ACTIONS = {
    "fhir": [
        "read",
        "vread",
        "search-type",
        "search-compartment",
        "create",
        "update",
        "patch",
        "delete",
        "transaction",
    ],
    "dicomweb": ["search", "retrieve", "frames", "store"],
    "smart": ["login", "token"],
    "viewer": ["launch", "logout"],
}
TARGETS = ["Patient/p1", "Patient/p2", "ImagingStudy/i1", "Patient", "Observation/o1", ""]
USERS = [None, "Practitioner/7", "Patient/p1", "https://elsewhere.example.org/fhir/Practitioner/7"]


def records() -> Iterable[Record]:
    """One of each kind of act, with every mixture of what may be known beside it."""
    outcomes = itertools.cycle(["allowed", "allowed", "denied", "failed"])
    targets, users = itertools.cycle(TARGETS), itertools.cycle(USERS)
    patients, clients = itertools.cycle(["p1", None, "p2", None, "p1"]), itertools.cycle(["app", "robot", ""])
    details = itertools.cycle(
        [{}, {"address": "192.0.2.7"}, {"address": "::1", "query": "patient=p1"}, {"status": 404}]
    )
    numbers = itertools.count()
    for door, actions in ACTIONS.items():
        for action, _ in itertools.product(actions, range(7)):
            number = next(numbers)
            yield Record(
                door,
                action,
                next(outcomes),
                next(clients),
                f"{number % 3:08d}-0000-4000-8000-000000000000" if number % 2 else None,
                next(users),
                next(patients),
                STUDY if number % 4 == 1 or door == "dicomweb" else None,
                next(targets) if door == "fhir" else f"studies/{STUDY}/metadata" if door == "dicomweb" else "",
                f"request-{number % 5}" if number % 3 else "",
                next(details),
            )


def kept(store: Store, noted: Iterable[Record]) -> None:
    rows = [(START + 1000 * number, record) for number, record in enumerate(noted)]
    store.transact(lambda connection: audit_log.add_many(connection, rows))


@pytest.fixture
def trail(store: Store) -> None:
    kept(store, records())


def found(client: httpx.Client, query: str = "", size: int = 1000) -> list[Json]:
    """Every event of a search, page after page."""
    events: list[Json] = []
    url = f"/fhir/AuditEvent?_count={size}{'&' if query else ''}{query}"
    while url:
        answer = client.get(url)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        events += [one["resource"] for one in page.get("entry", [])]
        links = {one["relation"]: one["url"] for one in page["link"]}
        url = links.get("next", "").removeprefix("http://localhost:8080")
    return events


# --- the events ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("P2")
@pytest.mark.usefixtures("trail")
def test_every_record_is_a_valid_event_with_the_newest_first(client: httpx.Client) -> None:
    events = found(client)
    assert len(events) == len(list(records()))
    for event in events:
        assert validation.validate(event, "AuditEvent") == [], event
    assert [event["recorded"] for event in events] == sorted((event["recorded"] for event in events), reverse=True)
    assert {event["action"] for event in events} == set("CRUDE")
    assert {event["outcome"] for event in events} == {"0", "4", "8"}


@pytest.mark.usefixtures("trail")
def test_an_event_is_read_by_its_id_as_the_search_shows_it(client: httpx.Client) -> None:
    event = found(client)[0]
    answer = client.get(f"/fhir/AuditEvent/{event['id']}")
    assert answer.json() == event
    assert answer.headers["etag"] == 'W/"1"'
    assert client.get(f"/fhir/AuditEvent/{event['id']}", headers={"If-None-Match": 'W/"1"'}).status_code == 304
    assert client.get("/fhir/AuditEvent/999999").status_code == 404
    assert client.get("/fhir/AuditEvent/not-a-number").status_code == 404


@pytest.mark.parametrize(
    ("action", "client_code", "server_code"),
    [
        ("read", "110152", "110153"),
        ("search-type", "110153", "110152"),
        ("create", "110153", "110152"),
        ("update", "110153", "110152"),
        ("delete", "110150", "custodian"),
    ],
)
def test_client_and_server_have_the_roles_of_balp(
    store: Store, client: httpx.Client, action: str, client_code: str, server_code: str
) -> None:
    detail = {"address": "192.0.2.7"} | ({"query": "name=&status=final"} if action == "search-type" else {})
    target = "Observation" if action == "search-type" else "Observation/1"
    kept(store, [Record("fhir", action, "allowed", "app", None, "Practitioner/7", "p1", None, target, "r1", detail)])
    [event] = found(client)
    agents = event["agent"]
    assert [agent["type"]["coding"][0]["code"] for agent in agents] == [client_code, server_code, "IRCP"]
    assert [agent["requestor"] for agent in agents] == [False, False, True]
    assert agents[0]["network"] == {"address": "192.0.2.7", "type": "2"}
    shape = {"read": "Read", "search-type": "Query", "create": "Create", "update": "Update", "delete": "Delete"}[action]
    assert event["meta"]["profile"] == [f"{mapping.PROFILE}Patient{shape}"]
    roles = [one.get("role", {}).get("code") for one in event["entity"]]
    assert roles == ["1", "24" if shape == "Query" else "4", None]
    if shape == "Query":
        assert base64.b64decode(event["entity"][1]["query"]) == b"Observation?name=&status=final"
    assert event["entity"][-1]["what"]["identifier"]["value"] == "r1"


def test_what_the_trail_keeps_of_a_question_has_no_name_in_it() -> None:
    asked = [("name", "Muster"), ("name:exact", "Muster"), ("birthdate", "1970"), ("general-practitioner.name", "Arzt")]
    asked += [
        ("_has:Observation:patient:code", "1"),
        ("identifier", "urn:x|7"),
        ("language:text", "Muster"),
        ("_count", "5"),
    ]
    told = audit_events.asked(offer("Patient"), asked)
    assert "Muster" not in told
    assert "Arzt" not in told
    for part in ("name=", "birthdate=1970", "identifier=urn%3Ax%7C7", "_count=5"):
        assert part in told


# --- the parameters ------------------------------------------------------------------------------------------


def codings(event: Json, param: str) -> Iterable[tuple[str, str]]:
    match param:
        case "action":
            yield audit_events.ACTIONS, event["action"]
        case "outcome":
            yield audit_events.OUTCOMES, event["outcome"]
        case "type":
            yield event["type"]["system"], event["type"]["code"]
        case "subtype":
            yield from ((one["system"], one["code"]) for one in event["subtype"])
        case "entity-type":
            yield from ((one["type"]["system"], one["type"]["code"]) for one in event.get("entity", []))
        case "altid":
            yield from (("", agent["altId"]) for agent in event["agent"] if "altId" in agent)
        case "policy":
            yield from (("", policy) for agent in event["agent"] for policy in agent.get("policy", []))
        case _:
            yield from (("", one) for one in event["meta"].get("profile", []))


TOKENS = ("action", "outcome", "type", "subtype", "entity-type", "altid", "policy", "_profile")


@pytest.mark.usefixtures("trail")
@pytest.mark.parametrize("param", TOKENS)
def test_a_token_finds_exactly_the_events_that_bear_it(client: httpx.Client, param: str) -> None:
    events = found(client)
    values = {pair for event in events for pair in codings(event, param)}
    assert values
    for system, code in sorted(values):
        bearing = [event for event in events if (system, code) in set(codings(event, param))]
        coded = [event for event in events if code in {one for _, one in codings(event, param)}]
        assert found(client, f"{param}={code}") == coded
        if param not in {"policy", "_profile"}:
            assert found(client, f"{param}={system}|{code}") == bearing
            assert found(client, f"{param}:not={system}|{code}") == [one for one in events if one not in bearing]
    without = [event for event in events if not list(codings(event, param))]
    assert found(client, f"{param}:missing=true") == without
    assert found(client, f"{param}=nothing-of-the-kind") == []


def references(event: Json, param: str) -> set[str]:
    agents = {agent.get("who", {}).get("reference", "") for agent in event["agent"]} - {""}
    entities = {one.get("what", {}).get("reference", "") for one in event.get("entity", [])} - {""}
    match param:
        case "agent":
            return agents
        case "entity":
            return entities
        case _:
            return {one for one in agents | entities if one.startswith("Patient/")}


@pytest.mark.usefixtures("trail")
@pytest.mark.parametrize("param", ["agent", "entity", "patient"])
def test_a_reference_finds_exactly_the_events_that_point_there(client: httpx.Client, param: str) -> None:
    events = found(client)
    values = {one for event in events for one in references(event, param)}
    assert len(values) > 1 or param == "patient"
    for value in sorted(values):
        expected = [event for event in events if value in references(event, param)]
        assert found(client, f"{param}={value}") == expected
        if not value.startswith("http"):
            kind, _, identity = value.partition("/")
            assert found(client, f"{param}:{kind}={identity}") == expected
            ending = [one for one in events if any(ref.endswith(f"/{identity}") for ref in references(one, param))]
            assert found(client, f"{param}={identity}") == ending
    if param == "patient":
        without = [event for event in events if not references(event, param)]
        assert found(client, "patient:missing=true") == without


@pytest.mark.usefixtures("trail")
def test_a_request_and_a_study_are_traced_by_their_identifiers(client: httpx.Client) -> None:
    def identified(event: Json, value: str) -> bool:
        return any(one.get("what", {}).get("identifier", {}).get("value") == value for one in event.get("entity", []))

    events = found(client)
    traced = [event for event in events if identified(event, "request-1")]
    assert traced
    assert found(client, "entity:identifier=request-1") == traced
    studied = [event for event in events if identified(event, f"urn:oid:{STUDY}")]
    assert studied
    assert found(client, f"entity:identifier=urn:dicom:uid|urn:oid:{STUDY}") == studied
    apps = [one for one in events if one["agent"][0].get("altId") == "robot"]
    assert found(client, f"agent:identifier={mapping.CLIENT}|robot") == apps


@pytest.mark.usefixtures("trail")
@pytest.mark.parametrize("param", ["date", "_lastUpdated"])
def test_dates_bound_the_events_to_the_millisecond(client: httpx.Client, param: str) -> None:
    events = found(client)
    middle = events[len(events) // 2]["recorded"]
    by_prefix = {
        "": lambda at: at == middle,
        "ne": lambda at: at != middle,
        "ge": lambda at: at >= middle,
        "gt": lambda at: at > middle,
        "sa": lambda at: at > middle,
        "le": lambda at: at <= middle,
        "lt": lambda at: at < middle,
        "eb": lambda at: at < middle,
    }
    for prefix, fits in by_prefix.items():
        assert found(client, f"{param}={prefix}{middle}") == [one for one in events if fits(one["recorded"])], prefix


@pytest.mark.usefixtures("trail")
def test_the_order_can_be_turned_and_pages_and_counts_agree(client: httpx.Client) -> None:
    newest = found(client)
    assert found(client, size=7) == newest
    assert found(client, "_sort=date", size=40) == newest[::-1]
    assert found(client, "_sort=-_lastUpdated") == newest
    assert client.get("/fhir/AuditEvent?_summary=count").json()["total"] == len(newest)
    assert client.get("/fhir/AuditEvent?_count=3&_total=accurate").json()["total"] == len(newest)
    some = found(client, "_id=1,2,77")
    assert {one["id"] for one in some} == {"1", "2", "77"}
    [cut] = found(client, "_id=1&_elements=outcome")
    assert cut["meta"]["tag"][0]["code"] == "SUBSETTED"
    assert "entity" not in cut


@pytest.mark.parametrize(
    "query", ["patinet=1", "address=1", "_sort=action", "patient.name=x", "_include=AuditEvent:patient", "action:in=x"]
)
def test_what_is_not_declared_is_refused(client: httpx.Client, query: str) -> None:
    assert client.get(f"/fhir/AuditEvent?{query}").status_code == 400


def test_nothing_else_joins_the_trail_and_nobody_writes_it(client: httpx.Client) -> None:
    assert client.get("/fhir/Patient?_has:AuditEvent:patient:action=R").status_code == 400
    assert client.get("/fhir/Patient?_revinclude=AuditEvent:patient").status_code == 400
    body = {"resourceType": "AuditEvent"}
    assert client.post("/fhir/AuditEvent", json=body).status_code == 405
    for method in ("PUT", "PATCH", "DELETE"):
        assert client.request(method, "/fhir/AuditEvent/1", json=body).status_code == 405


# --- whose events --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("trail")
def test_a_patients_grant_sees_the_events_about_that_patient_only(server: Server, client: httpx.Client) -> None:
    about = [event for event in found(client) if "Patient/p1" in {
        one.get("what", {}).get("reference") for one in event.get("entity", []) if one["type"]["code"] == "1"
    }]  # fmt: skip
    assert about
    server.callers["mine"] = caller("patient/AuditEvent.rs", patient_id="p1")
    with server.client("mine") as mine:
        assert found(mine) == about
        assert mine.get("/fhir/AuditEvent?patient=p2").status_code == 403
        other = next(event for event in found(client) if event not in about)
        assert mine.get(f"/fhir/AuditEvent/{other['id']}").status_code == 403
        assert mine.get("/fhir/AuditEvent/999999").status_code == 403, "no difference from what it may not see"
        assert mine.get(f"/fhir/AuditEvent/{about[0]['id']}").status_code == 200


@pytest.mark.usefixtures("trail")
def test_a_granular_scope_and_a_study_narrow_what_is_seen(server: Server, client: httpx.Client) -> None:
    server.callers["deletions"] = caller("system/AuditEvent.rs?action=D")
    server.callers["study"] = caller("patient/AuditEvent.rs", patient_id="p1", studies=frozenset({"9.9"}))
    server.callers["none"] = caller("system/Patient.rs")
    with server.client("deletions") as some, server.client("study") as bound, server.client("none") as none:
        assert {event["action"] for event in found(some)} == {"D"}
        assert not [event for event in found(bound) if STUDY in str(event)]
        assert found(bound)
        assert none.get("/fhir/AuditEvent").status_code == 403
        assert none.get("/fhir/AuditEvent/1").status_code == 403


@pytest.mark.usefixtures("trail")
def test_looking_into_the_trail_is_noted_in_it(server: Server, client: httpx.Client) -> None:
    client.get("/fhir/AuditEvent?patient=p1")
    client.get("/fhir/AuditEvent/1")
    told = [(one.action, one.target, one.patient_id) for one in server.records[-2:]]
    assert told[0] == ("search-type", "AuditEvent", "p1")
    assert told[1][:2] == ("read", "AuditEvent/1")
