"""From a query to SQL by rule: the most selective condition leads, the others are asked of each row it yields.

Nothing is left to the engine's planner. Every parameter's rows stand in an order that ends early: a token's or a
reference's by the owner's natural date, so that the newest fifty are the first fifty read. The other conditions are
point probes (https://hl7.org/fhir/R4/search.html). The two dialects differ in how an order of joins is pinned.

Queries that differ in nothing but their values have one text: it is planned once, from a query with places for values
(`app/store/shapes.py`), and each search only fills its values in.
"""

# ruff: noqa: S608 - SQL is put together from our own words; every value is bound

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import sub
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from app.store import shapes
from app.store.query import (
    UNDATED,
    Below,
    Clause,
    Condition,
    Date,
    Ids,
    Key,
    Kind,
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
    cut,
    key,
)
from app.store.shapes import Shape, Values, made

DAY = 86_400_000
_LAST = 2**62
"""Stands for UNDATED where the oldest come first: what has no date comes last all the same."""
_BRANCHES = 16
"""An alternative with more members than this is not split into one ordered branch for each."""
SELECTIVE = frozenset(
    {"identifier", "requisition", "group-identifier", "series", "instance", "phone", "email", "telecom", "value"}
)
"""Tokens that few resources share."""
_TABLES: dict[Kind, tuple[str, str]] = {
    "token": ("indextoken", "value"),
    "reference": ("indexreference", "target_id"),
    "date": ("indexdate", "lo"),
    "string": ("indexstring", "folded"),
    "number": ("indexnumber", "lo"),
}
"""Each kind's table and the column one sorts by."""

# How well a condition leads; a smaller rank leads.
_IDS, _UNIQUE, _OWNER, _TARGET, _TEXT, _CHAIN, _TOKEN, _RANGE, _SCAN = range(9)


class Sql(NamedTuple):
    """A piece of SQL with the values of its marks, or with the places that they will come from."""

    text: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Engine:
    """What a plan has to know: the dialect, and of a parameter's number whether any of its dates is apart."""

    sqlite: bool
    has_apart: Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The row that conditions are asked of: expressions for its number and date, and the alias of its resource row."""

    resource_type: str
    natural: str | None
    rid: str
    sort: str | None
    row: str | None
    depth: int
    engine: Engine
    bounded: bool = False
    """The natural date lies between the bounds already, and nothing is apart."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where rows come from: FROM and WHERE, what they tell, and whether each resource comes at most once."""

    tables: Sql
    where: Sql
    rid: str
    sort: str | None = None
    row: str | None = None
    once: bool = False


@dataclass(frozen=True, slots=True)
class _Ask:
    """One query being planned, at one depth of nesting; the allowances are empty when there are not several."""

    query: Query
    clauses: tuple[Clause, ...]
    allowed: tuple[tuple[Clause, ...], ...]
    depth: int
    engine: Engine
    apart: bool
    """Whether some natural dates are apart."""


@dataclass(frozen=True, slots=True)
class _Branch:
    """A source, and the clauses that its rows still have to meet."""

    source: _Source
    clauses: tuple[Clause, ...]
    bounds: bool = False


# --- what is offered -----------------------------------------------------------------------------------------


def page(query: Query, limit: int, after: Place | None, engine: Engine) -> Sql:
    """The keys of the order and the numbers of at most `limit` resources, in order."""
    if after is not None:
        values: list[Any] = [limit]
        return _filled(_paged, query, values, engine, shapes.place(after, values))
    kept = _first_pages.get(query)
    if kept is None:
        kept = _first_pages[query] = _FirstPages(tuple(dict.fromkeys(shapes.dated(shapes.shape(query, [])))), {})
    state = (limit, engine.sqlite, tuple([engine.has_apart(number) for number in kept.dated]))
    found = kept.made.get(state)
    if found is None:
        found = kept.made[state] = _filled(_paged, query, [limit], engine, None)
    return found


def count(query: Query, engine: Engine) -> Sql:
    """How many resources there are."""
    return _filled(_counted, query, [0], engine, None)


class _FirstPages(NamedTuple):
    """The SQL of a query's first page, by what it depends on: who keeps a query asks it again from its beginning."""

    dated: tuple[int, ...]
    made: dict[tuple[int, bool, tuple[bool, ...]], Sql]


_first_pages: WeakKeyDictionary[Query, _FirstPages] = WeakKeyDictionary()


# --- one text for all queries of a shape -----------------------------------------------------------------------

_Planner = Callable[[Query, Engine, Any, Shape | None], Sql]
_KEPT = 1024
"""So many texts are kept."""
_SHORT = 64
"""Queries of more values are hardly asked twice, and their texts are long."""


def _filled(planner: _Planner, query: Query, values: list[Any], engine: Engine, place: Shape | None) -> Sql:
    shape = shapes.shape(query, values)
    apart = tuple(number for number in shapes.dated(shape) if engine.has_apart(number))
    template = _template if len(values) <= _SHORT else _template.__wrapped__
    text, takes = template(planner, shape, place, engine.sqlite, apart)
    return Sql(text, tuple([take(values) for take in takes]))


