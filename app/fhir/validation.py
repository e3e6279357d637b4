"""The validator at the door, compiled from the R4 StructureDefinitions (https://hl7.org/fhir/R4/validation.html).

Each structure becomes a table from JSON names to small functions, made when the first resource needs it. All faults are
collected; no sentence repeats a value, since values may be about patients.

Not judged: profiles, bindings weaker than required, what a reference's target says about itself, and the invariants of
types that are not served, such as Questionnaire (their structure is).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from app.errors import Issue
from app.fhir import definitions, invariants, narrative, primitives
from app.fhir.definitions import Element, Kind
from app.fhir.invariants import Rule
from app.fhir.parsing import Json, parse
from app.fhir.primitives import Fault, Primitive

Place = tuple[Any, str, int]
"""The place above (None at the top), a name, the index in a list or -1: made a FHIRPath only for a fault."""

_NAME = re.compile(r"_?[A-Za-z][A-Za-z0-9]{0,63}")
_RELATIVE = re.compile(r"(?P<kind>[A-Za-z]+)(?:/[A-Za-z0-9\-.]{1,64}(?:/_history/[A-Za-z0-9\-.]{1,64})?|\?\S+)")
_ABSOLUTE = re.compile(
    r"https?://\S+/(?P<kind>[A-Za-z]+)/(?P<id>[A-Za-z0-9\-.]{1,64})(?P<version>/_history/[A-Za-z0-9\-.]{1,64})?"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:\S+")
_PRIMITIVES = {**primitives.PRIMITIVES, "xhtml": primitives.unhurried(narrative.xhtml)}
_URI_OF_TYPES = "http://hl7.org/fhir/StructureDefinition/"


MAX_ISSUES = 1000
"""A body of millions of faults must not be answered by an outcome of millions of issues."""


class _EnoughError(Exception):
    """No more issues are told."""


@dataclass(slots=True)
class Run:
    """One walk: the issues so far, the types of the contained resources, and of a Bundle's entries by fullUrl."""

    issues: list[Issue]
    contained: Mapping[str, str] = field(default_factory=dict[str, str])
    entries: Mapping[str, str] = field(default_factory=dict[str, str])
    is_closed: bool = False
    """Whether what urn:uuid: names must be an entry, as in a transaction."""

    def fault(self, code: str, place: Place | None, diagnostics: str) -> None:
        """Keep one more issue."""
        if len(self.issues) >= MAX_ISSUES:
            raise _EnoughError
        self.issues.append(Issue(code, diagnostics, expression(place)))


Check = Callable[[Any, Place, Run], None]
"""Looks at one value."""
Member = Callable[[Any, Json, Place, Run], None]
"""Looks at the value of one JSON name of a node; the place is the node's."""
Rules = tuple[tuple[Rule, str], ...]
"""What must hold of a node, and the sentence for when it does not."""
Scalar = tuple[type, Callable[[Any], object], str, primitives.Test]
"""The parts of a primitive, and the name of its element: a choice is shown without its type."""


@dataclass(frozen=True, slots=True)
class Structure:
    """A compiled type or backbone; what is only about contained resources is asked only where there are some."""

    is_resource: bool
    scalars: Mapping[str, Scalar]
    members: Mapping[str, Member]
    required: frozenset[str]
    needed: tuple[tuple[str, frozenset[str]], ...]
    """Each required element with the JSON names of which one must be there."""
    choices: tuple[tuple[str, Mapping[str, str]], ...]
    rules: Rules
    contained: Rules


def judge(body: bytes, resource_type: str | None = None) -> tuple[Json, list[Issue]]:
    """What a body says, and all its faults."""
    resource = parse(body)
    return resource, validate(resource, resource_type)


def validate(resource: Json, resource_type: str | None = None) -> list[Issue]:
    """All faults of a resource; none means valid. With a resource type, it must be of that type."""
    issues: list[Issue] = []
    try:
        check_resource(resource, None, Run(issues))
    except _EnoughError:
        diagnostics = f"there are more faults: the first {MAX_ISSUES} are told"
        issues.append(Issue("informational", diagnostics, severity="information"))
    except RecursionError:
        issues.append(Issue("structure", "the resource is nested too deeply", resource_type))
    if resource_type and type(resource) is dict and resource.get("resourceType", resource_type) != resource_type:
        issues.append(Issue("value", f"resourceType must be {resource_type} here", "resourceType"))
    return issues


