"""One value of a search parameter as conditions on the index (https://hl7.org/fhir/R4/search.html#ptypes)."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal

from app.errors import BadRequest, Issue
from app.fhir import dates, index
from app.fhir.registry import MODIFIERS, Parameter
from app.fhir.site import Site
from app.store.query import Below, Condition, Date, Kind, Number, Target, Text, Token

PREFIXES = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")
KINDS: Mapping[str, Kind] = {
    "uri": "token",
    "token": "token",
    "date": "date",
    "string": "string",
    "reference": "reference",
    "number": "number",
    "quantity": "number",
}
"""Where the values of a parameter are indexed."""
_PREFIX = rf"(?P<prefix>{'|'.join(PREFIXES)})?"
_DATE = re.compile(rf"{_PREFIX}(?P<date>\d.*)", re.DOTALL)
_NUMBER = re.compile(
    rf"{_PREFIX}(?P<number>[+-]?(?:\d{{1,30}}(?:\.\d{{0,30}})?|\.\d{{1,30}})(?P<exponent>[eE][+-]?\d{{1,3}})?)",
    re.ASCII,
)
_BLANK_ZONE = re.compile(r" (\d\d:\d\d)$")
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_CODED = frozenset({"CodeableConcept", "Coding", "Identifier"})


def conditions(parameter: Parameter, modifier: str, text: str, site: Site) -> tuple[Condition, ...]:
    """The alternatives that one value stands for; `text` still has its backslashes."""
    if not text:
        raise refusal(f"{parameter.name} has an empty value", parameter.name)
    return tuple(_READERS[parameter.type](parameter, modifier, text, site))


def modifiers(parameter: Parameter) -> tuple[str, ...]:
    """What may follow the parameter's name after a colon; a reference takes its target types as well."""
    unfit = set[str]()
    if not parameter.kinds & _CODED:
        unfit.add("text")
    if "Identifier" not in parameter.kinds:
        unfit.add("of-type")
    if "Reference" not in parameter.kinds:
        unfit.add("identifier")
    return tuple(name for name in MODIFIERS[parameter.type] if name not in unfit)


def targets(parameter: Parameter) -> frozenset[str]:
    """The types that a reference parameter may lead to."""
    return frozenset({parameter.only}) if parameter.only else parameter.targets


def split(text: str, separator: str) -> list[str]:
    r"""The parts between separators that no backslash protects; the parts keep their backslashes."""
    if "\\" not in text:
        return text.split(separator)
    parts, rest = [""], iter(text)
    for char in rest:
        if char == separator:
            parts.append("")
        else:
            parts[-1] += char + (next(rest, "") if char == "\\" else "")
    return parts


def unescape(text: str) -> str:
    r"""`\,` `\|` `\$` and `\\` as they were meant."""
    return re.sub(r"\\([,|$\\])", r"\1", text) if "\\" in text else text


def refusal(diagnostics: str, name: str) -> BadRequest:
    """The refusal of one parameter, with its name where clients look for it."""
    return BadRequest(issues=(Issue("invalid", diagnostics, f"http.{name}"),))


# --- by type --------------------------------------------------------------------------------------------------


def _token(parameter: Parameter, modifier: str, text: str, _site: Site) -> Iterator[Condition]:
    name = parameter.name
    if modifier == "text":
        yield Text(f"{name}:text", "starts", index.fold(unescape(text)))
    elif modifier == "of-type":
        yield _of_type(name, text)
    else:
        yield _coded(name, text)


def _coded(name: str, text: str) -> Token:
    match [unescape(part) for part in split(text, "|")]:
        case [value]:
            return Token(name, None, value)
        case [system, ""] if system:
            return Token(name, system, None)
        case [system, value] if value:
            return Token(name, system, value)
        case _:
            raise refusal(f"{name} must be code, system|code, |code or system|", name)


def _of_type(name: str, text: str) -> Token:
    parts = [unescape(part) for part in split(text, "|")]
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise refusal(f"{name}:of-type must be the type's system|the type's code|value", name)
    return Token(f"{name}:of-type", "", "|".join(parts))


def _uri(parameter: Parameter, modifier: str, text: str, _site: Site) -> Iterator[Condition]:
    value = unescape(text)
    yield Below(parameter.name, value) if modifier == "below" else Token(parameter.name, None, value)


def _string(parameter: Parameter, modifier: str, text: str, _site: Site) -> Iterator[Condition]:
    value = unescape(text)
    match modifier:
        case "exact":
            yield Text(parameter.name, "exact", value)
        case "contains":
            yield Text(parameter.name, "contains", index.fold(value))
        case _:
            yield Text(parameter.name, "starts", index.fold(value))


