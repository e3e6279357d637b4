"""Reading and writing resources as bytes: validate, index, splice `id` and `meta`, keep (https://hl7.org/fhir/R4/http.html)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from app.access import Facts, Value
from app.errors import BadRequest, Conflict, Issue, NotFound, TooLarge, Unprocessable
from app.fhir import index, search, validation
from app.fhir.registry import offer
from app.fhir.validation import Json
from app.store import resources as rows
from app.store.database import now
from app.store.query import Index
from app.store.resources import Change, Stored

MAX_BODY = 16 * 1024 * 1024
MAX_FOUND = 10_000
STUDY_UID = "urn:dicom:uid"

Tree = dict[str, msgspec.Raw]
"""A resource cut at its top level: the bytes of each element stay as they are."""

_ENCODER = msgspec.json.Encoder(decimal_format="number")
_DECODER = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)
_TREE = msgspec.json.Decoder(Tree)


class _Identifier(msgspec.Struct):
    system: str = ""
    value: str = ""


class _Identified(msgspec.Struct):
    identifier: list[_Identifier] = []


_IDENTIFIED = msgspec.json.Decoder(_Identified)


@dataclass(frozen=True, slots=True)
class Draft:
    """A body that was found valid, with what it says."""

    resource: Json
    body: bytes
    index: Index | None = None
    """What finds it, where that is known already."""


@dataclass(frozen=True, slots=True)
class Own:
    """A resource of our own to be stored under the id it has, and the version of it that was read before."""

    draft: Draft
    cause: str
    natural_key: str | None = None
    before: Stored | None = None


def dumps(resource: Json) -> bytes:
    """Compact JSON in UTF-8; a Decimal keeps its digits."""
    return _ENCODER.encode(resource)


def loads(body: bytes) -> Json:
    """Stored bytes as values; numbers with a fraction become Decimal."""
    return _DECODER.decode(body)


# --- reading -------------------------------------------------------------------------------------------------


def read(connection: Connection, resource_type: str, resource_id: str) -> Json | None:
    """The current version; None when there is none or it was deleted."""
    return content(rows.current(connection, resource_type, resource_id))


def content(stored: Stored | None) -> Json | None:
    """What a version says; None when there is none or it says that it was deleted."""
    return loads(stored.body) if stored and not stored.deleted else None


def by_natural_key(connection: Connection, natural_key: str) -> Json | None:
    """What bears this key; None when nothing does."""
    stored = rows.by_natural_key(connection, natural_key)
    return loads(stored.body) if stored and not stored.deleted else None


def find(
    connection: Connection, resource_type: str, criteria: Sequence[tuple[str, str]], limit: int = MAX_FOUND
) -> list[Json]:
    """What the search parameters find, in their order, for the server's own use: no access is asked."""
    query = search.parse(offer(resource_type), criteria).query
    return [loads(hit.stored.body) for hit in rows.search(connection, query, limit=limit)]


def identified_by(connection: Connection, resource_type: str, system: str, value: str) -> list[Json]:
    """What bears this identifier, for the server's own use: no access is asked, and no search is read."""
    return [loads(one.body) for one in rows.with_token(connection, resource_type, "identifier", system, value)]


def facts(connection: Connection, resource_type: str, resource_id: str) -> Facts:
    """What the access decision may know of a stored resource; nothing of one that is not there."""
    resource = read(connection, resource_type, resource_id)
    return facts_of(resource) if resource else Facts(resource_id=resource_id)


def facts_told(stored: Stored) -> Facts:
    """What an audit record may name of a stored resource, without reading all of it."""
    return Facts(stored.resource_id, stored.patient_id, _study_uids(stored))


def _study_uids(stored: Stored) -> frozenset[str]:
    if stored.resource_type != "ImagingStudy" or not stored.body:
        return frozenset()
    found = _IDENTIFIED.decode(stored.body).identifier
    return frozenset(one.value.removeprefix("urn:oid:") for one in found if one.system == STUDY_UID)


def facts_of(resource: Json) -> Facts:
    """What the access decision may know of this resource."""
    kind = resource["resourceType"]
    return facts_in(kind, resource.get("id"), index.extract(resource, offer(kind)))


def facts_in(resource_type: str, resource_id: str | None, found: Index) -> Facts:
    """The same, of a resource whose index is known."""
    named = found.tokens if resource_type == "ImagingStudy" else ()
    uids = [uid for name, system, uid in named if system == STUDY_UID and name == "identifier"]
    return Facts(
        resource_id=resource_id,
        patient_id=found.patient_id,
        study_uids=frozenset(uid.removeprefix("urn:oid:") for uid in uids),
        index=_Values(found),
    )


