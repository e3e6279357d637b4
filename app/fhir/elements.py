"""The operations of FHIRPath Patch on elements, typed by the StructureDefinitions (https://hl7.org/fhir/R4/fhirpatch.html).

A list of primitives and its siblings are one list here, an element left empty is taken out with what holds it, and the
name of a choice follows the type of its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import BadRequest, Issue
from app.fhir import definitions, locations
from app.fhir.definitions import Element
from app.fhir.locations import Path, Spot, refused

Json = dict[str, Any]

_NUMBERS = frozenset(("integer", "unsignedInt", "positiveInt", "decimal"))
_QUANTITIES = frozenset(("Quantity", "SimpleQuantity", "Age", "Count", "Distance", "Duration", "MoneyQuantity"))


@dataclass(frozen=True, slots=True)
class Given:
    """A value from the Parameters: its type ("" when it is in parts), the content, a primitive's sibling."""

    kind: str
    value: Any
    sibling: Any = None


def apply(resource: Json, row: Json) -> None:
    """Do one parameter of a valid Parameters resource on the resource in place."""
    if row.get("name") != "operation":
        raise _malformed("each parameter of a FHIRPath Patch is named operation")
    parts = _parts(row)
    kind = _plain(parts, "type", str)
    act = _OPERATIONS.get(kind)
    if act is None:
        raise _malformed("type must be add, insert, delete, replace or move")
    path = locations.parse(_plain(parts, "path", str), str(resource.get("resourceType")))
    act(locations.root(resource), path, parts)


# --- reading the parameters ------------------------------------------------------------------------------------


def _malformed(diagnostics: str) -> BadRequest:
    return BadRequest(issues=(Issue("invalid", diagnostics),))


def _parts(row: Json) -> dict[str, Json]:
    rows: list[Json] = row.get("part", [])
    found = {part["name"]: part for part in rows}
    if len(found) != len(rows):
        raise _malformed("an operation has each part once")
    return found


def _plain(parts: Mapping[str, Json], name: str, kind: type) -> Any:
    """A part that must be there with one primitive value."""
    row = parts.get(name)
    values = [value for key, value in row.items() if key.startswith("value")] if row else []
    if len(values) != 1 or type(values[0]) is not kind:
        raise _malformed(f"the operation needs the part {name}, one {'text' if kind is str else 'whole number'}")
    return values[0]


def _given(part: Json) -> Given:
    """The value of a part: value[x] with its type, a resource, or parts."""
    if "part" in part:
        return Given("", part["part"])
    if "resource" in part:
        return Given("Resource", part["resource"])
    name = next((name.lstrip("_") for name in part if name.lstrip("_").startswith("value")), "")
    kind = name.removeprefix("value")
    known = kind if kind in definitions.read("structures.json") else kind[:1].lower() + kind[1:]
    return Given(known, part.get(name), part.get(f"_{name}"))


def _fit(element: Element, given: Given) -> tuple[str, str]:
    """JSON name and structure under which the value stands in the element."""
    known = list(locations.kinds(element))
    for name, kind in known:
        if given.kind == kind:
            return name, kind
    if not element.choice:
        # Backbone elements and extensions are given as parts.
        name, kind = known[0]
        in_parts = not given.kind and not locations.is_primitive(kind)
        if in_parts or _family(kind) == _family(given.kind):
            return name, kind
    raise refused(f"the value is not of a type that {element.name} can have")


def _family(kind: str) -> str:
    """Types that stand for each other where the element has one type only; the validator judges what they say."""
    if kind in _NUMBERS:
        return "number"
    if kind in _QUANTITIES:
        return "Quantity"
    return "text" if locations.is_primitive(kind) and kind != "boolean" else kind


def _content(kind: str, given: Given) -> Any:
    """The content to store: parts become an object of the backbone type."""
    if given.kind:
        return given.value
    node: Json = {}
    for part in given.value:
        _put(node, kind, part["name"], _given(part))
    return node


def _put(node: Json, structure: str, name: str, given: Given) -> None:
    """Append to a list, or set what is not there yet."""
    element = locations.member(structure, name.removesuffix("[x]"))
    json_name, kind = _fit(element, given)
    content = _content(kind, given)
    if element.many:
        _insert(node, json_name, _length(node, json_name), (content, given.sibling))
        return
    if any(f"{prefix}{other}" in node for other, _ in locations.kinds(element) for prefix in ("", "_")):
        raise refused(f"{structure}.{element.name} is there already and is no list: replace it")
    _set(node, json_name, None, (content, given.sibling))


# --- operations ------------------------------------------------------------------------------------------------


def _one(root: Spot, path: Path) -> Spot:
    found = path.find([root])
    if len(found) != 1:
        raise refused(f"the path must name one element, it names {len(found)}")
    return found[0]


