"""What a caller with a narrow grant cannot learn or change, and what no client can bring down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

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