def expression(place: Place | None) -> str:
    """The FHIRPath of a place."""
    steps: list[str] = []
    while place is not None:
        place, name, index = place
        steps.append(name if index < 0 else f"{name}[{index}]")
    return ".".join(reversed(steps))


# --- the walk --------------------------------------------------------------------------------------------------


def check_resource(value: Any, place: Place | None, run: Run, *, is_contained: bool = False) -> None:
    """A resource of any type, at the top, in an entry or contained."""
    if type(value) is not dict:
        return run.fault("structure", place, "must be a resource, a JSON object")
    kind = value.get("resourceType")
    if kind is None:
        return run.fault("required", place or _TYPE, "resourceType is missing")
    if type(kind) is not str or kind not in definitions.resource_types():
        return run.fault("value", place or _TYPE, "resourceType is no resource type of FHIR R4")
    if not is_contained and "contained" in value:
        _check_contained_ids(value, place or (None, kind, -1), run)
        run = Run(run.issues, _contained_types(value), run.entries, run.is_closed)
    elif not is_contained and run.contained:
        run = Run(run.issues, {}, run.entries, run.is_closed)
    if kind == "Bundle":
        run = Run(run.issues, run.contained, _entry_types(value), value.get("type") == "transaction")
        _check_full_urls(value, place or (None, kind, -1), run)
    return check_object(kind, value, place or (None, kind, -1), run)


_TYPE: Place = (None, "resourceType", -1)


def check_object(kind: str, value: Any, place: Place, run: Run) -> None:
    """A node of a known structure: its names, what is missing, choices and rules."""
    if type(value) is not dict:
        return run.fault("structure", place, _not_an_object(value))
    structure = compile_structure(kind)
    if len(value) < 2 and not structure.is_resource and value.keys() <= _NO_CONTENT:
        return run.fault("structure", place, "must have content (ele-1)")
    _check_names(structure, value, place, run)
    if not value.keys() >= structure.required:
        _check_needed(structure, value, place, run)
    if structure.choices:
        _check_choices(structure, value, place, run)
    if structure.rules:
        _check_rules(structure.rules, value, place, run)
    if "contained" in value:
        _check_rules(structure.contained, value, place, run)
    return None


_NO_CONTENT = frozenset({"id"})


def _check_names(structure: Structure, node: Json, place: Place, run: Run) -> None:
    scalars, members = structure.scalars, structure.members
    for name, content in node.items():
        scalar = scalars.get(name)
        if scalar is not None:
            kind, good, shown, test = scalar
            if type(content) is kind and good(content):
                continue
            fault = test(content)
            if fault:
                _report(fault, content, (place, shown, -1), run)
        elif name in members:
            members[name](content, node, place, run)
        else:
            _unknown(name, structure, place, run)


def _report(fault: Fault, content: Any, place: Place, run: Run) -> None:
    if content is None:
        fault = primitives.NULL
    run.fault(fault.code, place, fault.diagnostics)


def _check_needed(structure: Structure, node: Json, place: Place, run: Run) -> None:
    for name, keys in structure.needed:
        if keys.isdisjoint(node):
            run.fault("required", (place, name, -1), "is required")


def _check_choices(structure: Structure, node: Json, place: Place, run: Run) -> None:
    for name, keys in structure.choices:
        met = keys.keys() & node.keys()
        if len(met) > 1 and len({keys[key] for key in met}) > 1:
            run.fault("structure", (place, name, -1), "must have one type only")


def _check_rules(rules: Rules, node: Json, place: Place, run: Run) -> None:
    for rule, sentence in rules:
        if not rule.holds(node):
            for name, index in rule.faults(node):
                run.fault("invariant", (place, name, index) if name else place, sentence)


def _not_an_object(value: Any) -> str:
    match value:
        case None:
            return "must not be null"
        case list():
            return "must be one JSON object, not a list"
        case _:
            return "must be a JSON object"


