"""Summaries and elements: what stays of a resource, byte for byte."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from app.errors import BadRequest, Unprocessable
from app.fhir import shaping
from app.fhir.registry import offers
from app.fhir.shaping import Shape

STUDY = offers()["ImagingStudy"]
SUBSETTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}
BODY = b"""{"resourceType":"ImagingStudy","id":"s","meta":{"versionId":"1","tag":[{"code":"kept"}]},
"language":"de","text":{"status":"generated","div":"<div/>"},"modifierExtension":[{"url":"urn:m","valueBoolean":true}],
"status":"available","_status":{"id":"a"},"subject":{"reference":"Patient/1"},"description":"CT  \\u00fc",
"numberOfInstances":2,"procedureReference":{"reference":"#c"},"contained":[{"resourceType":"Procedure","id":"c"}],
"series":[{"uid":"1.2","number":1,"modality":{"code":"CT"},"instance":[{"uid":"1.2.3","sopClass":{"code":"x"}}],
"performer":[{"function":{"text":"f"},"actor":{"reference":"Device/1"}}]}]}"""


def names(body: bytes) -> set[str]:
    return set(orjson.loads(body))


def shaped(*criteria: tuple[str, str]) -> dict[str, Any]:
    return orjson.loads(shaping.shaped(BODY, STUDY, criteria))


def test_a_whole_resource_is_the_stored_bytes_themselves() -> None:
    assert shaping.shaped(BODY, STUDY, [("_pretty", "true")]) is BODY
    assert shaping.shaped(BODY, STUDY, [("_summary", "false")]) is BODY


@pytest.mark.requirement("S17", "S19")
def test_a_summary_keeps_what_R4_calls_summary_and_drops_the_instances() -> None:
    found = shaped(("_summary", "true"))
    assert "instance" not in found["series"][0]
    assert found["series"][0] == {
        "uid": "1.2",
        "number": 1,
        "modality": {"code": "CT"},
        "performer": [{"function": {"text": "f"}, "actor": {"reference": "Device/1"}}],
    }
    assert found["description"] == "CT  ü"
    assert not found.keys() & {"text", "language"}


def test_the_bytes_of_what_stays_are_not_spelled_anew() -> None:
    assert b'"description":"CT  \\u00fc"' in shaping.summarized(BODY, STUDY, "true")


def test_text_keeps_the_narrative_and_what_must_be_there() -> None:
    assert names(shaping.summarized(BODY, STUDY, "text")) == {
        *("resourceType", "id", "meta", "text", "modifierExtension", "status", "_status", "subject"),
    }


def test_data_drops_the_narrative_alone() -> None:
    assert names(shaping.summarized(BODY, STUDY, "data")) == names(BODY) - {"text"}


def test_elements_keep_mandatory_ones_modifiers_and_the_siblings_of_primitives() -> None:
    assert names(shaping.elements(BODY, STUDY, ["description"])) == {
        *("resourceType", "id", "meta", "modifierExtension", "status", "_status", "subject", "description"),
    }


@pytest.mark.requirement("S17", "S19")
def test_a_part_of_an_element_keeps_what_the_element_cannot_do_without() -> None:
    found = shaped(("_elements", "series.number,series.instance.uid"))
    assert found["series"] == [
        {
            "uid": "1.2",
            "number": 1,
            "modality": {"code": "CT"},
            "instance": [{"uid": "1.2.3", "sopClass": {"code": "x"}}],
        }
    ]
    assert shaped(("_elements", "series,series.number"))["series"] == orjson.loads(BODY)["series"]


def test_what_is_cut_out_keeps_the_resources_it_refers_to_inside_itself() -> None:
    assert "contained" in shaped(("_elements", "procedureReference"))
    assert "contained" not in shaped(("_elements", "description"))


def test_a_choice_is_one_element_under_each_of_its_names() -> None:
    body = b'{"resourceType":"Observation","id":"o","status":"final","code":{},"valueString":"x","issued":"2024"}'
    for name in ("value", "valueString"):
        assert "valueString" in names(shaping.elements(body, offers()["Observation"], [name]))
    assert "valueString" not in names(shaping.elements(body, offers()["Observation"], ["valueQuantity"]))


@pytest.mark.parametrize("shape", [Shape("true"), Shape("text"), Shape("data"), Shape("", ("id",))])
def test_what_is_cut_says_so_beside_its_own_tags(shape: Shape) -> None:
    assert orjson.loads(shaping.cut(BODY, STUDY, shape))["meta"]["tag"] == [{"code": "kept"}, SUBSETTED]


def test_names_of_another_type_are_for_that_type_alone() -> None:
    shape = Shape("", ("Endpoint.address", "description"))
    assert "description" in names(shaping.cut(BODY, STUDY, shape))
    assert shaping.cut(BODY, STUDY, shape, is_match=False) is BODY
    endpoint = b'{"resourceType":"Endpoint","id":"e","status":"active","address":"x","name":"n"}'
    assert names(shaping.cut(endpoint, offers()["Endpoint"], shape, is_match=False)) >= {"address", "status"}
    assert "name" not in names(shaping.cut(endpoint, offers()["Endpoint"], shape, is_match=False))


@pytest.mark.parametrize(
    "criteria",
    [
        [("_summary", "all")],
        [("_summary", "count")],
        [("_elements", "colour")],
        [("_elements", "status.colour")],
        [("_elements", "id"), ("_elements", "status")],
        [("_elements", "id"), ("_summary", "true")],
    ],
)
def test_a_shape_that_cannot_be_is_refused(criteria: list[tuple[str, str]]) -> None:
    with pytest.raises(BadRequest):
        shaped(*criteria)


@pytest.mark.requirement("S17")
def test_a_part_cannot_be_stored_as_the_whole() -> None:
    part = orjson.loads(shaping.elements(BODY, STUDY, ["id"]))
    with pytest.raises(Unprocessable) as caught:
        shaping.check_whole(part)
    assert caught.value.issues[0].expression == "ImagingStudy.meta.tag"
    shaping.check_whole(orjson.loads(BODY))
    shaping.check_whole({"resourceType": "Patient"})


def test_every_type_has_a_summary_of_every_kind() -> None:
    for kind, offer in offers().items():
        body = orjson.dumps({"resourceType": kind, "id": "x", "meta": {}})
        for mode in ("true", "text", "data"):
            assert names(shaping.summarized(body, offer, mode)) == {"resourceType", "id", "meta"}
