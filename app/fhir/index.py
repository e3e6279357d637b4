"""What a search can find a resource by: values where the registry says they stand (https://hl7.org/fhir/R4/search.html#ptypes).

All parameters of a type are compiled into one walk, so that an element which several of them look into is visited once:
a study of a thousand instances is indexed on every change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import tzinfo
from functools import cache
from typing import Any

from app.errors import ConfigurationError
from app.fhir import paths
from app.fhir.paths import Condition, Leaf, Step
from app.fhir.readers import Json, Reader, Rows, factory_of, fold, pair, target, told
from app.fhir.registry import Offer, Parameter
from app.fhir.site import here
from app.store.query import UNDATED, Index

__all__ = ["extract", "fold", "patient_id", "target"]


def extract(resource: Json, offer: Offer, base: str | None = None, zone: tzinfo | None = None) -> Index:
    """The index of one valid resource; another address or zone than the site's may be given."""
    walk, asked = _program(offer)
    base = here().base if base is None else base
    rows = Rows(base, zone or here().zone)
    walk(resource, rows)
    for name in asked:
        if (name, "", "true") not in rows.tokens:
            rows.tokens.add((name, "", "false"))
    return Index(
        tokens=frozenset(rows.tokens),
        references=frozenset(rows.references),
        dates=frozenset(rows.dates),
        strings=frozenset(rows.strings),
        numbers=frozenset(rows.numbers),
        patient_id=patient_id(resource, offer, base),
        sort=min((lo for name, lo, _ in rows.dates if name == offer.sort), default=UNDATED) if offer.sort else UNDATED,
    )


def patient_id(resource: Json, offer: Offer, base: str | None = None) -> str | None:
    """The one patient the resource is about; None when it names several, or one that is not here: nobody's, then."""
    walk = _patients(offer)
    if walk is None:
        return None
    rows = Rows(here().base if base is None else base, here().zone)
    walk(resource, rows)
    found = {(kind, one) for _, kind, one in rows.references}
    found -= {one for one in found if one[0] == "#" and _is_nobody(resource, one[1])}
    if len(found) != 1:
        return None
    kind, identity = found.pop()
    return identity if kind == "Patient" else None


# --- the walk -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """One element: who reads its values, and what is looked for inside."""

    readers: list[Reader] = field(default_factory=list["Reader"])
    inside: dict[Step, _Node] = field(default_factory=dict["Step", "_Node"])


@cache
def _program(offer: Offer) -> tuple[Reader, tuple[str, ...]]:
    """The walk of a type, and the parameters that have a value even when nothing is there."""
    root = _Node()
    for parameter in offer.search.values():
        for leaf, reader in _read(parameter):
            _plant(root, leaf.steps, reader)
    return _walk(root), tuple(name for name, one in offer.search.items() if one.present)


@cache
def _patients(offer: Offer) -> Reader | None:
    root = _Node()
    for leaf in offer.patient:
        _plant(root, leaf.steps, _patient if leaf.kind == "Reference" else _own_id)
    return _walk(root) if offer.patient else None


def _plant(node: _Node, steps: Iterable[Step], reader: Reader) -> None:
    for step in steps:
        node = node.inside.setdefault(step, _Node())
    node.readers.append(reader)


def _walk(node: _Node) -> Reader:
    """Everything below a node as one function."""
    inside = tuple((step.name, step.first, _guarded(step, _walk(child))) for step, child in node.inside.items())
    readers = tuple(node.readers)
    if inside:
        return _descending(readers, inside)
    return readers[0] if len(readers) == 1 else _in_turn(readers)


def _descending(readers: tuple[Reader, ...], inside: tuple[tuple[str, bool, Reader], ...]) -> Reader:
    """Reads a value, and what stands in it under each name; `first` of them may be wanted alone."""

    def visit(value: Json, rows: Rows) -> None:
        for reader in readers:
            reader(value, rows)
        for name, first, child in inside:
            found = value.get(name)
            if type(found) is list:
                # A null stands where a primitive has nothing but extensions.
                for one in found[:1] if first else found:
                    if one is not None:
                        child(one, rows)
            elif found is not None:
                child(found, rows)

    return visit