def _unknown(name: str, structure: Structure, place: Place, run: Run) -> None:
    if not _NAME.fullmatch(name):
        return run.fault("structure", place, "has an element whose name FHIR does not know")
    bare = name.lstrip("_")
    for choice, _ in structure.choices:
        if bare.startswith(choice) and bare[len(choice) :][:1].isupper():
            return run.fault("structure", (place, choice, -1), f"cannot be of the type that {name} says")
    return run.fault("structure", (place, bare, -1), "is not an element of this type")


# --- resources inside resources --------------------------------------------------------------------------------


def _contained_types(resource: Json) -> dict[str, str]:
    found = invariants.objects(resource, "contained")
    return {item["id"]: str(item.get("resourceType")) for item in found if type(item.get("id")) is str}


def _check_contained_ids(resource: Json, place: Place, run: Run) -> None:
    ids = ((index, item.get("id")) for index, item in invariants.listed(resource, "contained"))
    for index in invariants.repeated((index, own) for index, own in ids if type(own) is str):
        run.fault("value", ((place, "contained", index), "id", -1), "must not be the id of another contained resource")


def _entry_types(bundle: Json) -> dict[str, str]:
    """The types of a Bundle's resources by the addresses under which its references may name them."""
    entries = [
        (invariants.text(entry, "fullUrl"), entry.get("resource")) for entry in invariants.objects(bundle, "entry")
    ]
    return {url: str(resource.get("resourceType")) for url, resource in entries if url and type(resource) is dict}


def _check_full_urls(bundle: Json, place: Place, run: Run) -> None:
    """An address that ends in type and id must be that of the entry's resource."""
    for index, entry in enumerate(invariants.values(bundle, "entry")):
        if type(entry) is not dict or type(entry.get("resource")) is not dict:
            continue
        resource = entry["resource"]
        address = _ABSOLUTE.fullmatch(invariants.text(entry, "fullUrl") or "")
        if address is None or address["version"] or address["kind"] not in definitions.resource_types():
            continue
        own = (invariants.text(resource, "resourceType"), resource.get("id", address["id"]))
        if own != (address["kind"], address["id"]):
            run.fault("value", ((place, "entry", index), "fullUrl", -1), "must be the address of the entry's resource")


# --- compiling -------------------------------------------------------------------------------------------------


@cache
def compile_structure(kind: str) -> Structure:
    """The functions for one type or backbone; nested ones are compiled when they are met."""
    elements = tuple(definitions.elements(kind))
    fields = [(element, one) for element in elements for one in element.kinds]
    scalars = dict(_scalar(element, one) for element, one in fields if one.name in _PRIMITIVES and not element.many)
    members: dict[str, Member] = {}
    for element, one in fields:
        members |= _members(element, one)
    is_resource = kind in definitions.resource_types()
    if is_resource:
        members["resourceType"] = _anything
    scalars["id"] = _look("id", _PRIMITIVES["id"] if is_resource else primitives.ELEMENT_ID)
    rules = tuple(_rules(kind))
    return Structure(
        is_resource=is_resource,
        scalars=scalars,
        members=members,
        # An element of many types is never there under its bare name, so that it is always looked for.
        required=frozenset(element.name for element in elements if element.required),
        needed=tuple((element.name, frozenset(_bases(element))) for element in elements if element.required),
        choices=tuple((element.name, _bases(element)) for element in elements if element.choice),
        rules=tuple(rule for rule in rules if rule[0].at != "contained"),
        contained=tuple(rule for rule in rules if rule[0].at == "contained"),
    )


def _anything(_content: Any, _node: Json, _place: Place, _run: Run) -> None:
    """What has been looked at already."""


def _rules(kind: str) -> Iterator[tuple[Rule, str]]:
    parts = [part for (part, _), whole in invariants.RAISED.items() if whole == kind]
    for name, key, sentence in (stated for part in (kind, *parts) for stated in definitions.rules(part)):
        rule = invariants.RULES.get((name, key))
        judged_at = invariants.RAISED.get((name, key), "" if name in parts else kind)
        if rule and judged_at == kind:
            yield rule, f"{sentence} ({key})"


def _json_name(element: Element, kind: Kind) -> str:
    return element.name + kind.name[0].upper() + kind.name[1:] if element.choice else element.name


