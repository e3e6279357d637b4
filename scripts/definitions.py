"""Write capability/definitions from HL7's R4 package (https://www.npmjs.com/package/hl7.fhir.r4.examples, CC0).

Usage: python scripts/definitions.py PACKAGE_FOLDER, the folder that holds StructureDefinition-Patient.json.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

OUT = Path(__file__).parents[1] / "capability" / "definitions"
FHIR_TYPE = "http://hl7.org/fhir/StructureDefinition/structuredefinition-fhir-type"
CORE = "http://hl7.org/fhir/SearchParameter/"
# Search parameters are kept for the types this server may serve; structures for all of R4: anything may be contained.
SERVED = (
    "Patient",
    "Practitioner",
    "PractitionerRole",
    "Organization",
    "Location",
    "Encounter",
    "ServiceRequest",
    "Task",
    "ImagingStudy",
    "Endpoint",
    "DiagnosticReport",
    "Observation",
    "Device",
    "Provenance",
    "Media",
    "DocumentReference",
    "BodyStructure",
    "Procedure",
    "AuditEvent",
    "Subscription",
    "Basic",
    "Binary",
    "Bundle",
    "OperationOutcome",
    "CapabilityStatement",
    "Group",
    "Appointment",
    "AllergyIntolerance",
    "Flag",
    "Parameters",
    "CodeSystem",
    "ValueSet",
    "ConceptMap",
    "SearchParameter",
    "OperationDefinition",
    "StructureDefinition",
    "ImplementationGuide",
)
# Every profile of a datatype that the base resources themselves name.
DATATYPE_PROFILES = ("SimpleQuantity", "MoneyQuantity")
COMPARTMENTS = ("Patient", "Encounter", "Practitioner", "Device")


def load(package: Path, kind: str) -> list[Json]:
    """All resources of one kind, in the order of their file names."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(package.glob(f"{kind}-*.json"))]


def tail(canonical: str) -> str:
    """The last segment of a canonical address, without its version."""
    return canonical.split("|")[0].rsplit("/", 1)[-1]


# --- structures ------------------------------------------------------------------------------------------------


def is_wanted(definition: Json) -> bool:
    """Base types and the few datatype profiles; no logical models, no profiles of resources."""
    specialized = definition.get("derivation") != "constraint" and definition["kind"] in {"resource", "complex-type"}
    return specialized or definition["id"] in DATATYPE_PROFILES


def structures(definitions: list[Json]) -> Json:
    """Every type and backbone by its path, with the elements it adds to its base."""
    wanted = {definition["id"]: definition for definition in definitions if is_wanted(definition)}
    primitives = {item["id"] for item in definitions if item["kind"] == "primitive-type"}
    found: Json = {}
    for name in sorted(wanted):
        found |= dict(describe(wanted[name]))
    missing = {kind for row in found.values() for kind in kinds(row)} - primitives - set(found)
    if missing:
        raise SystemExit(f"types without a definition: {sorted(missing)}")
    return found


def kinds(row: Json) -> Iterator[str]:
    """The names of the types a structure's elements have."""
    for element in row.get("elements", {}).values():
        types = element.split(" ", 1)[1].split(" = ")[0]
        yield from (re.sub(r"\(.*\)", "", one) for one in types.split(" | "))


def describe(definition: Json) -> Iterator[tuple[str, Json]]:
    """A type and each backbone inside it."""
    elements = definition["snapshot"]["element"]
    yield (
        definition["id"],
        {
            **head(definition),
            **body(definition, elements[0], elements[0]["path"]),
        },
    )
    for element in elements[1:]:
        if is_backbone(element):
            yield element["path"], {"base": element["type"][0]["code"], **body(definition, element, element["path"])}


def head(definition: Json) -> Json:
    """What only a whole type has: its base, and whether it is abstract or a resource."""
    flags = {"abstract": definition["abstract"], "resource": definition["kind"] == "resource"}
    base = tail(definition["baseDefinition"]) if "baseDefinition" in definition else None
    return {key: value for key, value in ({"base": base} | flags).items() if value}


