"""What a search can find a resource by: values at the paths of resources.toml (https://hl7.org/fhir/R4/search.html#ptypes)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from app.fhir import dates
from app.fhir.registry import Offer, Parameter, Step
from app.fhir.validation import Json
from app.store.resources import UNDATED, Index

Pair = tuple[str, str]

_LOCAL = re.compile(r"(?P<type>[A-Za-z]+)/(?P<id>[A-Za-z0-9\-.]{1,64})(?:/_history/[A-Za-z0-9\-.]+)?")
_HISTORY = re.compile(r"/_history/[A-Za-z0-9\-.]+$")
_CONTACTS = frozenset({"phone", "fax", "email", "pager", "url", "sms", "other"})
"""ContactPoint.system: a kind of contact and no code system, so it is not the system of a token."""
_TEXT_PARTS = (
    *("text", "family", "given", "prefix", "suffix"),
    *("line", "city", "district", "state", "postalCode", "country"),
)


def extract(resource: Json, offer: Offer) -> Index:
    """The index of one resource."""
    found = {name: _values(resource, parameter) for name, parameter in offer.search.items()}
    dated = {
        (name, *interval)
        for name, parameter in offer.search.items()
        if parameter.type == "date"
        for interval in _each(_intervals, found[name])
    }
    return Index(
        tokens=frozenset(
            (name, *pair)
            for name, parameter in offer.search.items()
            if parameter.type in {"token", "uri"}
            for pair in _tokens(parameter, found[name])
        ),
        references=frozenset(
            (name, *pair)
            for name, parameter in offer.search.items()
            if parameter.type == "reference"
            for pair in _targets(parameter, found[name])
        ),
        dates=frozenset(dated),
        strings=frozenset(
            (name, fold(text), text)
            for name, parameter in offer.search.items()
            if parameter.type == "string"
            for text in _each(_texts, found[name])
        ),
        patient_id=patient_id(resource, offer),
        sort=min((lo for name, lo, _ in dated if name == offer.sort), default=UNDATED),
    )


def patient_id(resource: Json, offer: Offer) -> str | None:
    """The patient whose compartment the resource is in."""
    for value in _walk([resource], offer.patient) if offer.patient else ():
        if isinstance(value, str):
            return value
        pair = target(value)
        if pair is not None and pair[0] == "Patient":
            return pair[1]
    return None


def fold(text: str) -> str:
    """Without case, accents and doubled blanks: how strings are compared."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(char for char in plain if not unicodedata.combining(char)).casefold().split())


def target(reference: Any) -> Pair | None:
    """(type, id) of a Reference or canonical; a foreign address stands whole beside an empty type."""
    text = reference.get("reference") if isinstance(reference, dict) else reference
    if not isinstance(text, str) or text.startswith("#"):
        return None
    local = _LOCAL.fullmatch(text)
    return (local["type"], local["id"]) if local else ("", _HISTORY.sub("", text))


def _values(resource: Json, parameter: Parameter) -> list[Any]:
    return [value for path in parameter.paths for value in _walk([resource], path)]


def _walk(nodes: list[Any], path: tuple[Step, ...]) -> list[Any]:
    for step in path:
        nodes = [value for node in nodes if isinstance(node, dict) for value in _children(node, step)]
    return nodes


def _children(node: Json, step: Step) -> Iterator[Any]:
    value = node.get(step.name)
    for item in value if isinstance(value, list) else [value]:
        if item is not None and (not step.key or item.get(step.key) == step.value):
            yield item


def _each(read: Callable[[Any], Iterator[Any]], values: list[Any]) -> Iterator[Any]:
    for value in values:
        yield from read(value)


def _tokens(parameter: Parameter, values: list[Any]) -> Iterator[Pair]:
    if parameter.present:
        yield ("", "true" if any(value is not False for value in values) else "false")
        return
    for value in values:
        if isinstance(value, bool):
            yield ("", "true" if value else "false")
        elif isinstance(value, str):
            yield (parameter.system, value)
        else:
            yield from _coded(value)


def _coded(value: Mapping[str, Any]) -> Iterator[Pair]:
    """The tokens of a Coding, CodeableConcept, Identifier or ContactPoint."""
    for coding in value.get("coding", [value]):
        system = coding.get("system", "")
        code = coding.get("code", coding.get("value"))
        if isinstance(code, str):
            yield ("" if system in _CONTACTS else system, code)


def _targets(parameter: Parameter, values: list[Any]) -> Iterator[Pair]:
    for value in values:
        pair = target(value)
        if pair is not None and parameter.only in {"", pair[0]}:
            yield pair


def _intervals(value: Any) -> Iterator[dates.Interval]:
    """A date or time, a Period, or a Timing by its events and bounds."""
    if isinstance(value, str):
        found = dates.interval(value)
        if found:
            yield found
    elif "event" in value or "repeat" in value:
        yield from _each(_intervals, value.get("event", []))
        bounds = value.get("repeat", {}).get("boundsPeriod")
        if bounds:
            yield from _intervals(bounds)
    elif "start" in value or "end" in value:
        start, end = dates.interval(value.get("start", "")), dates.interval(value.get("end", ""))
        yield (start[0] if start else dates.LEAST, end[1] if end else dates.MOST)


def _texts(value: Any) -> Iterator[str]:
    """A text, or each part of a HumanName or Address."""
    if isinstance(value, str):
        yield value
        return
    for part in _TEXT_PARTS:
        text = value.get(part)
        for item in text if isinstance(text, list) else [text]:
            if isinstance(item, str):
                yield item
