"""What can be asked of the index: values that a plan turns into SQL (https://hl7.org/fhir/R4/search.html).

A parameter is known by its name within a type. Names with a suffix are rows of their own: `identifier:of-type`,
`subject:identifier`, `code:text`, and `code-value-quantity$http://loinc.org|8480-6`, a composite whose first part is
folded into the name, so that its second part is an ordinary value.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from msgspec import Struct

Kind = Literal["token", "reference", "date", "string", "number"]

_KEY_BYTES = 800
"""PostgreSQL indexes at most 2,704 bytes a row: longer keys are cut, when stored and when looked for."""
UNDATED = -(2**62)
"""The sort value of a resource without its natural date: it comes last, whichever way one sorts."""


@dataclass(frozen=True, slots=True)
class Index:
    """All that is kept beside the bytes so that a search finds them; each entry starts with the parameter's name."""

    tokens: frozenset[tuple[str, str, str]] = frozenset()
    """(parameter, system, value)"""
    references: frozenset[tuple[str, str, str]] = frozenset()
    """(parameter, target type, target id)"""
    dates: frozenset[tuple[str, int, int]] = frozenset()
    """(parameter, lo, hi), in milliseconds, hi excluded"""
    strings: frozenset[tuple[str, str, str]] = frozenset()
    """(parameter, folded, exact)"""
    numbers: frozenset[tuple[str, float, float, str, str]] = frozenset()
    """(parameter, lo, hi, system, code): lo and hi are equal unless the value has a comparator"""
    patient_id: str | None = None
    sort: int = UNDATED


class Ids(Struct, frozen=True, cache_hash=True):
    """The resource is one of these."""

    values: frozenset[str]


class Owner(Struct, frozen=True, cache_hash=True):
    """The resource is in this patient's compartment."""

    patient_id: str


class Token(Struct, frozen=True, cache_hash=True):
    """A code, an identifier or a URI; a system of None means any ("" none), a value of None any of the system."""

    param: str
    system: str | None
    value: str | None


class Below(Struct, frozen=True, cache_hash=True):
    """A URI that is this one or lies below it."""

    param: str
    value: str


class Target(Struct, frozen=True, cache_hash=True):
    """A reference; a type of None means any."""

    param: str
    target_type: str | None
    target_id: str


class Date(Struct, frozen=True, cache_hash=True):
    """A date compared with the interval [lo, hi) by one of the prefixes of FHIR; `_lastUpdated` is a column."""

    param: str
    prefix: str
    lo: int
    hi: int


class Number(Struct, frozen=True, cache_hash=True):
    """A number or quantity compared with the interval [lo, hi) that the search value's precision implies.

    A system or code of None means any; `exact` is the value itself, which gt, lt, ge and le compare with.
    """

    param: str
    prefix: str
    exact: float
    lo: float
    hi: float
    system: str | None = None
    code: str | None = None


class Text(Struct, frozen=True, cache_hash=True):
    """A string: its beginning or a part of it (folded), or the whole as written."""

    param: str
    mode: Literal["starts", "contains", "exact"]
    value: str


class Present(Struct, frozen=True, cache_hash=True):
    """The parameter has a value at all."""

    param: str
    kind: Kind


class Link(Struct, frozen=True, cache_hash=True):
    """A reference leads to something that the query finds: a chain."""

    param: str
    query: Query


class Referred(Struct, frozen=True, cache_hash=True):
    """Something that the query finds leads here by its reference `param`: `_has`."""

    param: str
    query: Query


Condition = Ids | Owner | Token | Below | Target | Date | Number | Text | Present | Link | Referred


class Clause(Struct, frozen=True, cache_hash=True):
    """One condition or another; or none of them."""

    any_of: tuple[Condition, ...]
    negated: bool = False


class Key(Struct, frozen=True, cache_hash=True):
    """One key of an order: `sort` is the natural date, `updated` and `id` are columns, else a parameter's values.

    A resource without a value comes last, whichever way one sorts.
    """

    by: str = "sort"
    kind: Kind | Literal["column"] = "column"
    descending: bool = True


class Query(Struct, frozen=True, cache_hash=True, weakref=True):
    """A search: every clause holds, and all clauses of at least one allowance (an empty one restricts nothing).

    Ties of the order are broken by the row's number, in the direction of the last key. `natural` names the date
    parameter whose earliest value `sort` is: its conditions then bound `sort`.
    """

    resource_type: str
    clauses: tuple[Clause, ...] = ()
    allowed: tuple[tuple[Clause, ...], ...] = ((),)
    order: tuple[Key, ...] = (Key(),)
    natural: str | None = None


Place = tuple[int | float | str | None, ...]
"""Where a page ends: the value of each key of the order, then the row's number. JSON carries it."""


@lru_cache(maxsize=16384)
def key(resource_type: str, name: str) -> int:
    """The number of a type's parameter in the index: 63 bits, the same in every process and at every time."""
    return int.from_bytes(hashlib.sha256(f"{resource_type}.{name}".encode()).digest()[:8]) >> 1


SHORT = _KEY_BYTES // 4
"""Characters that always fit, whatever they are: a text no longer than this needs no cutting."""


def cut(text: str) -> str:
    """The part of a text that an index row can hold."""
    if len(text) <= SHORT:
        return text
    return text.encode()[:_KEY_BYTES].decode(errors="ignore")
