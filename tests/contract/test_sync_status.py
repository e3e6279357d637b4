"""`GET /fhir/$sync-status`: who may ask, what it tells, and that the definition says the same (app.fhir.operations)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fhir.resources.R4B.operationdefinition import OperationDefinition
from fhir.resources.R4B.parameters import Parameters

from app.access import Access
from app.fhir import guide
from app.store import sync, truth
from app.workflow import sweep
from tests.contract.conftest import Server, caller

ADDRESS = "/fhir/$sync-status"


def told(client: httpx.Client) -> dict[str, Any]:
    answer = client.get(ADDRESS)
    assert answer.status_code == 200
    Parameters.model_validate(answer.json())
    return values(answer.json()["parameter"])


def values(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["name"]: next(value for key, value in one.items() if key != "name") for one in rows}


@pytest.mark.parametrize(
    ("access", "status"),
    [
        (caller("system/*.cruds"), 200),
        (caller("system/ImagingStudy.rs"), 200),
        (caller("user/*.rs isocenter/operate"), 200),
        (caller("user/*.cruds"), 403),
        (caller("patient/*.rs", patient_id="1"), 403),
        (caller("system/Patient.rs"), 403),
        (caller("system/ImagingStudy.rs?patient=Patient/1"), 403),
        (caller("system/ImagingStudy.rs", studies=frozenset({"1.2.3"})), 403),
        (caller("isocenter/sign"), 403),
    ],
    ids=lambda one: " ".join(scope.resource_type for scope in one.scopes) if isinstance(one, Access) else str(one),
)
def test_only_programs_that_read_all_studies_and_operators_may_ask(server: Server, access: Access, status: int) -> None:
    server.callers["asking"] = access
    with server.client("asking") as client:
        assert client.get(ADDRESS).status_code == status
    assert [(one.action, one.outcome) for one in server.records] == [
        ("operation", "allowed" if status == 200 else "denied")
    ]


def test_nobody_may_ask_without_a_token(server: Server) -> None:
    with server.client(None) as client:
        assert client.get(ADDRESS).status_code == 401


def test_it_tells_what_was_read_and_that_nothing_was_compared_yet(client: httpx.Client) -> None:
    found = told(client)
    assert found["state"] == "never-compared"
    assert (found["cursor"], found["behind"], found["drift"], found["waiting"]) == (0, 7, 0, 0)
    assert "hold" not in found
    assert "last-sweep" not in found


def test_it_tells_what_waits_what_differed_and_what_is_held(server: Server, client: httpx.Client) -> None:
    def work(connection: Any) -> None:
        sync.move(connection, "changes", sync.Position(5, "one"))
        sync.mark(connection, ["a", "b"], "test")
        truth.note(connection, at=1_790_000_000_000, took=0.5, level="ids", new=1, missing=4, hold=sweep.MASS)

    server.store.transact(work)
    found = told(client)
    assert (found["state"], found["hold"]) == ("held", sweep.MASS)
    assert (found["cursor"], found["epoch"], found["behind"]) == (5, "one", 2)
    assert (found["waiting"], found["drift"]) == (2, 5)
    assert values(found["last-sweep"]) == {
        "at": "2026-09-21T14:13:20Z", "seconds": 0.5, "level": "ids", "new": 1, "missing": 4, "changed": 0,
    }  # fmt: skip


def test_a_parameter_it_does_not_take_is_refused(client: httpx.Client) -> None:
    assert client.get(ADDRESS, params={"patient": "1"}).status_code == 400
    assert client.get(ADDRESS, params={"_format": "json", "_pretty": "true"}).status_code == 200
    assert client.post(ADDRESS, json={}).status_code == 405
    assert client.get("/fhir/$nonsense").status_code == 404


def test_the_statement_names_a_definition_that_tells_every_parameter(client: httpx.Client, server: Server) -> None:
    [row] = client.get("/fhir/metadata").json()["rest"][0]["operation"]
    [definition] = guide.operation_definitions()
    OperationDefinition.model_validate(definition)
    assert (row["name"], row["definition"]) == (definition["code"], definition["url"])
    server.store.transact(lambda tx: truth.note(tx, at=1_790_000_000_000))
    kinds = {one["name"]: one.get("type") for one in definition["parameter"]}
    for one in client.get(ADDRESS).json()["parameter"]:
        [value] = [key for key in one if key != "name"]
        assert value == "part" or value.removeprefix("value").lower() == kinds[one["name"]].lower()


def test_a_viewers_session_does_not_offer_it(server: Server) -> None:
    with server.client() as client:
        assert client.get("/v/one/fhir/$sync-status").status_code in {404, 405}