def _bases(element: Element) -> dict[str, str]:
    """The JSON names that bring the element, and for each the one without underscore."""
    names = {_json_name(element, kind): kind.name in _PRIMITIVES for kind in element.kinds}
    return {name: name for name in names} | {f"_{name}": name for name, primitive in names.items() if primitive}


def _scalar(element: Element, kind: Kind) -> tuple[str, Scalar]:
    return _json_name(element, kind), _look(element.name, _bound(element, _PRIMITIVES[kind.name]))


def _look(name: str, primitive: Primitive) -> Scalar:
    return primitive.json, primitive.good, name, primitive.test


def _members(element: Element, kind: Kind) -> dict[str, Member]:
    """All that is not one value of a primitive: objects, lists, and the siblings of primitives."""
    name = _json_name(element, kind)
    if kind.name not in _PRIMITIVES:
        check = _check(element, kind)
        return {name: _listed(element.name, check) if element.many else _single(element.name, check)}
    if element.many:
        values = _scalars(name, element.name, _bound(element, _PRIMITIVES[kind.name]))
        return {name: values, f"_{name}": _siblings(name, element.name)}
    return {f"_{name}": _sibling(name, element.name)}


def _bound(element: Element, primitive: Primitive) -> Primitive:
    """The judge of a primitive, narrowed by its required value set."""
    if element.value_set is None:
        return primitive
    if element.value_set in primitives.SYNTAX:
        return primitives.SYNTAX[element.value_set]
    codes = definitions.codes(element.value_set)
    return (
        primitives.coded(primitive, frozenset[str]().union(*codes.values()), element.value_set) if codes else primitive
    )


def _check(element: Element, kind: Kind) -> Check:
    """What looks at one value of a complex type."""
    if kind.name == "Resource":
        return partial(check_resource, is_contained=element.name == "contained")
    if kind.name == "Reference":
        return partial(_check_reference, kind.narrowed)
    if element.value_set is not None and definitions.codes(element.value_set):
        return partial(_check_concept, element.value_set)
    narrowed = next(iter(kind.narrowed), kind.name)
    check = partial(check_object, narrowed)
    return _remembering(check) if narrowed == "Coding" else check


def _remembering(check: Check) -> Check:
    """Many codings in a row are equal, such as the class of each image: one found good is good again.

    Only texts are remembered: they equal nothing but themselves, and whether they are good depends on no other place.
    """
    known: Any = object()

    def remembered(value: Any, place: Place, run: Run) -> None:
        nonlocal known
        if value == known:
            return
        faults = len(run.issues)
        check(value, place, run)
        if len(run.issues) == faults and _is_brief(value):
            known = dict(value)

    return remembered


_BRIEF = 300


def _is_brief(value: Json) -> bool:
    texts = value.values()
    return all(type(text) is str for text in texts) and sum(map(len, texts)) <= _BRIEF


# --- members ---------------------------------------------------------------------------------------------------


def _single(name: str, check: Check) -> Member:
    def member(content: Any, _node: Json, place: Place, run: Run) -> None:
        check(content, (place, name, -1), run)

    return member


def _listed(name: str, check: Check) -> Member:
    def member(content: Any, _node: Json, place: Place, run: Run) -> None:
        if _is_list(content, name, place, run):
            for index, item in enumerate(content):
                check(item, (place, name, index), run)

    return member


def _scalars(json_name: str, name: str, primitive: Primitive) -> Member:
    kind, good, test = primitive

    def member(content: Any, node: Json, place: Place, run: Run) -> None:
        if not _is_list(content, name, place, run):
            return
        for index, item in enumerate(content):
            if type(item) is kind and good(item):
                continue
            fault = _null(node.get(f"_{json_name}"), index) if item is None else test(item)
            if fault:
                run.fault(fault.code, (place, name, index), fault.diagnostics)

    return member


def _sibling(json_name: str, name: str) -> Member:
    def member(content: Any, node: Json, place: Place, run: Run) -> None:
        _check_sibling(content, node.get(json_name), (place, name, -1), run)

    return member


