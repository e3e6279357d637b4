"""What each type of value says to a search: rows of the index (https://hl7.org/fhir/R4/search.html#table).

A factory makes the reader of one leaf of one parameter, under that parameter's name; a reader is called for each value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from datetime import tzinfo
from functools import lru_cache
from math import inf
from sys import float_info
from typing import Any

from app.fhir import dates
from app.fhir.paths import Leaf
from app.fhir.registry import Parameter
from app.fhir.site import here

Json = dict[str, Any]
Pair = tuple[str, str]

REMEMBERED = 200
"""How long a text or reference may be for what was made of it to be remembered: long ones would fill the memory."""
CURRENCIES = "urn:iso:std:iso:4217"
_LOCAL = re.compile(r"([A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[A-Za-z0-9\-.]+)?")
_HISTORY = re.compile(r"/_history/[A-Za-z0-9\-.]+$")
_FOREIGN = re.compile(r".*/([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]{1,64}(?:/_history/[A-Za-z0-9\-.]+)?")
_NAME_PARTS = ("text", "family", "given", "prefix", "suffix")
_ADDRESS_PARTS = ("text", "line", "city", "district", "state", "postalCode", "country")


class Rows:
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

    def blank(self) -> Rows:
        """None found yet, at the same site."""
        return Rows(self.own.removesuffix("/"), self.zone)


Reader = Callable[[Any, Rows], None]
"""Puts what a value says into the rows."""
Factory = Callable[[str, Leaf, Parameter], Reader]
"""Makes the reader of one leaf of one parameter, which is found by that name."""


def fold(text: str) -> str:
    """Without case, accents and doubled blanks: how strings are compared."""
    return _folded_before(text) if len(text) <= REMEMBERED else _folded(text)


def _folded(text: str) -> str:
    if text.isascii():
        return " ".join(text.lower().split())
    plain = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(char for char in plain if not unicodedata.combining(char)).casefold().split())


_folded_before = lru_cache(maxsize=1024)(_folded)


def target(reference: Any, base: str | None = None) -> Pair | None:
    """(type, id) of a Reference or its text; a foreign address stands whole beside an empty type."""
    text = reference.get("reference") if isinstance(reference, dict) else reference
    if not isinstance(text, str) or text.startswith("#"):
        return None
    base = here().base if base is None else base
    return pair(text, f"{base}/" if base else "")


# --- tokens ---------------------------------------------------------------------------------------------------


def _plain(name: str, leaf: Leaf, _parameter: Parameter) -> Reader:
    system = leaf.system

    def read(value: str, rows: Rows) -> None:
        rows.tokens.add((name, system, value))

    return read


def _boolean(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: bool, rows: Rows) -> None:
        rows.tokens.add((name, "", "true" if value else "false"))

    return read


def _presence(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Any, rows: Rows) -> None:
        if value is not False:
            rows.tokens.add((name, "", "true"))

    return read


def _coding(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    label = f"{name}:text"

    def read(value: Json, rows: Rows) -> None:
        code = value.get("code")
        if code is not None:
            rows.tokens.add((name, value.get("system", ""), code))
        text = value.get("display")
        if text is not None:
            rows.strings.add((label, fold(text), text))

    return read


def _concept(name: str, leaf: Leaf, parameter: Parameter) -> Reader:
    label, coding = f"{name}:text", _coding(name, leaf, parameter)

    def read(value: Json, rows: Rows) -> None:
        for one in value.get("coding", ()):
            coding(one, rows)
        text = value.get("text")
        if text is not None:
            rows.strings.add((label, fold(text), text))

    return read


def _identifier(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    label, typed = f"{name}:text", f"{name}:of-type"

    def read(value: Json, rows: Rows) -> None:
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
    def read(value: Json, rows: Rows) -> None:
        # ContactPoint.system is a kind of contact and no code system, so it is not the system of the token.
        if "value" in value:
            rows.tokens.add((name, "", value["value"]))

    return read


# --- references -----------------------------------------------------------------------------------------------


def pair(text: str, own: str) -> Pair:
    """(type, id) of a reference, our `own` address before it or not; a foreign one whole beside an empty type."""
    return _paired_before(text, own) if len(text) <= REMEMBERED else _paired(text, own)


def _paired(text: str, own: str) -> Pair:
    if own and text.startswith(own):
        local = _LOCAL.fullmatch(text, len(own))
        if local:
            return local[1], local[2]
    local = _LOCAL.fullmatch(text)
    return (local[1], local[2]) if local else ("", _HISTORY.sub("", text))


_paired_before = lru_cache(maxsize=256)(_paired)


def told(value: Json, goal: Pair | None) -> str:
    """The type of what a reference leads to, as far as the reference itself tells; empty when it does not."""
    if goal is not None and goal[0]:
        return goal[0]
    foreign = _FOREIGN.fullmatch(goal[1]) if goal else None
    return value.get("type") or (foreign[1] if foreign else "")


def _reference(name: str, leaf: Leaf, _parameter: Parameter) -> Reader:
    only, logical = leaf.only, f"{name}:identifier"

    def read(value: Json, rows: Rows) -> None:
        text = value.get("reference")
        goal = pair(text, rows.own) if text is not None and not text.startswith("#") else None
        if goal is not None and (not only or told(value, goal) == only):
            rows.references.add((name, *goal))
        identifier = value.get("identifier")
        if identifier is not None and "value" in identifier and (not only or told(value, goal) in {"", only}):
            rows.tokens.add((logical, identifier.get("system", ""), identifier["value"]))

    return read


def _canonical(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    """Found with its version and without."""

    def read(value: str, rows: Rows) -> None:
        if not value.startswith("#"):
            rows.references.add((name, *pair(value, rows.own)))
            url, bar, _version = value.partition("|")
            if bar:
                rows.references.add((name, *pair(url, rows.own)))

    return read


def _inline(name: str, _leaf: Leaf, parameter: Parameter) -> Reader:
    """A resource that stands in place of a reference to it, as the first entry of a document does."""
    targets = parameter.targets

    def read(value: Json, rows: Rows) -> None:
        if value["resourceType"] in targets and "id" in value:
            rows.references.add((name, value["resourceType"], value["id"]))

    return read


# --- dates ----------------------------------------------------------------------------------------------------


def _moment(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: str, rows: Rows) -> None:
        found = dates.interval(value, rows.zone)
        if found is not None:
            rows.dates.add((name, *found))

    return read


def _period(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Json, rows: Rows) -> None:
        if "start" in value or "end" in value:
            rows.dates.add((name, *_bounds(value, rows.zone)))

    return read


def _timing(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    """Only the outer limits of a schedule count."""

    def read(value: Json, rows: Rows) -> None:
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
    def read(value: str, rows: Rows) -> None:
        rows.strings.add((name, fold(value), value))

    return read


def _parts(parts: tuple[str, ...]) -> Factory:
    """Each part of a HumanName or Address."""

    def factory(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
        def read(value: Json, rows: Rows) -> None:
            for part in parts:
                found = value.get(part)
                for text in found if isinstance(found, list) else (found,):
                    if text is not None:
                        rows.strings.add((name, fold(text), text))

        return read

    return factory


# --- numbers --------------------------------------------------------------------------------------------------


def _near(value: float) -> float:
    """The float nearest to a number; an integer may be too large for any."""
    try:
        return float(value)
    except OverflowError:
        return -inf if value < 0 else inf


def _number(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: float, rows: Rows) -> None:
        number = _near(value)
        rows.numbers.add((name, number, number, "", ""))

    return read


def _quantity(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Json, rows: Rows) -> None:
        if "value" in value:
            number = _near(value["value"])
            less = value.get("comparator", "").startswith("<")
            more = value.get("comparator", "").startswith(">")
            _measured(rows, name, (-float_info.max if less else number, float_info.max if more else number), value)

    return read


def _range(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Json, rows: Rows) -> None:
        low, high = value.get("low", {}), value.get("high", {})
        ends = (_near(low.get("value", -float_info.max)), _near(high.get("value", float_info.max)))
        if low or high:
            _measured(rows, name, ends, {**high, **low})

    return read


def _sampled(name: str, leaf: Leaf, parameter: Parameter) -> Reader:
    """Samples are found by the value their zero stands for."""
    quantity = _quantity(name, leaf, parameter)

    def read(value: Json, rows: Rows) -> None:
        quantity(value.get("origin", {}), rows)

    return read


def _money(name: str, _leaf: Leaf, _parameter: Parameter) -> Reader:
    def read(value: Json, rows: Rows) -> None:
        if "value" in value:
            number = _near(value["value"])
            rows.numbers.add((name, number, number, CURRENCIES, value.get("currency", "")))

    return read


def _measured(rows: Rows, name: str, ends: tuple[float, float], unit: Json) -> None:
    """Found by the code, and by the unit as people write it where that is another."""
    written = unit.get("unit", "")
    code = unit.get("code", "" if "system" in unit else written)
    rows.numbers.add((name, *ends, unit.get("system", ""), code))
    if written and written != code:
        rows.numbers.add((name, *ends, "", written))


_QUANTITIES: Mapping[str, Factory] = {
    **dict.fromkeys(("Quantity", "Age", "Count", "Distance", "Duration"), _quantity),
    "Range": _range,
    "SampledData": _sampled,
    "Money": _money,
}
_STRINGS: Mapping[str, Factory] = {
    **dict.fromkeys(("string", "markdown", "code", "uri", "url", "id"), _text),
    "HumanName": _parts(_NAME_PARTS),
    "Address": _parts(_ADDRESS_PARTS),
}
_FACTORIES: Mapping[str, Mapping[str, Factory]] = {
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
}


def factory_of(parameter: Parameter, leaf: Leaf) -> Factory | None:
    """What makes the reader of a leaf; None when the parameter's type cannot look into the leaf's."""
    return _presence if leaf.present else _FACTORIES[parameter.type].get(leaf.kind)