@lru_cache(maxsize=_KEPT)
def _template(
    planner: _Planner, shape: Shape, place: Shape | None, sqlite: bool, apart: tuple[int, ...]
) -> tuple[str, tuple[Callable[[Values], Any], ...]]:
    """The text of all queries of this shape, and how each of its values is had from theirs."""
    engine = Engine(sqlite, frozenset(apart).__contains__)
    first = 1 + (place.count(shapes.GIVEN) if place else 0)
    planned = planner(shapes.pattern(shape, first), engine, shapes.given(0), place)
    return planned.text, tuple(shapes.taking(value) for value in planned.values)


def _paged(query: Query, engine: Engine, limit: Any, place: Shape | None) -> Sql:
    ask = _ask(query, 0, engine)
    after = None if place is None else shapes.pattern_place(place, 1)
    branches = [
        _ordered(ask, branch, undated, limit, after) for branch in _branches(ask) for undated in _segments(query.order)
    ]
    if not branches:
        return Sql(f"SELECT {_names(query.order)} FROM (SELECT 0 AS rid, 0 AS k0) n WHERE 1 = 0")
    if len(branches) == 1:
        return branches[0]
    either = " UNION ".join(f"SELECT * FROM ({branch.text}) b{n}" for n, branch in enumerate(branches))
    values = tuple(value for branch in branches for value in branch.values)
    return Sql(f"{either} {ordering(query.order)} LIMIT ?", (*values, limit))


def _counted(query: Query, engine: Engine, _limit: Any, _place: Shape | None) -> Sql:
    ask = _ask(query, 0, engine)
    branches = _branches(ask)
    if len(branches) == 1 and branches[0].source.once:
        return _select(ask, branches[0], Sql("count(*)"))
    found = _matching(ask, "rid")
    return Sql(f"SELECT count(*) FROM ({found.text}) c", found.values)


def ordering(order: Sequence[Key], of: str = "") -> str:
    """ORDER BY over a page's columns."""
    keys = (f"{of}k{n}{_direction(one)}" for n, one in enumerate(order))
    return f"ORDER BY {', '.join([*keys, f'{of}rid{_down(order)}'])}"


# --- the order -----------------------------------------------------------------------------------------------


def _direction(one: Key) -> str:
    # Columns are never null, and their indexes know no NULLS LAST.
    return f"{' DESC' if one.descending else ''}{'' if one.kind == 'column' else ' NULLS LAST'}"


def _down(order: Sequence[Key]) -> str:
    return " DESC" if order and order[-1].descending else ""


def _names(order: Sequence[Key]) -> str:
    return ", ".join([*(f"0 AS k{n}" for n in range(len(order))), "rid"])


def _segments(order: Sequence[Key]) -> tuple[bool | None, ...]:
    """Oldest first, what is dated and what is not are two stretches of the index."""
    return (False, True) if order == (Key("sort", "column", False),) else (None,)


def _ordered(ask: _Ask, branch: _Branch, undated: bool | None, limit: Any, after: Place | None) -> Sql:
    order = ask.query.order
    source = branch.source
    needs_row = source.sort is None or any(one.kind == "column" and one.by != "sort" for one in order)
    frame = _frame(ask, branch, needs_row=needs_row)
    keys = [_key(one, frame, undated) for one in order]
    more = [_stretch(frame, undated)] if undated is not None else []
    if after is not None:
        more.append(_beyond(order, keys, Sql(frame.rid), after, undated))
    columns = [Sql(f"{one.text} AS k{n}", one.values) for n, one in enumerate(keys)]
    selected = _join(", ", [*columns, Sql(f"{frame.rid} AS rid")])
    found = _select(ask, branch, selected, more, needs_row=needs_row)
    return Sql(f"{found.text} {ordering(order)} LIMIT ?", (*found.values, limit))


def _stretch(frame: _Frame, undated: bool) -> Sql:
    return Sql(f"{frame.sort} {'=' if undated else '>'} {UNDATED}")


def _key(one: Key, frame: _Frame, undated: bool | None) -> Sql:
    if one.kind != "column":
        table, column = _TABLES[one.kind]
        best = "max" if one.descending else "min"
        return Sql(
            f"(SELECT {best}(o.{column}) FROM {table} o WHERE o.rid = {frame.rid} AND o.param = ?)",
            (key(frame.resource_type, one.by),),
        )
    if one.by == "updated":
        return Sql(f"{frame.row}.updated")
    if one.by == "id":
        return Sql(f"{frame.row}.resource_id")
    if one.descending or undated is False:
        return Sql(f"{frame.sort}")
    return Sql(f"CASE WHEN {frame.sort} = {UNDATED} THEN {_LAST} ELSE {frame.sort} END")


