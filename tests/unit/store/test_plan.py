"""What a plan finds, against the same question asked of every resource in turn, on both engines."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.store import plan, resources
from app.store.database import Store, run
from app.store.query import (
    UNDATED,
    Below,
    Clause,
    Condition,
    Date,
    Ids,
    Index,
    Key,
    Link,
    Number,
    Owner,
    Present,
    Query,
    Referred,
    Target,
    Text,
    Token,
)
from app.store.resources import Change, Stored

DAY = 86_400_000
PREFIXES = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")
SEED = 20260301


@dataclass(frozen=True, slots=True)
class One:
    """A resource as the test knows it."""

    rid: int
    resource_type: str
    resource_id: str
    updated: int
    index: Index


@dataclass(frozen=True, slots=True)
class World:
    """All of them, and the asking of a question in turn."""

    by_type: Mapping[str, list[One]] = field(default_factory=dict)

    def find(self, query: Query) -> list[One]:
        return [
            one
            for one in self.by_type[query.resource_type]
            if all(self.holds(clause, one, query) for clause in query.clauses)
            and any(all(self.holds(clause, one, query) for clause in clauses) for clauses in query.allowed)
        ]

    def holds(self, clause: Clause, one: One, query: Query) -> bool:
        return any(self.meets(condition, one, query) for condition in clause.any_of) is not clause.negated

    def meets(self, condition: Condition, one: One, query: Query) -> bool:  # noqa: C901 - one line for each kind
        index = one.index
        match condition:
            case Ids(values):
                return one.resource_id in values
            case Owner(patient_id):
                return index.patient_id == patient_id
            case Token(param, system, value):
                return any(p == param and system in {None, s} and value in {None, v} for p, s, v in index.tokens)
            case Below(param, value):
                base = value.rstrip("/") + "/"
                return any(p == param and (v == value or v.startswith(base)) for p, _, v in index.tokens)
            case Target(param, kind, target):
                return any(p == param and kind in {None, k} and t == target for p, k, t in index.references)
            case Date("_lastUpdated", prefix, lo, hi):
                return compared(prefix, one.updated, one.updated + 1, lo, hi)
            case Date(param, prefix, lo, hi):
                return any(p == param and compared(prefix, a, b, lo, hi) for p, a, b in index.dates)
            case Number():
                return any(p == condition.param and measured(condition, *rest) for p, *rest in index.numbers)
            case Text(param, mode, value):
                return any(p == param and spelled(mode, value, folded, exact) for p, folded, exact in index.strings)
            case Present(param, kind):
                rows = {
                    "token": index.tokens,
                    "reference": index.references,
                    "date": index.dates,
                    "string": index.strings,
                    "number": index.numbers,
                }[kind]
                return any(row[0] == param for row in rows)
            case Link(param, inner):
                found = {other.resource_id for other in self.find(inner)}
                return any(p == param and k == inner.resource_type and t in found for p, k, t in index.references)
            case Referred(param, inner):
                me = (param, one.resource_type, one.resource_id)
                return any(me in other.index.references for other in self.find(inner))


def compared(prefix: str, a: int, b: int, lo: int, hi: int) -> bool:
    within = a >= lo and b <= hi
    return {
        "eq": within,
        "ne": not within,
        "gt": b > hi,
        "lt": a < lo,
        "ge": b > hi or within,
        "le": a < lo or within,
        "sa": a >= hi,
        "eb": b <= lo,
        "ap": a < hi and b > lo,
    }[prefix]


def measured(number: Number, a: float, b: float, system: str, code: str) -> bool:
    if number.system not in {None, system} or number.code not in {None, code}:
        return False
    within = number.lo <= a < number.hi and b < number.hi
    return {
        "eq": within,
        "ne": not within,
        "gt": b > number.exact,
        "lt": a < number.exact,
        "ge": b >= number.exact,
        "le": a <= number.exact,
        "sa": a > number.exact,
        "eb": b < number.exact,
        "ap": a < number.hi and b >= number.lo,
    }[number.prefix]


def spelled(mode: str, value: str, folded: str, exact: str) -> bool:
    return {"starts": folded.startswith(value), "contains": value in folded, "exact": exact == value}[mode]


# --- a world made by chance ------------------------------------------------------------------------------------

NAMES = ("ab", "abc", "b", "b%_", "ü", "\ud7ff", "\U0010ffff", "müller", "a\U0010ffffz")


def made(dice: random.Random, kind: str, number: int) -> Index:
    dates: set[tuple[str, int, int]] = set()
    for _ in range(dice.choice((0, 1, 1, 1, 1, 2))):
        lo = dice.randrange(20) * DAY // 2
        dates.add(("when", lo, lo + dice.choice((1, 1000, DAY, 7 * DAY))))
    if dice.random() < 0.1:
        dates = {("when", UNDATED, dice.randrange(20) * DAY)}
    for _ in range(dice.randrange(3)):
        lo = dice.randrange(20) * DAY
        dates.add(("other", lo, lo + dice.choice((1000, DAY, 40 * DAY))))
    return Index(
        tokens=frozenset(
            {("code", dice.choice(("", "s", "t")), dice.choice("XYZ")) for _ in range(dice.randrange(4))}
            | {("status", "s", dice.choice(("on", "off")))}
            | {("identifier", dice.choice(("", "a")), str(number // 2))}
            | {("source", "", dice.choice(("http://a", "http://a/b", "http://ab", "http://a/b/c")))}
        ),
        references=frozenset(
            ("of", dice.choice(("A", "B", "C")), f"{dice.randrange(12)}") for _ in range(dice.randrange(4))
        ),
        dates=frozenset(dates),
        strings=frozenset(("name", text, text.upper()) for text in dice.sample(NAMES, dice.randrange(3))),
        numbers=frozenset(
            ("size", value, value + dice.choice((0, 0, 2.5)), "u", dice.choice(("mm", "cm")))
            for value in (dice.randrange(8) / 2 for _ in range(dice.randrange(3)))
        ),
        patient_id=dice.choice((None, "0", "1", "2")),
        sort=min((lo for name, lo, _ in dates if name == "when"), default=UNDATED),
    )


@pytest.fixture
def world(store: Store) -> World:
    dice = random.Random(SEED)
    changes = [
        Change(Stored(kind, str(number), 1, 1000 + dice.randrange(20), False, b"{}"), made(dice, kind, number))
        for kind, size in (("A", 60), ("B", 30), ("C", 12))
        for number in range(size)
    ]
    dice.shuffle(changes)
    written = store.transact(lambda connection: resources.write(connection, changes))
    by_type: dict[str, list[One]] = {}
    for stored, change in zip(written, changes, strict=True):
        one = One(stored.rid, stored.resource_type, stored.resource_id, stored.updated, change.index)
        by_type.setdefault(stored.resource_type, []).append(one)
    return World(by_type)


def condition(dice: random.Random, depth: int) -> Condition:
    day, name = dice.randrange(20) * DAY // 2, dice.choice(NAMES)
    amount, updated = dice.randrange(8) / 2, 1000 + dice.randrange(20)
    some: list[Callable[[], Condition]] = [
        lambda: Ids(frozenset(str(dice.randrange(12)) for _ in range(dice.randrange(5)))),
        lambda: Owner(dice.choice("012")),
        lambda: Token("code", dice.choice((None, "", "s")), dice.choice((None, "X", "Y"))),
        lambda: Token("status", dice.choice((None, "s")), "on"),
        lambda: Token("identifier", dice.choice((None, "a")), str(dice.randrange(30))),
        lambda: Below("source", dice.choice(("http://a", "http://a/b/"))),
        lambda: Target("of", dice.choice((None, "A", "B")), str(dice.randrange(12))),
        lambda: Date("when", dice.choice(PREFIXES), day, day + dice.choice((1000, DAY, 3 * DAY))),
        lambda: Date("when", dice.choice(("ge", "le", "eq")), day, day + dice.choice((DAY, 5 * DAY))),
        lambda: Date("other", dice.choice(PREFIXES), day, day + dice.choice((1000, DAY, 3 * DAY))),
        lambda: Date("_lastUpdated", dice.choice(PREFIXES), updated, updated + dice.choice((1, 5))),
        lambda: Number(
            *("size", dice.choice(PREFIXES), amount, amount - 0.25, amount + 0.25),
            *(dice.choice((None, "u")), dice.choice((None, "mm"))),
        ),
        lambda: Text("name", "starts", name[:1]),
        lambda: Text("name", "contains", name[-1:]),
        lambda: Text("name", "exact", name.upper()),
        lambda: Present(*dice.choice((("code", "token"), ("of", "reference"), ("other", "date"), ("name", "string")))),
    ]
    if depth:
        some += [
            lambda: Link("of", question(dice, dice.choice("ABC"), depth - 1)),
            lambda: Referred("of", question(dice, dice.choice("ABC"), depth - 1)),
        ]
    return dice.choice(some)()


def clause(dice: random.Random, depth: int) -> Clause:
    some = dice.choice((1, 1, 1, 2, 3))
    return Clause(tuple(condition(dice, depth) for _ in range(some)), dice.random() < 0.2)


def question(dice: random.Random, kind: str, depth: int = 2) -> Query:
    clauses = tuple(clause(dice, depth) for _ in range(dice.choice((0, 1, 1, 2, 2, 3))))
    few = ((Clause((Owner("1"),)),), (Clause((Token("identifier", None, "4"),)),))
    some = ((clause(dice, 0),), (clause(dice, 0), clause(dice, 0)))
    allowed = dice.choice((((),), ((),), ((),), some, ((clause(dice, max(0, depth - 1)),),), few))
    return Query(kind, clauses, () if dice.random() < 0.02 else allowed, natural="when")


ORDERS = (
    (Key(),),
    (Key(descending=False),),
    (Key("updated"),),
    (Key("updated", descending=False),),
    (Key("id", descending=False),),
    (Key("name", "string", False), Key()),
    (Key("other", "date", True),),
    (Key("size", "number", False), Key("code", "token", True), Key("id")),
    (Key("of", "reference", False), Key("sort", descending=False)),
)


def ranked(one: One, order: tuple[Key, ...]) -> list[tuple[bool, Any]]:
    """What sorts ascending as the order wants, with a reversed value where it goes down."""
    ranks: list[tuple[bool, Any]] = []
    for key in order:
        value = valued(one, key)
        ranks.append((value is None, Reversed(value) if key.descending and value is not None else value or 0))
        if value is not None and not key.descending:
            ranks[-1] = (False, value)
    ranks.append((False, Reversed(one.rid) if order[-1].descending else one.rid))
    return ranks


def valued(one: One, key: Key) -> Any:
    if key.kind == "column":
        columns = {"updated": one.updated, "id": one.resource_id.encode(), "sort": one.index.sort}
        return None if columns[key.by] == UNDATED else columns[key.by]
    rows = {
        "string": [(p, text.encode("utf-8", "surrogatepass")) for p, text, _ in one.index.strings],
        "date": [(p, lo) for p, lo, _ in one.index.dates],
        "number": [(p, lo) for p, lo, *_ in one.index.numbers],
        "token": [(p, v) for p, _, v in one.index.tokens],
        "reference": [(p, t) for p, _, t in one.index.references],
    }[key.kind]
    values = [value for param, value in rows if param == key.by]
    return (max(values) if key.descending else min(values)) if values else None


@dataclass(frozen=True, slots=True, order=False)
class Reversed:
    value: Any

    def __lt__(self, other: Reversed) -> bool:
        return other.value < self.value


def walked(store: Store, query: Query, size: int) -> list[int]:
    """The numbers on all pages, each page once."""
    found: list[int] = []
    after = None
    while True:
        with store.read() as connection:
            hits = resources.search(connection, query, limit=size, after=after)
        found += [hit.stored.rid for hit in hits]
        if len(hits) < size:
            return found
        after = hits[-1].place


@pytest.mark.parametrize("part", range(4))
def test_a_plan_finds_what_asking_every_resource_finds_in_the_same_order(store: Store, world: World, part: int) -> None:
    dice = random.Random(SEED + part)
    for _ in range(120 if store.sqlite else 25):
        query = question(dice, dice.choice("AAB"))
        order = dice.choice(ORDERS)
        query = Query(query.resource_type, query.clauses, query.allowed, order, query.natural)
        expected = [one.rid for one in sorted(world.find(query), key=lambda one: ranked(one, order))]
        size = dice.choice((1, 3, 200)) if len(expected) < 12 else dice.choice((4, 7, 200))
        assert walked(store, query, size) == expected, query
        with store.read() as connection:
            assert resources.count(connection, query) == len(expected), query


def test_many_alternatives_are_one_search(store: Store, world: World) -> None:
    for kinds in (
        tuple(Token("identifier", None, str(n)) for n in range(40)),
        tuple(Token("identifier", "a", str(n)) for n in range(3, 30)),
        tuple(Token("code", "s", f"{n}X"[-1:]) for n in range(40)),
        tuple(Target("of", None, str(n)) for n in range(20)),
        (*(Target("of", "A", str(n)) for n in range(20)), Owner("1")),
        (Ids(frozenset(map(str, range(500)))),),
    ):
        query = Query("A", (Clause(kinds),))
        expected = {one.rid for one in world.find(query)}
        found = walked(store, query, 7)
        assert set(found) == expected
        assert len(found) == len(expected)


def test_no_page_shows_one_twice_or_leaves_one_out_while_others_arrive(store: Store, world: World) -> None:
    query = Query("A", (Clause((Token("code", None, "X"), Token("code", None, "Y"))),), natural="when")
    before = {one.rid for one in world.find(query)}
    dice, seen, after = random.Random(SEED), [], None
    while True:
        with store.read() as connection:
            hits = resources.search(connection, query, limit=3, after=after)
        seen += [hit.stored.rid for hit in hits]
        if len(hits) < 3:
            break
        after = hits[-1].place
        number = 1000 + len(seen)
        new = Change(Stored("A", str(number), 1, number, False, b"{}"), made(dice, "A", number))
        store.transact(lambda connection, new=new: resources.write(connection, [new]))
    assert len(seen) == len(set(seen))
    assert before <= set(seen)


MAIN = {
    "patient": Query("A", (Clause((Owner("1"),)),), natural="when"),
    "patient by reference": Query("A", (Clause((Target("of", "Patient", "1"),)),), natural="when"),
    "modality": Query("A", (Clause((Token("code", None, "X"),)),), natural="when"),
    "modality in a year": Query(
        "A", (Clause((Token("code", "s", "X"),)), Clause((Date("when", "ge", 0, DAY),))), natural="when"
    ),
    "two modalities": Query("A", (Clause((Token("code", "s", "X"), Token("code", "s", "Y"))),), natural="when"),
    "identifier": Query("A", (Clause((Token("identifier", "a", "1"),)),), natural="when"),
    "ids": Query("A", (Clause((Ids(frozenset({"1", "2"})),)),), natural="when"),
    "date": Query("A", (Clause((Date("when", "eq", 0, DAY),)),), natural="when"),
    "other date": Query("A", (Clause((Date("other", "ge", 0, DAY),)),), natural="when"),
    "name": Query("A", (Clause((Text("name", "starts", "ab"),)),), natural="when"),
    "size": Query("A", (Clause((Number("size", "eq", 1, 0.5, 1.5),)),), natural="when"),
    "chain": Query(
        "A", (Clause((Link("of", Query("B", (Clause((Token("identifier", None, "1"),)),))),)),), natural="when"
    ),
    "reverse chain": Query(
        "A", (Clause((Referred("of", Query("B", (Clause((Token("identifier", None, "1"),)),))),)),), natural="when"
    ),
    "last updated": Query("A", (Clause((Date("_lastUpdated", "ge", 1, 2),)),), natural="when"),
    "newest": Query("A", natural="when"),
    "latest": Query("A", order=(Key("updated"),), natural="when"),
}


# PostgreSQL reads small tables whole, whatever their indexes.
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", MAIN)
def test_no_search_reads_a_whole_table(store: Store, name: str) -> None:
    with store.read() as connection:
        page = plan.page(MAIN[name], 50, None, plan.Engine(True, lambda _: True))
        steps = [row[3] for row in run(connection, f"EXPLAIN QUERY PLAN {page.text}", page.values)]
    read = [step for step in steps if step.startswith("SCAN")]
    # What a subquery has found is read whole; a table never is.
    assert [step for step in read if not step.startswith(("SCAN i0", "SCAN b", "SCAN (subquery"))] == []
    if name in {"patient", "patient by reference", "modality", "newest", "latest"}:
        assert not [step for step in steps if "ORDER BY" in step]
