"""The definitions behind the interface can be read and searched, and only the server writes them (https://hl7.org/fhir/R4/conformance-module.html)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from app.fhir import conformance, guide, resources, validation
from app.fhir.registry import offers
from app.settings import Settings
from app.store import resources as rows
from app.store.database import Store
from tests.contract.conftest import Server
from tests.contract.published import database_url, seed
from tests.scripts import script

__all__ = ["database_url"]

SENT = {"Content-Type": "application/fhir+json"}


def versions(store: Store) -> dict[str, int]:
    """Version by type and id of everything published that is there."""
    with store.read() as connection:
        found = [one for kind in conformance.TYPES for one in rows.walk(connection, kind, 0, 10_000)]
    return {f"{one.resource_type}/{one.resource_id}": one.version for one in found}


def test_every_definition_is_valid() -> None:
    faults = [
        (draft.resource["id"], issue)
        for draft in conformance.published()
        for issue in validation.validate(validation.parse(draft.body), draft.resource["resourceType"])
    ]
    assert faults == []


@pytest.mark.requirement("R1")
def test_each_definition_that_the_statement_names_is_found_by_its_address_and_by_its_id(server: Server) -> None:
    with server.client() as client:
        stated = client.get("/fhir/metadata").json()["rest"][0]
        urls = {one["definition"]: one for row in stated["resource"] for one in row["searchParam"]}
        published = {
            entry["resource"]["url"]: entry["resource"]
            for entry in client.get("/fhir/SearchParameter?_count=1000").json()["entry"]
        }
        assert urls.keys() <= published.keys()
        for url, one in urls.items():
            assert (published[url]["code"], published[url]["type"]) == (one["name"], one["type"])
            assert published[url]["id"] == url.rpartition("/")[2]
        for row in stated["resource"]:
            found = client.get("/fhir/StructureDefinition", params={"url": row["profile"]}).json()
            assert [one["resource"]["id"] for one in found["entry"]] == [row["type"]]
            assert client.get(f"/fhir/StructureDefinition/{row['type']}").json()["url"] == row["profile"]


def test_search_parameters_that_are_not_served_are_not_published(server: Server) -> None:
    served = {one.url for offer in offers().values() for one in offer.search.values()}
    parts = {part.url for offer in offers().values() for one in offer.search.values() for part in one.components}
    with server.client() as client:
        found = client.get("/fhir/SearchParameter?_count=1000").json()
        assert {entry["resource"]["url"] for entry in found["entry"]} - served - parts == {
            "http://hl7.org/fhir/SearchParameter/Resource-id",
            "http://hl7.org/fhir/SearchParameter/Resource-lastUpdated",
        }
        by_code = client.get("/fhir/SearchParameter?code=accession&base=ImagingStudy").json()
        assert by_code["entry"][0]["fullUrl"].endswith("/fhir/SearchParameter/ImagingStudy-accession")


def test_a_structure_comes_without_what_no_program_reads(server: Server) -> None:
    with server.client() as client:
        study = client.get("/fhir/StructureDefinition/ImagingStudy").json()
    assert not study.keys() & {"text", "differential", "mapping"}
    paths = {element["path"] for element in study["snapshot"]["element"]}
    assert "ImagingStudy.series.instance.sopClass" in paths


def test_every_required_binding_leads_to_a_value_set_and_its_codes(server: Server) -> None:
    with server.client() as client:
        found = {
            kind: {entry["resource"]["url"]: entry["resource"] for entry in entries}
            for kind in ("StructureDefinition", "ValueSet", "CodeSystem")
            if (entries := client.get(f"/fhir/{kind}?_count=1000").json()["entry"])
        }
    bound = {
        element["binding"]["valueSet"].partition("|")[0]
        for structure in found["StructureDefinition"].values()
        for element in structure.get("snapshot", {}).get("element", ())
        if element.get("binding", {}).get("strength") == "required"
    }
    assert len(bound) > 80
    assert bound <= found["ValueSet"].keys()
    systems = {part["system"] for url in bound for part in found["ValueSet"][url]["compose"]["include"]}
    # Codes of others: media types, currencies, units of measure.
    assert systems - found["CodeSystem"].keys() == {
        "urn:ietf:bcp:13",
        "urn:iso:std:iso:4217",
        "http://unitsofmeasure.org",
    }


def test_clients_cannot_write_definitions(server: Server) -> None:
    with server.client() as client:
        for kind in conformance.TYPES:
            body = b'{"resourceType":"%s"}' % kind.encode()
            assert client.post(f"/fhir/{kind}", content=body, headers=SENT).status_code == 405
            assert client.put(f"/fhir/{kind}/x", content=body, headers=SENT).status_code == 405
            assert client.delete(f"/fhir/{kind}/x").status_code == 405


def test_a_second_start_writes_nothing(store: Store) -> None:
    first = versions(store)
    seed(store)
    assert versions(store) == first
    assert set(first.values()) == {1}
    assert len(first) > 700


def test_another_address_makes_another_statement_and_nothing_else(store: Store) -> None:
    first = versions(store)
    seed(store, Settings(public_url="https://hospital.example.org"))
    assert versions(store) == first | {"CapabilityStatement/isocenter": 2}


def test_what_changed_becomes_a_new_version_and_what_is_no_longer_published_goes(store: Store) -> None:
    first = versions(store)
    stray = {"resourceType": "ConceptMap", "id": "stray", "status": "draft"}
    store.transact(lambda connection: resources.put(connection, stray, cause="test"))
    seed(store)
    assert "ConceptMap/stray" in versions(store)
    store.transact(of_another_release)
    seed(store)
    assert versions(store) == first | {"ImplementationGuide/isocenter": 3}


def of_another_release(connection: Connection) -> None:
    listed = resources.read(connection, "ImplementationGuide", guide.RESOURCE_ID)
    assert listed is not None
    resources.put(connection, {**listed, "version": "0.0.1+none"}, cause="test")


def test_the_guide_lists_what_is_ours(server: Server) -> None:
    with server.client() as client:
        found = client.get(f"/fhir/ImplementationGuide/{guide.RESOURCE_ID}").json()
        listed = [one["reference"]["reference"] for one in found["definition"]["resource"]]
        assert len(listed) > 15
        assert {client.get(f"/fhir/{reference}").status_code for reference in listed} == {200}


def test_the_statement_is_a_resource_as_well(server: Server) -> None:
    with server.client() as client:
        kept = client.get("/fhir/CapabilityStatement/isocenter").json()
        kept.pop("meta")
        assert kept == client.get("/fhir/metadata").json()


# --- pages made of the fact-books and of the tests --------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> ModuleType:
    return script("fhir_docs")


def test_the_pages_say_what_the_fact_books_and_the_tests_say(made: Any, request: pytest.FixtureRequest) -> None:
    for path, text in made.pages().items():
        if request.config.getoption("--golden", default=False):
            path.write_text(text)
        assert path.read_text() == text, f"{path.name} has changed: run python scripts/fhir_docs.py and review it"


def test_no_test_claims_a_requirement_that_is_not_listed_or_not_built(made: Any) -> None:
    assert made.unknown() == set()
