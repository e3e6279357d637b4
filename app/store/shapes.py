"""What queries have in common that differ in their values alone, so that their SQL is planned once.

A shape is a query in plain tuples with GIVEN where a value stands. The pattern of a shape is a query again, whose
values are places: they can be compared with nothing and computed with by `made` alone, so that no plan depends on them
(https://hl7.org/fhir/R4/search.html).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from app.store.query import (
    Below,
    Clause,
    Condition,
    Date,
    Ids,
    Key,
    Link,
    Number,
    Owner,
    Place,
    Present,
    Query,
    Referred,
    Target,
    Text,
    Token,
    key,
)

Shape = tuple[Any, ...]
Values = Sequence[Any]
GIVEN = "\0given"
"""Stands in a shape where queries have values. No text of a query has a NUL character."""
_ENDLESS = "\U0010ffff"
"""Nothing comes after a text of this character alone: such a beginning has a plan of its own."""
LAST = 2**62
"""The place of what has no date has a plan of its own, too."""


class Given:
    """A value that comes later, and how it is had when the values are there."""

    __slots__ = ("take",)

    def __init__(self, take: Callable[[Values], Any]) -> None:
        self.take = take


def given(number: int) -> Any:
    """The value of this number."""
    return Given(itemgetter(number))


def made(make: Callable[..., Any], *parts: Any) -> Any:
    """What is made of these: now, or later when a part of it comes later."""
    if not any(isinstance(part, Given) for part in parts):
        return make(*parts)
    takes = [taking(part) for part in parts]
    if len(takes) == 1:
        take = takes[0]
        return Given(lambda values: make(take(values)))
    return Given(lambda values: make(*[take(values) for take in takes]))


def taking(part: Any) -> Callable[[Values], Any]:
    """How this part of a plan is had from the values of a query."""
    return part.take if isinstance(part, Given) else lambda _: part


# --- from a query to its shape -------------------------------------------------------------------------------


def shape(query: Query, values: list[Any]) -> Shape:
    """The query without its values, which are added to the list."""
    return (
        query.resource_type,
        query.natural,
        query.order,
        _clauses(query.clauses, values),
        tuple([_clauses(clauses, values) for clauses in query.allowed]),
    )


def place(after: Place | None, values: list[Any]) -> Shape | None:
    """The place without its values, which are added to the list."""
    if after is None:
        return None
    own = [value is None or value == LAST for value in after]
    values += [value for value, is_own in zip(after, own, strict=True) if not is_own]
    return tuple([value if is_own else GIVEN for value, is_own in zip(after, own, strict=True)])


def _clauses(clauses: tuple[Clause, ...], values: list[Any]) -> Shape:
    return tuple(
        [(clause.negated, *[_CONDITIONS[type(one)](one, values) for one in clause.any_of]) for clause in clauses]
    )


def _token(one: Token, values: list[Any]) -> Shape:
    return Token, one.param, _optional(one.system, values), _optional(one.value, values)


def _optional(value: str | None, values: list[Any]) -> str | None:
    if value is None:
        return None
    values.append(value)
    return GIVEN


def _target(one: Target, values: list[Any]) -> Shape:
    values.append(one.target_id)
    return Target, one.param, one.target_type, GIVEN


def _owner(one: Owner, values: list[Any]) -> Shape:
    values.append(one.patient_id)
    return Owner, GIVEN


def _ids(one: Ids, values: list[Any]) -> Shape:
    values += one.values
    return Ids, len(one.values)


def _date(one: Date, values: list[Any]) -> Shape:
    values += (one.lo, one.hi)
    return Date, one.param, one.prefix, GIVEN, GIVEN


def _number(one: Number, values: list[Any]) -> Shape:
    values += (one.exact, one.lo, one.hi)
    units = (_optional(one.system, values), _optional(one.code, values))
    return Number, one.param, one.prefix, GIVEN, GIVEN, GIVEN, *units


def _text(one: Text, values: list[Any]) -> Shape:
    if not one.value or _ENDLESS in one.value:
        return Text, one.param, one.mode, one.value
    values.append(one.value)
    return Text, one.param, one.mode, GIVEN


def _below(one: Below, values: list[Any]) -> Shape:
    if _ENDLESS in one.value:
        return Below, one.param, one.value
    values.append(one.value)
    return Below, one.param, GIVEN


def _present(one: Present, _values: list[Any]) -> Shape:
    return Present, one.param, one.kind


def _nested(one: Link | Referred, values: list[Any]) -> Shape:
    return type(one), one.param, shape(one.query, values)


_CONDITIONS: dict[type[Condition], Callable[[Any, list[Any]], Shape]] = {
    Token: _token,
    Target: _target,
    Owner: _owner,
    Ids: _ids,
    Date: _date,
    Number: _number,
    Text: _text,
    Below: _below,
    Present: _present,
    Link: _nested,
    Referred: _nested,
}


def dated(of: Shape) -> Iterator[int]:
    """The natural dates that the query asks about, and those that its chains do."""
    resource_type, natural, _, clauses, allowed = of
    for some in (clauses, *allowed):
        for _, *conditions in some:
            for condition in conditions:
                kind = condition[0]
                if kind is Date and condition[1] == natural:
                    yield key(resource_type, natural)
                elif kind is Link or kind is Referred:
                    yield from dated(condition[2])


# --- from a shape to its pattern -----------------------------------------------------------------------------


def pattern(of: Shape, first: int) -> Query:
    """The query of this shape with places for its values, which are numbered from the first on."""
    return _query(of, _numbered(first))


def pattern_place(of: Shape, first: int) -> Place:
    """The place of this shape with places for its values."""
    later = _numbered(first)
    return tuple(next(later) if one is GIVEN else one for one in of)


def _numbered(first: int) -> Iterator[Any]:
    number = first
    while True:
        yield given(number)
        number += 1


def _query(of: Shape, later: Iterator[Any]) -> Query:
    resource_type, natural, order, clauses, allowed = of
    own = _patterns(clauses, later)
    keys: tuple[Key, ...] = order
    return Query(resource_type, own, tuple(_patterns(some, later) for some in allowed), keys, natural)


def _patterns(clauses: Shape, later: Iterator[Any]) -> tuple[Clause, ...]:
    return tuple(
        Clause(tuple(_pattern(condition, later) for condition in conditions), negated)
        for negated, *conditions in clauses
    )


def _pattern(of: Shape, later: Iterator[Any]) -> Condition:
    kind, *parts = of
    if kind is Ids:
        return Ids(frozenset(next(later) for _ in range(parts[0])))
    if kind is Link or kind is Referred:
        return kind(parts[0], _query(parts[1], later))
    return kind(*[next(later) if part is GIVEN else part for part in parts])
