"""The OpenAPI document and the page for people tell what is served (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis

from app.fhir import capability, openapi, registry
from app.fhir.registry import offers
from app.settings import Settings
from tests.contract.conftest import Server

Json = dict[str, Any]

METHODS = {"get", "post", "put", "patch", "delete"}
CODES = {
    ("get", "/{type}"): "search-type",
    ("post", "/{type}"): "create",
    ("put", "/{type}"): "update",
    ("patch", "/{type}"): "patch",
    ("delete", "/{type}"): "delete",
    ("post", "/{type}/_search"): "search-type",
    ("get", "/{type}/_history"): "history-type",
    ("get", "/{type}/{id}"): "read",
    ("put", "/{type}/{id}"): "update",
    ("patch", "/{type}/{id}"): "patch",
    ("delete", "/{type}/{id}"): "delete",
    ("get", "/{type}/{id}/_history"): "history-instance",
    ("get", "/{type}/{id}/_history/{version}"): "vread",
}


@pytest.fixture
def document(server: Server) -> Json:
    with server.client(None) as client:
        answer = client.get("/fhir/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method in item.keys() & METHODS:
            yield method, path, item[method]


def resolve(document: Json, node: Json) -> Json:
    if "$ref" not in node:
        return node
    found: Any = document
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(node: Any) -> Iterator[Json]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_it_has_an_operation_for_every_interaction_and_no_other(document: Json) -> None:
    told: dict[str, set[tuple[str, str]]] = {}
    for method, path, _ in operations(document):
        kind = path.split("/")[1]
        if kind in offers() and not path.endswith("/{id}/{type}"):
            told.setdefault(kind, set()).add((method, path.replace(f"/{kind}", "/{type}", 1)))
    for kind, offer in offers().items():
        assert told[kind] == {place for place, code in CODES.items() if code in offer.interactions}, kind
    system = {(method, path) for method, path, _ in operations(document) if path.split("/")[1] not in offers()}
    assert system == {
        ("get", "/metadata"),
        ("get", "/"),
        ("post", "/"),
        ("post", "/_search"),
        ("get", "/_history"),
        *(("get", f"/${name}") for name in registry.operations()),
    }


def test_every_search_parameter_of_the_statement_is_told_and_no_other(document: Json) -> None:
    control = {*openapi.CONTROLS, *openapi.FORM, *openapi.HEADERS}
    settings = Settings(public_url=document["servers"][0]["url"].removesuffix("/fhir"))
    for row in capability.statement(settings)["rest"][0]["resource"]:
        search = document["paths"][f"/{row['type']}"]["get"]
        names = {resolve(document, one)["name"] for one in search["parameters"]}
        assert names - control == {one["name"] for one in row["searchParam"]}


def test_it_holds_together(document: Json) -> None:
    assert document["openapi"] == "3.1.0"
    for reference in references(document):
        assert resolve(document, reference)
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    for _, path, operation in operations(document):
        item = document["paths"][path]
        given = [resolve(document, one) for one in (*item.get("parameters", ()), *operation.get("parameters", ()))]
        assert set(re.findall(r"\{(\w+)\}", path)) == {one["name"] for one in given if one["in"] == "path"}
        places = [(one["name"], one["in"]) for one in given]
        assert len(places) == len(set(places))
        assert all("schema" in one for one in given)


def test_errors_are_outcomes(document: Json) -> None:
    for _, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if status.startswith(("4", "d")):
                content = resolve(document, response)["content"]
                assert content["application/fhir+json"]["schema"]["$ref"].endswith("/OperationOutcome"), path


def test_a_body_is_told_to_the_depth_of_its_elements(document: Json) -> None:
    study = document["components"]["schemas"]["ImagingStudy"]
    assert set(study["required"]) == {"resourceType", "status", "subject"}
    assert "available" in study["properties"]["status"]["enum"]
    assert study["properties"]["numberOfSeries"] == {"type": "integer", "minimum": 0}
    assert study["properties"]["series"]["type"] == "array"
    assert {"valueQuantity", "valueString"} <= document["components"]["schemas"]["Observation"]["properties"].keys()


def test_the_page_is_public_complete_and_loads_nothing(server: Server) -> None:
    with server.client(None) as client:
        answer = client.get("/fhir/api")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"<script|<link|<img|style=|https?://(?!localhost:8080)[^<]*(?=[\"'])", answer.text)
    for offer in offers().values():
        assert f'id="{offer.resource_type}"' in answer.text
        assert all(f"<code>{name}</code>" in answer.text for name in offer.search)


def test_neither_is_there_in_a_viewer_session_nor_for_other_methods(server: Server) -> None:
    with server.client() as client:
        assert tried(client, "GET", "/v/s/fhir") == {404}
        assert tried(client, "POST", "/fhir") == {405}


def tried(client: httpx.Client, method: str, base: str) -> set[int]:
    return {client.request(method, f"{base}/{page}").status_code for page in ("openapi.json", "api")}


KINDS = ("Patient", "ImagingStudy", "Observation", "Binary", "SearchParameter")


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_whatever_the_document_allows_is_answered_as_it_says(server: Server, document: Json) -> None:
    answered = 0

    def judge(operation: Any) -> None:
        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=4,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def ask(case: Any) -> None:
            nonlocal answered
            answer = case.call(base_url=f"{server.url}/fhir", headers={"Authorization": "Bearer all"})
            where = f"{operation.method} {operation.path}: {answer.status_code} {answer.text[:300]}"
            assert answer.status_code < 500, where
            assert str(answer.status_code) in operation.definition.raw["responses"], where
            answered += 1

        ask()

    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        kind = operation.path.split("/")[1]
        if kind in KINDS or kind not in offers():
            judge(operation)
    assert answered > 100
