"""Everything the statement promises works over HTTP, and what it does not name is refused (https://hl7.org/fhir/R4/http.html#capabilities)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import orjson
import pytest

from app.fhir import capability, conditions, definitions, openapi, validation
from app.fhir.registry import Offer, offers
from tests.contract.conftest import Server
from tests.contract.published import EXAMPLES, database_url
from tests.fhir_samples import sample

__all__ = ["database_url"]

Json = dict[str, Any]

AT_ONCE = 250


def stated(client: httpx.Client) -> list[Json]:
    return client.get("/fhir/metadata").json()["rest"][0]["resource"]


def asked(client: httpx.Client, addresses: Iterable[str]) -> Iterator[tuple[str, Json]]:
    """Each address with the entry that answers it, many in one batch."""
    rest = iter(addresses)
    while some := list(islice(rest, AT_ONCE)):
        entries = [{"request": {"method": "GET", "url": address}} for address in some]
        bundle = {"resourceType": "Bundle", "type": "batch", "entry": entries}
        headers = {"Content-Type": "application/fhir+json"}
        answer = client.post("/fhir", content=orjson.dumps(bundle), headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text[:500]
        answers = answer.json()["entry"]
        assert len(answers) == len(some)
        yield from zip(some, answers, strict=True)


def failures(client: httpx.Client, addresses: Iterable[str], status: str = "200") -> list[str]:
    """The addresses that are not answered so."""
    return [
        f"{address}: {entry['response']}"
        for address, entry in asked(client, addresses)
        if not entry["response"]["status"].startswith(status)
    ]


def searches(row: Json) -> Iterator[str]:
    """Every parameter, modifier, order and include that the statement names for a type, as an address."""
    kind, offer = row["type"], offers()[row["type"]]
    for one in row["searchParam"]:
        name = one["name"]
        parameter = offer.search.get(name)
        value = sample(parameter) if parameter else {"_id": "a,b", "_lastUpdated": "ge2020"}[name]
        yield search(kind, name, value)
        if name in {offer.sort, "_lastUpdated"} or not (offer.kept or one["type"] == "composite"):
            yield search(kind, "_sort", f"-{name}")
        if parameter is None:
            continue
        modifiers = one.get("documentation", "").removeprefix("Modifiers: ").split(".")[0].split()
        for modifier in modifiers:
            word = min(conditions.targets(parameter)) if modifier == ":[type]" else modifier.removeprefix(":")
            yield search(kind, f"{name}:{word}", sample(parameter, word))
    yield from (search(kind, "_include", value) for value in row.get("searchInclude", ()))
    yield from (search(kind, "_revinclude", value) for value in row.get("searchRevInclude", ()))


def search(kind: str, name: str, value: str) -> str:
    return f"{kind}?{urlencode({name: value, '_count': '3'}, safe=':', quote_via=quote)}"


@pytest.mark.requirement("R1")
def test_every_parameter_modifier_order_and_include_that_is_stated_answers(server: Server) -> None:
    with server.client() as client:
        rows = stated(client)
        addresses = [address for row in rows for address in searches(row)]
        assert len(addresses) > 3000
        assert failures(client, addresses) == []


@pytest.mark.requirement("S12")
def test_every_include_that_is_stated_finds_what_the_reference_leads_to(server: Server) -> None:
    wanted: dict[str, set[str]] = {}
    with server.client() as client:
        for row in stated(client):
            offer = offers()[row["type"]]
            if "create" in offer.interactions:
                wanted |= links(client, offer)
        assert len(wanted) > 15
        for address, entry in asked(client, wanted):
            found = {
                f"{one['resource']['resourceType']}/{one['resource']['id']}"
                for one in entry["resource"]["entry"]
                if one["search"]["mode"] == "include"
            }
            assert found >= wanted[address], address


def links(client: httpx.Client, offer: Offer) -> dict[str, set[str]]:
    """Addresses that include, with what each must find among the examples."""
    found: dict[str, set[str]] = {}
    for entry in client.get(f"/fhir/{offer.resource_type}?_count=100").json().get("entry", ()):
        resource = entry["resource"]
        for name, parameter in offer.search.items():
            if parameter.type != "reference":
                continue
            goals = {goal for goal in pointed(resource) if (EXAMPLES / f"{goal.replace('/', '-')}.json").exists()}
            goals.discard(f"{offer.resource_type}/{resource['id']}")
            goals = {goal for goal in goals if leads(client, offer, name, resource["id"], goal)}
            if goals:
                found[f"{offer.resource_type}?_id={resource['id']}&_include={offer.resource_type}:{name}"] = goals
    return found


def leads(client: httpx.Client, offer: Offer, name: str, resource_id: str, goal: str) -> bool:
    answer = client.get(f"/fhir/{offer.resource_type}?_id={resource_id}&{name}={goal}").json()
    return answer.get("total") == 1


def pointed(node: Any) -> Iterator[str]:
    """The literal references within a value."""
    if isinstance(node, dict):
        if isinstance(node.get("reference"), str):
            yield node["reference"]
        for value in node.values():
            yield from pointed(value)
    elif isinstance(node, list):
        for value in node:
            yield from pointed(value)


@pytest.mark.requirement("R1", "S3", "S11")
def test_what_r4_knows_and_the_statement_does_not_name_is_refused_by_name(server: Server) -> None:
    known = definitions.read("search-parameters.json")
    everywhere = known["Resource"] | known["DomainResource"]
    addresses: list[str] = []
    with server.client() as client:
        for row in stated(client):
            names = {one["name"] for one in row["searchParam"]}
            missing = (known.get(row["type"], {}) | everywhere).keys() - names
            addresses += [search(row["type"], name, "x") for name in sorted(missing)]
            addresses += [search(row["type"], f"_tag:{word}", "x") for word in ("in", "not-in", "above", "below", "x")]
        assert failures(client, addresses, "400") == []
        for address, entry in asked(client, addresses):
            issue = entry["response"]["outcome"]["issue"][0]
            name = address.split("?")[1].split("=")[0].split(":")[0]
            assert name in issue["expression"][0] or name in issue["diagnostics"], address


@pytest.mark.requirement("R1")
def test_the_addresses_of_types_that_are_not_stated_are_unknown(server: Server) -> None:
    with server.client() as client:
        kinds = {row["type"] for row in stated(client)}
        unserved = sorted(definitions.resource_types() - kinds)
        assert len(unserved) > 100
        assert {client.get(f"/fhir/{kind}").status_code for kind in unserved} == {404}


@pytest.mark.requirement("R1")
def test_the_statement_is_public_and_valid_in_both_its_forms(server: Server) -> None:
    with server.client(None) as client:
        for base in ("/fhir", "/v/s/fhir"):
            found = client.get(f"{base}/metadata")
            assert found.status_code == 200
            assert validation.validate(found.json(), "CapabilityStatement") == []


def test_the_examples_on_the_page_work(server: Server) -> None:
    with server.client() as client:
        assert failures(client, openapi.EXAMPLES.values()) == []


def test_the_published_statement_is_what_is_served(server: Server, golden: Any) -> None:
    with server.client(None) as client:
        found = client.get("/fhir/metadata").json()
        session = client.get("/v/s/fhir/metadata").json()
    assert found == capability.statement(server.settings)
    assert session == capability.statement(server.settings, read_only=True)
    found["software"].pop("version")
    golden("capability-statement.json", found)


@pytest.mark.requirement("P1")
def test_the_provenance_of_anything_comes_along(server: Server) -> None:
    with server.client() as client:
        kinds = [row["type"] for row in stated(client) if "Provenance:target" in row.get("searchRevInclude", ())]
        assert {"Patient", "ImagingStudy", "DiagnosticReport", "ServiceRequest", "Observation"} <= set(kinds)
        found = {kind: client.get(f"/fhir/{kind}?_count=1").json().get("entry") for kind in kinds}
        targets = [f"{kind}/{entries[0]['resource']['id']}" for kind, entries in found.items() if entries]
        assert len(targets) > 25
        told = {
            "resourceType": "Provenance",
            "target": [{"reference": target} for target in targets],
            "recorded": "2026-03-01T10:00:00Z",
            "agent": [{"who": {"display": "the test"}}],
        }
        headers = {"Content-Type": "application/fhir+json"}
        created = client.post("/fhir/Provenance", content=orjson.dumps(told), headers=headers)
        assert created.status_code == 201, created.text
        for target in targets:
            kind, _, resource_id = target.partition("/")
            answer = client.get(f"/fhir/{kind}?_id={resource_id}&_revinclude=Provenance:target").json()
            assert created.json()["id"] in {entry["resource"]["id"] for entry in answer["entry"]}, target