def _beyond(order: Sequence[Key], keys: Sequence[Sql], rid: Sql, after: Place, undated: bool | None) -> Sql:
    """What comes after a place: an earlier key decides, or all are equal and the number does."""
    last = "<" if order and order[-1].descending else ">"
    if undated:
        return Sql(f"{rid.text} > ?", (after[1],)) if after[0] == _LAST else _ALL
    if len(order) == 1 and order[0].kind == "column":
        return Sql(f"({keys[0].text}, {rid.text}) {last} (?, ?)", after)
    cases: list[Sql] = []
    equal: list[Sql] = []
    for one, expression, value in zip(order, keys, after, strict=False):
        further = _further(one, expression, value)
        if further is not None:
            cases.append(_every([*equal, further]))
        equal.append(
            Sql(f"{expression.text} IS NULL", expression.values)
            if value is None
            else Sql(f"{expression.text} = ?", (*expression.values, value))
        )
    cases.append(_every([*equal, Sql(f"{rid.text} {last} ?", (after[-1],))]))
    return _some(cases)


def _further(one: Key, expression: Sql, value: Any) -> Sql | None:
    if value is None:
        return None
    sign = "<" if one.descending else ">"
    beyond = Sql(f"{expression.text} {sign} ?", (*expression.values, value))
    if one.kind == "column":
        return beyond
    return _some([beyond, Sql(f"{expression.text} IS NULL", expression.values)])


# --- choosing who leads --------------------------------------------------------------------------------------


def _ask(query: Query, depth: int, engine: Engine) -> _Ask:
    clauses, allowed = query.clauses, query.allowed
    if len(allowed) < 2:
        clauses = (*clauses, *(allowed[0] if allowed else (Clause(()),)))
    several = allowed if len(allowed) > 1 and all(allowed) else ()
    dated = query.natural is not None and any(
        isinstance(one, Date) and one.param == query.natural
        for demands in (clauses, *several)
        for clause in demands
        for one in clause.any_of
    )
    apart = dated and engine.has_apart(key(query.resource_type, query.natural or ""))
    return _Ask(query, clauses, several, depth, engine, apart)


def _branches(ask: _Ask) -> list[_Branch]:
    """One for each alternative of the clause that leads; of each allowance's own, where no common one does better."""
    if any(not clause.any_of and not clause.negated for clause in ask.clauses):
        return []
    common = _leader(ask, ask.clauses)
    rank = _clause_rank(ask, common)
    own = [_leader(ask, clauses) for clauses in ask.allowed]
    if own and max(_clause_rank(ask, clause) for clause in own) < min(rank, _CHAIN):
        return [
            branch
            for clauses, clause in zip(ask.allowed, own, strict=True)
            for branch in _led(ask, clause, (*ask.clauses, *clauses))
        ]
    return _led(ask, common, ask.clauses)


def _leader(ask: _Ask, clauses: Iterable[Clause]) -> Clause | None:
    rank, leader = _SCAN, None
    for clause in clauses:
        this = _clause_rank(ask, clause)
        if this < rank:
            rank, leader = this, clause
    return leader


def _clause_rank(ask: _Ask, clause: Clause | None) -> int:
    if clause is None or clause.negated or not clause.any_of:
        return _SCAN
    rank = max(_rank(ask, condition) for condition in clause.any_of)
    if rank == _TOKEN and (len(clause.any_of) > _BRANCHES or not _by_date(ask.query.order)):
        return _SCAN if ask.query.order[:1] == (Key("updated"),) or len(clause.any_of) > _BRANCHES else rank
    return rank


def _by_date(order: Sequence[Key]) -> bool:
    return len(order) == 1 and order[0].by == "sort" and order[0].kind == "column"


def _rank(ask: _Ask, condition: Condition) -> int:
    match condition:
        case Ids():
            return _IDS
        case Owner() | Target(_, "Patient", _):
            return _OWNER
        case Target():
            return _TARGET
        case Link(_, query) | Referred(_, query):
            return _CHAIN if _best(_ask(query, ask.depth + 1, ask.engine)) <= _CHAIN else _SCAN
        case Token() | Text():
            return _worded_rank(condition)
        case Below() | Date() | Number() | Present():
            return _RANGE if _is_range(ask, condition) else _SCAN


def _worded_rank(condition: Token | Text) -> int:
    match condition:
        case Token(_, _, None) | Text(_, "contains", _):
            return _SCAN
        case Token(param, _, _):
            return _UNIQUE if param.partition(":")[0] in SELECTIVE else _TOKEN
        case Text(_, mode, value):
            return _TEXT if mode == "starts" and value else _RANGE


def _is_range(ask: _Ask, condition: Below | Date | Number | Present) -> bool:
    """The natural date and the last update are better bounds of the type's own indexes than sources."""
    if isinstance(condition, Date | Number) and condition.prefix == "ne":
        return False
    return not isinstance(condition, Present) and condition.param not in {"_lastUpdated", ask.query.natural}


def _best(ask: _Ask) -> int:
    common = _clause_rank(ask, _leader(ask, ask.clauses))
    own = [_clause_rank(ask, _leader(ask, clauses)) for clauses in ask.allowed]
    return min(common, max(own)) if own else common