def _in_turn(readers: tuple[Reader, ...]) -> Reader:
    def visit(value: Any, rows: Rows) -> None:
        for reader in readers:
            reader(value, rows)

    return visit


def _guarded(step: Step, reader: Reader) -> Reader:
    """The reader for values that meet the step's conditions."""
    if not step.conditions:
        return reader

    def visit(value: Json, rows: Rows) -> None:
        if all(_holds(value, condition) for condition in step.conditions):
            reader(value, rows)

    return visit


def _holds(value: Json, condition: Condition) -> bool:
    return _reaches(value, condition.names, condition)


def _reaches(value: Any, names: tuple[str, ...], condition: Condition) -> bool:
    """Whether the names lead from a value to one that meets the condition."""
    if not names:
        return _meets(value, condition)
    found = value.get(names[0])
    if type(found) is list:
        return any(one is not None and _reaches(one, names[1:], condition) for one in found)
    return found is not None and _reaches(found, names[1:], condition)


def _meets(value: Any, condition: Condition) -> bool:
    if not condition.inner:
        return value == condition.value
    return all(_holds(value, inner) for inner in condition.inner)


def _read(parameter: Parameter) -> Iterator[tuple[Leaf, Reader]]:
    """A reader for each leaf whose type the parameter can look into."""
    readable = False
    for leaf in parameter.leaves:
        factory = _composite if parameter.type == "composite" else factory_of(parameter, leaf)
        if factory is not None:
            readable = True
            yield leaf, factory(parameter.name, leaf, parameter)
    if not readable:
        raise ConfigurationError(f"{parameter.name}: a {parameter.type} cannot be read from {set(parameter.kinds)}")


# --- whose it is ----------------------------------------------------------------------------------------------


def _patient(value: Json, rows: Rows) -> None:
    text = value.get("reference")
    if text is None:
        # Somebody known by a number only may be a patient, unless the reference says what it is.
        if "identifier" in value and value.get("type", "Patient") == "Patient":
            rows.references.add(("", "", str(value["identifier"])))
    elif text.startswith("#"):
        rows.references.add(("", "#", text[1:]))
    else:
        goal = pair(text, rows.own)
        if told(value, goal) in {"", "Patient"}:
            rows.references.add(("", *goal))


def _own_id(value: str, rows: Rows) -> None:
    rows.references.add(("", "Patient", value))


def _is_nobody(resource: Json, contained_id: str) -> bool:
    """Whether something contained is there and no patient."""
    held = {one.get("id"): one.get("resourceType") for one in resource.get("contained", ())}
    return held.get(contained_id, "Patient") != "Patient"


# --- composites -----------------------------------------------------------------------------------------------


def _composite(name: str, leaf: Leaf, parameter: Parameter) -> Reader:
    """The second part under a name that the first one is folded into."""
    first, second = (_part(leaf.kind, component) for component in parameter.components)

    def read(value: Json, rows: Rows) -> None:
        heads = rows.blank()
        first(value, heads)
        if not heads.tokens and not heads.references:
            return
        found = rows.blank()
        second(value, found)
        for head in _heads(heads):
            full = f"{name}${head}"
            rows.tokens.update((full, system, code) for one, system, code in found.tokens if not one)
            rows.references.update((full, kind, goal) for one, kind, goal in found.references if not one)
            rows.dates.update((full, lo, hi) for one, lo, hi in found.dates if not one)
            rows.strings.update((full, folded, text) for one, folded, text in found.strings if not one)
            rows.numbers.update((full, lo, hi, system, code) for one, lo, hi, system, code in found.numbers if not one)

    return read


def _part(structure: str, component: Parameter) -> Reader:
    """A part of a composite; its rows have no name, those with a suffix have nothing but the suffix."""
    root = _Node()
    for leaf in paths.leaves(structure, component.expression):
        factory = factory_of(component, leaf)
        if factory is not None:
            _plant(root, leaf.steps, factory("", leaf, component))
    return _walk(root)


def _heads(rows: Rows) -> set[str]:
    codes = {head for _, system, code in rows.tokens for head in (code, f"{system}|{code}")}
    return codes | {head for _, kind, one in rows.references for head in (one, f"{kind}/{one}" if kind else one)}
