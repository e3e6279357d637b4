"""Searches of one type, of several, and of a compartment, answered as a Bundle (https://hl7.org/fhir/R4/http.html#search)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from msgspec import structs
from sqlalchemy.engine import Connection

from app.access import Access
from app.errors import Forbidden, Issue, NotSupported
from app.fhir import audit_events, bundle, granted, includes, outcome, search, shaping
from app.fhir.calls import Call, Reply
from app.fhir.conditions import refusal
from app.fhir.registry import Offer, offers
from app.fhir.search import FORMATS, Search
from app.fhir.shaping import Shape
from app.fhir.site import Site, here
from app.store import resources as rows
from app.store.query import Clause, Condition, Ids, Key, Place, Query, Target
from app.store.resources import Found, Stored

KEPT_ELSEWHERE: Mapping[str, Callable[[Call, Connection], Reply]] = {"audit": audit_events.searched}
"""How a type is searched whose rows are not with the resources: `Offer.kept` says where they are."""
TYPES = "_type"
_UPDATED = (Key("updated"),)
_LENIENT = re.compile(r"(?:^|[,;])\s*handling\s*=\s*\"?lenient\b")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A search as it will be run: `queries` find only what the caller may find, `search` says how that is shown."""

    search: Search
    queries: tuple[Query, ...]
    first: str
    """The address of its first page."""
    bound: bundle.Bound
    """What a later page is sealed for."""


def search_type(call: Call, connection: Connection) -> Reply:
    """`GET [base]/[type]?…`, and with the parameters in the body as well `POST [base]/[type]/_search`."""
    call.permit("s")
    elsewhere = KEPT_ELSEWHERE.get(call.offer.kept)
    if elsewhere is not None:
        return elsewhere(call, connection)
    criteria = _criteria(call)
    understood = _remembered if search.is_memorable(criteria) else _understood
    asked = understood(call.resource_type, criteria, call.door.base, call.access, _is_lenient(call))
    call.about["patient_id"] = call.access.patient_id or granted.patient_of(asked.search.query)
    return _answered(call, connection, asked)


def _understood(
    resource_type: str, criteria: tuple[tuple[str, str], ...], base: str, access: Access, is_lenient: bool
) -> _Asked:
    """A search of one type as this caller may run it: nothing of it depends on the moment."""
    kind = offers()[resource_type]
    wanted = search.parse(kind, criteria, base, lenient=is_lenient)
    return _made((base, resource_type), wanted, (granted.confine(wanted.query, kind, access),), access)


_remembered = lru_cache(maxsize=512)(_understood)


def search_system(call: Call, connection: Connection) -> Reply:
    """`GET [base]?_type=A,B&…`: by parameters that all these types have, the last updated first."""
    named = _types(call)
    kinds = [_searched(call, kind) for kind in named] if named else list(_permitted(call))
    if not kinds:
        raise Forbidden
    call.about["patient_id"] = call.access.patient_id
    return _answered(call, connection, _together(call, "", kinds, named))


def search_compartment(call: Call, connection: Connection) -> Reply:
    """`GET [base]/[compartment]/[id]/[type]?…`, or `*` for all types: what belongs to one patient, encounter …"""
    kind, identity, wanted = call.resource_type, call.resource_id, call.version
    if wanted != "*" and kind not in _compartments(wanted):
        raise NotSupported("there is no such compartment, or the type is not in it")
    named = _types(call) if wanted == "*" else ()
    chosen = named or (() if wanted == "*" else (wanted,))
    kinds = [_searched(call, one) for one in chosen if kind in _compartments(one)] if chosen else list(_permitted(call))
    kinds = [one for one in kinds if kind in one.compartments]
    if not kinds:
        raise Forbidden
    if kind == "Patient":
        granted.require_patient(call.access, [one.resource_type for one in kinds], identity)
        call.about["patient_id"] = identity
    asked = _together(call, f"{kind}/{identity}/{wanted}", kinds, named)
    inside = (structs.replace(query, clauses=(_inside(call, query), *query.clauses)) for query in asked.queries)
    return _answered(call, connection, replace(asked, queries=tuple(inside)))


# --- what is asked --------------------------------------------------------------------------------------------


def _together(call: Call, path: str, kinds: Sequence[Offer], named: Sequence[str]) -> _Asked:
    site = Site(call.door.base, here().zone)
    found = search.together(kinds, [pair for pair in _criteria(call) if pair[0] != TYPES], site)
    queries = [granted.confine(one.query, kind, call.access) for one, kind in zip(found, kinds, strict=True)]
    if len(queries) > 1:
        is_sorted = any(name == "_sort" for name, _ in found[0].applied)
        if is_sorted and any(len(query.order) != 1 or query.order[0].by != "updated" for query in queries):
            raise refusal("several types together can be sorted by _lastUpdated alone", "_sort")
        queries = queries if is_sorted else [structs.replace(query, order=_UPDATED) for query in queries]
    return _made((call.door.base, path), found[0], tuple(queries), call.access, ",".join(named))


def _made(at: tuple[str, str], wanted: Search, queries: tuple[Query, ...], access: Access, types: str = "") -> _Asked:
    """The search at (base, path); `types` are those that its links name."""
    base, path = at
    applied = (*(((TYPES, types),) if types else ()), *wanted.applied)
    sealed = tuple([pair for pair in applied if pair[0] not in FORMATS])
    return _Asked(wanted, queries, bundle.address(base, path, applied), (path, sealed, access))


