"""Client libraries of others drive the whole interface: fhirpy and fhirclient, as their own manuals say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fhirpy
import httpx
import pytest
from fhirclient import client as smart
from fhirclient.models import bundle as bundles
from fhirclient.models import imagingstudy, patient
from fhirpy.base.exceptions import MultipleResourcesFound, OperationOutcome, ResourceNotFound

from tests.contract.conftest import Server

Json = dict[str, Any]
MRN = "http://hospital.example.org/mrn"


def speaking(server: Server, headers: dict[str, str]) -> fhirpy.SyncFHIRClient:
    """fhirpy, with headers on every request."""
    base, known = f"{server.url}/fhir", [server.settings.fhir_base]
    return fhirpy.SyncFHIRClient(base, authorization="Bearer all", url_aliases=known, extra_headers=headers)


@pytest.fixture
def py(server: Server) -> fhirpy.SyncFHIRClient:
    return speaking(server, {})


@pytest.fixture
def strict(server: Server) -> Iterator[smart.FHIRClient]:
    """fhirclient; its models refuse what R4 does not know."""
    opened = smart.FHIRClient(settings={"app_id": "test", "api_base": f"{server.url}/fhir"})
    opened.server.session.headers["Authorization"] = "Bearer all"
    yield opened
    opened.server.session.close()


def stored(py: fhirpy.SyncFHIRClient) -> tuple[Any, Any]:
    """A patient with five studies, and an order the first of them is based on."""
    person = py.resource(
        "Patient", name=[{"family": "Muster", "given": ["Ada"]}], identifier=[{"system": MRN, "value": "1"}]
    )
    person.save()
    order = py.resource(
        "ServiceRequest", status="active", intent="order", subject=person.to_reference(), code={"text": "CT"}
    )
    order.save()
    for number in range(5):
        study = py.resource(
            "ImagingStudy", status="available", subject=person.to_reference(), started=f"2026-03-0{number + 1}"
        )
        if number == 0:
            study["basedOn"] = [order.to_reference()]
        study.save()
    return person, order


def test_fhirpy_creates_updates_patches_reads_history_and_deletes(py: fhirpy.SyncFHIRClient) -> None:
    person = py.resource("Patient", name=[{"family": "Muster"}])
    person.save()
    assert person["meta"]["versionId"] == "1"

    person["gender"] = "female"
    person.save()
    assert py.reference("Patient", person.id).to_resource()["gender"] == "female"

    operations = [{"op": "replace", "path": "/gender", "value": "other"}]
    with httpx.Client(base_url=py.url, headers={"Authorization": "Bearer all"}) as raw:
        media = {"Content-Type": "application/json-patch+json"}
        assert raw.patch(f"{py.url}/Patient/{person.id}", json=operations, headers=media).status_code == 200
    history = py.execute(f"Patient/{person.id}/_history", method="get")
    assert [entry["resource"].get("gender") for entry in history["entry"]] == ["other", "female", None]

    person.delete()
    with pytest.raises(ResourceNotFound, match="deleted"):
        person.refresh()
    assert py.resources("Patient").search(_id=person.id).fetch() == []


def test_fhirpy_makes_a_resource_once_by_a_condition(server: Server, py: fhirpy.SyncFHIRClient) -> None:
    once = speaking(server, {"If-None-Exist": f"identifier={MRN}|7"})
    first, second = (once.resource("Patient", identifier=[{"system": MRN, "value": "7"}]).create() for _ in "ab")
    assert first.id == second.id
    # Its own way asks by the address of the POST, which R4 does not know: a plain create would make another.
    with pytest.raises(OperationOutcome, match="identifier"):
        py.resources("Patient").search(identifier=f"{MRN}|7").get_or_create(py.resource("Patient"))

    changed = py.resource("Patient", identifier=[{"system": MRN, "value": "7"}], birthDate="1990-01-01")
    updated, was_new = py.resources("Patient").search(identifier=f"{MRN}|7").update(changed)
    assert (updated.id, updated["birthDate"], was_new) == (first.id, "1990-01-01", False)


def test_fhirpy_searches_by_chain_reverse_and_pages_with_includes(server: Server, py: fhirpy.SyncFHIRClient) -> None:
    person, order = stored(py)
    studies = py.resources("ImagingStudy")

    assert len(studies.search(subject__Patient__name="muster").limit(2).fetch_all()) == 5
    assert [one["started"] for one in studies.sort("-started").limit(2).fetch()] == ["2026-03-05", "2026-03-04"]
    # Counting, it sends a parameter that R4 does not know.
    lenient = speaking(server, {"Prefer": "handling=lenient"})
    assert lenient.resources("ImagingStudy").search(started__ge="2026-03-03").count() == 3
    assert [one.id for one in py.resources("Patient").has("ImagingStudy", "patient", started="2026-03-02").fetch()] == [
        person.id
    ]
    raw = (
        studies.search(basedon=order).include("ImagingStudy", "basedon").include("ImagingStudy", "patient").fetch_raw()
    )
    assert [(one["search"]["mode"], one["resource"]["resourceType"]) for one in raw["entry"]][:1] == [
        ("match", "ImagingStudy")
    ]
    assert {one["resource"].id for one in raw["entry"]} >= {person.id, order.id}
    backwards = py.resources("Patient").search(_id=person.id).revinclude("ImagingStudy", "patient").fetch_raw()
    assert len(backwards["entry"]) == 6
    with pytest.raises(MultipleResourcesFound):
        studies.get()
    with pytest.raises(ResourceNotFound):
        studies.search(started="1999").get()
    with pytest.raises(OperationOutcome, match="colour"):
        studies.search(colour="red").fetch()


def test_fhirpy_sends_a_transaction(py: fhirpy.SyncFHIRClient) -> None:
    entries: list[Json] = [
        {
            "fullUrl": "urn:uuid:6b1c2d3e-0000-4000-8000-000000000001",
            "resource": {"resourceType": "Patient", "identifier": [{"system": MRN, "value": "9"}]},
            "request": {"method": "POST", "url": "Patient", "ifNoneExist": f"identifier={MRN}|9"},
        },
        {
            "resource": {
                "resourceType": "ImagingStudy",
                "status": "available",
                "subject": {"reference": "urn:uuid:6b1c2d3e-0000-4000-8000-000000000001"},
            },
            "request": {"method": "POST", "url": "ImagingStudy"},
        },
    ]
    answer = py.execute("", data={"resourceType": "Bundle", "type": "transaction", "entry": entries})

    assert answer["type"] == "transaction-response"
    assert [entry["response"]["status"][:3] for entry in answer["entry"]] == ["201", "201"]
    [study] = py.resources("ImagingStudy").search(patient__identifier=f"{MRN}|9").fetch()
    assert (
        study["subject"]["reference"]
        == answer["entry"][0]["response"]["location"].partition("/_history")[0][-len(study["subject"]["reference"]) :]
    )


def test_fhirclient_reads_searches_and_writes_with_its_strict_models(
    py: fhirpy.SyncFHIRClient, strict: smart.FHIRClient
) -> None:
    person, order = stored(py)

    read = patient.Patient.read(person.id, strict.server)
    assert read.name[0].family == "Muster"
    read.gender = "female"
    read.update(strict.server)
    assert patient.Patient.read(person.id, strict.server).gender == "female"

    found = imagingstudy.ImagingStudy.where({"patient.identifier": f"{MRN}|1", "_sort": "started"})
    assert [one.started.as_json() for one in found.perform_resources_iter(strict.server)][:2] == [
        "2026-03-01",
        "2026-03-02",
    ]
    based = imagingstudy.ImagingStudy.where(
        {"basedon": f"ServiceRequest/{order.id}", "_include": "ImagingStudy:patient"}
    )
    assert [entry.search.mode for page in based.perform_iter(strict.server) for entry in page.entry] == [
        "match",
        "include",
    ]

    history = bundles.Bundle.read_from(f"Patient/{person.id}/_history", strict.server)
    assert [(entry.request.method, entry.response.status[:3]) for entry in history.entry] == [
        ("PUT", "200"),
        ("POST", "201"),
    ]

    newcomer = patient.Patient({"name": [{"family": "Neu"}]})
    assert newcomer.create(strict.server)["id"]
