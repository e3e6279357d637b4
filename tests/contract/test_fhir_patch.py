"""PATCH over HTTP: both kinds, their refusals, and what becomes of the version."""

from __future__ import annotations

import json
from typing import Any

import httpx

JSON_PATCH = {"Content-Type": "application/json-patch+json"}
FHIR_JSON = {"Content-Type": "application/fhir+json"}


def patched(client: httpx.Client, operations: Any, path: str = "Observation/o", **headers: str) -> httpx.Response:
    return client.patch(f"/fhir/{path}", content=json.dumps(operations), headers={**JSON_PATCH, **headers})


def kept(client: httpx.Client) -> None:
    body = (
        '{"resourceType":"Observation","id":"o","status":"final","code":{"text":"x"},'
        '"identifier":[{"system":"urn:x","value":"1"}],"valueQuantity":{"value":12.50}}'
    )
    client.put("/fhir/Observation/o", content=body, headers=FHIR_JSON).raise_for_status()


def test_a_json_patch_makes_a_version_and_keeps_digits(client: httpx.Client) -> None:
    kept(client)
    change = [{"op": "replace", "path": "/status", "value": "amended"}]
    answer = patched(client, change, **{"If-Match": 'W/"1"'})
    assert (answer.status_code, answer.headers["ETag"]) == (200, 'W/"2"')
    assert '"value":12.50' in client.get("/fhir/Observation/o").text
    assert patched(client, change, **{"If-Match": 'W/"1"'}).status_code == 412
    assert patched(client, change).headers["ETag"] == 'W/"2"'
    assert patched(client, change, "Observation?identifier=urn:x|1").status_code == 200
    assert patched(client, change, "Observation?identifier=urn:x|2").status_code == 404


def test_a_fhirpath_patch_makes_a_version(client: httpx.Client) -> None:
    kept(client)
    parts = [
        {"name": "type", "valueCode": "replace"},
        {"name": "path", "valueString": "Observation.value.value"},
        {"name": "value", "valueDecimal": 7.25},
    ]
    change = {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": parts}]}
    answer = client.patch("/fhir/Observation/o", content=json.dumps(change), headers=FHIR_JSON)
    assert (answer.status_code, answer.json()["valueQuantity"]["value"]) == (200, 7.25)


def test_what_cannot_be_patched_is_refused_and_nothing_changes(client: httpx.Client) -> None:
    kept(client)
    for operations, status, place in (
        ([{"op": "test", "path": "/status", "value": "amended"}], 422, "Observation.status"),
        ([{"op": "replace", "path": "/status", "value": "x"}], 422, "Observation.status"),
        ([{"op": "replace", "path": "/id", "value": "p"}], 422, "Observation.id"),
        ([{"op": "remove", "path": "/issued"}], 422, "Observation.issued"),
        ([{"op": "move", "path": "/status"}], 400, None),
        ({}, 400, None),
    ):
        answer = patched(client, operations)
        assert answer.status_code == status, operations
        assert answer.json()["issue"][0].get("expression") == ([place] if place else None), operations
    assert client.patch("/fhir/Observation/o", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert patched(client, [], "Observation/nothing").status_code == 404
    assert client.get("/fhir/Observation/o").headers["ETag"] == 'W/"1"'
