"""Reading and writing resources as bytes: validate, index, splice `id` and `meta`, keep (https://hl7.org/fhir/R4/http.html)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from app.access import Facts, Value
from app.errors import BadRequest, Conflict, Issue, NotFound, PreconditionFailed, TooLarge, Unprocessable
from app.fhir import index, search, validation
from app.fhir.registry import offer
from app.fhir.validation import Json
from app.store import resources as rows
from app.store.database import now
from app.store.resources import Stored

MAX_BODY = 16 * 1024 * 1024
MAX_FOUND = 10_000
STUDY_UID = "urn:dicom:uid"

Tree = dict[str, msgspec.Raw]
"""A resource cut at its top level: the bytes of each element stay as they are."""

_ENCODER = msgspec.json.Encoder(decimal_format="number")
_DECODER = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)
_TREE = msgspec.json.Decoder(Tree)


@dataclass(frozen=True, slots=True)
class Draft:
    """A body that was found valid, with what it says."""

    resource: Json
    body: bytes


def dumps(resource: Json) -> bytes:
    """Compact JSON in UTF-8; a Decimal keeps its digits."""
    return _ENCODER.encode(resource)


def loads(body: bytes) -> Json:
    """Stored bytes as values; numbers with a fraction become Decimal."""
    return _DECODER.decode(body)


# --- reading -------------------------------------------------------------------------------------------------


def read(connection: Connection, resource_type: str, resource_id: str) -> Json | None:
    """The current version; None when there is none or it was deleted."""
    stored = rows.current(connection, resource_type, resource_id)
    return loads(stored.body) if stored and not stored.deleted else None


def by_natural_key(connection: Connection, natural_key: str) -> Json | None:
    """What bears this key; None when nothing does."""
    stored = rows.by_natural_key(connection, natural_key)
    return loads(stored.body) if stored and not stored.deleted else None


def find(connection: Connection, resource_type: str, criteria: Sequence[tuple[str, str]]) -> list[Json]:
    """What the search parameters find, in their order, for the server's own use: no access is asked."""
    query = search.parse(offer(resource_type), criteria).query
    return [loads(hit.stored.body) for hit in rows.search(connection, query, limit=MAX_FOUND)]


def facts(connection: Connection, resource_type: str, resource_id: str) -> Facts:
    """What the access decision may know of a stored resource; nothing of one that is not there."""
    resource = read(connection, resource_type, resource_id)
    return facts_of(resource) if resource else Facts(resource_id=resource_id)


def facts_of(resource: Json) -> Facts:
    """What the access decision may know of this resource."""
    known = offer(resource["resourceType"])
    found = index.extract(resource, known)
    values: dict[str, set[Value]] = {}
    for name, system, value in found.tokens | found.references:
        values.setdefault(name, set()).add((system, value))
    uids = values.get("identifier", set()) if known.resource_type == "ImagingStudy" else set[Value]()
    return Facts(
        resource_id=resource.get("id"),
        patient_id=found.patient_id,
        study_uids=frozenset(uid.removeprefix("urn:oid:") for system, uid in uids if system == STUDY_UID),
        index={name: frozenset(pairs) for name, pairs in values.items()},
    )


# --- writing -------------------------------------------------------------------------------------------------


def create(connection: Connection, resource_type: str, body: bytes | Draft, *, cause: str) -> Stored:
    """Store a client's resource under an id of ours."""
    draft = accepted(resource_type, body)
    stored = Stored(resource_type, str(uuid.uuid4()), 1, now(), False, draft.body)
    return _add(connection, stored, cause, None)


def update(  # noqa: PLR0913 - one argument for each part of the request
    connection: Connection,
    resource_type: str,
    resource_id: str,
    body: bytes | Draft,
    *,
    if_match: int | None,
    cause: str,
) -> tuple[Stored, bool]:
    """Store a client's version of a resource, and whether it is the first; equal content makes no new version."""
    draft = accepted(resource_type, body)
    if draft.resource.get("id") != resource_id:
        raise _bad(f"{resource_type}.id", "must be there and equal the id in the address")
    before = rows.current(connection, resource_type, resource_id, for_update=True)
    if if_match is not None and (before is None or before.version != if_match):
        raise PreconditionFailed("If-Match names another version than the current one")
    if before is None:
        new = Stored(resource_type, resource_id, 1, now(), False, draft.body)
        return _add(connection, new, cause, None), True
    return _replace(connection, before, draft.body, cause, None), False