def _led(ask: _Ask, leader: Clause | None, clauses: tuple[Clause, ...]) -> list[_Branch]:
    rank = _clause_rank(ask, leader)
    # One branch more is worth it where many rows may be left out; without it the bounds cost nothing.
    bounds = rank >= (_TARGET if ask.apart else _OWNER) and any(
        _bounds(ask.query.natural, clause) for clause in clauses
    )
    rest = tuple(clause for clause in clauses if clause is not leader)
    if leader is None:
        sources = [_scan(ask, clauses)]
    elif len(leader.any_of) > _BRANCHES and rank != _IDS:
        sources = _gathered(ask, leader)
    else:
        sources = [source for condition in leader.any_of for source in _sources(ask, condition)]
    branches = [_Branch(source, rest, bounds) for source in sources]
    if bounds and ask.apart:
        # What is longer than a day, or one of several, is not told by the owner's date: a short list of its own.
        branches.append(_Branch(_apart(ask, ask.query.natural or ""), clauses))
    return branches


# --- sources -------------------------------------------------------------------------------------------------


def _sources(ask: _Ask, condition: Condition) -> list[_Source]:
    """Where the rows that meet a condition are read."""
    match condition:
        case Ids() | Owner():
            return [_rows(ask, condition)]
        case Link():
            return [_linked(ask, condition)]
        case Referred():
            return [_referred(ask, condition)]
        case Date():
            return _dated(ask, condition)
        case Token() | Below() | Target() | Number() | Text() | Present():
            return [_indexed(ask, condition)]


def _indexed(ask: _Ask, condition: Token | Below | Target | Number | Text | Present) -> _Source:
    d = f"d{ask.depth}"
    own = Sql(f"{d}.param = ?", (key(ask.query.resource_type, condition.param),))
    where = _every([own, _said(condition, d, sqlite=ask.engine.sqlite)])
    sort = f"{d}.sort" if isinstance(condition, Token | Below | Target) else None
    # One value of one system stands once in a resource's rows; otherwise there may be several.
    once = (isinstance(condition, Token) and condition.system is not None and condition.value is not None) or (
        isinstance(condition, Target) and condition.target_type is not None
    )
    return _Source(Sql(f"{_table(condition)} {d}"), where, f"{d}.rid", sort, None, once)


def _dated(ask: _Ask, date: Date) -> list[_Source]:
    """Short intervals between the beginnings they may have, and the few that are apart."""
    d, number = f"d{ask.depth}", key(ask.query.resource_type, date.param)
    low, high = (made(rule[date.prefix], date.lo, date.hi) for rule in (_LOWEST, _HIGHEST))
    near = Sql(f"{d}.param = ? AND {d}.lo >= ? AND {d}.lo < ? AND NOT {d}.apart", (number, low, high))
    far = _apart(ask, date.param)
    compared = _interval(d, date)
    return [
        _Source(Sql(f"indexdate {d}"), _every([near, compared]), f"{d}.rid"),
        replace(far, where=_every([far.where, compared])),
    ]


def _rows(ask: _Ask, condition: Ids | Owner) -> _Source:
    kind, r = ask.query.resource_type, f"r{ask.depth}"
    if isinstance(condition, Ids):
        values = tuple(condition.values)
        where = Sql(
            f"{r}.resource_type = ? AND NOT {r}.deleted AND {r}.resource_id IN ({_marks(values)})", (kind, *values)
        )
        return _Source(Sql(f"resource {r}"), where, f"{r}.rid", f"{r}.sort", r, True)
    where = Sql(f"{r}.resource_type = ? AND {r}.patient_id = ? AND NOT {r}.deleted", (kind, condition.patient_id))
    return _Source(_by_index(ask, r, "ix_resource_patient"), where, f"{r}.rid", f"{r}.sort", r, True)


def _scan(ask: _Ask, clauses: Iterable[Clause]) -> _Source:
    """All of the type, by the index that has the order, or the last updates when one asks since when."""
    r, order = f"r{ask.depth}", ask.query.order
    recent = any(_is_recent(clause) for clause in clauses)
    by_update = recent or (order[:1] and order[0].by == "updated" and len(order) == 1)
    index = "ix_resource_updated" if by_update else "ix_resource_sort"
    where = Sql(f"{r}.resource_type = ? AND NOT {r}.deleted", (ask.query.resource_type,))
    return _Source(_by_index(ask, r, index), where, f"{r}.rid", f"{r}.sort", r, True)


def _is_recent(clause: Clause) -> bool:
    return not clause.negated and all(
        isinstance(one, Date) and one.param == "_lastUpdated" and one.prefix in {"eq", "gt", "ge", "sa", "ap"}
        for one in clause.any_of
    )


def _by_index(ask: _Ask, alias: str, index: str) -> Sql:
    return Sql(f"resource {alias} INDEXED BY {index}" if ask.engine.sqlite else f"resource {alias}")


def _apart(ask: _Ask, param: str) -> _Source:
    d = f"d{ask.depth}"
    index = " INDEXED BY ix_date_apart" if ask.engine.sqlite else ""
    where = Sql(f"{d}.param = ? AND {d}.apart", (key(ask.query.resource_type, param),))
    return _Source(Sql(f"indexdate {d}{index}"), where, f"{d}.rid")


