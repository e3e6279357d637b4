"""From search parameters to a query: strict, every unknown word is refused (https://hl7.org/fhir/R4/search.html)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.errors import BadRequest, Issue
from app.fhir import dates, index
from app.fhir.registry import MODIFIERS, Offer, Parameter, offers
from app.store.resources import Clause, Condition, Date, Ids, Order, Present, Query, Target, Text, Token

Criteria = Sequence[tuple[str, str]]

DEFAULT_COUNT = 50
MAX_COUNT = 1000
MAX_VALUES = 500
MAX_IDS = 5000
CONTROLS = ("_count", "_sort", "_include", "_revinclude")
"""What shapes the answer and is no criterion."""
COMMON = ("_id", "_lastUpdated")
PREFIXES = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")
_PREFIX = re.compile(rf"(?P<prefix>{'|'.join(PREFIXES)})?(?P<date>\d.*)")
_BLANK_ZONE = re.compile(r" (\d\d:\d\d)$")
_KINDS = {"uri": "token", "token": "token", "date": "date", "string": "string", "reference": "reference"}


@dataclass(frozen=True, slots=True)
class Include:
    """One _include or _revinclude: a reference parameter of a type, perhaps of one target type only."""

    resource_type: str
    param: str
    target_type: str = ""


@dataclass(frozen=True, slots=True)
class Search:
    """A request for a page: what is looked for, and how it is shown. `applied` is what the self link repeats."""

    query: Query
    count: int
    applied: tuple[tuple[str, str], ...]
    include: tuple[Include, ...] = ()
    revinclude: tuple[Include, ...] = ()


def parse(offer: Offer, criteria: Criteria, base: str = "") -> Search:
    """The search; BadRequest names the first word that is not understood. `base` is our own address in references."""
    words = [(name, value) for name, value in criteria if name not in CONTROLS]
    query = Query(
        resource_type=offer.resource_type,
        clauses=tuple(clause(offer, name, value, base) for name, value in words if value),
        order=_order(offer, _single(criteria, "_sort")),
    )
    return Search(
        query=query,
        count=_count(_single(criteria, "_count")),
        applied=tuple((name, value) for name, value in criteria if value),
        include=tuple(_include(value) for name, value in criteria if name == "_include"),
        revinclude=tuple(_include(value) for name, value in criteria if name == "_revinclude"),
    )


def check_size(query: Query) -> None:
    """BadRequest for more values than a database can plan; ids are one condition, whatever their number."""
    conditions = [condition for clause in query.clauses for condition in clause.any_of]
    ids = sum(len(condition.values) for condition in conditions if isinstance(condition, Ids))
    if len(conditions) > MAX_VALUES or ids > MAX_IDS:
        sentence = f"a search takes at most {MAX_VALUES} values, and {MAX_IDS} in _id"
        raise BadRequest(issues=(Issue("too-costly", sentence),))


def clause(offer: Offer, word: str, value: str, base: str = "") -> Clause:
    """One criterion: its comma separated values are alternatives."""
    name, _, modifier = word.partition(":")
    if name in COMMON:
        return _common(word, value)
    parameter = offer.search.get(name)
    if parameter is None:
        raise _unknown(offer, name)
    if modifier == "missing":
        return _missing(parameter, value)
    if modifier and not _modifies(parameter, modifier):
        raise refusal(f"{name} does not take that modifier; it takes {_legal_modifiers(parameter)}", name)
    found = tuple(condition for text in split(value, ",") for condition in _conditions(parameter, modifier, text, base))
    return Clause(found, negated=modifier == "not")


def split(text: str, separator: str) -> list[str]:
    r"""The parts between separators that no backslash protects; the parts keep their backslashes."""
    parts, rest = [""], iter(text)
    for char in rest:
        if char == separator:
            parts.append("")
        else:
            parts[-1] += char + (next(rest, "") if char == "\\" else "")
    return parts


def unescape(text: str) -> str:
    r"""`\,` `\|` `\$` and `\\` as they were meant."""
    return re.sub(r"\\([,|$\\])", r"\1", text)


def refusal(diagnostics: str, name: str) -> BadRequest:
    """The refusal of one parameter, with its name where clients look for it."""
    return BadRequest(issues=(Issue("invalid", diagnostics, f"http.{name}"),))


def legal(offer: Offer) -> list[str]:
    """Every parameter that a search of this type takes."""
    return sorted([*offer.search, *COMMON, *CONTROLS])


# --- one condition -------------------------------------------------------------------------------------------


def _conditions(parameter: Parameter, modifier: str, text: str, base: str) -> Iterator[Condition]:
    name = parameter.name
    if not text:
        raise refusal(f"{name} has an empty value", name)
    match parameter.type:
        case "token":
            yield _token(name, text)
        case "uri":
            yield Token(name, None, unescape(text))
        case "string":
            yield _text(name, modifier, unescape(text))
        case "date":
            yield _date(name, text)
        case _:
            yield from _targets(parameter, modifier, unescape(text), base)


def _token(name: str, text: str) -> Token:
    parts = [unescape(part) for part in split(text, "|")]
    match parts:
        case [value]:
            return Token(name, None, value)
        case [system, ""] if system:
            return Token(name, system, None)
        case [system, value] if value:
            return Token(name, system, value)
        case _:
            raise refusal(f"{name} must be code, system|code, |code or system|", name)


def _text(name: str, modifier: str, text: str) -> Text:
    if modifier == "exact":
        return Text(name, "exact", text)
    return Text(name, "contains" if modifier == "contains" else "starts", index.fold(text))


def _date(name: str, text: str) -> Date:
    # A "+" that was not encoded arrives as a blank; no date has one.
    found = _PREFIX.fullmatch(_BLANK_ZONE.sub(r"+\1", text))
    interval = dates.interval(found["date"]) if found else None
    if found is None or interval is None:
        raise refusal(f"{name} must be a date, perhaps after one of {', '.join(PREFIXES)}", name)
    prefix = found["prefix"] or "eq"
    lo, hi = interval
    if prefix == "ap":
        # "Approximately" is a tenth of the distance between the date and now.
        margin = abs(time.time_ns() // 1_000_000 - lo) // 10
        lo, hi = lo - margin, hi + margin
    return Date(name, prefix, lo, hi)


def _targets(parameter: Parameter, modifier: str, text: str, base: str) -> Iterator[Target]:
    """A reference may stand in a resource by type and id or with our own address before them."""
    name = parameter.name
    own = f"{base}/"
    local = text.removeprefix(own) if base else text
    kind, identity = index.target(local) or ("", local)
    if not kind and "/" not in local and ":" not in local:
        kind, identity = (modifier or parameter.only), local
        yield Target(name, kind or None, identity)
    elif modifier and kind != modifier:
        raise refusal(f"{name}:{modifier} must be an id or a reference to that type", name)
    else:
        yield Target(name, kind, identity)
    if base and kind:
        yield Target(name, "", f"{own}{kind}/{identity}")


def _common(word: str, value: str) -> Clause:
    if word == "_id":
        return Clause((Ids(frozenset(split(value, ","))),))
    if word == "_lastUpdated":
        return Clause(tuple(_date(word, text) for text in split(value, ",")))
    name = word.partition(":")[0]
    raise refusal(f"{name} takes no modifier", name)


def _missing(parameter: Parameter, value: str) -> Clause:
    if value not in {"true", "false"}:
        raise refusal(f"{parameter.name}:missing must be true or false", parameter.name)
    kind = _KINDS[parameter.type]
    return Clause((Present(parameter.name, kind),), negated=value == "true")  # pyright: ignore[reportArgumentType]


# --- what is refused, and with which words --------------------------------------------------------------------


def _modifies(parameter: Parameter, modifier: str) -> bool:
    if parameter.type == "reference" and modifier in parameter.targets:
        return parameter.only in {"", modifier}
    return modifier in MODIFIERS[parameter.type]


def _legal_modifiers(parameter: Parameter) -> str:
    names = [f":{name}" for name in MODIFIERS[parameter.type]]
    return " ".join([*names, *([":[type]"] if parameter.type == "reference" else [])])


def _unknown(offer: Offer, name: str) -> BadRequest:
    shown = name if re.fullmatch(r"[\w.\-]{1,40}", name) else "a parameter"
    diagnostics = f"{offer.resource_type} has no search parameter {shown}; it has {', '.join(legal(offer))}"
    return BadRequest(issues=(Issue("not-supported", diagnostics, f"http.{shown}"),))


def _single(criteria: Criteria, name: str) -> str:
    values = [value for word, value in criteria if word == name]
    if len(values) > 1:
        raise refusal(f"{name} must be given once", name)
    return values[0] if values else ""


def _count(text: str) -> int:
    if not text:
        return DEFAULT_COUNT
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise refusal("_count must be a whole number", "_count")
    return min(int(text), MAX_COUNT)


def _order(offer: Offer, text: str) -> Order:
    if not text:
        return Order()
    name, descending = text.removeprefix("-"), text.startswith("-")
    if name == "_lastUpdated":
        return Order("updated", descending)
    if name == offer.sort:
        return Order("sort", descending)
    known = ", ".join(filter(None, [offer.sort, "_lastUpdated"]))
    raise refusal(
        f"{offer.resource_type} can be sorted by one of {known}, with - before it for the newest first", "_sort"
    )


def _include(value: str) -> Include:
    parts = value.split(":")
    known = offers().get(parts[0])
    parameter = known.search.get(parts[1]) if known and len(parts) in {2, 3} else None
    if parameter is None or parameter.type != "reference":
        raise refusal(
            "_include and _revinclude take Type:parameter or Type:parameter:Target of reference parameters", "_include"
        )
    return Include(parts[0], parts[1], parts[2] if len(parts) == 3 else "")