def put(connection: Connection, resource: Json, *, cause: str, natural_key: str | None = None) -> Stored:
    """Store a resource of our own under the id it has; equal content makes no new version."""
    body = dumps(resource)
    resource_type, resource_id = resource["resourceType"], resource["id"]
    accepted(resource_type, body)
    before = rows.current(connection, resource_type, resource_id, for_update=True)
    if before is None:
        try:
            return _add(connection, Stored(resource_type, resource_id, 1, now(), False, body), cause, natural_key)
        except Conflict:
            # Another transaction was first: ours is the next version, unless the natural key is another's.
            before = rows.current(connection, resource_type, resource_id, for_update=True)
            if before is None:
                raise
    return _replace(connection, before, body, cause, natural_key)


def edit(
    connection: Connection, resource_type: str, resource_id: str, changes: Mapping[str, Any], *, cause: str
) -> Stored:
    """Set top-level elements (None removes) in the stored bytes and leave every other byte as it is."""
    refused = changes.keys() - offer(resource_type).workflow
    if refused:
        raise Conflict(f"{resource_type}.{min(refused)} is not an element that the workflow may edit")
    before = rows.current(connection, resource_type, resource_id, for_update=True)
    if before is None or before.deleted:
        raise NotFound(f"there is no {resource_type}/{resource_id}")
    tree = _TREE.decode(before.body)
    known = loads(before.body)
    for name, value in changes.items():
        if value is None:
            tree.pop(name, None)
            tree.pop(f"_{name}", None)
        elif _canonical(known.get(name)) != _canonical(value):
            tree[name] = msgspec.Raw(_ENCODER.encode(value))
    body = _ENCODER.encode(tree)
    accepted(resource_type, body)
    return _replace(connection, before, body, cause, None)


def accepted(resource_type: str, body: bytes | Draft) -> Draft:
    """The body as one that may be stored; BadRequest or Unprocessable with every fault when it may not."""
    if isinstance(body, Draft):
        return body
    if len(body) > MAX_BODY:
        raise TooLarge(f"a resource may have at most {MAX_BODY} bytes")
    resource = validation.parse(body)
    if resource.get("resourceType") != resource_type:
        raise _bad("resourceType", f"must be {resource_type} here")
    issues = validation.validate(resource, resource_type)
    if issues:
        raise Unprocessable(issues=tuple(issues))
    return Draft(resource, body)


def _bad(expression: str, diagnostics: str) -> BadRequest:
    return BadRequest(issues=(Issue("invalid", diagnostics, expression),))


def _add(connection: Connection, new: Stored, cause: str, natural_key: str | None) -> Stored:
    new = _spliced(new)
    resource = loads(new.body)
    rows.add(connection, new, index.extract(resource, offer(new.resource_type)), cause=cause, natural_key=natural_key)
    return new


def _replace(connection: Connection, before: Stored, body: bytes, cause: str, natural_key: str | None) -> Stored:
    if not before.deleted and _content(before.body) == _content(body):
        return before
    new = Stored(before.resource_type, before.resource_id, before.version + 1, max(now(), before.updated), False, body)
    new = _spliced(new)
    known = index.extract(loads(new.body), offer(new.resource_type))
    rows.replace(connection, new, known, cause=cause, natural_key=natural_key)
    return new


def _content(body: bytes) -> bytes:
    """The resource without what each version changes, in one spelling; decimals keep their digits."""
    resource = loads(body)
    meta = {name: value for name, value in resource.pop("meta", {}).items() if name not in {"versionId", "lastUpdated"}}
    resource.pop("id", None)
    return _canonical({**resource, **({"meta": meta} if meta else {})})


def _canonical(value: Any) -> bytes:
    return _SORTED.encode(value)


_SORTED = msgspec.json.Encoder(decimal_format="number", order="sorted")


def _spliced(new: Stored) -> Stored:
    """The stored bytes: the client's own but for `id` and `meta`, which stand where they stood or at the beginning."""
    tree = _TREE.decode(new.body)
    meta = _TREE.decode(tree["meta"]) if "meta" in tree else Tree()
    meta = {
        **meta,
        "versionId": msgspec.Raw(_ENCODER.encode(str(new.version))),
        "lastUpdated": msgspec.Raw(_ENCODER.encode(instant(new.updated))),
    }
    own: Tree = {"id": msgspec.Raw(_ENCODER.encode(new.resource_id)), "meta": msgspec.Raw(_ENCODER.encode(meta))}
    first: Tree = {"resourceType": tree["resourceType"], **{name: own[name] for name in own if name not in tree}}
    ordered = {**first, **tree, **own} if len(first) > 1 else {**tree, **own}
    return Stored(new.resource_type, new.resource_id, new.version, new.updated, False, _ENCODER.encode(ordered))


def instant(milliseconds: int) -> str:
    """A FHIR instant in UTC with milliseconds."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"
