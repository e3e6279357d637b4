"""What a search can find a resource by: values where the registry says they stand (https://hl7.org/fhir/R4/search.html#ptypes).

All parameters of a type are compiled into one walk, so that an element which several of them look into is visited once:
a study of a thousand instances is indexed on every change.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from functools import cache, lru_cache
from sys import float_info
from typing import Any

from app.errors import ConfigurationError
from app.fhir import dates, paths
from app.fhir.paths import Condition, Leaf, Step
from app.fhir.registry import Offer, Parameter
from app.fhir.site import here
from app.store.query import UNDATED, Index

Json = dict[str, Any]
Pair = tuple[str, str]

CURRENCIES = "urn:iso:std:iso:4217"
_LOCAL = re.compile(r"([A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[A-Za-z0-9\-.]+)?")
_HISTORY = re.compile(r"/_history/[A-Za-z0-9\-.]+$")
_FOREIGN = re.compile(r".*/([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]{1,64}(?:/_history/[A-Za-z0-9\-.]+)?")
_NAME_PARTS = ("text", "family", "given", "prefix", "suffix")
_ADDRESS_PARTS = ("text", "line", "city", "district", "state", "postalCode", "country")


class _Rows:
    """What was found so far; `own` is our address before a reference, `zone` reads times without one."""

    __slots__ = ("dates", "numbers", "own", "references", "strings", "tokens", "zone")

    def __init__(self, base: str, zone: tzinfo) -> None:
        self.own = f"{base}/" if base else ""
        self.zone = zone
        self.tokens: set[tuple[str, str, str]] = set()
        self.references: set[tuple[str, str, str]] = set()
        self.dates: set[tuple[str, int, int]] = set()
        self.strings: set[tuple[str, str, str]] = set()
        self.numbers: set[tuple[str, float, float, str, str]] = set()

    def blank(self) -> _Rows:
        """None found yet, at the same site."""
        return _Rows(self.own.removesuffix("/"), self.zone)


Reader = Callable[[Any, _Rows], None]
"""Puts what a value says into the rows."""
_Factory = Callable[[str, Leaf, Parameter], Reader]
"""Makes the reader of one leaf of one parameter, which is found by that name."""


def extract(resource: Json, offer: Offer, base: str | None = None, zone: tzinfo | None = None) -> Index:
    """The index of one valid resource; another address or zone than the site's may be given."""
    walk, asked = _program(offer)
    base = here().base if base is None else base
    rows = _Rows(base, zone or here().zone)
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
    rows = _Rows(here().base if base is None else base, here().zone)
    walk(resource, rows)
    found = {(kind, one) for _, kind, one in rows.references}
    found -= {pair for pair in found if pair[0] == "#" and _is_nobody(resource, pair[1])}
    if len(found) != 1:
        return None
    kind, identity = found.pop()
    return identity if kind == "Patient" else None


@lru_cache(maxsize=1024)
def fold(text: str) -> str:
    """Without case, accents and doubled blanks: how strings are compared."""
    if text.isascii():
        return " ".join(text.lower().split())
    plain = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(char for char in plain if not unicodedata.combining(char)).casefold().split())


def target(reference: Any, base: str | None = None) -> Pair | None:
    """(type, id) of a Reference or its text; a foreign address stands whole beside an empty type."""
    text = reference.get("reference") if isinstance(reference, dict) else reference
    if not isinstance(text, str) or text.startswith("#"):
        return None
    base = here().base if base is None else base
    return _pair(text, f"{base}/" if base else "")


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
    inside = tuple((step.name, _repeated(step, _walk(child))) for step, child in node.inside.items())
    readers = tuple(node.readers)
    if not inside:
        return readers[0] if len(readers) == 1 else _in_turn(readers)

    def visit(value: Json, rows: _Rows) -> None:
        for reader in readers:
            reader(value, rows)
        for name, child in inside:
            found = value.get(name)
            if found is not None:
                child(found, rows)

    return visit


def _in_turn(readers: tuple[Reader, ...]) -> Reader:
    def visit(value: Any, rows: _Rows) -> None:
        for reader in readers:
            reader(value, rows)

    return visit


