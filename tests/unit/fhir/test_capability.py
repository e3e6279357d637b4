"""What the statement promises is what the registry and the search understand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from app.errors import BadRequest
from app.fhir import capability, definitions, search, validation
from app.fhir.registry import INTERACTIONS, SYSTEM_INTERACTIONS, Offer, offers
from app.settings import Settings
from tests.fhir_samples import sample

SETTINGS = Settings(public_url="http://localhost:8080")


def resources(*, read_only: bool = False) -> list[dict[str, Any]]:
    return capability.statement(SETTINGS, read_only=read_only)["rest"][0]["resource"]


def promises() -> Iterator[tuple[Offer, str, str]]:
    """Every type with each parameter, modifier and include, and a value to try it with."""
    for offer in offers().values():
        for parameter in offer.search.values():
            yield offer, parameter.name, sample(parameter)
            for modifier in capability.modifiers(parameter):
                yield offer, f"{parameter.name}:{modifier}", sample(parameter, modifier)
        for alias, name in offer.aliases.items():
            yield offer, alias, sample(offer.search[name]) if name in offer.search else "2020"
        for value in capability.includes(offer):
            yield offer, "_include", value
        for value in capability.rev_includes(offer):
            yield offer, "_revinclude", value


def test_the_statement_is_valid_in_both_its_forms() -> None:
    for read_only in (False, True):
        assert validation.validate(capability.statement(SETTINGS, read_only=read_only), "CapabilityStatement") == []
    assert validation.validate(capability.terminology(SETTINGS), "TerminologyCapabilities") == []


def test_all_that_is_promised_is_understood() -> None:
    refused: list[str] = []
    for offer, word, value in promises():
        try:
            search.parse(offer, [(word, value)])
        except BadRequest as error:
            refused.append(f"{offer.resource_type}?{word}={value}: {error.issues[0].diagnostics}")
    assert refused == []


def test_what_r4_knows_and_the_statement_does_not_name_is_refused() -> None:
    known = definitions.read("search-parameters.json")
    everywhere = known["Resource"] | known["DomainResource"]
    tried = 0
    for row in resources():
        offer = offers()[row["type"]]
        stated = {one["name"] for one in row.get("searchParam", ())}
        for name in (known.get(row["type"], {}) | everywhere).keys() - stated:
            tried += 1
            with pytest.raises(BadRequest):
                search.parse(offer, [(name, "x")])
    assert tried > 2 * len(offers())


def test_modifiers_that_are_not_named_are_refused() -> None:
    words = {"exact", "contains", "missing", "not", "text", "of-type", "identifier", "below", "above", "in", "not-in"}
    for offer in offers().values():
        for parameter in offer.search.values():
            for modifier in words - set(capability.modifiers(parameter)):
                with pytest.raises(BadRequest):
                    search.parse(offer, [(f"{parameter.name}:{modifier}", sample(parameter, modifier))])


def test_interactions_and_parameters_are_those_of_the_registry() -> None:
    stated = {row["type"]: row for row in resources()}
    assert stated.keys() == offers().keys()
    for name, offer in offers().items():
        assert {one["code"] for one in stated[name]["interaction"]} == offer.interactions <= set(INTERACTIONS)
        assert {one["name"] for one in stated[name]["searchParam"]} == offer.search.keys() | {"_id", "_lastUpdated"}
        assert stated[name].get("conditionalDelete") == ("single" if "delete" in offer.interactions else None)
        assert stated[name].get("updateCreate", False) is ("update" in offer.interactions)
    rest = capability.statement(SETTINGS)["rest"][0]
    assert [one["code"] for one in rest["interaction"]] == list(SYSTEM_INTERACTIONS)
    assert "http://hl7.org/fhir/CompartmentDefinition/patient" in rest["compartment"]


def test_a_viewer_session_reads_and_nothing_else() -> None:
    for row in resources(read_only=True):
        assert {one["code"] for one in row["interaction"]} <= capability.READING
        assert not row.keys() & {"updateCreate", "conditionalCreate", "conditionalUpdate", "conditionalDelete"}
    stated = capability.statement(SETTINGS, read_only=True)
    assert "patchFormat" not in stated
    assert not stated["rest"][0].keys() & {"interaction", "compartment"}


def test_a_parameter_that_looks_further_than_hl7s_says_so() -> None:
    study = next(row for row in resources() if row["type"] == "ImagingStudy")
    modality = next(one for one in study["searchParam"] if one["name"] == "modality")
    assert modality["documentation"].endswith("Looks at ImagingStudy.series.modality | ImagingStudy.modality")
