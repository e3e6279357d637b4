"""Which interaction an address and a method mean: one table for requests and for the entries of a Bundle.

https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from msgspec import Struct
from sqlalchemy.engine import Connection

from app.errors import NotSupported
from app.fhir import capability, history, interactions, operations, outcome, registry, searching
from app.fhir.calls import Call, Door, Reply
from app.fhir.registry import offers

Reader = Callable[[Call, Connection], Reply]

READERS: Mapping[str, Reader] = {
    "read": interactions.read,
    "vread": interactions.vread,
    "history-instance": history.instance,
    "history-type": history.of_type,
    "history-system": history.system,
    "search-type": searching.search_type,
    "search-system": searching.search_system,
    "search-compartment": searching.search_compartment,
    "operation": operations.run,
}
ADDRESSES: tuple[tuple[tuple[str, ...], Mapping[str, str]], ...] = (
    ((), {"GET": "search-system", "POST": "bundle"}),
    (("_history",), {"GET": "history-system"}),
    (("_search",), {"POST": "search-system"}),
    (("{operation}",), {"GET": "operation"}),
    (
        ("{type}",),
        {"GET": "search-type", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"},
    ),
    (("{type}", "_search"), {"POST": "search-type"}),
    (("{type}", "_history"), {"GET": "history-type"}),
    (("{type}", "{id}"), {"GET": "read", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}),
    (("{type}", "{id}", "_history"), {"GET": "history-instance"}),
    (("{type}", "{id}", "_history", "{version}"), {"GET": "vread"}),
    (("{type}", "{id}", "{within}"), {"GET": "search-compartment"}),
    (("{type}", "{id}", "{within}", "_search"), {"POST": "search-compartment"}),
)
"""Every address below the base, and what each method does there."""


class Route(Struct, frozen=True):
    """What an address and a method mean."""

    interaction: str
    resource_type: str = ""
    resource_id: str = ""
    version: str = ""

    @property
    def path(self) -> str:
        """How a log names the address: without ids."""
        return f"fhir {self.interaction} {self.resource_type}".rstrip()


def route(door: Door, method: str, parts: list[str]) -> Route:
    """The interaction of an address; NotSupported for one that means nothing, Disallowed for another method."""
    pattern = _pattern(parts)
    if pattern is None:
        raise NotSupported("this server does not offer that resource type or operation")
    named = dict(zip(pattern, parts, strict=True))
    kind = named.get("{type}", "")
    served = _served(pattern, kind, door.read_only)
    interaction = served.get("GET" if method == "HEAD" else method)
    if interaction is None:
        raise outcome.Disallowed({*served, *(("HEAD",) if "GET" in served else ())})
    found = named.get("{id}") or named.get("{operation}", "")
    return Route(interaction, kind, found, named.get("{version}") or named.get("{within}", ""))


_ANYWAY = frozenset({"search-compartment"})


@lru_cache(maxsize=1024)
def _served(pattern: tuple[str, ...], kind: str, read_only: bool) -> Mapping[str, str]:
    """The interaction of each method that an address takes."""
    return {
        method: interaction
        for method, interaction in dict(ADDRESSES)[pattern].items()
        if (not read_only or (method == "GET" and interaction in capability.READING))
        and (not kind or interaction in _ANYWAY or interaction in offers()[kind].interactions)
    }


def _pattern(parts: list[str]) -> tuple[str, ...] | None:
    """The address of the table that these parts make; None when there is none."""
    for pattern in _PATTERNS.get(len(parts), ()):
        if all(map(_fits, pattern, parts)):
            return pattern
    return None


_PATTERNS = {
    length: tuple(pattern for pattern, _ in ADDRESSES if len(pattern) == length)
    for length in {len(pattern) for pattern, _ in ADDRESSES}
}


def _fits(name: str, part: str) -> bool:
    match name:
        case "{operation}":
            return part.startswith("$") and part[1:] in registry.operations()
        case "{type}":
            return part in offers()
        case "{within}":
            return part == "*" or part in offers()
        case "{id}" | "{version}":
            return not part.startswith(("$", "_"))
        case _:
            return part == name
