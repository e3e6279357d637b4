"""Links rewritten where they stand: what is one, what is none, and that no other byte moves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.fhir import links
from app.fhir.links import Addresses

BASE = "http://localhost:8080/fhir"
WHO = "urn:uuid:c757873d-ec9a-4326-a141-556f43239520"
HERE = Addresses(BASE, {WHO: "Patient/1", "http://else.org/fhir/Patient/7": "Patient/2", "Patient?a=b": "Patient/3"})


def rewritten(resource: dict[str, Any], full_url: str = "") -> dict[str, Any]:
    body, values = links.rewritten(json.dumps(resource).encode(), resource, HERE.pick(full_url))
    assert json.loads(body) == values
    return values


def element(**content: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", **content}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"subject": {"reference": WHO}}, {"subject": {"reference": "Patient/1"}}),
        ({"subject": {"reference": f"{WHO}#c"}}, {"subject": {"reference": "Patient/1#c"}}),
        ({"subject": {"reference": "Patient?a=b"}}, {"subject": {"reference": "Patient/3"}}),
        (
            {"contained": [{"resourceType": "ServiceRequest", "instantiatesUri": [WHO, "urn:x"]}]},
            {"contained": [{"resourceType": "ServiceRequest", "instantiatesUri": ["Patient/1", "urn:x"]}]},
        ),
        ({"meta": {"profile": [f"{WHO}|1.0"]}}, {"meta": {"profile": ["Patient/1|1.0"]}}),
        ({"extension": [{"url": "u", "valueOid": WHO}]}, {"extension": [{"url": "u", "valueOid": "Patient/1"}]}),
        ({"_status": {"extension": [{"valueUuid": WHO}]}}, {"_status": {"extension": [{"valueUuid": "Patient/1"}]}}),
        ({"text": {"div": f"<img src='{WHO}'/>"}}, {"text": {"div": "<img src='Patient/1'/>"}}),
        ({"text": {"div": f'<A HREF = "{WHO}#a">'}}, {"text": {"div": '<A HREF = "Patient/1#a">'}}),
        (
            {"contained": [{"resourceType": "Patient", "link": [{"other": {"reference": WHO}}]}]},
            {"contained": [{"resourceType": "Patient", "link": [{"other": {"reference": "Patient/1"}}]}]},
        ),
    ],
)
def test_a_link_is_rewritten(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert rewritten(element(**before)) == element(**after)


@pytest.mark.parametrize(
    "content",
    [
        {"note": [{"text": WHO}]},
        {"identifier": [{"value": WHO}]},
        {"valueString": WHO},
        {"subject": {"display": WHO}},
        {"text": {"div": f"<p>{WHO}</p>"}},
        {"unknown": {"reference": WHO}},
        {"subject": {"reference": "urn:uuid:00000000-0000-0000-0000-000000000000"}},
        {"subject": {"reference": "Patient/7"}},
        {"subject": {"reference": "#p"}},
        {"id": WHO},
    ],
)
def test_what_is_no_link_or_leads_elsewhere_stays(content: dict[str, Any]) -> None:
    body = json.dumps(element(**content)).encode()
    found, _ = links.rewritten(body, element(**content), HERE.pick(""))
    assert found is body


def test_a_relative_reference_is_read_at_the_address_of_its_entry() -> None:
    near = element(subject={"reference": "Patient/7"})
    assert rewritten(near, "http://else.org/fhir/Observation/1")["subject"]["reference"] == "Patient/2"
    assert rewritten(near, f"{BASE}/Observation/1") == near
    assert rewritten(near, "urn:uuid:1") == near


def test_parameters_and_bundles_hold_resources_with_links_of_their_own() -> None:
    inner = {"resourceType": "Observation", "subject": {"reference": WHO}, "valueString": WHO}
    row = {"name": "operation", "part": [{"name": "value", "resource": inner}, {"name": "v", "valueString": WHO}]}
    found = rewritten({"resourceType": "Parameters", "parameter": [row]})["parameter"][0]["part"]
    assert found[0]["resource"] == inner | {"subject": {"reference": "Patient/1"}}
    assert found[1]["valueString"] == WHO


def test_only_the_text_of_the_link_is_written_anew() -> None:
    body = (
        b'{"resourceType":"Observation", "valueQuantity": { "value": 1.50E0 },"subject":{"display":"\\u00e4", '
        b'"reference":"%s"},"note":[ {"text":"a"} ]}' % WHO.encode()
    )
    found, _ = links.rewritten(body, json.loads(body), HERE.pick(""))
    for kept in (b'{ "value": 1.50E0 }', rb'"\u00e4"', b'[ {"text":"a"} ]'):
        assert kept in found
    assert b'"reference":"Patient/1"' in found


def test_conditional_references_are_found_once_and_only_as_references() -> None:
    resource = element(
        subject={"reference": "Patient?identifier=a|b"},
        performer=[{"reference": "Practitioner?name=x"}, {"reference": "Patient?identifier=a|b"}],
        note=[{"text": "Patient?identifier=none"}],
        instantiatesUri=["Patient?identifier=none"],
    )
    assert list(links.conditions(resource)) == ["Patient?identifier=a|b", "Practitioner?name=x"]
    assert links.split("Patient?identifier=a|b") == ("Patient", "identifier=a|b")


def test_texts_of_a_json_patch_are_rewritten_whatever_their_type() -> None:
    body = b'[{"op":"add","path":"/subject","value":{"reference":"%s"},"n":1.50}, {"op" : "test"}]' % WHO.encode()
    assert links.listed(body, HERE.pick("")) == (
        b'[{"op":"add","path":"/subject","value":{"reference":"Patient/1"},"n":1.50},{"op" : "test"}]'
    )
    for other in (b"[", b"[]", b'"x"', b"{}"):
        assert links.listed(other, HERE.pick("")) == other


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([WHO, "Patient/7", "a#b", "a|b", "<a href=''>"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["subject", "reference", "extension", "valueUri", "contained", "div"]), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["subject", "contained", "text", "extension", "x"]), values, max_size=4))
def test_bytes_and_values_are_rewritten_alike(content: dict[str, Any]) -> None:
    rewritten(element(**content), "http://else.org/fhir/Observation/1")
