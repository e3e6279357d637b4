"""The fact-book against HL7's own definitions, and what a fact-book cannot say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from app.errors import ConfigurationError, NotSupported
from app.fhir import definitions, registry, site
from app.fhir.registry import MODIFIERS, SUFFIXES, offer, offers
from app.store.query import key

BOOK = Path(__file__).parents[3] / "capability" / "resources.toml"
COLUMNS = {"_id", "_lastUpdated"}
TYPES = """Patient Practitioner PractitionerRole Organization Location Encounter ServiceRequest Task ImagingStudy
Endpoint DiagnosticReport Observation Media DocumentReference BodyStructure Device Procedure Provenance AuditEvent
Subscription Basic Binary AllergyIntolerance Flag Appointment Group Bundle ConceptMap CodeSystem ValueSet
StructureDefinition SearchParameter OperationDefinition CapabilityStatement ImplementationGuide"""


@pytest.fixture
def elsewhere() -> Iterator[None]:
    before = site.here()
    site.settle(before.base, ZoneInfo("Australia/Sydney"))
    yield
    site.settle(before.base, before.zone)


def test_the_types_are_those_that_imaging_needs() -> None:
    assert list(offers()) == TYPES.split()


@pytest.mark.parametrize("name", offers())
def test_every_parameter_that_r4_defines_is_served_or_left_out_with_a_reason(name: str) -> None:
    known = definitions.read("search-parameters.json")
    own = {one for one, parameter in offer(name).search.items() if parameter.description}
    theirs = known.get(name, {}).keys() | known["Resource"].keys() | known["DomainResource"].keys()
    served = offer(name).search.keys() - own
    assert served | offer(name).omitted.keys() == theirs - COLUMNS
    assert not served & offer(name).omitted.keys()
    assert all(" " in reason for reason in offer(name).omitted.values())


@pytest.mark.parametrize("name", offers())
def test_parameters_bear_hl7s_type_and_address_and_ours_an_address_of_our_own(name: str) -> None:
    known = definitions.read("search-parameters.json")
    for parameter in offer(name).search.values():
        theirs = known.get(name, {}).get(parameter.name) or known["Resource"].get(parameter.name)
        if theirs is None:
            assert parameter.url == f"https://isocenter.dev/fhir/SearchParameter/{name}-{parameter.name}"
            assert parameter.description
        else:
            assert (parameter.type, parameter.url) == (theirs["type"], theirs["url"])
            assert parameter.expression.startswith(theirs["expression"])


def test_composites_know_their_parts() -> None:
    parts = offer("Observation").search["code-value-quantity"].components
    assert [(part.name, part.type) for part in parts] == [("code", "token"), ("value-quantity", "quantity")]
    parts = offer("DocumentReference").search["relationship"].components
    assert [(part.name, part.kinds) for part in parts] == [("relatesto", {"Reference"}), ("relation", {"code"})]


def test_other_names_lead_to_a_parameter_that_is_there() -> None:
    for one in offers().values():
        assert set(one.aliases.values()) <= one.search.keys() | COLUMNS
    assert offer("ImagingStudy").parameter("based-on") is offer("ImagingStudy").search["basedon"]
    assert offer("DiagnosticReport").parameter("imagingStudy") is offer("DiagnosticReport").search["imaging-study"]
    assert offer("DiagnosticReport").parameter("patinet") is None


def test_only_references_to_patients_are_a_patient() -> None:
    assert offer("ImagingStudy").search["patient"].only == "Patient"
    assert offer("ImagingStudy").search["subject"].only == ""
    assert offer("Patient").search["deceased"].present


def test_the_numbers_of_all_parameters_and_their_suffixes_are_distinct() -> None:
    names = [
        (one.resource_type, name + suffix)
        for one in offers().values()
        for name in one.search
        for suffix in ("", *SUFFIXES)
    ]
    assert len({key(*name) for name in names}) == len(names) > 2500


def test_a_summary_shows_what_r4_says_and_nothing_mandatory_is_ever_cut_out() -> None:
    study = offer("ImagingStudy")
    assert {"status", "subject", "series", "series.uid"} <= study.summary
    assert not {"text", "series.instance", "contained"} & study.summary
    assert {"status", "subject", "implicitRules", "modifierExtension", "series.uid"} <= study.mandatory
    assert "valueQuantity" in offer("Observation").summary
    for one in offers().values():
        elements = definitions.elements(one.resource_type)
        assert {element.name for element in elements if element.required and not element.choice} <= one.mandatory


def test_compartments_are_entered_by_parameters_that_are_served() -> None:
    assert offer("Observation").compartments["Patient"] == ("subject", "performer")
    assert offer("Encounter").compartments["Encounter"] == ("_id",)
    for one in offers().values():
        for params in one.compartments.values():
            assert set(params) <= one.search.keys() | COLUMNS


def test_elements_with_a_choice_are_named_as_json_names_them() -> None:
    assert {"valueQuantity", "valueCodeableConcept", "effectiveDateTime"} <= offer("Observation").protected
    for one in offers().values():
        names = {element.name for element in definitions.elements(one.resource_type) if not element.choice}
        assert one.workflow <= names


def test_what_is_not_served_of_a_type_is_not_supported() -> None:
    with pytest.raises(NotSupported):
        offer("Medication")
    assert offer("ConceptMap").interactions == {"read", "search-type"}
    assert offer("AuditEvent").kept == "audit"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('reading = ["read", "search-type"]', 'reading = ["raed", "search-type"]'),
        ('sort = "authored"', 'sort = "status"'),
        ('based-on = "basedon"', 'status = "basedon"'),
        ('based-on = "basedon"', 'based-on = "basedOff"'),
        ("[ImagingStudy.own.accession]", "[ImagingStudy.own.status]"),
        ("phonetic =", "phonetics ="),
        ('workflow = ["identifier", "status"]', 'workflow = ["identifier", "state"]'),
        ('expression = "ImagingStudy.description"', 'expression = "ImagingStudy.describtion"'),
        ('type = "number"', 'type = "special"'),
        ('patient = "ServiceRequest.subject"', 'patient = "ServiceRequest.patient"'),
    ],
)
def test_a_book_that_says_what_cannot_be_is_refused(before: str, after: str) -> None:
    text = BOOK.read_text("utf-8")
    assert before in text
    with pytest.raises(ConfigurationError):
        registry.read(text.replace(before, after))


def test_the_digest_is_the_same_in_every_process() -> None:
    script = "from app.fhir import registry; print(registry.digest())"
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed},
            cwd=BOOK.parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.usefixtures("elsewhere")
def test_the_digest_tells_of_another_zone() -> None:
    there = registry.digest()
    site.settle("", UTC)
    assert registry.digest() != there


def test_every_type_of_parameter_has_its_modifiers() -> None:
    assert {one.type for row in offers().values() for one in row.search.values()} == MODIFIERS.keys()
