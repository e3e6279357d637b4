"""HL7's R4 definitions as bundled in capability/definitions (https://hl7.org/fhir/R4/structuredefinition.html)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson

_PACKAGE = Path(__file__).parents[1]
# In a wheel the fact-books lie inside the package, in a checkout beside it.
_FOLDERS = (_PACKAGE / "_capability" / "definitions", _PACKAGE.parent / "capability" / "definitions")
_ROW = re.compile(r"(?P<min>\d+)\.\.(?P<max>\S+) (?P<kinds>.+?)(?: = (?P<value_set>\S+))?")
_KIND = re.compile(r"(?P<name>[^(]+)(?:\((?P<narrowed>.*)\))?")


@dataclass(frozen=True, slots=True)
class Kind:
    """One allowed type, with the types a reference may point to or the profile of a datatype."""

    name: str
    narrowed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Element:
    """One row of a structure."""

    name: str
    required: bool
    many: bool
    kinds: tuple[Kind, ...]
    value_set: str | None
    choice: bool


@cache
def read(name: str) -> dict[str, Any]:
    """One of the bundled files."""
    folder = next(folder for folder in _FOLDERS if folder.is_dir())
    return orjson.loads((folder / name).read_bytes())


@cache
def resource_types() -> frozenset[str]:
    """The names of all concrete resource types of R4."""
    rows = read("structures.json").items()
    return frozenset(name for name, row in rows if row.get("resource") and not row.get("abstract"))


def lineage(structure: str) -> Iterator[str]:
    """The structure's bases, the most general first, and itself."""
    base = read("structures.json")[structure].get("base")
    if base:
        yield from lineage(base)
    yield structure


def elements(structure: str) -> Iterator[Element]:
    """All elements, inherited ones first."""
    for name in lineage(structure):
        for element, row in read("structures.json")[name].get("elements", {}).items():
            yield _element(element, row)


@cache
def element(structure: str, name: str) -> Element | None:
    """One element by its name without [x], inherited ones included; None when the structure has none."""
    rows = read("structures.json")
    base: str | None = structure
    while base is not None:
        own = rows[base].get("elements", {})
        for spelling in (name, f"{name}[x]"):
            if spelling in own:
                return _element(spelling, own[spelling])
        base = rows[base].get("base")
    return None


def rules(structure: str) -> Iterator[tuple[str, str, str]]:
    """Where stated, key and sentence of every rule of severity error, inherited ones included."""
    for name in lineage(structure):
        for key, sentence in read("structures.json")[name].get("constraints", {}).items():
            yield name, key, sentence


@cache
def codes(value_set: str) -> dict[str, frozenset[str]]:
    """The codes of a value set by system; empty where they cannot be listed."""
    return {system: frozenset(found) for system, found in read("value-sets.json")[value_set].items()}


def _element(name: str, row: str) -> Element:
    parts = _ROW.fullmatch(row)
    if parts is None:
        raise ValueError(f"structures.json: {name}: {row}")
    return Element(
        name=name.removesuffix("[x]"),
        required=parts["min"] != "0",
        many=parts["max"] != "1",
        kinds=tuple(_kind(text) for text in parts["kinds"].split(" | ")),
        value_set=parts["value_set"],
        choice=name.endswith("[x]"),
    )


def _kind(text: str) -> Kind:
    parts = _KIND.fullmatch(text)
    if parts is None:
        raise ValueError(f"structures.json: {text}")
    return Kind(parts["name"], frozenset((parts["narrowed"] or "").split(",")) - {""})