class _Values(Mapping[str, frozenset[Value]]):
    """What a scope's criteria may ask about: put together when one asks, which few do."""

    __slots__ = ("_index", "_known")

    def __init__(self, found: Index) -> None:
        self._index = found
        self._known: dict[str, frozenset[Value]] | None = None

    def _values(self) -> dict[str, frozenset[Value]]:
        if self._known is None:
            values: dict[str, set[Value]] = {}
            for name, system, value in self._index.tokens | self._index.references:
                # Rows beside a parameter's own, such as `subject:identifier`, are no parameters a scope may name.
                if ":" not in name and "$" not in name:
                    values.setdefault(name, set()).add((system, value))
            self._known = {name: frozenset(pairs) for name, pairs in values.items()}
        return self._known

    def __getitem__(self, name: str) -> frozenset[Value]:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())


# --- writing -------------------------------------------------------------------------------------------------


def new_id() -> str:
    """A new id: a UUID of version 7 (RFC 9562), whose beginning is the time.

    Ids in the order of time stand together in the index; those of version 4 would touch a page each.
    """
    chance = int.from_bytes(os.urandom(10))
    return str(uuid.UUID(int=now() << 80 | 7 << 76 | (chance >> 68) << 64 | 2 << 62 | chance & _LOW))


_LOW = (1 << 62) - 1


def created(  # noqa: PLR0913 - a first version has these parts
    resource_type: str,
    draft: Draft,
    *,
    cause: str,
    resource_id: str | None = None,
    method: str = "POST",
    natural_key: str | None = None,
) -> Change:
    """The first version of a resource, under an id of ours unless one is given."""
    new = Stored(resource_type, resource_id or new_id(), 1, now(), False, draft.body, method=method, cause=cause)
    return _change(new, draft, None, natural_key)


def replaced(
    before: Stored, draft: Draft, *, cause: str, method: str = "PUT", natural_key: str | None = None
) -> Change | None:
    """The next version of a resource whose row is locked; None when the content is equal."""
    if not before.deleted and _is_same(before.body, draft.body):
        return None
    new = replace(
        before,
        version=before.version + 1,
        updated=max(now(), before.updated),
        deleted=False,
        body=draft.body,
        method=method,
        cause=cause,
    )
    return _change(new, draft, before, natural_key)


def deleted(before: Stored, *, cause: str) -> Change:
    """The version that says it was deleted, of a resource whose row is locked."""
    new = replace(
        before,
        version=before.version + 1,
        updated=max(now(), before.updated),
        deleted=True,
        body=b"",
        patient_id=None,
        method="DELETE",
        cause=cause,
    )
    return Change(new, Index(), before)


def _change(new: Stored, draft: Draft, before: Stored | None, natural_key: str | None) -> Change:
    resource = {**draft.resource, "id": new.resource_id}
    found = draft.index or index.extract(resource, offer(new.resource_type))
    new.patient_id = found.patient_id
    new.body = _inserted(new, draft) or _spliced(new)
    return Change(new, found, before, natural_key)


def put(connection: Connection, resource: Json, *, cause: str, natural_key: str | None = None) -> Stored:
    """Store a resource of our own under the id it has; equal content makes no new version."""
    body = dumps(resource)
    resource_type, resource_id = resource["resourceType"], resource["id"]
    draft = accepted(resource_type, body)
    before = rows.current(connection, resource_type, resource_id, for_update=True)
    if before is None:
        new = created(resource_type, draft, cause=cause, resource_id=resource_id, method="", natural_key=natural_key)
        try:
            return rows.write(connection, [new])[0]
        except Conflict:
            # Another transaction was first: ours is the next version, unless the natural key is another's.
            before = rows.current(connection, resource_type, resource_id, for_update=True)
            if before is None:
                raise
    return _put(connection, before, replaced(before, draft, cause=cause, method="", natural_key=natural_key))


def own(resource: Json, *, cause: str, natural_key: str | None = None, before: Stored | None = None) -> Own:
    """A resource of our own, ready to be stored: what costs time needs no database."""
    kind = resource["resourceType"]
    draft = accepted(kind, dumps(resource))
    return Own(replace(draft, index=index.extract(draft.resource, offer(kind))), cause, natural_key, before)


def own_unless_there(
    connection: Connection, resource: Json, *, cause: str, natural_key: str | None = None
) -> Own | None:
    """The same of what is not stored yet; None when it is."""
    before = rows.current(connection, resource["resourceType"], resource["id"])
    is_there = before is not None and not before.deleted
    return None if is_there else own(resource, cause=cause, natural_key=natural_key, before=before)


def put_all(connection: Connection, wanted: Sequence[Own]) -> None:
    """Store several different resources of our own at once; equal content makes no new version."""
    changes = [change for one in wanted if (change := _own_change(one)) is not None]
    if not changes:
        return
    try:
        with rows.undoable(connection):
            rows.write(connection, changes)
    except Conflict:
        # Another transaction was first with one of them: each for itself waits for it and goes on from there.
        for one in wanted:
            put(connection, one.draft.resource, cause=one.cause, natural_key=one.natural_key)


