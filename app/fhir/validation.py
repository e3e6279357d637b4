"""The validator at the door, compiled from the R4 StructureDefinitions (https://hl7.org/fhir/R4/validation.html).

Each structure becomes a table from JSON names to small functions, made when the first resource needs it. All faults are
collected; no sentence repeats a value, since values may be about patients.

Not judged: profiles, bindings weaker than required, what a reference's target says about itself, and the invariants of
`invariants.NOT_CHECKED` and of types that are not served, such as Questionnaire (their structure is).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache, partial
from typing import Any

from app.errors import BadRequest, Issue
from app.fhir import definitions, invariants, narrative, primitives
from app.fhir.definitions import Element, Kind
from app.fhir.primitives import Fault, Test

Json = dict[str, Any]

MAX_DEPTH = 100
_MAX_EXPONENT = 1000
_NAME = re.compile(r"_?[A-Za-z][A-Za-z0-9]{0,63}")
_RELATIVE = re.compile(r"(?P<kind>[A-Za-z]+)(?:/[A-Za-z0-9\-.]{1,64}(?:/_history/[A-Za-z0-9\-.]{1,64})?|\?\S+)")
_ABSOLUTE = re.compile(r"https?://\S+/(?P<kind>[A-Za-z]+)/[A-Za-z0-9\-.]{1,64}(?:/_history/[A-Za-z0-9\-.]{1,64})?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:\S+")
_TESTS: Mapping[str, Test] = primitives.TESTS | {"xhtml": narrative.xhtml}


@dataclass(slots=True)
class Run:
    """One walk: the issues so far, and the types of the resources contained in the resource at hand."""

    issues: list[Issue]
    contained: dict[str, str] = field(default_factory=dict)

    def fault(self, code: str, expression: str, diagnostics: str) -> None:
        """Keep one more issue."""
        self.issues.append(Issue(code, diagnostics, expression))


Check = Callable[[Any, str, Run], None]
"""Looks at one value; the text is its FHIRPath."""
Member = Callable[[Any, Json, str, Run], None]
"""Looks at the value of one JSON name of a node; the text is the node's FHIRPath."""


@dataclass(frozen=True, slots=True)
class Structure:
    """A compiled type or backbone."""

    is_resource: bool
    scalars: dict[str, tuple[str, Test]]
    members: dict[str, Member]
    required: tuple[tuple[str, frozenset[str]], ...]
    choices: tuple[tuple[str, Mapping[str, str]], ...]
    rules: tuple[tuple[str, str, invariants.Holds], ...]