def _gathered(ask: _Ask, clause: Clause) -> list[_Source]:
    """Many alternatives in as few sources as there are parameters, where the rows of each are few."""
    d, kind = f"d{ask.depth}", ask.query.resource_type
    groups: dict[tuple[str, str], list[Token | Target]] = {}
    sources: list[_Source] = []
    for condition in clause.any_of:
        if isinstance(condition, Token | Target):
            groups.setdefault((_table(condition), condition.param), []).append(condition)
        else:
            sources += _sources(ask, condition)
    for (table, param), members in groups.items():
        column = "value" if table == "indextoken" else "target_id"
        wanted = [made(cut, one.value if isinstance(one, Token) else one.target_id) for one in members]
        named = Sql(f"{d}.param = ? AND {d}.{column} IN ({_marks(wanted)})", (key(kind, param), *wanted))
        exact = _some([_token(one, d) if isinstance(one, Token) else _target(one, d) for one in members])
        sources.append(_Source(Sql(f"{table} {d}"), _every([named, exact]), f"{d}.rid", f"{d}.sort"))
    return sources


def _linked(ask: _Ask, link: Link) -> _Source:
    d, i = f"d{ask.depth}", f"i{ask.depth}"
    inner = _matching(_ask(link.query, ask.depth + 1, ask.engine), "resource_id")
    tables = Sql(f"({inner.text}) {i} CROSS JOIN indexreference {d}", inner.values)
    where = Sql(
        f"{d}.param = ? AND {d}.target_id = {i}.resource_id AND {d}.target_type = ?",
        (key(ask.query.resource_type, link.param), link.query.resource_type),
    )
    return _Source(tables, where, f"{d}.rid", f"{d}.sort")


def _referred(ask: _Ask, condition: Referred) -> _Source:
    d, i, r = f"d{ask.depth}", f"i{ask.depth}", f"r{ask.depth}"
    kind = ask.query.resource_type
    inner = _matching(_ask(condition.query, ask.depth + 1, ask.engine), "rid")
    tables = Sql(f"({inner.text}) {i} CROSS JOIN indexreference {d} CROSS JOIN resource {r}", inner.values)
    where = Sql(
        f"{d}.rid = {i}.rid AND {d}.param = ? AND {d}.target_type = ?"
        f" AND {r}.resource_type = ? AND {r}.resource_id = {d}.target_id AND NOT {r}.deleted",
        (key(condition.query.resource_type, condition.param), kind, kind),
    )
    return _Source(tables, where, f"{r}.rid", f"{r}.sort", r)


def _matching(ask: _Ask, column: str) -> Sql:
    """The numbers or ids of all that an inner query finds, each once."""
    branches = _branches(ask)
    row = column == "resource_id"
    selects: list[Sql] = []
    for branch in branches:
        frame = _frame(ask, branch, needs_row=row)
        what = f"{frame.row}.resource_id AS resource_id" if row else f"{frame.rid} AS rid"
        selects.append(_select(ask, branch, Sql(what), needs_row=row))
    if not selects:
        return Sql(f"SELECT {column} FROM resource WHERE 1 = 0")
    return selects[0] if len(selects) == 1 else _join(" UNION ", selects)


# --- one branch ----------------------------------------------------------------------------------------------


def _frame(ask: _Ask, branch: _Branch, *, needs_row: bool) -> _Frame:
    source, depth = branch.source, ask.depth
    row = source.row
    joined = needs_row or source.sort is None or _ask_rows(branch.clauses) or any(map(_ask_rows, ask.allowed))
    if row is None and joined:
        row = f"r{depth}"
    sort = source.sort or f"{row}.sort"
    bounded = branch.bounds and not ask.apart
    return _Frame(ask.query.resource_type, ask.query.natural, source.rid, sort, row, depth, ask.engine, bounded)


def _ask_rows(clauses: Iterable[Clause]) -> bool:
    """Whether some condition is asked of the resource's own row."""
    return any(
        isinstance(one, Ids | Owner | Referred) or (isinstance(one, Date) and one.param == "_lastUpdated")
        for clause in clauses
        for one in clause.any_of
    )


def _select(ask: _Ask, branch: _Branch, columns: Sql, more: Sequence[Sql] = (), *, needs_row: bool = False) -> Sql:
    source = branch.source
    frame = _frame(ask, branch, needs_row=needs_row)
    tables, where = source.tables, [source.where]
    if frame.row is not None and source.row is None:
        tables = Sql(f"{tables.text} {_beside(frame)}", tables.values)
        where += [Sql(f"{frame.row}.rid = {source.rid}")] if ask.engine.sqlite else []
    if branch.bounds:
        where.append(_between(frame, branch.clauses))
    where += [_holds(clause, frame) for clause in branch.clauses]
    if ask.allowed:
        where.append(_some([_every([_holds(clause, frame) for clause in clauses]) for clauses in ask.allowed]))
    found = _every([*where, *more])
    distinct = "" if source.once or columns.text == "count(*)" else "DISTINCT "
    text = f"SELECT {distinct}{columns.text} FROM {tables.text} WHERE {found.text}"
    return Sql(text, (*columns.values, *tables.values, *found.values))


