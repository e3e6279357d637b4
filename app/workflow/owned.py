"""What the server itself keeps true in a resource: what a client may not change there, and what of a client's stays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from app.errors import Conflict, Issue
from app.fhir.mapping import terms
from app.fhir.mapping.codes import Json
from app.fhir.registry import offer

MARKS = frozenset({terms.CONTENT_ITEM, terms.LINEAGE, terms.STEP, terms.ORDER_DRAFT})
"""Identifiers by which the server knows what it made."""
SAYING = frozenset({"Observation"})
"""Types in which the server itself writes notes."""
ENDPOINT_ID = "dicomweb"
"""Our own DICOMweb gateway among the Endpoints."""
_VERSIONED = frozenset({"versionId", "lastUpdated"})


def has_mark(resource: Json, *systems: str) -> bool:
    """Whether the server made the resource: it bears an identifier that only the server gives."""
    return any(one.get("system") in systems for one in _identifiers(resource))


def require_no_marks(resource: Json, before: Json | None) -> None:
    """Nobody but the server gives the identifiers by which it knows its own."""
    known = {_name(one) for one in _identifiers(before or {})}
    for one in _identifiers(resource):
        if one.get("system") in MARKS and _name(one) not in known:
            sentence = f"an identifier of the system {one['system']} is given by this server only"
            raise Conflict(issues=(Issue("business-rule", sentence, f"{resource['resourceType']}.identifier"),))


def require_unchanged(resource: Json, before: Json, why: str, *, free: Collection[str] = ()) -> None:
    """Conflict that names each element a client would change although the server keeps it; `why` says from what."""
    kind = resource["resourceType"]
    changed = sorted({name.removeprefix("_") for name in _different(resource, before, offer(kind).protected - {*free})})
    if changed:
        sentence = f"{why}; a client may not change this element"
        raise Conflict(issues=tuple(Issue("business-rule", sentence, f"{kind}.{name}") for name in changed))


def kept(made: Json, earlier: Json | None) -> Json:
    """What the server makes anew, with what clients added to the earlier version: every element that is not its own."""
    if earlier is None:
        return made
    own = offer(made["resourceType"]).protected | {"resourceType", "id", "meta", "note"}
    added = _filled({name: _theirs(value) for name, value in earlier.items() if name.removeprefix("_") not in own})
    # What the server only fills in gives way to a client's own.
    ours = {name: value for name, value in made.items() if name not in added or _theirs(value) == value}
    return _filled({**added, **ours, "meta": _meta(made, earlier), "note": _notes(made, earlier)})


def _theirs(value: Any) -> Any:
    """An element without the references that the server filled in."""
    if isinstance(value, list):
        return [one for one in value if not _is_filled_in(one)]
    return {} if _is_filled_in(value) else value


def _is_filled_in(value: Any) -> bool:
    extensions: list[Json] = value.get("extension", []) if isinstance(value, dict) else []
    return any(one.get("url") == terms.TAKEN_FROM for one in extensions)


def signed_notes(resource: Json) -> list[Json]:
    """The notes somebody put their name to; those of a structured report have no author."""
    return [one for one in resource.get("note", []) if "authorString" in one or "authorReference" in one]


def _different(resource: Json, before: Json, names: Collection[str]) -> Iterator[str]:
    for name in names:
        for spelled in (name, f"_{name}"):
            if resource.get(spelled) != before.get(spelled):
                yield name
    if _tags(resource) != _tags(before):
        yield "meta.tag"


def _tags(resource: Json) -> list[Any]:
    """The tags that the server set."""
    found: Iterable[Json] = resource.get("meta", {}).get("tag", [])
    return sorted((one.get("system", ""), one.get("code", "")) for one in found if _is_ours(one))


def _is_ours(coding: Json) -> bool:
    return str(coding.get("system", "")).startswith(f"{terms.BASE}/")


def _meta(made: Json, earlier: Json) -> Json:
    mine, theirs = made.get("meta", {}), earlier.get("meta", {})
    tags = [*mine.get("tag", []), *(one for one in theirs.get("tag", []) if not _is_ours(one))]
    others = {name: value for name, value in theirs.items() if name not in _VERSIONED}
    return _filled({**others, **mine, "tag": tags})


def _notes(made: Json, earlier: Json) -> list[Json]:
    mine: list[Json] = made.get("note", [])
    theirs: list[Json] = signed_notes(earlier) if made["resourceType"] in SAYING else earlier.get("note", [])
    return [*mine, *(one for one in theirs if one not in mine)]


def _identifiers(resource: Json) -> list[Json]:
    return resource.get("identifier", [])


def _name(identifier: Json) -> tuple[Any, Any]:
    return identifier.get("system"), identifier.get("value")


def _filled(resource: Json) -> Json:
    return {name: value for name, value in resource.items() if value not in ({}, [])}