def parse(body: bytes) -> Json:
    """Strict JSON for checks; numbers with fraction or exponent become Decimal, so that none loses a digit."""
    try:
        resource = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _malformed(f"the body is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _malformed(f"the body is not JSON: {error.msg} ({where})") from error
    except ValueError as error:
        raise _malformed(f"the body is not the JSON of a resource: {error}") from error
    except RecursionError as error:
        raise _malformed("the body is nested too deeply") from error
    if type(resource) is not dict:
        raise _malformed("the body must be one JSON object")
    if _is_too_deep(resource):
        raise _malformed(f"the body is nested more than {MAX_DEPTH} levels deep")
    return resource


def validate(resource: Json, resource_type: str | None = None) -> list[Issue]:
    """All faults of a resource; none means valid. With a resource type, it must be of that type."""
    issues: list[Issue] = []
    try:
        check_resource(resource, "", Run(issues))
    except RecursionError:
        issues.append(Issue("structure", "the resource is nested too deeply", resource_type))
    if resource_type and type(resource) is dict and resource.get("resourceType", resource_type) != resource_type:
        issues.append(Issue("value", f"resourceType must be {resource_type} here", "resourceType"))
    return issues


# --- parsing ---------------------------------------------------------------------------------------------------


def _malformed(diagnostics: str) -> BadRequest:
    return BadRequest(issues=(Issue("structure", diagnostics),))


def _object(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _decimal(literal: str) -> Decimal:
    try:
        value = Decimal(literal)
    except ArithmeticError as error:
        raise ValueError("a number is out of range") from error
    if abs(value.adjusted()) > _MAX_EXPONENT:
        raise ValueError("a number is out of range")
    return value


def _whole(literal: str) -> int:
    if len(literal) > _MAX_EXPONENT:
        raise ValueError("a number is out of range")
    return int(literal)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_decimal, parse_int=_whole, parse_constant=_constant)


def _is_too_deep(resource: Json) -> bool:
    level: list[Any] = [resource]
    for _ in range(MAX_DEPTH):
        level = [
            value
            for node in level
            for value in (node.values() if type(node) is dict else node)
            if type(value) is dict or type(value) is list
        ]
        if not level:
            return False
    return True


# --- the walk --------------------------------------------------------------------------------------------------


def check_resource(value: Any, path: str, run: Run, *, is_contained: bool = False) -> None:
    """A resource of any type, at the top, in an entry or contained."""
    if type(value) is not dict:
        return run.fault("structure", path, "must be a resource, a JSON object")
    kind = value.get("resourceType")
    if kind is None:
        return run.fault("required", path or "resourceType", "resourceType is missing")
    if type(kind) is not str or kind not in definitions.resource_types():
        return run.fault("value", path or "resourceType", "resourceType is no resource type of FHIR R4")
    contained = run.contained if is_contained else _contained_types(value)
    return check_object(kind, value, path or kind, Run(run.issues, contained))


def check_object(kind: str, value: Any, path: str, run: Run) -> None:
    """A node of a known structure: its names, what is missing, choices and rules."""
    if type(value) is not dict:
        return run.fault("structure", path, _not_an_object(value))
    structure = compile_structure(kind)
    if len(value) < 2 and not structure.is_resource and value.keys() <= {"id"}:
        return run.fault("structure", path, "must have content (ele-1)")
    _check_names(structure, value, path, run)
    _check_whole(structure, value, path, run)
    return None


def _check_names(structure: Structure, node: Json, path: str, run: Run) -> None:
    scalars, members = structure.scalars, structure.members
    for name, content in node.items():
        if name in scalars:
            shown, test = scalars[name]
            fault = test(content)
            if fault:
                _report(fault, content, f"{path}.{shown}", run)
        elif name in members:
            members[name](content, node, path, run)
        else:
            _unknown(name, structure, path, run)


def _report(fault: Fault, content: Any, path: str, run: Run) -> None:
    if content is None:
        fault = primitives.NULL
    run.fault(fault.code, path, fault.diagnostics)


def _check_whole(structure: Structure, node: Json, path: str, run: Run) -> None:
    for name, keys in structure.required:
        if name not in node and keys.isdisjoint(node):
            run.fault("required", f"{path}.{name}", "is required")
    for name, keys in structure.choices:
        if len({keys[key] for key in keys.keys() & node.keys()}) > 1:
            run.fault("structure", f"{path}.{name}", "must have one type only")
    for at, sentence, holds in structure.rules:
        if not holds(node):
            run.fault("invariant", f"{path}.{at}" if at else path, sentence)


def _not_an_object(value: Any) -> str:
    match value:
        case None:
            return "must not be null"
        case list():
            return "must be one JSON object, not a list"
        case _:
            return "must be a JSON object"


def _unknown(name: str, structure: Structure, path: str, run: Run) -> None:
    if not _NAME.fullmatch(name):
        return run.fault("structure", path, "has an element whose name FHIR does not know")
    bare = name.lstrip("_")
    for choice, _ in structure.choices:
        if bare.startswith(choice) and bare[len(choice) :][:1].isupper():
            return run.fault("structure", f"{path}.{choice}", f"cannot be of the type that {name} says")
    return run.fault("structure", f"{path}.{bare}", "is not an element of this type")


def _contained_types(resource: Json) -> dict[str, str]:
    found = invariants.objects(resource, "contained")
    return {item["id"]: str(item.get("resourceType")) for item in found if type(item.get("id")) is str}


# --- compiling -------------------------------------------------------------------------------------------------


@cache
def compile_structure(kind: str) -> Structure:
    """The functions for one type or backbone; nested ones are compiled when they are met."""
    elements = tuple(definitions.elements(kind))
    fields = [(element, one) for element in elements for one in element.kinds]
    scalars = dict(_scalar(element, one) for element, one in fields if one.name in _TESTS and not element.many)
    members: dict[str, Member] = {}
    for element, one in fields:
        members |= _members(element, one)
    is_resource = kind in definitions.resource_types()
    if is_resource:
        scalars["id"] = ("id", _TESTS["id"])
        members["resourceType"] = _anything
    return Structure(
        is_resource=is_resource,
        scalars=scalars,
        members=members,
        required=tuple((element.name, frozenset(_bases(element))) for element in elements if element.required),
        choices=tuple((element.name, _bases(element)) for element in elements if element.choice),
        rules=tuple(_rules(kind)),
    )


def _anything(_content: Any, _node: Json, _path: str, _run: Run) -> None:
    """What has been looked at already."""


def _rules(kind: str) -> list[tuple[str, str, invariants.Holds]]:
    stated = list(definitions.rules(kind))
    found = [(invariants.RULES.get((name, key)), f"{sentence} ({key})") for name, key, sentence in stated]
    return [(rule[0], sentence, rule[1]) for rule, sentence in found if rule]


def _json_name(element: Element, kind: Kind) -> str:
    return element.name + kind.name[0].upper() + kind.name[1:] if element.choice else element.name


def _bases(element: Element) -> dict[str, str]:
    """The JSON names that bring the element, and for each the one without underscore."""
    names = {_json_name(element, kind): kind.name in _TESTS for kind in element.kinds}
    return {name: name for name in names} | {f"_{name}": name for name, primitive in names.items() if primitive}


def _scalar(element: Element, kind: Kind) -> tuple[str, tuple[str, Test]]:
    return _json_name(element, kind), (element.name, _bound(element, _TESTS[kind.name]))


def _members(element: Element, kind: Kind) -> dict[str, Member]:
    """All that is not one value of a primitive: objects, lists, and the siblings of primitives."""
    name = _json_name(element, kind)
    if kind.name not in _TESTS:
        check = _check(element, kind)
        return {name: _listed(element.name, check) if element.many else _single(element.name, check)}
    if element.many:
        values = _scalars(name, element.name, _bound(element, _TESTS[kind.name]))
        return {name: values, f"_{name}": _siblings(name, element.name)}
    return {f"_{name}": _sibling(name, element.name)}


def _bound(element: Element, test: Test) -> Test:
    """The test of a primitive, narrowed by its required value set."""
    if element.value_set is None:
        return test
    if element.value_set in primitives.SYNTAX:
        return primitives.SYNTAX[element.value_set]
    codes = definitions.codes(element.value_set)
    return primitives.coded(test, frozenset[str]().union(*codes.values()), element.value_set) if codes else test


def _check(element: Element, kind: Kind) -> Check:
    """What looks at one value of a complex type."""
    if kind.name == "Resource":
        return partial(check_resource, is_contained=element.name == "contained")
    if kind.name == "Reference":
        return partial(_check_reference, kind.narrowed)
    if element.value_set is not None and definitions.codes(element.value_set):
        return partial(_check_concept, element.value_set)
    narrowed = next(iter(kind.narrowed), kind.name)
    return partial(check_object, narrowed)


# --- members ---------------------------------------------------------------------------------------------------


def _single(name: str, check: Check) -> Member:
    def member(content: Any, _node: Json, path: str, run: Run) -> None:
        check(content, f"{path}.{name}", run)

    return member


def _listed(name: str, check: Check) -> Member:
    def member(content: Any, _node: Json, path: str, run: Run) -> None:
        if _is_list(content, f"{path}.{name}", run):
            for index, item in enumerate(content):
                check(item, f"{path}.{name}[{index}]", run)

    return member


def _scalars(json_name: str, name: str, test: Test) -> Member:
    def member(content: Any, node: Json, path: str, run: Run) -> None:
        if not _is_list(content, f"{path}.{name}", run):
            return
        for index, item in enumerate(content):
            fault = _null(node.get(f"_{json_name}"), index) if item is None else test(item)
            if fault:
                run.fault(fault.code, f"{path}.{name}[{index}]", fault.diagnostics)

    return member


def _sibling(json_name: str, name: str) -> Member:
    def member(content: Any, node: Json, path: str, run: Run) -> None:
        _check_sibling(content, node.get(json_name), f"{path}.{name}", run)

    return member


def _siblings(json_name: str, name: str) -> Member:
    """The ids and extensions of a list of primitives, aligned with it by nulls."""

    def member(content: Any, node: Json, path: str, run: Run) -> None:
        if not _is_list(content, f"{path}.{name}", run):
            return
        values = node.get(json_name)
        if type(values) is list and len(values) != len(content):
            run.fault("structure", f"{path}.{name}", f"{json_name} and _{json_name} must be of the same length")
        for index, item in enumerate(content):
            at = f"{path}.{name}[{index}]"
            if item is not None:
                _check_sibling(item, _at(values, index), at, run)
            elif json_name not in node:
                run.fault("structure", at, primitives.NULL.diagnostics)

    return member


def _check_sibling(content: Any, value: Any, path: str, run: Run) -> None:
    """The id and the extensions of a primitive; beside a value an id alone is enough."""
    if value is not None and type(content) is dict and content:
        _check_names(compile_structure("Element"), content, path, run)
    else:
        check_object("Element", content, path, run)


def _null(siblings: Any, index: int) -> Fault | None:
    """Null stands for a value only where its sibling says why."""
    return primitives.NULL if _at(siblings, index) is None else None


def _at(values: Any, index: int) -> Any:
    return values[index] if type(values) is list and index < len(values) else None


def _is_list(content: Any, path: str, run: Run) -> bool:
    if type(content) is not list:
        run.fault("structure", path, "must be a JSON list")
        return False
    if not content:
        run.fault("structure", path, "must not be empty")
    return True


# --- references and bound concepts -----------------------------------------------------------------------------


def _check_reference(targets: frozenset[str], value: Any, path: str, run: Run) -> None:
    check_object("Reference", value, path, run)
    if type(value) is not dict:
        return
    reference, said = value.get("reference"), value.get("type")
    if type(reference) is str and reference:
        _check_target(targets, reference, f"{path}.reference", run)
    if targets and type(said) is str and said in definitions.resource_types() - targets:
        run.fault("value", f"{path}.type", _must_point_to(targets))


def _check_target(targets: frozenset[str], reference: str, path: str, run: Run) -> None:
    if reference.startswith("#"):
        kind = run.contained.get(reference[1:])
        if kind is None and reference != "#":
            return run.fault("invariant", path, "there is no contained resource with this id (ref-1)")
    else:
        found = _RELATIVE.fullmatch(reference) or _ABSOLUTE.fullmatch(reference)
        kind = found["kind"] if found else None
        if not _is_address(reference, kind):
            return run.fault("value", path, "must be Type/id, an absolute address, urn:uuid:, urn:oid: or #id")
    if targets and kind in definitions.resource_types() and kind not in targets:
        run.fault("value", path, _must_point_to(targets))
    return None


def _is_address(reference: str, kind: str | None) -> bool:
    return bool(_SCHEME.fullmatch(reference)) or kind in definitions.resource_types()


def _must_point_to(targets: frozenset[str]) -> str:
    return f"must point to {' or '.join(sorted(targets))}"


def _check_concept(value_set: str, value: Any, path: str, run: Run) -> None:
    check_object("CodeableConcept", value, path, run)
    codes = definitions.codes(value_set)
    codings = invariants.objects(value, "coding") if type(value) is dict else []
    if not any(_code_of(coding, codes) for coding in codings):
        run.fault("code-invalid", path, f"must have a code of the value set {value_set}")


def _code_of(coding: Json, codes: dict[str, frozenset[str]]) -> bool:
    system, code = invariants.text(coding, "system"), invariants.text(coding, "code")
    return code is not None and code in codes.get(system or "", ())
