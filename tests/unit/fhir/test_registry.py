"""The fact-book against HL7's own definitions, and the page that tells of it."""

from __future__ import annotations

import re
from pathlib import Path

from app.fhir import definitions
from app.fhir.registry import MODIFIERS, Offer, Parameter, Step, offers

DOCS = Path(__file__).parents[3] / "docs" / "fhir.md"
NOT_SERVED = {"Patient": {"phonetic"}, "Practitioner": {"phonetic"}}
SPECIAL = {"Patient.deceased": "Patient.deceased.exists() and Patient.deceased != false"}
BEYOND = {"ImagingStudy.modality": {"modality"}}
"""Paths that stand beside those of R4: a study without series is found by its own modality."""


def test_every_parameter_of_the_four_types_that_r4_defines_is_served_and_no_other() -> None:
    for resource_type, offer in offers().items():
        known = definitions.read("search-parameters.json")[resource_type]
        servable = {name for name, row in known.items() if row["type"] in MODIFIERS}
        own = {name for name in offer.search if not name.startswith("_")}
        assert own == servable - NOT_SERVED.get(resource_type, set()), resource_type


def test_every_path_is_the_one_hl7_gives() -> None:
    for resource_type, offer in offers().items():
        known = definitions.read("search-parameters.json")[resource_type]
        for name, parameter in offer.search.items():
            if not name.startswith("_"):
                told = known[name]["expression"]
                assert _covers(offer, parameter, told), f"{resource_type}.{name}: {told}"


def _covers(offer: Offer, parameter: Parameter, expression: str) -> bool:
    name = f"{offer.resource_type}.{parameter.name}"
    if name in SPECIAL:
        return expression == SPECIAL[name] and parameter.present
    ours = {_spelled(path) for path in parameter.paths} - BEYOND.get(name, set())
    theirs = {one for part in expression.split(" | ") for one in _expanded(offer.resource_type, part.strip())}
    only = "Patient" if "resolve() is Patient" in expression else ""
    return ours == theirs and parameter.only == only


def _spelled(path: tuple[Step, ...]) -> str:
    return ".".join(step.name + (f"[{step.key}={step.value}]" if step.key else "") for step in path)


def _expanded(resource_type: str, expression: str) -> list[str]:
    """A FHIRPath of HL7's definitions as paths into JSON."""
    expression = re.sub(r"\((\S+) as (\w)(\w*)\)", lambda found: found[1] + found[2].upper() + found[3], expression)
    expression = re.sub(r"\.where\(resolve\(\) is \w+\)", "", expression)
    expression = re.sub(r"\.where\((\w+)='(\w+)'\)", r"[\1=\2]", expression)
    path = expression.removeprefix(f"{resource_type}.")
    for element in definitions.elements(resource_type):
        if element.choice and element.name == path:
            return [path + kind.name[0].upper() + kind.name[1:] for kind in element.kinds]
    return [path]


def test_workflow_elements_and_patient_paths_are_elements_of_their_type() -> None:
    for resource_type, offer in offers().items():
        known = {element.name for element in definitions.elements(resource_type)} | {"id"}
        assert offer.workflow <= known, resource_type
        assert {step.name for step in offer.patient} <= known, resource_type


def test_the_page_has_a_row_for_every_parameter_and_none_beyond() -> None:
    text = DOCS.read_text()
    for resource_type, offer in offers().items():
        own = {name: parameter for name, parameter in offer.search.items() if not name.startswith("_")}
        assert _row(resource_type, own) in text, f"docs/fhir.md lacks this line:\n{_row(resource_type, own)}"
    assert len(re.findall(r"^\| [A-Z]\w+ \| .*\| .*\| .*\| .*\| .*\|$", text, re.MULTILINE)) == len(offers())


def _row(resource_type: str, own: dict[str, Parameter]) -> str:
    by_type = (sorted(name for name, one in own.items() if one.type == kind) for kind in MODIFIERS)
    return f"| {resource_type} | " + " | ".join(", ".join(names) or "–" for names in by_type) + " |"