def _date(parameter: Parameter, _modifier: str, text: str, site: Site) -> Iterator[Condition]:
    yield date(parameter.name, text, site)


def date(name: str, text: str, site: Site) -> Date:
    """A date with its prefix."""
    # A "+" that was not encoded arrives as a blank; no date has one.
    found = _DATE.fullmatch(_BLANK_ZONE.sub(r"+\1", text))
    interval = dates.interval(found["date"], site.zone) if found else None
    if found is None or interval is None:
        raise refusal(f"{name} must be a date, perhaps after one of {', '.join(PREFIXES)}", name)
    lo, hi = interval
    if found["prefix"] == "ap":
        # "Approximately" is a tenth of the distance between the date and now.
        margin = abs(time.time_ns() // 1_000_000 - lo) // 10
        lo, hi = lo - margin, hi + margin
    return Date(name, found["prefix"] or "eq", lo, hi)


def _number(parameter: Parameter, _modifier: str, text: str, _site: Site) -> Iterator[Condition]:
    yield _measured(parameter.name, unescape(text), None, None)


def _quantity(parameter: Parameter, _modifier: str, text: str, _site: Site) -> Iterator[Condition]:
    name = parameter.name
    match [unescape(part) for part in split(text, "|")]:
        case [value]:
            yield _measured(name, value, None, None)
        case [value, system, code] if code:
            yield _measured(name, value, system or None, code)
        case _:
            raise refusal(f"{name} must be a number, number|system|code or number||code", name)


def _measured(name: str, text: str, system: str | None, code: str | None) -> Number:
    found = _NUMBER.fullmatch(text)
    exact = float(found["number"]) if found else math.inf
    if found is None or math.isinf(exact):
        raise refusal(f"{name} must be a number, perhaps after one of {', '.join(PREFIXES)}", name)
    number = Decimal(found["number"])
    margin = _margin(number, is_scientific=found["exponent"] is not None)
    if found["prefix"] == "ap":
        margin = max(margin, abs(number) / 10)
    return Number(name, found["prefix"] or "eq", exact, float(number - margin), float(number + margin), system, code)


def _margin(number: Decimal, *, is_scientific: bool) -> Decimal:
    """Half a unit of the last digit. FHIR reads 1e2 as 95 to 105, so before an exponent one digit counts as two."""
    _, digits, exponent = number.as_tuple()
    last = int(exponent) - max(0, 2 - len(digits)) if is_scientific else int(exponent)
    return Decimal(5).scaleb(last - 1)


def _reference(parameter: Parameter, modifier: str, text: str, site: Site) -> Iterator[Condition]:
    name = parameter.name
    if modifier == "identifier":
        yield _coded(f"{name}:identifier", text)
        return
    value = unescape(text)
    kind, identity = index.target(value, site.base) or ("", value)
    if not kind and _ID.fullmatch(value):
        yield Target(name, modifier or parameter.only or None, value)
    elif modifier and kind != modifier:
        raise refusal(f"{name}:{modifier} must be an id or a reference to that type", name)
    elif kind and kind not in targets(parameter):
        raise refusal(f"{name} leads to {', '.join(sorted(targets(parameter)))}", name)
    elif not kind and ":" not in value:
        raise refusal(f"{name} must be an id, Type/id or an absolute address", name)
    else:
        yield Target(name, kind, identity)


def _composite(parameter: Parameter, _modifier: str, text: str, site: Site) -> Iterator[Condition]:
    """The second part's conditions, on rows whose name has the first part folded in."""
    name, parts = parameter.name, split(text, "$")
    if len(parts) != 2 or not all(parts):
        raise refusal(f"{name} must be two values with $ between them", name)
    first, second = parameter.components
    head = _head(conditions(first, "", parts[0], site)[0], name)
    yield from conditions(replace(second, name=f"{name}${head}"), "", parts[1], site)


def _head(condition: Condition, name: str) -> str:
    match condition:
        case Token(_, None, str(code)):
            return code
        case Token(_, str(system), str(code)):
            return f"{system}|{code}"
        case Target(_, kind, identity):
            return f"{kind}/{identity}" if kind else identity
        case _:
            raise refusal(f"{name} needs a whole code before the $", name)


_READERS: Mapping[str, Callable[[Parameter, str, str, Site], Iterator[Condition]]] = {
    "token": _token,
    "uri": _uri,
    "string": _string,
    "date": _date,
    "number": _number,
    "quantity": _quantity,
    "reference": _reference,
    "composite": _composite,
}