def _repeated(step: Step, reader: Reader) -> Reader:
    """The reader for one value or a list of them, of those that meet the step's conditions."""
    met = _condition(step.conditions)
    one = reader if met is None else _guarded(met, reader)

    def visit(found: Any, rows: _Rows) -> None:
        if type(found) is list:
            # A null stands where a primitive has nothing but extensions.
            for value in found[:1] if step.first else found:
                if value is not None:
                    one(value, rows)
        else:
            one(found, rows)

    return visit


def _guarded(met: Callable[[Json], bool], reader: Reader) -> Reader:
    def visit(value: Json, rows: _Rows) -> None:
        if met(value):
            reader(value, rows)

    return visit


def _condition(conditions: tuple[Condition, ...]) -> Callable[[Json], bool] | None:
    if not conditions:
        return None

    def met(value: Json) -> bool:
        return all(any(_meets(one, condition) for one in _at(value, condition.names)) for condition in conditions)

    return met


def _meets(value: Any, condition: Condition) -> bool:
    if not condition.inner:
        return value == condition.value
    return all(any(_meets(one, inner) for one in _at(value, inner.names)) for inner in condition.inner)


def _at(value: Any, names: tuple[str, ...]) -> list[Any]:
    found = [value]
    for name in names:
        inside = [one.get(name) for one in found]
        found = [item for one in inside for item in (one if isinstance(one, list) else [one]) if item is not None]
    return found


def _read(parameter: Parameter) -> Iterator[tuple[Leaf, Reader]]:
    """A reader for each leaf whose type the parameter can look into."""
    readable = False
    known = _FACTORIES[parameter.type]
    for leaf in parameter.leaves:
        factory = _presence if leaf.present else known.get(leaf.kind, known.get(""))
        if factory is not None:
            readable = True
            yield leaf, factory(parameter.name, leaf, parameter)
    if not readable:
        raise ConfigurationError(f"{parameter.name}: a {parameter.type} cannot be read from {set(parameter.kinds)}")


# --- tokens ---------------------------------------------------------------------------------------------------


def _plain(name: str, leaf: Leaf, _parameter: Parameter) -> Reader:
    system = leaf.system

    def read(value: str, rows: _Rows) -> None:
        rows.tokens.add((name, system, value))

    return read


def _boolean(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: bool, rows: _Rows) -> None:
        rows.tokens.add((name, "", "true" if value else "false"))

    return read


def _presence(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Any, rows: _Rows) -> None:
        if value is not False:
            rows.tokens.add((name, "", "true"))

    return read


