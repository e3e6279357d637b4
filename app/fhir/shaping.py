"""Parts of resources, cut out of the stored bytes at the elements' edges (https://hl7.org/fhir/R4/search.html#summary)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from app.errors import Issue, Unprocessable
from app.fhir import definitions
from app.fhir.conditions import refusal
from app.fhir.registry import Offer, offers

SUMMARIES = ("true", "text", "data", "false")
SUBSETTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}
"""Marks a resource of which something was left out."""
_ALWAYS = frozenset({"resourceType", "id", "meta", "implicitRules"})
MAX_ELEMENTS = 100

Node = dict[str, msgspec.Raw]
Plan = Mapping[str, "Plan | None"]
"""Which elements stay, by name; below one that stays only in part, the plan of that part."""

_NODE = msgspec.json.Decoder(Node)
_NODES = msgspec.json.Decoder(list[Node])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODER = msgspec.json.Encoder()
_TAG = msgspec.Raw(_ENCODER.encode(SUBSETTED))
_LOCAL_REFERENCE = (b'"#', b'"\\u0023')


@dataclass(frozen=True, slots=True)
class Shape:
    """How much of each resource is shown: a summary, or the elements that are named."""

    summary: str = ""
    elements: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return not self.elements and self.summary in {"", "false", "count"}


WHOLE = Shape()

# --- what is asked for ----------------------------------------------------------------------------------------


def read_summary(value: str, *, can_count: bool) -> str:
    """The value of `_summary`."""
    known = [*SUMMARIES, *(["count"] if can_count else [])]
    if value and value not in known:
        raise refusal(f"_summary must be one of {', '.join(known)}", "_summary")
    return value


def read_elements(value: str, resource_types: Collection[str]) -> tuple[str, ...]:
    """The names in `_elements`: `status`, a part as `series.uid`, or of another type as `Endpoint.address`."""
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    if len(names) > MAX_ELEMENTS:
        raise refusal(f"_elements takes at most {MAX_ELEMENTS} names", "_elements")
    for name in names:
        kind, _, rest = name.partition(".")
        is_typed = kind in offers()
        if not any(_is_known(one, rest if is_typed else name) for one in ([kind] if is_typed else resource_types)):
            raise refusal(f"_elements must name elements of {', '.join(resource_types)}", "_elements")
    return names


def check(shape: Shape) -> None:
    """BadRequest for two shapes at once."""
    if shape.elements and shape.summary not in {"", "false"}:
        raise refusal("_elements goes with no other _summary than false", "_elements")


def _is_known(structure: str, name: str) -> bool:
    first, _, rest = name.partition(".")
    element = _element(structure, first)
    if element is None or not rest:
        return element is not None
    known = definitions.read("structures.json")
    return any(kind.name in known and _is_known(kind.name, rest) for kind in element.kinds)


def _element(structure: str, name: str) -> definitions.Element | None:
    """The element of that name, or whose choice has that name."""
    found = definitions.element(structure, name)
    if found is not None:
        return found
    choices = (element for element in definitions.elements(structure) if element.choice)
    return next((element for element in choices if name in _names(element)), None)


def _names(element: definitions.Element) -> Iterable[str]:
    if not element.choice:
        return [element.name]
    return [element.name + kind.name[0].upper() + kind.name[1:] for kind in element.kinds]


# --- cutting --------------------------------------------------------------------------------------------------


def shaped(body: bytes, offer: Offer, criteria: Sequence[tuple[str, str]]) -> bytes:
    """A read resource as `_summary` and `_elements` among the parameters want it."""
    given = [(name, value) for name, value in criteria if name in {"_summary", "_elements"}]
    if not given:
        return body
    if len(dict(given)) < len(given):
        raise refusal("_summary and _elements must be given once", given[0][0])
    asked = dict(given)
    elements = read_elements(asked.get("_elements", ""), [offer.resource_type])
    shape = Shape(read_summary(asked.get("_summary", ""), can_count=False), elements)
    check(shape)
    return cut(body, offer, shape)


def cut(body: bytes, offer: Offer, shape: Shape, *, is_match: bool = True) -> bytes:
    """The resource in that shape; elements named without a type are those of the matches."""
    if shape.is_whole:
        return body
    if shape.summary in {"true", "text", "data"}:
        return summarized(body, offer, shape.summary)
    names = _own_elements(shape.elements, offer.resource_type, is_match=is_match)
    return elements(body, offer, names) if names else body


def summarized(body: bytes, offer: Offer, mode: str) -> bytes:
    """The resource as `_summary` true, text or data shows it."""
    if mode == "data":
        node = _NODE.decode(body)
        node.pop("text", None)
        return _marked(node)
    return _reduced(body, _summary_plan(offer, mode))


def elements(body: bytes, offer: Offer, names: Collection[str]) -> bytes:
    """The resource with these elements, and those it cannot do without."""
    return _reduced(body, _elements_plan(offer, frozenset(names)))


def check_whole(resource: Mapping[str, Any]) -> None:
    """Unprocessable for a resource that says of itself that parts are missing: stored, they would be lost."""
    for tag in resource.get("meta", {}).get("tag", ()):
        if tag.get("code") == SUBSETTED["code"] and tag.get("system") == SUBSETTED["system"]:
            sentence = "this is a part of a resource (SUBSETTED); read the whole and send that"
            raise Unprocessable(issues=(Issue("business-rule", sentence, f"{resource['resourceType']}.meta.tag"),))


def _own_elements(names: tuple[str, ...], resource_type: str, *, is_match: bool) -> list[str]:
    typed = [name.removeprefix(f"{resource_type}.") for name in names if name.startswith(f"{resource_type}.")]
    plain = [name for name in names if name.partition(".")[0] not in offers()]
    return [*typed, *(plain if is_match else [])]


def _reduced(body: bytes, plan: Plan) -> bytes:
    node = _NODE.decode(body)
    kept = _kept(node, plan)
    contained = node.get("contained")
    if contained is not None and any(mark in bytes(raw) for raw in kept.values() for mark in _LOCAL_REFERENCE):
        # A reference that leads into the resource itself must find its goal there.
        kept["contained"] = contained
    return _marked(kept)


def _kept(node: Node, plan: Plan) -> Node:
    kept: Node = {}
    for name, raw in node.items():
        plain = name.removeprefix("_")
        if plain in plan:
            below = plan[plain]
            kept[name] = raw if below is None else _part(raw, below)
    return kept


def _part(raw: msgspec.Raw, plan: Plan) -> msgspec.Raw:
    if memoryview(raw)[0] == ord("["):
        return msgspec.Raw(_ENCODER.encode([_kept(node, plan) for node in _NODES.decode(raw)]))
    return msgspec.Raw(_ENCODER.encode(_kept(_NODE.decode(raw), plan)))


def _marked(node: Node) -> bytes:
    meta = _NODE.decode(node["meta"]) if "meta" in node else Node()
    tags = _ITEMS.decode(meta["tag"]) if "tag" in meta else []
    meta["tag"] = msgspec.Raw(_ENCODER.encode([*tags, _TAG]))
    return _ENCODER.encode({**node, "meta": msgspec.Raw(_ENCODER.encode(meta))})


# --- plans ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _summary_plan(offer: Offer, mode: str) -> Plan:
    if mode == "text":
        top = {name for name in offer.mandatory if "." not in name}
        return dict.fromkeys({*_ALWAYS, *top, "text"})
    return _plan({*_ALWAYS, *offer.summary, *offer.mandatory})


@lru_cache(maxsize=256)
def _elements_plan(offer: Offer, names: frozenset[str]) -> Plan:
    wanted: set[str] = {*_ALWAYS, *(name for name in offer.mandatory if "." not in name)}
    for name in names:
        path = name.split(".")
        # The elements above a part that is named stay for its sake, with what each of them cannot do without.
        above = {".".join(path[:depth]) for depth in range(1, len(path))}
        wanted |= above | _spelled(offer.resource_type, path)
        wanted |= {one for one in offer.mandatory if one.rpartition(".")[0] in above}
    plan = _plan(wanted)
    whole = {one for name in names if "." not in name for one in _spelled(offer.resource_type, [name])}
    return {name: None if name in whole else below for name, below in plan.items()}


def _spelled(structure: str, path: list[str]) -> set[str]:
    """The path as JSON names it: a choice has a name for each of its types."""
    element = _element(structure, path[0])
    if element is None:
        return set()
    names = _names(element) if element.name == path[0] else [path[0]]
    if len(path) == 1:
        return set(names)
    known = definitions.read("structures.json")
    below = {name for kind in element.kinds if kind.name in known for name in _spelled(kind.name, path[1:])}
    return {f"{name}.{rest}" for name in names for rest in below}


def _plan(paths: Collection[str]) -> Plan:
    """A tree of paths; one whose parents are not there is no path to anything that is shown."""
    root: dict[str, Any] = {}
    for path in sorted(paths):
        *above, name = path.split(".")
        level: dict[str, Any] | None = root
        for step in above:
            level = level.get(step) if level is not None else None
        if level is not None:
            level[name] = {}
    return _closed(root)


def _closed(level: dict[str, Any]) -> Plan:
    return {name: _closed(below) or None for name, below in level.items()}
