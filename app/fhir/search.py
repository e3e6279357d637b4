"""From search parameters to a query: strict, every unknown word is refused (https://hl7.org/fhir/R4/search.html)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from msgspec import structs

from app.errors import BadRequest, Issue
from app.fhir import shaping
from app.fhir.conditions import KINDS, refusal, targets
from app.fhir.criteria import COMMON, CONTROLS, clause, criterion, legal, unknown
from app.fhir.registry import Offer, Parameter, offers
from app.fhir.shaping import WHOLE, Shape
from app.fhir.site import Site, here
from app.store.query import Clause, Ids, Key, Link, Query, Referred

__all__ = ["COMMON", "CONTROLS", "clause", "legal", "refusal"]

Criteria = Sequence[tuple[str, str]]
Kinds = Sequence[Offer]

DEFAULT_COUNT = 50
MAX_COUNT = 1000
MAX_VALUES = 500
MAX_IDS = 5000
MAX_KEYS = 8
MAX_INCLUDES = 200
REMEMBERED = 2000
"""Searches of at most so many characters are read once."""
FORMATS = ("_format", "_pretty")
"""Parameters about the answer's form, taken by every interaction."""
TOTALS = ("none", "estimate", "accurate")
ITERATING = ("iterate", "recurse")
"""What R4 and its forerunner call the modifier of an include that follows includes."""
_COLUMNS = {"_id": "id", "_lastUpdated": "updated"}


@dataclass(frozen=True, slots=True)
class Include:
    """One _include or _revinclude: a reference parameter of a type, perhaps of one target type only."""

    resource_type: str
    param: str
    target_type: str = ""
    iterate: bool = False


@dataclass(frozen=True, slots=True)
class Search:
    """A request for a page: what is looked for, and how it is shown."""

    query: Query
    applied: tuple[tuple[str, str], ...] = ()
    """What was understood, in the registry's spelling: the self link repeats it."""
    count: int = DEFAULT_COUNT
    include: tuple[Include, ...] = ()
    revinclude: tuple[Include, ...] = ()
    total: str = ""
    shape: Shape = WHOLE
    ignored: tuple[Issue, ...] = ()
    """What a lenient search did not understand."""

    @property
    def counts_only(self) -> bool:
        """Whether the client wants to know how many there are, and nothing else."""
        return self.count == 0 or self.shape.summary == "count"


@dataclass(frozen=True, slots=True)
class _Part:
    """One parameter understood: what it demands of each type, or the setting it makes."""

    word: str
    value: str
    clauses: tuple[Clause, ...] = ()
    setting: Any = None


def parse(offer: Offer, criteria: Criteria, base: str = "", *, lenient: bool = False) -> Search:
    """The search; BadRequest names the first word that is not understood, unless a lenient one ignores it."""
    return together([offer], criteria, Site(base or here().base, here().zone), lenient=lenient)[0]


def together(kinds: Kinds, criteria: Criteria, site: Site, *, lenient: bool = False) -> tuple[Search, ...]:
    """One search of several types, each with its own query: every type must understand every word."""
    asked = (tuple(kinds), tuple(criteria), site, lenient)
    return _remembered(*asked) if is_memorable(criteria) else _read(*asked)


def is_memorable(criteria: Criteria) -> bool:
    """Whether a search is worth being read once, for most are asked again and again, word for word.

    Long lists of values are not worth their memory, and what is approximately a date depends on the day.
    """
    length = 0
    for word, value in criteria:
        if "ap" in value:
            return False
        length += len(word) + len(value)
    return length <= REMEMBERED


def _read(
    kinds: tuple[Offer, ...], criteria: tuple[tuple[str, str], ...], site: Site, lenient: bool
) -> tuple[Search, ...]:
    if any("\0" in word + value for word, value in criteria):
        # PostgreSQL keeps no NUL, so nothing could match.
        raise BadRequest("a search parameter has no NUL character")
    parts: list[_Part] = []
    ignored: list[Issue] = []
    for word, value in criteria:
        try:
            _refuse_repeated(word, parts)
            part = _part(kinds, word, value, site)
        except BadRequest as error:
            if not lenient:
                raise
            ignored.extend(replace(issue, severity="warning") for issue in error.issues)
        else:
            parts.extend([part] if value else [])
    if sum(part.word.partition(":")[0] in {"_include", "_revinclude"} for part in parts) > MAX_INCLUDES:
        raise BadRequest(issues=(Issue("too-costly", f"a search takes at most {MAX_INCLUDES} includes"),))
    found = tuple(_search(number, kind, parts, tuple(ignored)) for number, kind in enumerate(kinds))
    for one in found:
        _check_size(one.query)
    return found


