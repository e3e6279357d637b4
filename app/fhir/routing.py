"""Which interaction an address and a method mean: one table for requests and for the entries of a Bundle.

https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from app.errors import NotSupported
from app.fhir import capability, history, interactions, outcome, searching
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
}
ADDRESSES: tuple[tuple[tuple[str, ...], Mapping[str, str]], ...] = (
    ((), {"GET": "search-system", "POST": "bundle"}),
    (("_history",), {"GET": "history-system"}),
    (("_search",), {"POST": "search-system"}),
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


@dataclass(frozen=True, slots=True)
class Route:
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
    found = _meanings(parts)
    if not found:
        raise NotSupported("this server does not offer that resource type or operation")
    served = {verb: one for verb, one in found.items() if _is_served(door, verb, one)}
    meant = served.get("GET" if method == "HEAD" else method)
    if meant is None:
        raise outcome.Disallowed({*served, *(("HEAD",) if "GET" in served else ())})
    return meant


def _is_served(door: Door, method: str, route: Route) -> bool:
    if door.read_only and (method != "GET" or route.interaction not in capability.READING):
        return False
    return not route.resource_type or route.interaction in _ANYWAY or route.interaction in _offered(route)


_ANYWAY = frozenset({"search-compartment"})


def _offered(route: Route) -> frozenset[str]:
    return offers()[route.resource_type].interactions


def _meanings(parts: list[str]) -> Mapping[str, Route]:
    """Method by method what an address means."""
    for pattern, meanings in ADDRESSES:
        found = _named(pattern, parts) if len(pattern) == len(parts) else None
        if found is not None:
            kind, resource_id = found.get("{type}", ""), found.get("{id}", "")
            version = found.get("{version}") or found.get("{within}", "")
            return {method: Route(name, kind, resource_id, version) for method, name in meanings.items()}
    return {}


def _named(pattern: tuple[str, ...], parts: list[str]) -> dict[str, str] | None:
    """The parts of an address by the names in the pattern; None when it is another address."""
    for name, part in zip(pattern, parts, strict=True):
        if not _fits(name, part):
            return None
    return dict(zip(pattern, parts, strict=True))


def _fits(name: str, part: str) -> bool:
    match name:
        case "{type}":
            return part in offers()
        case "{within}":
            return part == "*" or part in offers()
        case "{id}" | "{version}":
            return not part.startswith(("$", "_"))
        case _:
            return part == name
