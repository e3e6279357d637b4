"""Write capability/definitions/served.ndjson.gz: HL7's definitions that clients may read here, one JSON line each.

Usage: python scripts/conformance.py PACKAGE_FOLDER, the folder of npm's hl7.fhir.r4.examples 4.0.1 (CC0) that holds
StructureDefinition-Patient.json. Narratives, differentials and mappings to other standards are left out.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from definitions import CORE, OUT, SERVED, Json, load

STRUCTURE = "http://hl7.org/fhir/StructureDefinition/"
LEFT_OUT = ("text", "differential", "mapping")
# Answers that are no served type.
ANSWERS = ("TerminologyCapabilities", "DomainResource")


def structures(package: Path) -> Iterator[Json]:
    """The served types and every type that their elements have, down to the primitives."""
    seen: set[str] = set()
    waiting = [*SERVED, *ANSWERS]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        definition = json.loads((package / f"StructureDefinition-{name}.json").read_text("utf-8"))
        yield definition
        waiting += [kind for kind in kinds(definition) if not kind.startswith("http")]
        if "baseDefinition" in definition:
            waiting.append(definition["baseDefinition"].removeprefix(STRUCTURE))


def kinds(definition: Json) -> Iterator[str]:
    """The types of all elements."""
    for element in definition["snapshot"]["element"]:
        yield from (one["code"] for one in element.get("type", []))


def value_sets(package: Path, definitions: Iterable[Json]) -> Iterator[Json]:
    """The value sets of required bindings, as far as HL7 publishes them here."""
    wanted = {
        element["binding"]["valueSet"].split("|")[0]
        for definition in definitions
        for element in definition["snapshot"]["element"]
        if element.get("binding", {}).get("strength") == "required"
    }
    return (item for item in load(package, "ValueSet") if item["url"] in wanted)


def code_systems(package: Path, sets: Iterable[Json]) -> Iterator[Json]:
    """The code systems that those value sets take their codes from."""
    wanted = {part.get("system") for item in sets for part in item.get("compose", {}).get("include", [])}
    return (item for item in load(package, "CodeSystem") if item["url"] in wanted)


def search_parameters(package: Path) -> Iterator[Json]:
    """The search parameters of the served types; the server shows those that it takes."""
    bases = {"Resource", "DomainResource", *SERVED}
    for item in load(package, "SearchParameter"):
        # Beside its own parameters HL7 publishes examples that search the extensions of sample guides.
        about_extensions = "extension" in item["url"] + item.get("expression", "")
        if item["url"].startswith(CORE) and not about_extensions and bases & set(item.get("base", [])):
            yield item


def bare(resource: Json) -> Json:
    """The resource without what no program reads."""
    kept = {name: value for name, value in resource.items() if name not in LEFT_OUT}
    for element in kept.get("snapshot", {}).get("element", []):
        element.pop("mapping", None)
    return kept


def main(package: Path) -> None:
    """Everything, sorted, compressed without a date so that the same input makes the same file."""
    described = list(structures(package))
    sets = list(value_sets(package, described))
    found = [*described, *sets, *code_systems(package, sets), *search_parameters(package)]
    rows = sorted((item["resourceType"], item["id"], bare(item)) for item in found)
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for _, _, row in rows]
    text = "".join(f"{line}\n" for line in lines).encode()
    (OUT / "served.ndjson.gz").write_bytes(gzip.compress(text, 9, mtime=0))
    print(f"{len(lines)} definitions, {len(text)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