def _own_change(one: Own) -> Change | None:
    key, draft = one.natural_key, one.draft
    if one.before is not None:
        return replaced(one.before, draft, cause=one.cause, method="", natural_key=key)
    kind, resource_id = draft.resource["resourceType"], draft.resource["id"]
    return created(kind, draft, cause=one.cause, resource_id=resource_id, method="", natural_key=key)


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
    draft = accepted(resource_type, _ENCODER.encode(tree))
    return _put(connection, before, replaced(before, draft, cause=cause, method=""))


def _put(connection: Connection, before: Stored, change: Change | None) -> Stored:
    return rows.write(connection, [change])[0] if change else before


def accepted(resource_type: str, body: bytes | Draft) -> Draft:
    """The body as one that may be stored; BadRequest or Unprocessable with every fault when it may not."""
    if isinstance(body, Draft):
        return body
    if len(body) > MAX_BODY:
        raise TooLarge(f"a resource may have at most {MAX_BODY} bytes")
    resource = validation.parse(body)
    if resource.get("resourceType") != resource_type:
        raise bad("resourceType", f"must be {resource_type} here")
    issues = validation.validate(resource, resource_type)
    if issues:
        raise Unprocessable(issues=tuple(issues))
    return Draft(resource, body)


def bad(expression: str, diagnostics: str) -> BadRequest:
    """The refusal of a body for one element."""
    return BadRequest(issues=(Issue("invalid", diagnostics, expression),))


def identified(draft: Draft, resource_id: str) -> Draft:
    """The same with this id, in its bytes too."""
    if draft.resource.get("id") == resource_id:
        return draft
    tree = _TREE.decode(draft.body)
    body = _ENCODER.encode({"resourceType": tree["resourceType"]} | tree | {"id": resource_id})
    return Draft({**draft.resource, "id": resource_id}, body)


def _is_same(left: bytes, right: bytes) -> bool:
    return _outline(left) == _outline(right) or _content(left) == _content(right)


def _outline(body: bytes) -> dict[str, bytes]:
    """The bytes of each element but those that every version changes."""
    return {name: bytes(raw) for name, raw in _TREE.decode(body).items() if name not in {"id", "meta"}} | {
        f"meta.{name}": bytes(raw)
        for name, raw in _META.decode(body).meta.items()
        if name not in {"versionId", "lastUpdated"}
    }


class _Meta(msgspec.Struct):
    meta: dict[str, msgspec.Raw] = {}


_META = msgspec.json.Decoder(_Meta)


def _content(body: bytes) -> bytes:
    """The resource without what each version changes, in one spelling; decimals keep their digits."""
    resource = loads(body)
    meta = {name: value for name, value in resource.pop("meta", {}).items() if name not in {"versionId", "lastUpdated"}}
    resource.pop("id", None)
    return _canonical({**resource, **({"meta": meta} if meta else {})})


def _canonical(value: Any) -> bytes:
    return _SORTED.encode(value)


_SORTED = msgspec.json.Encoder(decimal_format="number", order="sorted")


def _inserted(new: Stored, draft: Draft) -> bytes:
    """The stored bytes of a body that begins with its type and has no `meta` yet; none of any other.

    Most bodies are such, and nothing of them needs to be taken apart.
    """
    body, resource = new.body, draft.resource
    head = b'{"resourceType":"%s",' % new.resource_type.encode()
    is_known = "meta" in resource or resource.get("id", new.resource_id) != new.resource_id
    if is_known or not body.startswith(head) or not body.endswith(b"}"):
        return b""
    own = b'"meta":{"versionId":"%d","lastUpdated":"%s"},' % (new.version, instant(new.updated).encode())
    if "id" not in resource:
        own = b'"id":"%s",%s' % (new.resource_id.encode(), own)
    return b"".join((head, own, memoryview(body)[len(head) :]))


def _spliced(new: Stored) -> bytes:
    """The stored bytes: the client's own but for `id` and `meta`, which stand where they stood or at the beginning."""
    tree = _TREE.decode(new.body)
    meta: dict[str, Any] = {**_TREE.decode(tree["meta"])} if "meta" in tree else {}
    own = {
        "id": new.resource_id,
        "meta": {**meta, "versionId": str(new.version), "lastUpdated": instant(new.updated)},
    }
    first = {"resourceType": tree["resourceType"], **{name: own[name] for name in own if name not in tree}}
    ordered = {**first, **tree, **own} if len(first) > 1 else {**tree, **own}
    return _ENCODER.encode(ordered)


def instant(milliseconds: int) -> str:
    """A FHIR instant in UTC with milliseconds."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