_remembered = lru_cache(maxsize=512)(_read)


def has_criteria(search: Search) -> bool:
    """Whether anything restricts what is found: a condition without criteria would mean everything."""
    return bool(search.query.clauses)


def _search(number: int, kind: Offer, parts: Sequence[_Part], ignored: tuple[Issue, ...]) -> Search:
    set_by = {part.word: part.setting for part in parts}
    include, revinclude = (
        tuple(dict.fromkeys(one for part in parts if part.word.partition(":")[0] == word for one in part.setting))
        for word in ("_include", "_revinclude")
    )
    shape = Shape(set_by.get("_summary", ""), set_by.get("_elements", ()))
    if shape.summary == "text" and (include or revinclude):
        raise refusal("_summary=text goes with no _include", "_summary")
    shaping.check(shape)
    orders = set_by.get("_sort")
    clauses = tuple(part.clauses[number] for part in parts if part.clauses)
    query = Query(kind.resource_type, clauses, natural=kind.sort)
    return Search(
        query=structs.replace(query, order=orders[number]) if orders else query,
        applied=tuple((part.word, part.value) for part in parts),
        count=set_by.get("_count", DEFAULT_COUNT),
        include=include,
        revinclude=revinclude,
        total=set_by.get("_total", ""),
        shape=shape,
        ignored=ignored,
    )


def _part(kinds: Kinds, word: str, value: str, site: Site) -> _Part:
    name, _, modifier = word.partition(":")
    if name in FORMATS:
        return _Part(word, value)
    control = _CONTROLS.get(name)
    if control is not None:
        return control(kinds, modifier, value)
    if not value:
        # A form sends fields that nobody filled in: they restrict nothing, but they must be known.
        for kind in kinds:
            _require_known(kind, word)
        return _Part(word, value)
    read = [criterion(kind, word, value, site) for kind in kinds]
    return _Part(read[0][0], value, tuple(found for _, found in read))


def _require_known(kind: Offer, word: str) -> None:
    name = re.split(r"[:.]", word, maxsplit=1)[0]
    if kind.parameter(name) is None and kind.aliases.get(name, name) not in {*COMMON, "_has", "name"}:
        raise unknown(kind, name)


def _refuse_repeated(word: str, parts: Iterable[_Part]) -> None:
    name = word.partition(":")[0]
    if name in {*CONTROLS, *FORMATS} - {"_include", "_revinclude"} and any(part.word == name for part in parts):
        raise refusal(f"{name} must be given once", name)


def _check_size(query: Query) -> None:
    """BadRequest for more values than a database can plan; ids are one condition, whatever their number."""
    values, ids = _size(query)
    if values > MAX_VALUES or ids > MAX_IDS:
        sentence = f"a search takes at most {MAX_VALUES} values, and {MAX_IDS} in _id"
        raise BadRequest(issues=(Issue("too-costly", sentence),))


def _size(query: Query) -> tuple[int, int]:
    values = ids = 0
    for condition in (condition for demand in query.clauses for condition in demand.any_of):
        values += 1
        if isinstance(condition, Ids):
            ids += len(condition.values)
        elif isinstance(condition, Link | Referred):
            inner = _size(condition.query)
            values, ids = values + inner[0], ids + inner[1]
    return values, ids


# --- what shapes the answer ------------------------------------------------------------------------------------


def _count(_kinds: Kinds, modifier: str, value: str) -> _Part:
    if modifier or (value and not re.fullmatch(r"\d{1,9}", value, re.ASCII)):
        raise refusal("_count must be a whole number", "_count")
    return _Part("_count", value, setting=min(int(value or DEFAULT_COUNT), MAX_COUNT))


def _total(_kinds: Kinds, modifier: str, value: str) -> _Part:
    if modifier or value not in {*TOTALS, ""}:
        raise refusal(f"_total must be one of {', '.join(TOTALS)}", "_total")
    return _Part("_total", value, setting=value)


def _summary(_kinds: Kinds, modifier: str, value: str) -> _Part:
    if modifier:
        raise refusal("_summary takes no modifier", "_summary")
    return _Part("_summary", value, setting=shaping.read_summary(value, can_count=True))


