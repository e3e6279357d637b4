"""Our own definitions say what the mappings write."""

from __future__ import annotations

from app.dicom.content import Code
from app.fhir import definitions, guide, validation
from app.fhir.mapping import codes, task, terms
from app.fhir.registry import offers
from app.settings import Settings
from app.workflow.states import STEP_MOVES

OWN = guide.resources(Settings())
BY_URL = {one["url"]: one for one in OWN}


def concepts(url: str) -> set[str]:
    return {one["code"] for one in BY_URL[url]["concept"]}


def test_every_definition_is_valid_and_has_an_address_of_its_own() -> None:
    assert [(one["id"], issue) for one in OWN for issue in validation.validate(one)] == []
    assert len(BY_URL) == len(OWN)
    last = guide.guide(OWN, "0" * 64)
    assert validation.validate(last, "ImplementationGuide") == []
    assert len(last["definition"]["resource"]) == len(OWN)


def test_every_extension_and_code_system_that_we_use_is_published() -> None:
    used = {value for name, value in vars(terms).items() if name.isupper() and isinstance(value, str)}
    wanted = {
        url for url in used if url.startswith((f"{terms.BASE}/StructureDefinition/", f"{terms.BASE}/CodeSystem/"))
    }
    assert len(wanted) > 8
    assert wanted <= BY_URL.keys()


def test_the_code_systems_have_the_codes_that_are_written() -> None:
    assert concepts(terms.REVIEW) == task.REVIEW_REASONS.keys()
    assert concepts(terms.STEP_STATUS) == {move.business for move in STEP_MOVES.values()}


def test_each_parameter_of_our_own_is_published_under_the_address_it_is_declared_with() -> None:
    declared = {
        parameter.url: (offer.resource_type, parameter)
        for offer in offers().values()
        for parameter in offer.search.values()
        if parameter.url.startswith(terms.BASE)
    }
    published = {one["url"]: one for one in OWN if one["resourceType"] == "SearchParameter"}
    assert published.keys() == declared.keys() >= {f"{terms.BASE}/SearchParameter/ImagingStudy-accession"}
    for url, (base, parameter) in declared.items():
        one = published[url]
        assert (one["base"], one["code"], one["type"]) == ([base], parameter.name, parameter.type)
        assert one["expression"] == parameter.expression


def test_the_parts_of_an_extension_have_types_that_r4_knows() -> None:
    primitives = {"id", "code", "string", "dateTime", "positiveInt", "unsignedInt", "uri"}
    for one in OWN:
        for element in one.get("differential", {}).get("element", ()):
            kinds = {kind["code"] for kind in element.get("type", ())}
            assert kinds <= primitives | definitions.read("structures.json").keys()


def test_the_maps_say_what_the_mappings_do() -> None:
    rows: dict[str, dict[str, str]] = {
        one["id"]: {row["code"]: row["target"][0]["code"] for row in one["group"][0]["element"]}
        for one in OWN
        if one["resourceType"] == "ConceptMap"
    }
    languages = rows["dicom-languages"]
    assert {name: codes.language(name) for name in languages} == languages
    schemes = rows["dicom-coding-schemes"]
    assert {name: codes.system(Code("1", name)) for name in schemes} == schemes