def is_backbone(element: Json) -> bool:
    """An element whose children stand in the same definition."""
    return element.get("type", [{}])[0].get("code") in {"BackboneElement", "Element"}


def body(definition: Json, parent: Json, path: str) -> Json:
    """Own elements as text rows, own rules as key and sentence."""
    children = [
        element
        for element in definition["snapshot"]["element"]
        if element["path"].rpartition(".")[0] == path and is_own(definition, element)
    ]
    rows = {element["path"].rpartition(".")[2]: row(element) for element in children}
    rules = dict(constraints(definition, parent, children))
    return {key: value for key, value in {"elements": rows, "constraints": rules}.items() if value}


def is_own(definition: Json, element: Json) -> bool:
    """Inherited elements are described where they come from."""
    return definition.get("derivation") != "constraint" and element["base"]["path"] == element["path"]


def constraints(definition: Json, parent: Json, children: list[Json]) -> Iterator[tuple[str, str]]:
    """Rules of severity error that were first stated here; a rule on a leaf element is counted to its parent."""
    own = f"/{definition['id']}"
    for element in (parent, *children):
        if element is not parent and is_backbone(element):
            continue
        for rule in element.get("constraint", []):
            if rule["severity"] == "error" and rule.get("source", own).endswith(own):
                yield rule["key"], rule["human"]


def row(element: Json) -> str:
    """One element in one line: cardinality, types with their targets, required value set."""
    text = f"{element['min']}..{element['max']} {types(element)}"
    binding = element.get("binding", {})
    if binding.get("strength") == "required":
        text += f" = {tail(binding['valueSet'])}"
    return text


def types(element: Json) -> str:
    """The allowed types, joined by a bar."""
    if "contentReference" in element:
        return element["contentReference"].lstrip("#")
    if is_backbone(element):
        return element["path"]
    return " | ".join(type_of(one) for one in element["type"])


def type_of(one: Json) -> str:
    """A type's name and, in brackets, the types a reference may point to or the profile that narrows it."""
    name = next((item["valueUrl"] for item in one.get("extension", []) if item["url"] == FHIR_TYPE), one["code"])
    narrowed = [tail(url) for url in one.get("targetProfile", []) + one.get("profile", [])]
    return f"{name}({','.join(narrowed)})" if narrowed and name != "canonical" and narrowed != ["Resource"] else name


# --- value sets ------------------------------------------------------------------------------------------------


def value_sets(rows: Json, package: Path) -> Json:
    """The codes of every required binding by code system; an empty object where they cannot be listed."""
    known = {item["url"]: item for item in load(package, "ValueSet")}
    systems = {item["url"]: item for item in load(package, "CodeSystem")}
    by_name = {tail(url): item for url, item in sorted(known.items(), reverse=True)}
    names = {
        element.split(" = ")[1]
        for structure in rows.values()
        for element in structure.get("elements", {}).values()
        if " = " in element
    }
    return {name: expand(by_name.get(name, {}), systems) for name in sorted(names)}


def expand(value_set: Json, systems: dict[str, Json]) -> Json:
    """Codes by system; R4's required value sets use whole systems and lists of concepts, never filters."""
    compose = value_set.get("compose", {})
    if compose.get("exclude") or any(set(item) & {"filter", "valueSet"} for item in compose.get("include", [])):
        raise SystemExit(f"{value_set['url']} needs more than lists")
    codes: dict[str, list[str]] = {}
    for item in compose.get("include", []):
        concepts = item.get("concept") or systems.get(item["system"], {}).get("concept", [])
        codes.setdefault(item["system"], []).extend(all_codes(concepts))
    return {} if not all(codes.values()) else {system: sorted(set(found)) for system, found in codes.items()}


def all_codes(concepts: list[Json]) -> Iterator[str]:
    """Codes of a tree of concepts."""
    for concept in concepts:
        yield concept["code"]
        yield from all_codes(concept.get("concept", []))


def implied_systems(names: list[str], package: Path) -> Json:
    """The one code system of each value set that has just one: what a plain code of that element implies."""
    known = {tail(item["url"]): item for item in sorted(load(package, "ValueSet"), key=lambda one: one["url"])[::-1]}
    found: Json = {}
    for name in names:
        systems = {item.get("system") for item in known.get(name, {}).get("compose", {}).get("include", [])}
        if len(systems) == 1 and None not in systems:
            found[name] = systems.pop()
    return found