def _beside(frame: _Frame) -> str:
    """The resource's row, found by its number and never the other way round."""
    if frame.engine.sqlite:
        return f"CROSS JOIN resource {frame.row}"
    columns = "rid, resource_type, resource_id, updated, deleted, patient_id, sort"
    return f"CROSS JOIN LATERAL (SELECT {columns} FROM resource WHERE rid = {frame.rid} OFFSET 0) {frame.row}"


# --- conditions asked of a row -------------------------------------------------------------------------------


def _holds(clause: Clause, frame: _Frame) -> Sql:
    either = _some([_condition(condition, frame) for condition in clause.any_of])
    return Sql(f"NOT {either.text}", either.values) if clause.negated else either


def _condition(condition: Condition, frame: _Frame) -> Sql:
    match condition:
        case Ids() | Owner() | Date("_lastUpdated", _, _, _):
            return _own(condition, frame)
        case Link():
            return _link(condition, frame)
        case Referred():
            return _referrer(condition, frame)
        case Date(param, _, _, _) if param == frame.natural:
            return _natural(condition, frame)
        case Present("_id" | "_lastUpdated", _):
            return _ALL
        case Token() | Below() | Target() | Date() | Number() | Text() | Present():
            return _probe(condition, frame)


def _own(condition: Ids | Owner | Date, frame: _Frame) -> Sql:
    """What the resource's row itself says."""
    row = frame.row
    match condition:
        case Ids(values):
            return Sql(f"{row}.resource_id IN ({_marks(values)})", tuple(values)) if values else _NONE
        case Owner(patient_id):
            # Never null, or what is nobody's would not be found by a negation.
            return Sql(f"({row}.patient_id IS NOT NULL AND {row}.patient_id = ?)", (patient_id,))
        case Date(_, prefix, lo, hi):
            return _compared(f"{row}.updated", f"({row}.updated + 1)", prefix, (lo, hi))


Indexed = Token | Below | Target | Date | Number | Text | Present


def _probe(condition: Indexed, frame: _Frame) -> Sql:
    x = f"x{frame.depth}"
    own = Sql(f"{x}.rid = {frame.rid} AND {x}.param = ?", (key(frame.resource_type, condition.param),))
    said = [own, _said(condition, x, sqlite=frame.engine.sqlite)]
    if isinstance(condition, Target) or (isinstance(condition, Token) and condition.value is not None):
        # All of an owner's rows bear its date, which makes this a look-up by the whole primary key.
        said.append(Sql(f"{x}.sort = {frame.sort}"))
    found = _every(said)
    # The offset keeps PostgreSQL from turning the probe into a join of its own choice.
    return Sql(f"EXISTS (SELECT 1 FROM {_table(condition)} {x} WHERE {found.text} LIMIT 1 OFFSET 0)", found.values)


def _table(condition: Indexed) -> str:
    match condition:
        case Token() | Below():
            return "indextoken"
        case Target():
            return "indexreference"
        case Date():
            return "indexdate"
        case Number():
            return "indexnumber"
        case Text():
            return "indexstring"
        case Present(_, kind):
            return _TABLES[kind][0]


def _said(condition: Indexed, alias: str, *, sqlite: bool) -> Sql:
    """What the condition's row in its index table must say."""
    match condition:
        case Token() | Target() | Below():
            return _worded(condition, alias)
        case Date():
            return _interval(alias, condition)
        case Number():
            return _amount(alias, condition)
        case Text():
            return _spelled(alias, condition, sqlite=sqlite)
        case Present():
            return _ALL


def _worded(condition: Token | Target | Below, alias: str) -> Sql:
    match condition:
        case Token():
            return _token(condition, alias)
        case Target():
            return _target(condition, alias)
        case Below(_, value):
            under = _prefix(f"{alias}.value", made(_folder, value))
            return _some([Sql(f"{alias}.value = ?", (made(cut, value),)), under])


def _folder(address: str) -> str:
    return f"{address.rstrip('/')}/"


def _token(token: Token, alias: str) -> Sql:
    said = {"value": token.value, "system": token.system}
    return _every([Sql(f"{alias}.{name} = ?", (made(cut, text),)) for name, text in said.items() if text is not None])


def _target(target: Target, alias: str) -> Sql:
    same = Sql(f"{alias}.target_id = ?", (made(cut, target.target_id),))
    return (
        same if target.target_type is None else _every([same, Sql(f"{alias}.target_type = ?", (target.target_type,))])
    )


def _spelled(alias: str, text: Text, *, sqlite: bool) -> Sql:
    match text.mode:
        case "exact":
            return Sql(f"{alias}.exact = ?", (made(cut, text.value),))
        case "contains":
            return Sql(f"{'instr' if sqlite else 'strpos'}({alias}.folded, ?) > 0", (text.value,))
        case "starts":
            return _prefix(f"{alias}.folded", text.value)


def _prefix(column: str, beginning: Any) -> Sql:
    start = made(cut, beginning)
    end = made(_next, start)
    if not end:
        return Sql(f"{column} >= ?", (start,))
    return Sql(f"{column} >= ? AND {column} < ?", (start, end))


