"""What the FHIR interface offers, read once from capability/resources.toml (https://hl7.org/fhir/R4/searchparameter.html)."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from app.errors import ConfigurationError, NotSupported
from app.fhir import definitions, paths
from app.fhir.paths import Leaf
from app.fhir.site import here
from app.store.query import key

_PACKAGE = Path(__file__).parents[1]
# In a wheel the fact-books lie inside the package, in a checkout beside it.
_FOLDERS = (_PACKAGE / "_capability", _PACKAGE.parent / "capability")
_COLUMNS = frozenset({"_id", "_lastUpdated"})
"""Parameters of every type that the resource row itself answers."""

INDEX_FORMAT = 1
"""Counts up when `app.fhir.index` makes another index than before of the same resource and the same registry."""
INTERACTIONS = (
    *("read", "vread", "update", "patch", "delete", "history-instance", "history-type", "create", "search-type"),
)
SUFFIXES = (":text", ":of-type", ":identifier")
"""What follows a parameter's name where the index keeps rows of their own for a modifier."""
SYSTEM_INTERACTIONS = ("transaction", "batch", "history-system", "search-system")
MODIFIERS: Mapping[str, tuple[str, ...]] = {
    "token": ("missing", "not", "text", "of-type"),
    "uri": ("missing", "below"),
    "date": ("missing",),
    "string": ("missing", "exact", "contains"),
    "reference": ("missing", "identifier"),
    "number": ("missing",),
    "quantity": ("missing",),
    "composite": (),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One search parameter of one type."""

    name: str
    type: str
    url: str
    expression: str
    leaves: tuple[Leaf, ...]
    targets: frozenset[str] = frozenset()
    """Types a reference may point to."""
    components: tuple[Parameter, ...] = ()
    """The parts of a composite, with expressions that begin at the composite's own."""
    description: str = ""
    """What our own parameters say of themselves; HL7's say it in HL7's words."""

    @property
    def only(self) -> str:
        """The one type whose references are indexed; empty for all."""
        return self.leaves[0].only

    @property
    def present(self) -> bool:
        """Whether it asks if there is a value, not for the value."""
        return self.leaves[0].present

    @property
    def system(self) -> str:
        """The code system that a plain code of this element implies."""
        return next((leaf.system for leaf in self.leaves if leaf.system), "")

    @property
    def kinds(self) -> frozenset[str]:
        """The datatypes it looks into: `:of-type` is for Identifier alone."""
        return frozenset(leaf.kind for leaf in self.leaves)


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """One row of the fact-book: a resource type and all that is served of it."""

    resource_type: str
    interactions: frozenset[str]
    search: Mapping[str, Parameter]
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """Other names of parameters, `_lastUpdated` among them."""
    omitted: Mapping[str, str] = field(default_factory=dict[str, str])
    """Parameters of HL7 that are not served, with the reason."""
    kept: str = ""
    """Where the rows are: "audit", or with the resources."""
    patient: tuple[Leaf, ...] = ()
    sort: str | None = None
    workflow: frozenset[str] = frozenset()
    protected: frozenset[str] = frozenset()
    summary: frozenset[str] = frozenset()
    """Elements a summary shows, by path below the type (`series.uid`); top-level names have no dot."""
    mandatory: frozenset[str] = frozenset()
    """Elements that stay in whatever is cut out: those with a minimum, and modifiers."""
    compartments: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"])
    """By compartment type the parameters that lead into it; `_id` where the resource is the compartment."""

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name or alias."""
        return self.search.get(self.aliases.get(name, name))


@dataclass(frozen=True, slots=True)
class OperationParameter:
    """One thing an operation tells."""

    name: str
    min: int
    max: str
    type: str
    text: str
    parts: tuple[OperationParameter, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation at the base, read by GET: it changes nothing."""

    name: str
    title: str
    text: str
    about: str
    """The type it tells of: whoever reads all of that as a program may ask."""
    right: str
    """The word of a grant that lets a person ask."""
    parameters: tuple[OperationParameter, ...]


@cache
def offers() -> Mapping[str, Offer]:
    """Every offer by resource type, in the order of the fact-book."""
    return read(_book())


@cache
def operations() -> Mapping[str, Operation]:
    """Every operation by its name."""
    found: dict[str, Operation] = {}
    for name, row in tomllib.loads(_book())["operation"].items():
        told = _operation_parameters(row["parameters"])
        found[name] = Operation(name, row["title"], row["text"], row["about"], row["right"], told)
    return found


def _book() -> str:
    folder = next(folder for folder in _FOLDERS if folder.is_dir())
    return (folder / "resources.toml").read_text("utf-8")


def _operation_parameters(rows: Mapping[str, str], within: str = "") -> tuple[OperationParameter, ...]:
    found: list[OperationParameter] = []
    for full, text in rows.items():
        above, _, name = full.rpartition(".")
        if above != within:
            continue
        often, kind, words = text.split(" ", 2)
        least, most = often.split("..")
        parts = _operation_parameters(rows, full) if kind == "parts" else ()
        found.append(OperationParameter(name, int(least), most, kind, words, parts))
    return tuple(found)


def read(text: str) -> Mapping[str, Offer]:
    """The offers of a fact-book; ConfigurationError says what in it cannot be."""
    book = tomllib.loads(text)
    canonical, lists, common = book.pop("canonical"), book.pop("interactions"), book.pop("Resource")
    book.pop("operation", None)
    shared = {name: one for name, one in _given("Resource", common).items() if name not in _COLUMNS}
    found: dict[str, Offer] = {}
    for name, row in book.items():
        merged: dict[str, Any] = {
            **row,
            "interactions": lists[row["interactions"]],
            "aliases": {**common["aliases"], **row.get("aliases", {})},
            "omitted": {**common["omitted"], **row.get("omitted", {})},
        }
        search = {**_given(name, row), **_own(name, row, canonical), **shared}
        found[name] = _offer(name, merged, search)
    _refuse_equal_keys(found.values())
    return found


def offer(resource_type: str) -> Offer:
    """The offer of one type; NotSupported when there is none."""
    found = offers().get(resource_type)
    if found is None:
        raise NotSupported("this server does not offer that resource type")
    return found


def digest() -> str:
    """What decides the index, in short: when it is another, the index kept so far must be built anew."""
    lines = [f"{INDEX_FORMAT} {here().zone}"]
    for one in offers().values():
        lines.append(f"{one.resource_type} {one.sort} {one.patient}")
        for name, parameter in one.search.items():
            parts = [(part.type, part.leaves) for part in parameter.components]
            lines.append(f"{name} {parameter.type} {parameter.leaves} {sorted(parameter.targets)} {parts}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _refuse_equal_keys(found: Iterable[Offer]) -> None:
    """Index rows know a parameter by a number made of its name: two must not share one."""
    taken: dict[int, str] = {}
    for one in found:
        for name in one.search:
            for suffix in ("", *SUFFIXES):
                full = f"{one.resource_type}.{name}{suffix}"
                other = taken.setdefault(key(one.resource_type, name + suffix), full)
                if other != full:
                    raise ConfigurationError(f"resources.toml: {full} has the key of {other}")


def _offer(name: str, row: Mapping[str, Any], search: Mapping[str, Parameter]) -> Offer:
    interactions = frozenset(row["interactions"])
    sort = row.get("sort")
    taken = [alias for alias in row["aliases"] if alias in search]
    astray = [one for one in row["aliases"].values() if one not in search.keys() | _COLUMNS]
    if not interactions <= set(INTERACTIONS) or (sort and search[sort].type != "date") or taken or astray:
        raise ConfigurationError(f"resources.toml: {name}: unknown interaction, or a sort or alias that cannot be")
    shown = definitions.read("summaries.json")[name]
    return Offer(
        resource_type=name,
        interactions=interactions,
        search=search,
        aliases=row["aliases"],
        omitted=row["omitted"],
        kept=row.get("kept", ""),
        patient=paths.leaves(name, row["patient"]) if "patient" in row else (),
        sort=sort,
        workflow=frozenset(_spelled(name, row.get("workflow", ()))),
        protected=frozenset(_spelled(name, row.get("protected", ()))),
        summary=frozenset(shown["summary"]),
        mandatory=frozenset(shown["mandatory"]),
        compartments=dict(_compartments(name)),
    )


def _given(resource_type: str, row: Mapping[str, Any]) -> dict[str, Parameter]:
    """HL7's parameters of a type, but for those that are omitted."""
    known = definitions.read("search-parameters.json").get(resource_type, {})
    omitted, also, corrected = (row.get(name, {}) for name in ("omitted", "also", "components"))
    if (
        not known.keys()
        >= {*omitted, *also, *corrected} - definitions.read("search-parameters.json")["DomainResource"].keys()
    ):
        raise ConfigurationError(f"resources.toml: {resource_type}: R4 has no such parameter")
    by_url = {facts["url"]: (name, facts) for name, facts in known.items()}
    found: dict[str, Parameter] = {}
    for name, facts in known.items():
        if name in omitted:
            continue
        expression = " | ".join(filter(None, [facts["expression"], also.get(name)]))
        one = _parameter(resource_type, name, {**facts, "expression": expression})
        parts = facts.get("component", ())
        spelled = corrected.get(name) or [part["expression"] for part in parts]
        found[name] = _composed(one, [by_url[part["definition"]] for part in parts], spelled) if parts else one
    return found


def _composed(one: Parameter, parts: list[tuple[str, Any]], expressions: list[str]) -> Parameter:
    """A composite with its parts; where it stands in several places, they must be of one kind there."""
    components = tuple(
        _parameter(one.leaves[0].kind, name, {**facts, "expression": expression})
        for (name, facts), expression in zip(parts, expressions, strict=True)
    )
    return Parameter(one.name, one.type, one.url, one.expression, one.leaves, components=components)


def _own(resource_type: str, row: Mapping[str, Any], canonical: str) -> dict[str, Parameter]:
    known = definitions.read("search-parameters.json").get(resource_type, {})
    found: dict[str, Parameter] = {}
    for name, facts in row.get("own", {}).items():
        if name in known:
            raise ConfigurationError(f"resources.toml: {resource_type}.{name} is one of R4's own parameters")
        found[name] = _parameter(resource_type, name, {**facts, "url": f"{canonical}{resource_type}-{name}"})
    return found


def _parameter(structure: str, name: str, facts: Mapping[str, Any]) -> Parameter:
    if facts["type"] not in MODIFIERS:
        raise ConfigurationError(f"resources.toml: {structure}.{name} is of a type that is not served")
    return Parameter(
        name=name,
        type=facts["type"],
        url=facts["url"],
        expression=facts["expression"],
        leaves=paths.leaves(structure, facts["expression"]),
        targets=frozenset(facts.get("target", ())),
        description=facts.get("description", ""),
    )


def _compartments(resource_type: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, row in definitions.read("compartments.json").items():
        params: Iterable[str] = row["params"].get(resource_type, ())
        if params:
            yield name, tuple("_id" if one == "{def}" else one for one in params)


def _spelled(resource_type: str, elements: Iterable[str]) -> Iterator[str]:
    """Elements as JSON names them: a choice has a name for each of its types."""
    for name in elements:
        element = definitions.element(resource_type, name)
        if element is None:
            raise ConfigurationError(f"resources.toml: {resource_type} has no element {name}")
        if element.choice:
            yield from (name + kind.name[0].upper() + kind.name[1:] for kind in element.kinds)
        else:
            yield name