def _criteria(call: Call) -> tuple[tuple[str, str], ...]:
    return tuple([pair for pair in call.criteria if pair[0] != bundle.PAGE])


def _types(call: Call) -> tuple[str, ...]:
    """The types that `_type` names, each once."""
    given = [value for name, value in call.criteria if name == TYPES]
    if len(given) > 1:
        raise refusal(f"{TYPES} must be given once", TYPES)
    names = dict.fromkeys(given[0].split(",")) if given and given[0] else {}
    for name in names:
        if name not in offers() or offers()[name].kept or "search-type" not in offers()[name].interactions:
            raise refusal(f"{TYPES} must name types that can be searched together", TYPES)
    return tuple(names)


def _searched(call: Call, resource_type: str) -> Offer:
    if not granted.may_search(call.access, resource_type):
        raise Forbidden
    return offers()[resource_type]


def _permitted(call: Call) -> Iterator[Offer]:
    for name, offer in offers().items():
        if "search-type" in offer.interactions and not offer.kept and granted.may_search(call.access, name):
            yield offer


def _compartments(resource_type: str) -> frozenset[str]:
    found = offers().get(resource_type)
    return frozenset(found.compartments if found and "search-type" in found.interactions and not found.kept else ())


def _inside(call: Call, query: Query) -> Clause:
    """That a resource is in the compartment: by one of the parameters that lead there, or as its centre."""
    kind, identity = call.resource_type, call.resource_id
    itself = Ids(frozenset({identity}))
    leading = offers()[query.resource_type].compartments[kind]
    found: list[Condition] = [Target(param, kind, identity) for param in leading if param != "_id"]
    return Clause((*found, itself) if query.resource_type == kind else tuple(found))


def _is_lenient(call: Call) -> bool:
    return _LENIENT.search(call.headers.get("prefer", "").lower()) is not None


# --- the answer -----------------------------------------------------------------------------------------------


def _answered(call: Call, connection: Connection, asked: _Asked) -> Reply:
    wanted, first = asked.search, asked.first
    after = _place(call, asked.bound)
    hits = [] if wanted.counts_only else _hits(connection, asked.queries, wanted.count + 1, after)
    page, more = hits[: wanted.count], len(hits) > wanted.count
    added = includes.included(connection, call.access, wanted, page)
    total = _total(connection, asked, None if more or after is not None or wanted.counts_only else len(page))
    tokens = [value for name, value in call.criteria if name == bundle.PAGE]
    links = [("self", bundle.further(first, bundle.PAGE, tokens[0]) if tokens else first)]
    if more:
        following = bundle.seal(call.door.key, asked.bound, page[-1].place)
        links += [("first", first), ("next", bundle.further(first, bundle.PAGE, following))]
    entries = [*_entries(call, wanted, page, added), *_remarks(call, wanted, added)]
    return Reply(200, bundle.joined("searchset", entries, links, total))


def _place(call: Call, bound: bundle.Bound) -> Place | None:
    given = [value for name, value in call.criteria if name == bundle.PAGE]
    if len(given) > 1:
        raise refusal(f"{bundle.PAGE} must be given once", bundle.PAGE)
    return bundle.unseal(call.door.key, bound, given[0]) if given else None


def _hits(connection: Connection, queries: Sequence[Query], limit: int, after: Place | None) -> list[Found]:
    """One query's page, or the pages of several in one order."""
    if len(queries) == 1:
        return rows.found(connection, queries[0], limit=limit, after=after)
    found = [hit for query in queries for hit in rows.found(connection, query, limit=limit, after=after)]
    return sorted(found, key=lambda hit: hit.place, reverse=queries[0].order[0].descending)[:limit]


def _total(connection: Connection, asked: _Asked, known: int | None) -> int | None:
    """The number of matches: when it is known anyway, or when the client asks for it."""
    if known is not None:
        return known
    if asked.search.counts_only or asked.search.total == "accurate":
        return sum(rows.count(connection, query) for query in asked.queries)
    if asked.search.total == "estimate":
        return sum(rows.estimate(connection, query) for query in asked.queries)
    return None


def _entries(call: Call, wanted: Search, page: Sequence[Found], added: includes.Included) -> list[bytes]:
    shown = _whole if wanted.shape.is_whole else partial(_in_part, wanted.shape)
    return [
        *bundle.entries(call.door.base, shown(page, is_match=True), "match"),
        *bundle.entries(call.door.base, shown(added.stored, is_match=False), "include"),
    ]


def _whole(found: Sequence[Found | Stored], *, is_match: bool) -> Iterable[bundle.Shown]:  # noqa: ARG001 - as _in_part
    return [(one.resource_type, one.resource_id, one.body) for one in found]


def _in_part(shape: Shape, found: Sequence[Found | Stored], *, is_match: bool) -> Iterable[bundle.Shown]:
    known = offers()
    for one in found:
        body = shaping.cut(one.body, known[one.resource_type], shape, is_match=is_match)
        yield one.resource_type, one.resource_id, body


def _remarks(call: Call, wanted: Search, added: includes.Included) -> Iterator[bytes]:
    """What the client must know of its search beside the answer."""
    issues = list(wanted.ignored)
    if added.is_cut:
        sentence = f"only {includes.MAX_INCLUDED} included resources are shown; ask for fewer matches by _count"
        issues.append(Issue("incomplete", sentence, severity="warning"))
    if issues:
        yield bundle.remark(outcome.outcome(issues, call.request_id))
