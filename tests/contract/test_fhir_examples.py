"""HL7's examples go in and come out byte for byte; each single defect stays out, with its place told."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest

from app.fhir.registry import offers
from tests.defects import defects
from tests.fhir_examples import FAULTY, examples, kind_of

FHIR_JSON = {"Content-Type": "application/fhir+json"}
WRITABLE = sorted(name for name, offer in offers().items() if "create" in offer.interactions)
Tree = dict[str, msgspec.Raw]
_TREE = msgspec.json.Decoder(Tree)


def elements(body: bytes) -> dict[str, bytes]:
    """The bytes of each top-level element, and of each element of meta, but for what the server gives."""
    tree = _TREE.decode(body)
    meta = _TREE.decode(tree.pop("meta", msgspec.Raw(b"{}")))
    tree.pop("id", None)
    kept = {name: raw for name, raw in meta.items() if name not in {"versionId", "lastUpdated"}}
    return {name: bytes(raw) for name, raw in (tree | {f"meta.{name}": raw for name, raw in kept.items()}).items()}


@pytest.mark.requirement("I1")
def test_the_examples_come_back_byte_for_byte(client: httpx.Client) -> None:
    """One server for all: to start it takes longer than to ask it."""
    changed: list[str] = []
    for name, body in examples().items():
        if (kind := kind_of(name)) not in WRITABLE or name in FAULTY:
            continue
        answer = client.post(f"/fhir/{kind}", content=body, headers=FHIR_JSON)
        assert answer.status_code == 201, (name, answer.text)
        read = client.get(f"/fhir/{kind}/{answer.headers['location'].split('/')[-3]}")
        if elements(read.content) != elements(body):
            changed.append(name)
    assert changed == []


def test_an_example_put_under_its_own_id_comes_back_byte_for_byte(client: httpx.Client) -> None:
    body = examples()["Observation-decimal.json"]
    assert client.put("/fhir/Observation/decimal", content=body, headers=FHIR_JSON).status_code == 201
    read = client.get("/fhir/Observation/decimal")
    assert elements(read.content) == elements(body)
    assert client.put("/fhir/Observation/decimal", content=read.content, headers=FHIR_JSON).status_code == 200
    assert client.get("/fhir/Observation/decimal").content == read.content


@pytest.mark.requirement("I16")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_each_defect_is_refused_with_its_place_and_nothing_of_it_is_kept(client: httpx.Client) -> None:
    """What is refused never reaches the database, so that one engine is enough."""
    otherwise: dict[str, Any] = {}
    for defect in (one for one in defects() if one.resource_type in WRITABLE):
        answer = client.post(f"/fhir/{defect.resource_type}", content=defect.body, headers=FHIR_JSON)
        if not 400 <= answer.status_code < 500 or told(answer) != [(defect.code, [defect.expression])]:
            otherwise[defect.name] = (answer.status_code, answer.text)
    assert otherwise == {}
    for kind in WRITABLE:
        assert client.get(f"/fhir/{kind}", params={"_summary": "count"}).json()["total"] == 0


def told(answer: httpx.Response) -> list[tuple[Any, Any]]:
    return [(issue["code"], issue.get("expression")) for issue in json.loads(answer.content)["issue"]]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_batch_with_too_many_faults_to_tell_is_refused_whole(client: httpx.Client) -> None:
    """What was not judged to the end must not be kept."""
    request = {"method": "POST", "url": "Patient"}
    faulty = {"resourceType": "Patient", "name": [{}] * 1001}
    unjudged = {"resourceType": "Patient", "gender": "m"}
    entries = [{"resource": one, "request": request} for one in (faulty, unjudged)]
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": entries}
    answer = client.post("/fhir", content=json.dumps(bundle).encode(), headers=FHIR_JSON)
    assert answer.status_code == 422
    assert client.get("/fhir/Patient", params={"_summary": "count"}).json()["total"] == 0