def _coding(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    label = f"{name}:text"

    def read(value: Json, rows: _Rows) -> None:
        code = value.get("code")
        if code is not None:
            rows.tokens.add((name, value.get("system", ""), code))
        text = value.get("display")
        if text is not None:
            rows.strings.add((label, fold(text), text))

    return read


def _concept(name: str, leaf: Leaf, parameter: Parameter) -> Reader:
    label, coding = f"{name}:text", _coding(name, leaf, parameter)

    def read(value: Json, rows: _Rows) -> None:
        for one in value.get("coding", ()):
            coding(one, rows)
        text = value.get("text")
        if text is not None:
            rows.strings.add((label, fold(text), text))

    return read


def _identifier(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    label, typed = f"{name}:text", f"{name}:of-type"

    def read(value: Json, rows: _Rows) -> None:
        text = value.get("value")
        if text is not None:
            rows.tokens.add((name, value.get("system", ""), text))
        kind = value.get("type")
        if kind is None:
            return
        for coding in kind.get("coding", ()):
            if text is not None and "code" in coding:
                rows.tokens.add((typed, "", f"{coding.get('system', '')}|{coding['code']}|{text}"))
        if "text" in kind:
            rows.strings.add((label, fold(kind["text"]), kind["text"]))

    return read


def _contact(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Json, rows: _Rows) -> None:
        # ContactPoint.system is a kind of contact and no code system, so it is not the system of the token.
        if "value" in value:
            rows.tokens.add((name, "", value["value"]))

    return read


# --- references -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _pair(text: str, own: str) -> Pair:
    if own and text.startswith(own):
        local = _LOCAL.fullmatch(text, len(own))
        if local:
            return local[1], local[2]
    local = _LOCAL.fullmatch(text)
    return (local[1], local[2]) if local else ("", _HISTORY.sub("", text))


def _told(value: Json, pair: Pair | None) -> str:
    """The type of what a reference leads to, as far as the reference itself tells; empty when it does not."""
    if pair is not None and pair[0]:
        return pair[0]
    foreign = _FOREIGN.fullmatch(pair[1]) if pair else None
    return value.get("type") or (foreign[1] if foreign else "")


def _reference(name: str, leaf: Leaf, _parameter: Parameter) -> Reader:
    only, logical = leaf.only, f"{name}:identifier"

    def read(value: Json, rows: _Rows) -> None:
        text = value.get("reference")
        pair = _pair(text, rows.own) if text is not None and not text.startswith("#") else None
        if pair is not None and (not only or _told(value, pair) == only):
            rows.references.add((name, *pair))
        identifier = value.get("identifier")
        if identifier is not None and "value" in identifier and (not only or _told(value, pair) in {"", only}):
            rows.tokens.add((logical, identifier.get("system", ""), identifier["value"]))

    return read


def _canonical(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    """Found with its version and without."""

    def read(value: str, rows: _Rows) -> None:
        if not value.startswith("#"):
            rows.references.add((name, *_pair(value, rows.own)))
            url, bar, _version = value.partition("|")
            if bar:
                rows.references.add((name, *_pair(url, rows.own)))

    return read


def _inline(name: str, _leaf: Leaf, parameter: Parameter) -> Reader:
    """A resource that stands in place of a reference to it, as the first entry of a document does."""
    targets = parameter.targets

    def read(value: Json, rows: _Rows) -> None:
        if value["resourceType"] in targets and "id" in value:
            rows.references.add((name, value["resourceType"], value["id"]))

    return read


def _patient(value: Json, rows: _Rows) -> None:
    text = value.get("reference")
    if text is None:
        # Somebody known by a number only may be a patient, unless the reference says what it is.
        if "identifier" in value and value.get("type", "Patient") == "Patient":
            rows.references.add(("", "", str(value["identifier"])))
    elif text.startswith("#"):
        rows.references.add(("", "#", text[1:]))
    else:
        pair = _pair(text, rows.own)
        if _told(value, pair) in {"", "Patient"}:
            rows.references.add(("", *pair))


def _own_id(value: str, rows: _Rows) -> None:
    rows.references.add(("", "Patient", value))


def _is_nobody(resource: Json, contained_id: str) -> bool:
    """Whether something contained is there and no patient."""
    held = {one.get("id"): one.get("resourceType") for one in resource.get("contained", ())}
    return held.get(contained_id, "Patient") != "Patient"


# --- dates ----------------------------------------------------------------------------------------------------


def _moment(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: str, rows: _Rows) -> None:
        found = dates.interval(value, rows.zone)
        if found is not None:
            rows.dates.add((name, *found))

    return read


def _period(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Json, rows: _Rows) -> None:
        if "start" in value or "end" in value:
            rows.dates.add((name, *_bounds(value, rows.zone)))

    return read


def _timing(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    """Only the outer limits of a schedule count."""

    def read(value: Json, rows: _Rows) -> None:
        events = [dates.interval(one, rows.zone) for one in value.get("event", ()) if one is not None]
        found = [one for one in events if one is not None]
        bounds = value.get("repeat", {}).get("boundsPeriod")
        if bounds is not None:
            found.append(_bounds(bounds, rows.zone))
        if found:
            rows.dates.add((name, min(lo for lo, _ in found), max(hi for _, hi in found)))

    return read


def _bounds(period: Json, zone: tzinfo) -> dates.Interval:
    start = dates.interval(period["start"], zone) if "start" in period else None
    end = dates.interval(period["end"], zone) if "end" in period else None
    return (start[0] if start else dates.LEAST, end[1] if end else dates.MOST)


# --- strings --------------------------------------------------------------------------------------------------


def _text(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: str, rows: _Rows) -> None:
        rows.strings.add((name, fold(value), value))

    return read


def _parts(parts: tuple[str, ...]) -> _Factory:
    """Each part of a HumanName or Address."""

    def factory(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
        def read(value: Json, rows: _Rows) -> None:
            for part in parts:
                found = value.get(part)
                for text in found if isinstance(found, list) else (found,):
                    if text is not None:
                        rows.strings.add((name, fold(text), text))

        return read

    return factory


# --- numbers --------------------------------------------------------------------------------------------------


def _number(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: float, rows: _Rows) -> None:
        number = float(value)
        rows.numbers.add((name, number, number, "", ""))

    return read


def _quantity(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Json, rows: _Rows) -> None:
        if "value" in value:
            number = float(value["value"])
            less = value.get("comparator", "").startswith("<")
            more = value.get("comparator", "").startswith(">")
            _measured(rows, name, (-float_info.max if less else number, float_info.max if more else number), value)

    return read


def _range(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Json, rows: _Rows) -> None:
        low, high = value.get("low", {}), value.get("high", {})
        ends = (float(low.get("value", -float_info.max)), float(high.get("value", float_info.max)))
        if low or high:
            _measured(rows, name, ends, {**high, **low})

    return read


def _sampled(name: str, leaf: Leaf, parameter: Parameter) -> Reader:
    """Samples are found by the value their zero stands for."""
    quantity = _quantity(name, leaf, parameter)

    def read(value: Json, rows: _Rows) -> None:
        quantity(value.get("origin", {}), rows)

    return read


def _money(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Json, rows: _Rows) -> None:
        if "value" in value:
            number = float(value["value"])
            rows.numbers.add((name, number, number, CURRENCIES, value.get("currency", "")))

    return read


def _measured(rows: _Rows, name: str, ends: tuple[float, float], unit: Json) -> None:
    """Found by the code, and by the unit as people write it where that is another."""
    written = unit.get("unit", "")
    code = unit.get("code", "" if "system" in unit else written)
    rows.numbers.add((name, *ends, unit.get("system", ""), code))
    if written and written != code:
        rows.numbers.add((name, *ends, "", written))


# --- composites -----------------------------------------------------------------------------------------------


def _composite(name: str, leaf: Leaf, parameter: Parameter) -> Reader:
    """The second part under a name that the first one is folded into."""
    first, second = (_part(leaf.kind, component) for component in parameter.components)

    def read(value: Json, rows: _Rows) -> None:
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
        factory = _FACTORIES[component.type].get(leaf.kind)
        if factory is not None:
            _plant(root, leaf.steps, factory("", leaf, component))
    return _walk(root)


def _heads(rows: _Rows) -> set[str]:
    codes = {head for _, system, code in rows.tokens for head in (code, f"{system}|{code}")}
    return codes | {head for _, kind, one in rows.references for head in (one, f"{kind}/{one}" if kind else one)}


_QUANTITIES: Mapping[str, _Factory] = {
    **dict.fromkeys(("Quantity", "Age", "Count", "Distance", "Duration"), _quantity),
    "Range": _range,
    "SampledData": _sampled,
    "Money": _money,
}
_STRINGS: Mapping[str, _Factory] = {
    **dict.fromkeys(("string", "markdown", "code", "uri", "url", "id"), _text),
    "HumanName": _parts(_NAME_PARTS),
    "Address": _parts(_ADDRESS_PARTS),
}
# By type of parameter and datatype; "" is any datatype.
_FACTORIES: Mapping[str, Mapping[str, _Factory]] = {
    "token": {
        **dict.fromkeys(("code", "string", "id", "uri", "url", "oid", "uuid", "canonical"), _plain),
        "boolean": _boolean,
        "Coding": _coding,
        "CodeableConcept": _concept,
        "Identifier": _identifier,
        "ContactPoint": _contact,
    },
    "uri": dict.fromkeys(("uri", "url", "canonical", "oid", "uuid"), _plain),
    "reference": {
        "Reference": _reference,
        "canonical": _canonical,
        "uri": _canonical,
        "Resource": _inline,
    },
    "date": {
        **dict.fromkeys(("date", "dateTime", "instant"), _moment),
        "Period": _period,
        "Timing": _timing,
    },
    "string": _STRINGS,
    "number": dict.fromkeys(("integer", "decimal", "positiveInt", "unsignedInt"), _number),
    "quantity": _QUANTITIES,
    "composite": {"": _composite},
}
