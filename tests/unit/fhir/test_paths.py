"""The expressions of search parameters against another FHIRPath engine, and what is refused of FHIRPath."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigurationError
from app.fhir import definitions
from app.fhir.paths import Condition, Leaf, Step, leaves

DATA = Path(__file__).parents[2] / "data" / "fhir"
ACSN = "type.coding.where(system='http://terminology.hl7.org/CodeSystem/v2-0203' and code='ACSN').exists()"


def test_every_expression_of_hl7_finds_in_hl7s_examples_what_another_engine_finds() -> None:
    expected = json.loads((DATA / "fhirpath.json").read_text("utf-8"))
    compared = 0
    for name, theirs in expected.items():
        resource = json.loads((DATA / "examples" / name).read_text("utf-8"))
        for parameter, row in definitions.read("search-parameters.json")[resource["resourceType"]].items():
            if "expression" in row and row["type"] != "special":
                found = _found(resource, leaves(resource["resourceType"], row["expression"]))
                assert found == {_canonical(one) for one in theirs.get(parameter, ())}, (name, parameter)
                compared += bool(found)
    assert compared > 600


def _found(resource: Any, where: tuple[Leaf, ...]) -> set[str]:
    values = [value for leaf in where for value in _at(resource, leaf.steps) if _leads_to(value, leaf.only)]
    if where[0].present:
        return {_canonical(any(value is not False for value in values))}
    # A composite that begins at the resource itself is no value.
    return {_canonical(value) for value in values if value is not resource}


def _at(value: Any, steps: tuple[Step, ...]) -> Iterator[Any]:
    if not steps:
        yield value
        return
    found = value.get(steps[0].name, [])
    repeated = [one for one in (found if isinstance(found, list) else [found]) if one is not None]
    for one in repeated[:1] if steps[0].first else repeated:
        if all(one.get(condition.names[0]) == condition.value for condition in steps[0].conditions):
            yield from _at(one, steps[1:])


def _leads_to(value: Any, only: str) -> bool:
    if not only:
        return True
    return value.get("type") == only or re.fullmatch(rf"(.*/)?{only}/[^/]+", value.get("reference", "")) is not None


def _canonical(value: Any) -> str:
    return json.dumps(json.loads(json.dumps(value), parse_int=float), sort_keys=True)


def test_a_choice_is_looked_for_under_each_of_its_names() -> None:
    found = leaves("DiagnosticReport", "DiagnosticReport.effective")
    assert [(leaf.steps[-1].name, leaf.kind) for leaf in found] == [
        ("effectiveDateTime", "dateTime"),
        ("effectivePeriod", "Period"),
    ]


def test_a_choice_that_is_narrowed_has_one_name_whatever_the_case_of_the_type() -> None:
    assert leaves("Observation", "value.as(DateTime)") == leaves("Observation", "(Observation.value as dateTime)")
    (found,) = leaves("Observation", "(Observation.value as CodeableConcept).text")
    assert [step.name for step in found.steps] == ["valueCodeableConcept", "text"]


def test_a_condition_belongs_to_the_element_before_it() -> None:
    (found,) = leaves("Patient", "Patient.telecom.where(system='email')")
    assert found.steps == (Step("telecom", conditions=(Condition(("system",), "email"),)),)


def test_conditions_inside_a_condition_must_hold_for_one_value() -> None:
    (found,) = leaves("ImagingStudy", f"ImagingStudy.identifier.where({ACSN})")
    (condition,) = found.steps[0].conditions
    assert condition.names == ("type", "coding")
    assert [(inner.names, inner.value) for inner in condition.inner] == [
        (("system",), "http://terminology.hl7.org/CodeSystem/v2-0203"),
        (("code",), "ACSN"),
    ]


def test_an_extension_is_found_by_its_url() -> None:
    (found,) = leaves("Patient", "Patient.extension('urn:x').value.as(boolean)")
    assert found.steps == (Step("extension", conditions=(Condition(("url",), "urn:x"),)), Step("valueBoolean"))


def test_the_first_repetition_alone_may_be_asked_for() -> None:
    (found,) = leaves("Bundle", "Bundle.entry[0].resource")
    assert [step.first for step in found.steps] == [True, False]


def test_an_element_shared_by_another_ones_definition_is_followed() -> None:
    (found,) = leaves("ImplementationGuide", "ImplementationGuide.definition.page.page.title")
    assert found.kind == "string"


@pytest.mark.parametrize(
    ("structure", "expression", "system"),
    [
        ("ImagingStudy", "ImagingStudy.status", "http://hl7.org/fhir/imagingstudy-status"),
        ("Patient", "Patient.address.use", "http://hl7.org/fhir/address-use"),
        ("Subscription", "Subscription.channel.payload", "urn:ietf:bcp:13"),
        ("Task", "Task.intent", ""),
        ("ImagingStudy", "ImagingStudy.series.uid", ""),
    ],
    ids=["of the type", "of a datatype", "codes that cannot be listed", "two systems", "no code"],
)
def test_a_plain_code_implies_the_one_system_of_its_required_value_set(
    structure: str, expression: str, system: str
) -> None:
    assert [leaf.system for leaf in leaves(structure, expression)] == [system]


@pytest.mark.parametrize(
    "expression",
    [
        "Patient.nme",
        "Patient.name.first()",
        "Patient.name.where(use != 'old')",
        "Patient.name.where(use)",
        "(Patient.deceased as Quantity)",
        "(Patient.deceased as dateTime",
        "Patient.name)",
        "Patient.name[1]",
        "Patient.name.",
        "Patient.gender.text",
        "Patient.name | ",
        "Patient.name + Patient.telecom",
        "Patient.extension(url)",
        "",
    ],
)
def test_what_is_not_understood_is_refused_and_never_half_followed(expression: str) -> None:
    with pytest.raises(ConfigurationError):
        leaves("Patient", expression)