def _siblings(json_name: str, name: str) -> Member:
    """The ids and extensions of a list of primitives, aligned with it by nulls."""

    def member(content: Any, node: Json, place: Place, run: Run) -> None:
        if not _is_list(content, name, place, run):
            return
        values = node.get(json_name)
        if type(values) is list and len(values) != len(content):
            diagnostics = f"{json_name} and _{json_name} must be of the same length"
            run.fault("structure", (place, name, -1), diagnostics)
        for index, item in enumerate(content):
            at = (place, name, index)
            if item is not None:
                _check_sibling(item, _at(values, index), at, run)
            elif json_name not in node:
                run.fault("structure", at, primitives.NULL.diagnostics)

    return member


def _check_sibling(content: Any, value: Any, place: Place, run: Run) -> None:
    """The id and the extensions of a primitive; beside a value an id alone is enough."""
    if value is not None and type(content) is dict and content:
        _check_names(compile_structure("Element"), content, place, run)
    else:
        check_object("Element", content, place, run)


def _null(siblings: Any, index: int) -> Fault | None:
    """Null stands for a value only where its sibling says why."""
    return primitives.NULL if _at(siblings, index) is None else None


def _at(values: Any, index: int) -> Any:
    return values[index] if type(values) is list and index < len(values) else None


def _is_list(content: Any, name: str, place: Place, run: Run) -> bool:
    if type(content) is not list:
        run.fault("structure", (place, name, -1), "must be a JSON list")
        return False
    if not content:
        run.fault("structure", (place, name, -1), "must not be empty")
    return True


# --- references and bound concepts -----------------------------------------------------------------------------


def _check_reference(targets: frozenset[str], value: Any, place: Place, run: Run) -> None:
    check_object("Reference", value, place, run)
    if type(value) is not dict:
        return
    reference, said = value.get("reference"), value.get("type")
    kind = None
    if type(reference) is str and reference:
        kind = _check_target(targets, reference, (place, "reference", -1), run)
    if type(said) is str:
        _check_said(targets, kind, said.removeprefix(_URI_OF_TYPES), (place, "type", -1), run)


def _check_said(targets: frozenset[str], kind: str | None, said: str, place: Place, run: Run) -> None:
    if said not in definitions.resource_types():
        return
    if targets and said not in targets:
        run.fault("value", place, _must_point_to(targets))
    elif kind and kind != said:
        run.fault("value", place, "must be the type that the reference points to")


def _check_target(targets: frozenset[str], reference: str, place: Place, run: Run) -> str | None:
    """The resource type that the reference points to, where it can be told."""
    if reference.startswith("#"):
        kind = run.contained.get(reference[1:])
        if kind is None and reference != "#":
            run.fault("invariant", place, "there is no contained resource with this id (ref-1)")
    elif reference in run.entries:
        kind = run.entries[reference]
    else:
        kind = _kind_of_address(reference, place, run)
    if targets and kind is not None and kind not in targets and kind in definitions.resource_types():
        run.fault("value", place, _must_point_to(targets))
    return kind


def _kind_of_address(reference: str, place: Place, run: Run) -> str | None:
    found = _RELATIVE.fullmatch(reference) or _ABSOLUTE.fullmatch(reference)
    kind = found["kind"] if found else None
    if kind in definitions.resource_types():
        return kind
    if not _SCHEME.fullmatch(reference):
        run.fault("value", place, "must be Type/id, an absolute address, urn:uuid:, urn:oid: or #id")
    elif run.is_closed and reference.startswith("urn:uuid:"):
        run.fault("value", place, "must be the fullUrl of an entry of this transaction")
    return None


def _must_point_to(targets: frozenset[str]) -> str:
    return f"must point to {' or '.join(sorted(targets))}"


def _check_concept(value_set: str, value: Any, place: Place, run: Run) -> None:
    check_object("CodeableConcept", value, place, run)
    codes = definitions.codes(value_set)
    codings = invariants.objects(value, "coding") if type(value) is dict else []
    if not any(_code_of(coding, codes) for coding in codings):
        run.fault("code-invalid", place, f"must have a code of the value set {value_set}")


def _code_of(coding: Json, codes: dict[str, frozenset[str]]) -> bool:
    system, code = invariants.text(coding, "system"), invariants.text(coding, "code")
    return code is not None and code in codes.get(system or "", ())