def _next(text: str) -> str:
    """The least text that is greater than all that begin with this one; empty when there is none."""
    kept = text.rstrip("\U0010ffff")
    if not kept:
        return ""
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if following == 0xD800 else following)


def _amount(alias: str, number: Number) -> Sql:
    lo, hi = f"{alias}.lo", f"{alias}.hi"
    within = Sql(f"({lo} >= ? AND {lo} < ? AND {hi} < ?)", (number.lo, number.hi, number.hi))
    rules = {
        "eq": within,
        "ne": Sql(f"NOT {within.text}", within.values),
        "gt": Sql(f"{hi} > ?", (number.exact,)),
        "lt": Sql(f"{lo} < ?", (number.exact,)),
        "ge": Sql(f"{hi} >= ?", (number.exact,)),
        "le": Sql(f"{lo} <= ?", (number.exact,)),
        "sa": Sql(f"{lo} > ?", (number.exact,)),
        "eb": Sql(f"{hi} < ?", (number.exact,)),
        "ap": Sql(f"({lo} < ? AND {hi} >= ?)", (number.hi, number.lo)),
    }
    units = {"system": number.system, "code": number.code}
    return _every(
        [rules[number.prefix]]
        + [Sql(f"{alias}.{name} = ?", (made(cut, text),)) for name, text in units.items() if text is not None]
    )


# --- dates ---------------------------------------------------------------------------------------------------

_EARLIEST, _LATEST = UNDATED + 1, _LAST + 1
# Where an interval of at most a day may begin that meets a prefix with [lo, hi): at least, and less than.
_LOWEST: dict[str, Any] = {
    "eq": lambda lo, _hi: lo,
    "gt": lambda _lo, hi: hi - DAY + 1,
    "ge": lambda lo, hi: min(lo, hi - DAY + 1),
    "sa": lambda _lo, hi: hi,
    "ap": lambda lo, _hi: lo - DAY + 1,
    **dict.fromkeys(("lt", "le", "eb", "ne"), lambda _lo, _hi: _EARLIEST),
}
_HIGHEST: dict[str, Any] = {
    **dict.fromkeys(("eq", "le", "ap"), lambda _lo, hi: hi),
    **dict.fromkeys(("lt", "eb"), lambda lo, _hi: lo),
    **dict.fromkeys(("gt", "ge", "sa", "ne"), lambda _lo, _hi: _LATEST),
}


def _bounds(natural: str | None, clause: Clause) -> tuple[Any, Any] | None:
    """Between which natural dates a resource may lie that meets the clause, if it has one short interval."""
    dates = [one for one in clause.any_of if isinstance(one, Date) and one.param == natural and one.prefix != "ne"]
    if clause.negated or not dates or len(dates) < len(clause.any_of):
        return None
    lows = [made(_LOWEST[one.prefix], one.lo, one.hi) for one in dates]
    highs = [made(_HIGHEST[one.prefix], one.lo, one.hi) for one in dates]
    return made(max, _EARLIEST, made(_least, *lows)), made(min, _LATEST, made(_greatest, *highs))


def _least(*values: int) -> int:
    return min(values)


def _greatest(*values: int) -> int:
    return max(values)


def _between(frame: _Frame, clauses: Iterable[Clause]) -> Sql:
    """All bounds in one pair: SQLite reads an index between the first two it finds."""
    bounds = [found for clause in clauses if (found := _bounds(frame.natural, clause)) is not None]
    low, high = made(_greatest, *(low for low, _ in bounds)), made(_least, *(high for _, high in bounds))
    return Sql(f"{frame.sort} >= ? AND {frame.sort} < ?", (low, high))


def _natural(date: Date, frame: _Frame) -> Sql:
    """The natural date decides without a look at the index, but at the edges and for what is apart."""
    probe = _probe(date, frame)
    apart = _has_apart(date, frame)
    if date.prefix == "ne":
        return probe
    edge = probe
    if not frame.bounded:
        near = Sql(f"({frame.sort} >= ? AND {frame.sort} < ?)", _bounds(frame.natural, Clause((date,))) or ())
        edge = _every([_some([near, apart]) if apart else near, probe])
    return _some([_surely(date, frame.sort or "", apart), edge])


def _has_apart(date: Date, frame: _Frame) -> Sql | None:
    number = key(frame.resource_type, date.param)
    if not frame.engine.has_apart(number):
        return None
    a = f"a{frame.depth}"
    index = f"indexdate {a} INDEXED BY ix_date_apart" if frame.engine.sqlite else f"indexdate {a}"
    return Sql(f"EXISTS (SELECT 1 FROM {index} WHERE {a}.param = ? AND {a}.apart)", (number,))