def _add(root: Spot, path: Path, parts: Mapping[str, Json]) -> None:
    name, spot = _plain(parts, "name", str), _one(root, path)
    given = _given(_needed(parts))
    if not spot.is_primitive:
        _put(spot.value, spot.kind, name, given)
        return
    sibling = dict(spot.sibling or {})
    _put(sibling, "Element", name, given)
    _set(spot.node, spot.name, spot.index, (spot.value, sibling))


def _insert_at(root: Spot, path: Path, parts: Mapping[str, Json]) -> None:
    place, given = _plain(parts, "index", int), _given(_needed(parts))
    node, element = _list(root, path)
    json_name, kind = _fit(element, given)
    if not 0 <= place <= _length(node, json_name):
        raise refused(f"index must be from 0 to {_length(node, json_name)}")
    _insert(node, json_name, place, (_content(kind, given), given.sibling))


def _delete(root: Spot, path: Path, _parts: Mapping[str, Json]) -> None:
    found = path.find([root])
    if found:
        _take_out(_below(_one(root, path)))


def _replace(root: Spot, path: Path, parts: Mapping[str, Json]) -> None:
    spot, given = _below(_one(root, path)), _given(_needed(parts))
    if spot.element is None:
        raise refused("the path must name an element")
    json_name, kind = _fit(spot.element, given)
    content = _content(kind, given)
    if json_name != spot.name:
        spot.node.pop(spot.name, None)
        spot.node.pop(f"_{spot.name}", None)
    _set(spot.node, json_name, spot.index, (content, given.sibling))


def _move(root: Spot, path: Path, parts: Mapping[str, Json]) -> None:
    source, destination = _plain(parts, "source", int), _plain(parts, "destination", int)
    node, element = _list(root, path)
    name, _ = next(locations.kinds(element))
    last = _length(node, name) - 1
    if not (0 <= source <= last and 0 <= destination <= last):
        raise refused(f"source and destination must be from 0 to {last}" if last >= 0 else "the list is empty")
    for key in (name, f"_{name}"):
        if type(items := node.get(key)) is list:
            items.insert(destination, items.pop(source))


_OPERATIONS: Mapping[str, Callable[[Spot, Path, Mapping[str, Json]], None]] = {
    "add": _add,
    "insert": _insert_at,
    "delete": _delete,
    "replace": _replace,
    "move": _move,
}


def _needed(parts: Mapping[str, Json]) -> Json:
    if "value" not in parts:
        raise _malformed("the operation needs the part value")
    return parts["value"]


def _below(spot: Spot) -> Spot:
    if spot.up is None:
        raise refused("the resource itself can be neither deleted nor replaced")
    return spot


def _list(root: Spot, path: Path) -> tuple[Json, Element]:
    """The object that has the list, and the list's element."""
    parent, name = path.split()
    spot = _one(root, parent)
    element = locations.member(spot.kind, name)
    if not element.many:
        raise refused("the path must name a list")
    node = spot.sibling if spot.is_primitive else spot.value
    if type(node) is not dict:
        raise refused("the path must name a list of an element that is there")
    return node, element


# --- lists and siblings ----------------------------------------------------------------------------------------


def _length(node: Json, name: str) -> int:
    return max(len(node.get(key, ())) for key in (name, f"_{name}"))


def _insert(node: Json, name: str, place: int, content: tuple[Any, Any]) -> None:
    """Insert a value and its sibling; the list of siblings is there only when one has content."""
    count = _length(node, name)
    for key, value in zip((name, f"_{name}"), content, strict=True):
        if key in node:
            node[key].insert(place, value)
        elif value is not None:
            node[key] = [*[None] * place, value, *[None] * (count - place)]


def _set(node: Json, name: str, index: int | None, content: tuple[Any, Any]) -> None:
    if index is not None:
        count = _length(node, name)
        for key, value in zip((name, f"_{name}"), content, strict=True):
            if key in node:
                node[key][index] = value
            elif value is not None:
                node[key] = [value if place == index else None for place in range(count)]
        _tidy(node, name)
        return
    for key, value in zip((name, f"_{name}"), content, strict=True):
        if value is None:
            node.pop(key, None)
        else:
            node[key] = value


def _take_out(spot: Spot) -> None:
    """Remove an element, and whatever holds nothing else."""
    for key in (spot.name, f"_{spot.name}"):
        if spot.index is None:
            spot.node.pop(key, None)
        elif type(items := spot.node.get(key)) is list:
            del items[spot.index : spot.index + 1]
    _tidy(spot.node, spot.name)
    if spot.node or spot.up is None or spot.up.up is None:
        return
    if spot.up.is_primitive and spot.up.value is not None:
        _set(spot.up.node, spot.up.name, spot.up.index, (spot.up.value, None))
    else:
        _take_out(spot.up)


def _tidy(node: Json, name: str) -> None:
    """No list of nothing."""
    for key in (name, f"_{name}"):
        if type(items := node.get(key)) is list and all(item is None for item in items):
            del node[key]
