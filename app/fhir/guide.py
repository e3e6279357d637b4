"""Our own definitions as resources, made of the fact-books and of what the mappings use (https://hl7.org/fhir/R4/conformance-module.html)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from app.fhir import capability
from app.fhir.capability import DATE, FHIR_VERSION, Json
from app.fhir.mapping import codes, quality, task, terms
from app.fhir.registry import Offer, OperationParameter, Parameter, offers, operations
from app.settings import Settings

FOLDER = codes.FOLDER.parent / "definitions"
RESOURCE_ID = "isocenter"
_STRUCTURE = "http://hl7.org/fhir/StructureDefinition"
_PART = re.compile(r"(?P<min>\d)\.\.(?P<max>\d|\*) (?P<types>\S+)")


def resources(settings: Settings) -> list[Json]:
    """All of them but the guide that lists them."""
    book = tomllib.loads((FOLDER / "own.toml").read_text("utf-8"))
    return [
        capability.statement(settings),
        *search_parameters(),
        *operation_definitions(),
        *(_extension(name, row) for name, row in book["extension"].items()),
        *(_code_system(name, row) for name, row in book["codes"].items()),
        _code_system("review-reason", _REVIEW),
        _code_system("data-quality", _QUALITY),
        *concept_maps(),
    ]


def guide(listed: Iterable[Json], digest: str) -> Json:
    """The ImplementationGuide: what we publish beyond R4. Its version changes with anything that is published here."""
    found = sorted((one["resourceType"], one["id"], one.get("title", one["name"])) for one in listed)
    return {
        **_head("ImplementationGuide", RESOURCE_ID, "Isocenter", "What Isocenter adds to FHIR R4."),
        "version": f"{version('isocenter')}+{digest[:16]}",
        "packageId": "dev.isocenter.fhir",
        "license": "Apache-2.0",
        "fhirVersion": [FHIR_VERSION],
        "dependsOn": [
            {
                "uri": "http://hl7.org/fhir/ImplementationGuide/fhir",
                "packageId": "hl7.fhir.r4.core",
                "version": FHIR_VERSION,
            }
        ],
        "definition": {
            "resource": [{"reference": {"reference": f"{kind}/{name}"}, "name": title} for kind, name, title in found]
        },
    }


# --- search parameters -----------------------------------------------------------------------------------------


def search_parameters() -> Iterator[Json]:
    """The parameters that R4 does not have."""
    for offer in offers().values():
        for parameter in offer.search.values():
            if parameter.url.startswith(terms.BASE):
                yield _search_parameter(offer, parameter)


def _search_parameter(offer: Offer, parameter: Parameter) -> Json:
    words = re.split(r"\W", f"{offer.resource_type}-{parameter.name}")
    name = "".join(word[:1].upper() + word[1:] for word in words)
    targets = {"target": sorted(parameter.targets)} if parameter.targets else {}
    return {
        **_head("SearchParameter", parameter.url.rpartition("/")[2], name, f"{parameter.description}."),
        "code": parameter.name,
        "base": [offer.resource_type],
        "type": parameter.type,
        "expression": parameter.expression,
        **targets,
    }


# --- operations ------------------------------------------------------------------------------------------------


def operation_definitions() -> Iterator[Json]:
    """The operations at the base."""
    for one in operations().values():
        yield {
            **_titled("OperationDefinition", one.name, {"title": one.title, "text": one.text}),
            "kind": "operation",
            "affectsState": False,
            "code": one.name,
            "system": True,
            "type": False,
            "instance": False,
            "parameter": [_told(parameter) for parameter in one.parameters],
        }


def _told(parameter: OperationParameter) -> Json:
    parts = [_told(part) for part in parameter.parts]
    return {
        "name": parameter.name,
        "use": "out",
        "min": parameter.min,
        "max": parameter.max,
        "documentation": parameter.text,
        **({"part": parts} if parts else {"type": parameter.type}),
    }


# --- extensions and code systems -------------------------------------------------------------------------------


def _extension(name: str, row: Mapping[str, Any]) -> Json:
    url = f"{terms.BASE}/StructureDefinition/{name}"
    elements = [_element("Extension", min=0, max="*", short=row["title"], definition=row["text"])]
    if "parts" in row:
        for part, text in row["parts"].items():
            elements += _part(part, text)
        elements += [_fixed("Extension.url", url), _element("Extension.value[x]", max="0")]
    else:
        elements += [_element("Extension.extension", max="0"), _fixed("Extension.url", url)]
        elements.append(_element("Extension.value[x]", min=1, type=[{"code": row["value"]}]))
    return {
        **_titled("StructureDefinition", name, row),
        "fhirVersion": FHIR_VERSION,
        "kind": "complex-type",
        "abstract": False,
        "context": [{"type": "element", "expression": where} for where in row["on"]],
        "type": "Extension",
        "baseDefinition": f"{_STRUCTURE}/Extension",
        "derivation": "constraint",
        "differential": {"element": elements},
    }


def _part(name: str, text: str) -> Iterator[Json]:
    """A part of an extension: an extension within it."""
    found = _PART.fullmatch(text)
    if found is None:
        raise ValueError(f"own.toml: not a part: {text}")
    here, slice_ = "Extension.extension", f"Extension.extension:{name}"
    yield _element(here, slice_, sliceName=name, min=int(found["min"]), max=found["max"])
    yield _element(f"{here}.extension", f"{slice_}.extension", max="0")
    yield {**_fixed(f"{here}.url", name), "id": f"{slice_}.url"}
    types = [{"code": kind} for kind in found["types"].split("|")]
    yield _element(f"{here}.value[x]", f"{slice_}.value[x]", min=1, type=types)


def _element(path: str, element_id: str = "", **facts: Any) -> Json:
    return {"id": element_id or path, "path": path, **facts}


def _fixed(path: str, url: str) -> Json:
    return _element(path, fixedUri=url)


_REVIEW = {
    "title": "Reason of a review",
    "text": "Why a person is asked to decide, in Task.code.",
    "concept": task.REVIEW_REASONS,
}

_QUALITY = {
    "title": "Flaw of the images",
    "text": "What is wrong with an attribute of the images, in the extension data-quality.",
    "concept": quality.ISSUES,
}


def _code_system(name: str, row: Mapping[str, Any]) -> Json:
    return {
        **_titled("CodeSystem", name, row),
        "caseSensitive": True,
        "content": "complete",
        "count": len(row["concept"]),
        "concept": [{"code": code, "definition": meaning} for code, meaning in row["concept"].items()],
    }


# --- maps ------------------------------------------------------------------------------------------------------


def concept_maps() -> Iterator[Json]:
    """The tables by which codes of DICOM become codes of FHIR, where both sides are codes."""
    schemes = {row[0]: row[1][0] or f"urn:oid:{row[1][1]}" for row in codes.table("systems").items()}
    yield _map(
        "dicom-coding-schemes",
        "DICOM coding schemes as FHIR code systems",
        "The coding scheme designators of DICOM PS3.16 section 8 and the code systems they become.",
        (schemes, {"target": "urn:ietf:rfc:3986"}),
    )
    languages = {code: row[0] for code, row in codes.table("languages").items()}
    yield _map(
        "dicom-languages",
        "Languages of DICOM reports",
        "The language codes of three letters that DICOM reports use, and the ones that FHIR wants.",
        (languages, {"source": "urn:iso:std:iso:639:-2", "target": "urn:ietf:bcp:47"}),
    )


def _map(name: str, title: str, text: str, group: tuple[Mapping[str, str], Json]) -> Json:
    rows, systems = group
    elements = [{"code": one, "target": [{"code": other, "equivalence": "equal"}]} for one, other in rows.items()]
    return {
        **_titled("ConceptMap", name, {"title": title, "text": text}),
        "group": [{**systems, "element": elements}],
    }


# --- heads -----------------------------------------------------------------------------------------------------


def _titled(resource_type: str, name: str, row: Mapping[str, Any]) -> Json:
    words = "".join(word[:1].upper() + word[1:] for word in name.split("-"))
    return {**_head(resource_type, name, words, row["text"]), "title": row["title"]}


def _head(resource_type: str, resource_id: str, name: str, text: str) -> Json:
    """What every definition begins with."""
    return {
        "resourceType": resource_type,
        "id": resource_id,
        "url": f"{terms.BASE}/{resource_type}/{resource_id}",
        "name": name,
        "status": "active",
        "date": DATE,
        "publisher": "Isocenter",
        "description": text,
    }
