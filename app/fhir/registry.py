"""What the FHIR interface offers, read once from capability/resources.toml (https://hl7.org/fhir/R4/searchparameter.html)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from app.errors import ConfigurationError, NotSupported
from app.fhir import definitions

_PACKAGE = Path(__file__).parents[1]
# In a wheel the fact-books lie inside the package, in a checkout beside it.
_FOLDERS = (_PACKAGE / "_capability", _PACKAGE.parent / "capability")
_STEP = re.compile(r"(?P<name>\w+)(?:\[(?P<key>\w+)=(?P<value>\w+)\])?")

INTERACTIONS = ("read", "vread", "update", "create", "search-type")
MODIFIERS: Mapping[str, tuple[str, ...]] = {
    "token": ("missing", "not"),
    "uri": ("missing",),
    "date": ("missing",),
    "string": ("missing", "exact", "contains"),
    "reference": ("missing",),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One element name on a path; with `key` only the repetitions count whose `key` is `value`."""

    name: str
    key: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One search parameter of one type."""

    name: str
    type: str
    paths: tuple[tuple[Step, ...], ...]
    url: str
    targets: frozenset[str] = frozenset()
    """Types a reference may point to."""
    only: str = ""
    """Only references to this type are indexed."""
    system: str = ""
    present: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """One row of the fact-book: a resource type and all that is served of it."""

    resource_type: str
    interactions: frozenset[str]
    search: Mapping[str, Parameter]
    patient: tuple[Step, ...] = ()
    sort: str | None = None
    workflow: frozenset[str] = frozenset()


@cache
def offers() -> Mapping[str, Offer]:
    """Every offer by resource type, in the order of the fact-book."""
    folder = next(folder for folder in _FOLDERS if folder.is_dir())
    book = tomllib.loads((folder / "resources.toml").read_text())
    shared = _parameters("Resource", book.pop("Resource"))
    return {name: _offer(name, row, shared) for name, row in book.items()}


def offer(resource_type: str) -> Offer:
    """The offer of one type; NotSupported when there is none."""
    found = offers().get(resource_type)
    if found is None:
        raise NotSupported("this server does not offer that resource type")
    return found


def path(text: str) -> tuple[Step, ...]:
    """The steps of one dotted path."""
    return tuple(_step(part) for part in text.split("."))


def _offer(name: str, row: Mapping[str, Any], shared: Mapping[str, Parameter]) -> Offer:
    search = {**_parameters(name, row), **shared}
    interactions = frozenset(row["interactions"])
    sort = row.get("sort")
    if not interactions <= set(INTERACTIONS) or (sort and search[sort].type != "date"):
        raise ConfigurationError(f"resources.toml: {name}: unknown interaction or sort parameter")
    return Offer(
        resource_type=name,
        interactions=interactions,
        search=search,
        patient=path(row["patient"]) if "patient" in row else (),
        sort=sort,
        workflow=frozenset(row.get("workflow", ())),
    )


def _parameters(resource_type: str, row: Mapping[str, Any]) -> dict[str, Parameter]:
    known = definitions.read("search-parameters.json")[resource_type]
    found: dict[str, Parameter] = {}
    for name, facts in row["search"].items():
        if name not in known or facts["type"] != known[name]["type"] or facts["type"] not in MODIFIERS:
            raise ConfigurationError(
                f"resources.toml: {resource_type}.{name} is not a parameter of R4 that can be served"
            )
        found[name] = Parameter(
            name=name,
            type=facts["type"],
            paths=tuple(path(text) for text in facts["path"].split("|")),
            url=known[name]["url"],
            targets=frozenset(known[name].get("target", ())),
            only=facts.get("target", ""),
            system=facts.get("system", ""),
            present=facts.get("present", False),
        )
    return found


def _step(text: str) -> Step:
    match = _STEP.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"resources.toml: not a path: {text}")
    return Step(match["name"], match["key"] or "", match["value"] or "")
