"""Many clients at once: one of them wins, nothing is lost and nothing is made twice (https://hl7.org/fhir/R4/http.html#concurrency)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.contract.conftest import Server

Json = dict[str, Any]
NAMED: Json = {"system": "http://a.example/ids", "value": "same"}
FHIR = {"Content-Type": "application/fhir+json"}


def at_once(server: Server, ask: Callable[[httpx.Client, int], httpx.Response], clients: int) -> list[httpx.Response]:
    """The answers to requests that begin together, each on a connection of its own."""
    barrier = threading.Barrier(clients)

    def one(number: int) -> httpx.Response:
        with server.client() as client:
            client.timeout = httpx.Timeout(60)
            client.get("/fhir/Patient?_count=0")
            barrier.wait(60)
            return ask(client, number)

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, range(clients)))


def statuses(answers: Sequence[httpx.Response]) -> dict[int, int]:
    found = [answer.status_code for answer in answers]
    return {status: found.count(status) for status in sorted(set(found))}


@pytest.mark.parametrize(("clients", "rounds"), [(8, 3), (50, 1)])
def test_of_equal_updates_with_if_match_exactly_one_wins(
    server: Server, client: httpx.Client, clients: int, rounds: int
) -> None:
    """I11: after each round the next version is there, and no number is missing."""
    client.put("/fhir/Patient/p", json={"resourceType": "Patient", "id": "p"}, headers=FHIR).raise_for_status()
    for version in range(1, rounds + 1):

        def update(one: httpx.Client, number: int, version: int = version) -> httpx.Response:
            body: Json = {"resourceType": "Patient", "id": "p", "name": [{"family": f"V{version}N{number}"}]}
            return one.put("/fhir/Patient/p", json=body, headers={**FHIR, "If-Match": f'W/"{version}"'})

        answers = at_once(server, update, clients)

        assert statuses(answers) == {200: 1, 412: clients - 1}
        [won] = [answer for answer in answers if answer.status_code == 200]
        assert won.headers["etag"] == f'W/"{version + 1}"'
        assert client.get("/fhir/Patient/p").json()["name"] == won.json()["name"]
    history = client.get("/fhir/Patient/p/_history").json()
    assert [entry["resource"]["meta"]["versionId"] for entry in history["entry"]] == [
        str(version) for version in range(rounds + 1, 0, -1)
    ]


def test_updates_without_if_match_all_count_and_leave_no_gap(server: Server, client: httpx.Client) -> None:
    client.put("/fhir/Patient/p", json={"resourceType": "Patient", "id": "p"}, headers=FHIR).raise_for_status()

    def update(one: httpx.Client, number: int) -> httpx.Response:
        body: Json = {"resourceType": "Patient", "id": "p", "name": [{"family": f"N{number}"}]}
        return one.put("/fhir/Patient/p", json=body, headers=FHIR)

    answers = at_once(server, update, 8)

    assert statuses(answers) == {200: 8}
    tags = sorted(int(answer.headers["etag"][3:-1]) for answer in answers)
    assert tags == list(range(2, 10))
    entries = client.get("/fhir/Patient/p/_history?_count=50").json()["entry"]
    assert [int(entry["resource"]["meta"]["versionId"]) for entry in entries] == list(range(9, 0, -1))


@pytest.mark.parametrize("clients", [8, 50])
def test_equal_conditional_creates_make_one_resource(server: Server, client: httpx.Client, clients: int) -> None:
    """C1: the first makes it, all others are told of it."""
    body: Json = {"resourceType": "Patient", "identifier": [NAMED]}
    asked = {**FHIR, "If-None-Exist": f"identifier={NAMED['system']}|{NAMED['value']}"}

    answers = at_once(server, lambda one, _number: one.post("/fhir/Patient", json=body, headers=asked), clients)

    assert statuses(answers) == {200: clients - 1, 201: 1}
    assert len({answer.headers["location"] for answer in answers}) == 1
    found = client.get("/fhir/Patient", params={"identifier": NAMED["value"], "_total": "accurate"}).json()
    assert (found["total"], len(found["entry"])) == (1, 1)


def test_equal_conditional_updates_make_one_resource(server: Server, client: httpx.Client) -> None:
    """C2 by many: one creates, the others update what it made or find it as it should be."""

    def update(one: httpx.Client, number: int) -> httpx.Response:
        body: Json = {"resourceType": "Patient", "identifier": [NAMED], "name": [{"family": f"N{number}"}]}
        return one.put(f"/fhir/Patient?identifier={NAMED['system']}|{NAMED['value']}", json=body, headers=FHIR)

    answers = at_once(server, update, 12)

    assert statuses(answers) == {200: 11, 201: 1}
    assert client.get("/fhir/Patient", params={"identifier": "same", "_summary": "count"}).json()["total"] == 1


def test_equal_transactions_with_a_conditional_create_make_one_patient(server: Server, client: httpx.Client) -> None:
    """T4 by many: each order refers to the one patient, whoever made it."""
    patient = {
        "fullUrl": "urn:uuid:0c8e0b6a-2a5a-4c55-9ac1-2f6d6f0b1a11",
        "resource": {"resourceType": "Patient", "identifier": [NAMED]},
        "request": {
            "method": "POST",
            "url": "Patient",
            "ifNoneExist": f"identifier={NAMED['system']}|{NAMED['value']}",
        },
    }

    def send(one: httpx.Client, number: int) -> httpx.Response:
        study: Json = {
            "resourceType": "Basic",
            "identifier": [{"system": "http://a.example/basic", "value": str(number)}],
            "code": {"text": "note"},
            "subject": {"reference": patient["fullUrl"]},
        }
        entries = [patient, {"resource": study, "request": {"method": "POST", "url": "Basic"}}]
        return one.post("/fhir", json={"resourceType": "Bundle", "type": "transaction", "entry": entries}, headers=FHIR)

    answers = at_once(server, send, 12)

    assert statuses(answers) == {200: 12}, [answer.text for answer in answers if answer.status_code != 200][:1]
    assert client.get("/fhir/Patient", params={"identifier": "same", "_summary": "count"}).json()["total"] == 1
    notes = client.get("/fhir/Basic", params={"subject.identifier": "same", "_count": "50"}).json()["entry"]
    assert len(notes) == 12
    assert len({entry["resource"]["subject"]["reference"] for entry in notes}) == 1


@pytest.mark.parametrize("order", ["birthdate", "-birthdate", "_id", "-_lastUpdated", ""])
def test_paging_shows_every_untouched_resource_once_while_others_come_and_go(client: httpx.Client, order: str) -> None:
    """S16: after every page one comes and one goes."""
    for number in range(20):
        body: Json = {"resourceType": "Patient", "id": f"kept-{number}", "birthDate": f"19{number + 10}-01-01"}
        client.put(f"/fhir/Patient/kept-{number}", json=body, headers=FHIR).raise_for_status()
    going = [
        client.post("/fhir/Patient", json={"resourceType": "Patient"}, headers=FHIR).json()["id"] for _ in range(9)
    ]
    seen: list[str] = []
    bundle = client.get("/fhir/Patient", params={"_count": "4"} | ({"_sort": order} if order else {})).json()
    for page in range(30):
        seen += [entry["resource"]["id"] for entry in bundle.get("entry", [])]
        following = [link["url"] for link in bundle["link"] if link["relation"] == "next"]
        if not following:
            break
        newcomer: Json = {"resourceType": "Patient", "birthDate": f"19{page % 40 + 10}-01-01"}
        client.post("/fhir/Patient", json=newcomer, headers=FHIR).raise_for_status()
        if going:
            client.delete(f"/fhir/Patient/{going.pop()}").raise_for_status()
        bundle = client.get("/fhir" + following[0].partition("/fhir")[2]).raise_for_status().json()
    else:
        pytest.fail("paging has no end")

    kept = [name for name in seen if name.startswith("kept-")]
    assert sorted(kept) == sorted(f"kept-{number}" for number in range(20))
    assert len(seen) == len(set(seen))