def _elements(kinds: Kinds, modifier: str, value: str) -> _Part:
    if modifier:
        raise refusal("_elements takes no modifier", "_elements")
    return _Part("_elements", value, setting=shaping.read_elements(value, [kind.resource_type for kind in kinds]))


def _sort(kinds: Kinds, modifier: str, value: str) -> _Part:
    if modifier:
        raise refusal("_sort takes no modifier", "_sort")
    return _Part("_sort", value, setting=[_order(kind, value) for kind in kinds] if value else None)


def _order(kind: Offer, text: str) -> tuple[Key, ...]:
    keys: dict[str, Key] = {}
    for part in text.split(","):
        name = part.removeprefix("-")
        name = kind.aliases.get(name, name)
        keys.setdefault(name, _key(kind, name, descending=part.startswith("-")))
    if len(keys) > MAX_KEYS:
        raise refusal(f"_sort takes at most {MAX_KEYS} parameters", "_sort")
    return tuple(keys.values())


def _key(kind: Offer, name: str, *, descending: bool) -> Key:
    if name in _COLUMNS:
        return Key(_COLUMNS[name], "column", descending)
    if name == kind.sort:
        return Key("sort", "column", descending)
    parameter = kind.search.get(name)
    if parameter is None or parameter.type == "composite":
        possible = sorted([*_COLUMNS, *(one.name for one in kind.search.values() if one.type != "composite")])
        told = f"{kind.resource_type} can be sorted by {', '.join(possible)}"
        raise refusal(f"{told}; a - before it begins with the greatest", "_sort")
    return Key(name, KINDS[parameter.type], descending)


# --- includes --------------------------------------------------------------------------------------------------


def _include(word: str, kinds: Kinds, modifier: str, value: str) -> _Part:
    if modifier and modifier not in ITERATING:
        raise refusal(f"{word} takes :iterate alone", word)
    spelled = f"{word}:iterate" if modifier else word
    if not value:
        return _Part(spelled, value, setting=())
    bases = frozenset(kind.resource_type for kind in kinds)
    found = tuple(_includes(word, bases, value, iterate=bool(modifier)))
    if not found:
        raise _no_include(word, bases)
    shown = ":".join(filter(None, (found[0].resource_type, found[0].param, found[0].target_type)))
    return _Part(spelled, value if "*" in value else shown, setting=found)


def _includes(word: str, bases: frozenset[str], value: str, *, iterate: bool) -> Iterator[Include]:
    kind, _, rest = value.partition(":")
    name, _, target = rest.partition(":")
    if kind == "*" and not rest:
        name = "*"
    for offer in _sources(bases if word == "_include" and not iterate else None, kind):
        for parameter in offer.search.values() if name == "*" else filter(None, [offer.parameter(name)]):
            if _leads(word, bases, parameter, target, is_free=iterate):
                yield Include(offer.resource_type, parameter.name, target, iterate)
            elif name != "*":
                raise _no_include(word, bases)


def _sources(bases: frozenset[str] | None, kind: str) -> list[Offer]:
    """The types whose references are followed; all but those in other rows, unless bases limit them."""
    wanted = [
        offer
        for name, offer in offers().items()
        if not offer.kept and kind in {name, "*"} and (bases is None or name in bases)
    ]
    return sorted(wanted, key=lambda offer: offer.resource_type)


def _leads(word: str, bases: frozenset[str], parameter: Parameter, target: str, *, is_free: bool) -> bool:
    """Whether the parameter is a reference to the target; a reverse one must lead to what is searched for."""
    if parameter.type != "reference":
        return False
    possible = targets(parameter)
    if target and target not in possible:
        return False
    return word == "_include" or is_free or bool((frozenset({target}) if target else possible) & bases)


def _no_include(word: str, bases: frozenset[str]) -> BadRequest:
    which = f"of {', '.join(sorted(bases))}" if word == "_include" else f"to {', '.join(sorted(bases))}"
    sentence = f"{word} takes *, Type:*, Type:parameter or Type:parameter:Target of a reference {which}"
    return refusal(f"{sentence}; with :iterate of any reference", word)


_CONTROLS: Mapping[str, Callable[[Kinds, str, str], _Part]] = {
    "_count": _count,
    "_total": _total,
    "_summary": _summary,
    "_elements": _elements,
    "_sort": _sort,
    "_include": partial(_include, "_include"),
    "_revinclude": partial(_include, "_revinclude"),
}
