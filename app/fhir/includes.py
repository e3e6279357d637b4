"""What _include and _revinclude add to a page (https://hl7.org/fhir/R4/search.html#revinclude)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from sqlalchemy.engine import Connection

from app.access import Access
from app.errors import Unavailable
from app.fhir import granted
from app.fhir.registry import offers
from app.fhir.search import Include, Search
from app.store import resources as rows
from app.store.resources import Found, Stored

MAX_INCLUDED = 1000
SECONDS = 30

Pair = tuple[str, str]


@dataclass(slots=True)
class Included:
    """What is added, each once; `is_cut` when there is more than may be added."""

    stored: list[Stored] = field(default_factory=list[Stored])
    is_cut: bool = False
    until: float = field(default_factory=lambda: monotonic() + SECONDS)

    def require_time(self) -> None:
        """Unavailable when following took too long: many quick statements are under no time limit of the database."""
        if monotonic() > self.until:
            raise Unavailable("this takes too long to find: ask for fewer includes")


def included(connection: Connection, access: Access, search: Search, matches: Sequence[Found | Stored]) -> Included:
    """What the matches lead to, none that is a match and none that the caller may not read.

    Those that iterate also follow what was added, until there is nothing new.
    """
    found = Included()
    if not search.include and not search.revinclude:
        return found
    seen = {_pair(stored) for stored in matches}
    reached: Sequence[Found | Stored] = matches
    forward, reverse = search.include, search.revinclude
    while reached and (forward or reverse) and not found.is_cut:
        wanted = _followed(connection, forward, reached, found) | _leading(connection, reverse, reached, found)
        added = _readable(connection, access, wanted - seen)
        seen |= wanted
        room = MAX_INCLUDED - len(found.stored)
        found.is_cut |= len(added) > room
        found.stored += added[:room]
        reached = added
        forward = tuple(one for one in search.include if one.iterate)
        reverse = tuple(one for one in search.revinclude if one.iterate)
    return found


def _followed(
    connection: Connection, includes: Iterable[Include], reached: Sequence[Found | Stored], found: Included
) -> set[Pair]:
    """What these resources point to."""
    pairs: set[Pair] = set()
    for include in includes:
        numbers = [stored.rid for stored in reached if stored.resource_type == include.resource_type]
        if numbers:
            found.require_time()
            goals = rows.targets(connection, include.resource_type, include.param, numbers, MAX_INCLUDED + 1)
            found.is_cut |= len(goals) > MAX_INCLUDED
            pairs |= {goal for goal in goals if include.target_type in {"", goal[0]}}
    return pairs


def _leading(
    connection: Connection, includes: Iterable[Include], reached: Sequence[Found | Stored], found: Included
) -> set[Pair]:
    """What points to these resources."""
    pairs: set[Pair] = set()
    for include in includes:
        goals = [_pair(stored) for stored in reached if include.target_type in {"", stored.resource_type}]
        if goals:
            found.require_time()
            ids = rows.referrers(connection, include.resource_type, include.param, goals, MAX_INCLUDED + 1)
            found.is_cut |= len(ids) > MAX_INCLUDED
            pairs |= {(include.resource_type, resource_id) for resource_id in ids}
    return pairs


def _readable(connection: Connection, access: Access, pairs: set[Pair]) -> list[Stored]:
    known = sorted(pair for pair in pairs if pair[0] in offers())
    by_pair = rows.currents(connection, known)
    return [
        by_pair[pair]
        for pair in known
        if pair in by_pair and not by_pair[pair].deleted and granted.readable(access, by_pair[pair])
    ]


def _pair(stored: Found | Stored) -> Pair:
    return stored.resource_type, stored.resource_id
