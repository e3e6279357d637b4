"""HL7's own examples of the types we serve, and which of them break R4's rules."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PACKED = Path(__file__).parent / "data" / "fhir" / "r4" / "examples.tar.gz"

# file → (code, FHIRPath) of each fault, and why it is one
FAULTY: Mapping[str, list[tuple[str, str]]] = {
    # The performer is an Encounter.
    "Observation-clinical-gender.json": [("value", "Observation.performer[0].reference")],
    # fullUrl ends in pat12, the Patient's id is pat2.
    "Bundle-10bb101f-a121-4264-a920-67be9cb82c74.json": [("value", "Bundle.entry[2].fullUrl")],
    "Bundle-3a0707d3-549e-4467-b8b8-5a2ab3800efe.json": [("value", "Bundle.entry[3].fullUrl")],
    # No base.
    "SearchParameter-codesystem-extensions-CodeSystem-keyword.json": [("required", "SearchParameter.base")],
    # A logical model that is neither abstract nor based on anything.
    "StructureDefinition-Definition.json": [("invariant", "StructureDefinition.baseDefinition")],
    # fullUrl ends in lri-gramstain1, the Observation's id is gramstain1; and so on.
    "Bundle-lri-example.json": [("value", f"Bundle.entry[{index}].fullUrl") for index in range(1, 17)],
}


@cache
def examples() -> Mapping[str, bytes]:
    """The bytes by file name."""
    with tarfile.open(PACKED) as archive:
        members = [(entry.name, archive.extractfile(entry)) for entry in archive.getmembers()]
        return {name: content.read() for name, content in members if content}


def kind_of(name: str) -> str:
    """The resource type, which is how the file's name begins."""
    return name.split("-")[0]


def kinds() -> list[str]:
    """The types there are examples of."""
    return sorted({kind_of(name) for name in examples()})