def _surely(date: Date, sort: str, apart: Sql | None) -> Sql:
    lo, hi = date.lo, date.hi
    match date.prefix:
        case "gt" | "ge" | "sa":
            return Sql(f"{sort} >= ?", (made(max, hi, _EARLIEST),))
        case "lt" | "le":
            return Sql(f"({sort} >= ? AND {sort} < ?)", (_EARLIEST, lo))
        case "ap":
            return Sql(f"({sort} >= ? AND {sort} < ?)", (made(max, lo, _EARLIEST), hi))
        case _:
            # Only a short interval that begins early enough ends in time.
            first, last = (lo, hi) if date.prefix == "eq" else (_EARLIEST, lo)
            inside = Sql(f"({sort} >= ? AND {sort} <= ?)", (made(max, first, _EARLIEST), made(sub, last, DAY)))
            return inside if apart is None else _every([inside, Sql(f"NOT {apart.text}", apart.values)])


def _interval(alias: str, date: Date) -> Sql:
    return _compared(f"{alias}.lo", f"{alias}.hi", date.prefix, (date.lo, date.hi))


def _compared(lo: str, hi: str, prefix: str, wanted: tuple[int, int]) -> Sql:
    """The range rules of https://hl7.org/fhir/R4/search.html#prefix for a value [lo, hi)."""
    least, most = wanted
    match prefix:
        case "eq":
            return Sql(f"({lo} >= ? AND {hi} <= ?)", (least, most))
        case "ne":
            return Sql(f"({lo} < ? OR {hi} > ?)", (least, most))
        case "ge":
            return Sql(f"({hi} > ? OR ({lo} >= ? AND {hi} <= ?))", (most, least, most))
        case "le":
            return Sql(f"({lo} < ? OR ({lo} >= ? AND {hi} <= ?))", (least, least, most))
        case "ap":
            return Sql(f"({lo} < ? AND {hi} > ?)", (most, least))
        case _:
            text, value = {
                "gt": (f"{hi} > ?", most),
                "lt": (f"{lo} < ?", least),
                "sa": (f"{lo} >= ?", most),
                "eb": (f"{hi} <= ?", least),
            }[prefix]
            return Sql(text, (value,))


# --- chains --------------------------------------------------------------------------------------------------


def _link(link: Link, frame: _Frame) -> Sql:
    x, inner = f"x{frame.depth}", frame.depth + 1
    ask = _ask(link.query, inner, frame.engine)
    r = f"r{inner}"
    there = _Frame(link.query.resource_type, link.query.natural, f"{r}.rid", f"{r}.sort", r, inner, frame.engine)
    leads = Sql(
        f"{x}.rid = {frame.rid} AND {x}.param = ? AND {x}.target_type = ?"
        f" AND {r}.resource_type = ? AND {r}.resource_id = {x}.target_id AND NOT {r}.deleted",
        (key(frame.resource_type, link.param), link.query.resource_type, link.query.resource_type),
    )
    found = _every([leads, *_all_hold(ask, there)])
    return Sql(
        f"EXISTS (SELECT 1 FROM indexreference {x} CROSS JOIN resource {r} WHERE {found.text} LIMIT 1 OFFSET 0)",
        found.values,
    )


def _referrer(condition: Referred, frame: _Frame) -> Sql:
    x, inner = f"x{frame.depth}", frame.depth + 1
    ask = _ask(condition.query, inner, frame.engine)
    kind, r = condition.query.resource_type, f"r{inner}"
    there = _Frame(kind, condition.query.natural, f"{x}.rid", f"{x}.sort", r, inner, frame.engine)
    leads = Sql(
        f"{x}.param = ? AND {x}.target_id = {frame.row}.resource_id AND {x}.target_type = ? AND {r}.rid = {x}.rid",
        (key(kind, condition.param), frame.resource_type),
    )
    found = _every([leads, *_all_hold(ask, there)])
    return Sql(
        f"EXISTS (SELECT 1 FROM indexreference {x} CROSS JOIN resource {r} WHERE {found.text} LIMIT 1 OFFSET 0)",
        found.values,
    )


def _all_hold(ask: _Ask, frame: _Frame) -> list[Sql]:
    allowed = [_every([_holds(clause, frame) for clause in clauses]) for clauses in ask.allowed]
    return [*(_holds(clause, frame) for clause in ask.clauses), *([_some(allowed)] if allowed else [])]


# --- pieces --------------------------------------------------------------------------------------------------

_ALL, _NONE = Sql("1 = 1"), Sql("1 = 0")
_BROADEST = 200
"""SQLite takes no expression deeper than a thousand, and reads a row of alternatives as so deep a tree."""


def _join(between: str, pieces: Sequence[Sql]) -> Sql:
    return Sql(between.join(one.text for one in pieces), tuple(value for one in pieces for value in one.values))


def _every(pieces: Sequence[Sql]) -> Sql:
    return _join(" AND ", pieces) if pieces else _ALL


def _some(pieces: Sequence[Sql]) -> Sql:
    if not pieces:
        return Sql(f"({_NONE.text})")
    while len(pieces) > _BROADEST:
        pieces = [_some(pieces[first : first + _BROADEST]) for first in range(0, len(pieces), _BROADEST)]
    joined = _join(") OR (", pieces)
    return Sql(f"(({joined.text}))", joined.values)


def _marks(values: Iterable[Any]) -> str:
    return ", ".join("?" for _ in values) or "NULL"