# --- search parameters -----------------------------------------------------------------------------------------


def search_parameters(package: Path) -> Json:
    """Parameters by type and code, each with the part of its expression that is about that type."""
    found: dict[str, Json] = {name: {} for name in ("Resource", "DomainResource", *SERVED)}
    for parameter in load(package, "SearchParameter"):
        # Beside its own parameters HL7 publishes examples that search the extensions of sample guides.
        about_extensions = "extension" in parameter["url"] + parameter.get("expression", "")
        if about_extensions or not parameter["url"].startswith(CORE):
            continue
        for base in parameter.get("base", []):
            if base in found and parameter["code"] not in found[base]:
                found[base][parameter["code"]] = parameter_row(parameter, base)
    return {name: dict(sorted(rows.items())) for name, rows in sorted(found.items()) if rows}


def parameter_row(parameter: Json, base: str) -> Json:
    """What the index and the statement need of one parameter."""
    components = [
        {"definition": item["definition"], "expression": item["expression"]} for item in parameter.get("component", [])
    ]
    values = {
        "type": parameter["type"],
        "expression": part_of(parameter.get("expression", ""), base),
        "target": parameter.get("target"),
        "component": components,
        "url": parameter["url"],
    }
    return {key: value for key, value in values.items() if value}


def part_of(expression: str, base: str) -> str:
    """The alternatives of a shared expression that begin at this type."""
    parts = [part.strip() for part in re.split(r"\|(?![^(]*\))", expression)]
    mine = [part for part in parts if re.match(rf"\(*{base}\b", part)]
    return " | ".join(mine)


# --- summaries and compartments --------------------------------------------------------------------------------


def summaries(definitions: list[Json]) -> Json:
    """For each served type the elements that a summary shows, and those that must stay in whatever is cut out."""
    return {
        definition["id"]: {
            "summary": [path for element in inner(definition) if element.get("isSummary") for path in spelled(element)],
            "mandatory": [
                path
                for element in inner(definition)
                if element["min"] or element.get("isModifier")
                for path in spelled(element)
            ],
        }
        for definition in definitions
        if definition["id"] in SERVED
    }


def inner(definition: Json) -> list[Json]:
    """The elements inside a type."""
    return definition["snapshot"]["element"][1:]


def spelled(element: Json) -> list[str]:
    """The path of an element below its type, as JSON names it: a choice has a name for each of its types."""
    path = element["path"].partition(".")[2]
    if not path.endswith("[x]"):
        return [path]
    return [path[:-3] + one["code"][0].upper() + one["code"][1:] for one in element["type"]]


def compartments(package: Path) -> Json:
    """For each compartment its address, and the parameters that lead from a served type into it."""
    found: Json = {}
    for definition in load(package, "CompartmentDefinition"):
        # Beside the compartments HL7 publishes an example of one.
        if definition["code"] in COMPARTMENTS and tail(definition["url"]) == definition["code"].lower():
            members = {row["code"]: row["param"] for row in definition["resource"] if "param" in row}
            types = {name: members[name] for name in SERVED if name in members}
            found[definition["code"]] = {"url": definition["url"], "params": types}
    return found


# --- writing ---------------------------------------------------------------------------------------------------


def write(name: str, content: Json) -> None:
    """One line per element keeps differences readable."""
    (OUT / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def write_lists(name: str, content: Json) -> None:
    """One line per value set and system."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()]
    (OUT / name).write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def main(package: Path) -> None:
    """Everything, from the package's folder."""
    OUT.mkdir(parents=True, exist_ok=True)
    definitions = load(package, "StructureDefinition")
    rows = structures(definitions)
    codes = value_sets(rows, package)
    write("structures.json", rows)
    write_lists("value-sets.json", codes)
    write("systems.json", implied_systems(list(codes), package))
    write("search-parameters.json", search_parameters(package))
    write_lists("summaries.json", summaries(definitions))
    write("compartments.json", compartments(package))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
