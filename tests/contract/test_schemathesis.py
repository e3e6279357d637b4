"""What no client should ask is refused in the interface's own words, and never breaks it.

test_openapi.py asks what the document allows; here schemathesis asks what it forbids, and every declared search
parameter meets every kind of odd text.
"""

from __future__ import annotations

from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st

from app.fhir import openapi
from tests.contract.conftest import Server

KINDS = ("", "ServiceRequest", "Task")
ODD = (
    "",
    "-",
    ",",
    ",,,",
    "|",
    "||",
    "|||",
    "$",
    "a$",
    "$$b",
    "\\",
    "\\,",
    "ge",
    "gege2024",
    "2024-13-45",
    "2024-02-30T25:61Z",
    "0000",
    "9999-12-31T23:59:59.999999999Z",
    "1e999",
    "-1e-999",
    "9" * 400,
    "nan",
    "inf",
    "true,false",
    "*",
    "%",
    "_",
    "' OR 1=1 --",
    '"; DROP TABLE resource; --',
    "Patient/",
    "/",
    "//",
    "Patient/a/_history/x",
    "http://[",
    "urn:oid:",
    "#x",
    "\u202eabc",
    "e\u0301",
    "\U0001f9a0",
    "\ufeff",
    "\x7f",
    "\t\r\n",
    "x" * 3000,
    "Ⅷ",
    "١٢",
    "2024-01-01T00:00:00+99:99",
)
QUIET = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "phases": [hypothesis.Phase.generate],
    "suppress_health_check": list(hypothesis.HealthCheck),
}


def judged(answer: Any, where: str) -> None:
    """An answer of the interface: no failure of ours, and a refusal says what is wrong."""
    assert answer.status_code < 500, f"{where}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code >= 400:
        outcome = answer.json()
        assert outcome["resourceType"] == "OperationOutcome", where
        assert {issue["severity"] for issue in outcome["issue"]} <= {"error", "fatal"}, where


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_the_document_forbids_is_refused_in_words(server: Server) -> None:
    asked: dict[int, int] = {}

    def ask(operation: Any) -> None:
        @hypothesis.given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
        @hypothesis.settings(max_examples=2, **QUIET)
        def negative(case: Any) -> None:
            answer = case.call(base_url=f"{server.url}/fhir", headers={"Authorization": "Bearer all"})
            if "application/fhir+json" in str(answer.headers.get("content-type")):
                judged(answer, f"{operation.method} {operation.path}")
            assert answer.status_code < 500, (operation.method, operation.path, answer.text[:300])
            asked[answer.status_code] = asked.get(answer.status_code, 0) + 1

        negative()

    for found in schemathesis.openapi.from_dict(openapi.document(server.settings)).get_all_operations():
        operation = found.ok()
        if operation.path.strip("/").partition("/")[0] in KINDS or operation.path.startswith("/_"):
            try:
                ask(operation)
            except hypothesis.errors.Unsatisfiable:
                continue  # Nothing about this operation can be wrong.
    assert sum(asked.values()) > 30
    assert asked.keys() & {400, 422}


def test_every_search_parameter_answers_or_refuses_whatever_it_is_asked(server: Server, client: httpx.Client) -> None:
    rows = client.get("/fhir/metadata").json()["rest"][0]["resource"]
    words = [(row["type"], one["name"]) for row in rows for one in row.get("searchParam", [])]
    modifiers = (
        "",
        "",
        ":exact",
        ":contains",
        ":not",
        ":text",
        ":missing",
        ":of-type",
        ":identifier",
        ":Patient",
        ":below",
        ":x",
        ".name",
        ".",
    )
    statuses: dict[int, int] = {}

    @hypothesis.given(st.sampled_from(words), st.sampled_from(modifiers), st.sampled_from(ODD) | st.text(max_size=12))
    @hypothesis.settings(max_examples=400, **QUIET)
    def asks(word: tuple[str, str], modifier: str, text: str) -> None:
        kind, name = word
        answer = client.get(f"/fhir/{kind}", params={name + modifier: text})
        judged(answer, f"{kind}?{name}{modifier}={text!r}")
        assert answer.status_code in {200, 400}, (word, modifier, text, answer.text[:300])
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

    asks()

    assert statuses.keys() == {200, 400}
    assert len(words) > 500


def test_controls_answer_or_refuse_odd_texts(client: httpx.Client) -> None:
    names = ("_count", "_sort", "_include", "_revinclude", "_summary", "_elements", "_total", "_format", "_page", "_at")
    addresses = ("/fhir/ImagingStudy", "/fhir/ImagingStudy/_history", "/fhir", "/fhir/_history")

    @hypothesis.given(st.sampled_from(addresses), st.sampled_from(names), st.sampled_from(ODD))
    @hypothesis.settings(max_examples=300, **QUIET)
    def asks(address: str, name: str, text: str) -> None:
        judged(client.get(address, params={name: text}), f"{address}?{name}={text!r}")

    asks()
