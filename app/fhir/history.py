"""Past versions, newest first: of one resource, one type, or everything (https://hl7.org/fhir/R4/http.html#history)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import msgspec
from sqlalchemy.engine import Connection

from app.access import Action, bounds, permits
from app.errors import Forbidden, NotFound
from app.fhir import bundle, dates, granted, http, resources
from app.fhir.calls import Call, Reply
from app.fhir.registry import offers
from app.fhir.search import refusal
from app.store import resources as rows
from app.store.query import Place
from app.store.resources import Hit, Stored

DEFAULT_COUNT = 50
MAX_COUNT = 1000
TAKES = frozenset({"_count", "_since", "_at", bundle.PAGE, *http.FORMATS})
_BLANK_ZONE = re.compile(r" (\d\d:\d\d)$")


def instance(call: Call, connection: Connection) -> Reply:
    """`GET [base]/[type]/[id]/_history`, also of a resource that was deleted."""
    call.permit("r")
    current = rows.current(connection, call.resource_type, call.resource_id)
    is_bounded = granted.is_bounded(call.access, Action("r", call.resource_type))
    if current is None:
        raise Forbidden if is_bounded else NotFound
    call.tell(resources.facts_told(current))
    if current.deleted and is_bounded:
        raise Forbidden
    if not current.deleted and not granted.readable(call.access, current):
        raise Forbidden
    return _page(call, connection, [call.resource_type], "r")


def of_type(call: Call, connection: Connection) -> Reply:
    """`GET [base]/[type]/_history`."""
    call.permit("s")
    return _page(call, connection, [call.resource_type], "s")


def system(call: Call, connection: Connection) -> Reply:
    """`GET [base]/_history`: of the types that the caller may search."""
    kinds = [
        offer.resource_type
        for offer in offers().values()
        if "history-type" in offer.interactions and permits(call.access, Action("s", offer.resource_type))
    ]
    if not kinds:
        raise Forbidden
    return _page(call, connection, kinds, "s")


def _page(call: Call, connection: Connection, kinds: list[str], verb: str) -> Reply:
    unknown = {name for name, _ in call.criteria} - TAKES
    if unknown:
        raise refusal(f"a history takes {', '.join(sorted(TAKES - {bundle.PAGE}))} only", "_history")
    count = _count(http.single(call.criteria, "_count"))
    applied = [(name, value) for name, value in call.criteria if name not in {bundle.PAGE, *http.FORMATS}]
    place = http.single(call.criteria, bundle.PAGE)
    bound = (f"{call.target}/_history", applied, call.access)
    past = rows.Past(
        types=kinds,
        resource_id=call.resource_id or None,
        since=_since(http.single(call.criteria, "_since")),
        at=_interval(http.single(call.criteria, "_at"), "_at"),
        patient_id=_patient(call, kinds, verb),
    )
    after = bundle.unseal(call.door.key, bound, place) if place else None
    shown = (hit for hit in _versions(connection, past, count + 1, after) if _shows(call, hit, verb))
    hits = list(islice(shown, count + 1))
    page, path = hits[:count], f"{call.target}/_history".lstrip("/")
    links = [("self", bundle.address(call.door.base, path, [*applied, *([(bundle.PAGE, place)] if place else [])]))]
    if count and len(hits) > count:
        following = (bundle.PAGE, bundle.seal(call.door.key, bound, page[-1].place))
        links.append(("next", bundle.address(call.door.base, path, [*applied, following])))
    entries = [_entry(call.door.base, hit.stored) for hit in page]
    total = len(entries) if not place and len(hits) <= count else None
    return Reply(200, bundle.joined("history", entries, links, total))


def _versions(connection: Connection, past: rows.Past, limit: int, after: Place | None) -> Iterator[Hit]:
    """Versions as long as they are asked for: pages must not tell how many a caller may not see."""
    while True:
        hits = rows.history(connection, limit=limit, after=after, **past)
        yield from hits
        if len(hits) < limit:
            return
        after, limit = hits[-1].place, MAX_COUNT


def _patient(call: Call, kinds: list[str], verb: str) -> str | None:
    """The patient in context, when the caller may see nothing but what is the patient's or nobody's."""
    scopes = (scope for kind in kinds for scope in bounds(call.access, Action(verb, kind)))
    return call.access.patient_id or "" if all(scope.context == "patient" for scope in scopes) else None


def _shows(call: Call, hit: Hit, verb: str) -> bool:
    """A deletion says nothing of whose it was, so it is shown to those who may see the whole type."""
    if hit.stored.deleted:
        return not granted.is_bounded(call.access, Action(verb, hit.stored.resource_type))
    return granted.readable(call.access, hit.stored, verb)


def _count(text: str) -> int:
    if not text:
        return DEFAULT_COUNT
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise refusal("_count must be a whole number", "_count")
    return min(int(text), MAX_COUNT)


def _since(text: str) -> int | None:
    found = _interval(text, "_since")
    return found[0] if found else None


def _interval(text: str, name: str) -> dates.Interval | None:
    if not text:
        return None
    found = dates.interval(_BLANK_ZONE.sub(r"+\1", text))
    if found is None:
        raise refusal(f"{name} must be a date or an instant", name)
    return found


def _entry(base: str, stored: Stored) -> bytes:
    url = f"{stored.resource_type}/{stored.resource_id}"
    full = b'{"fullUrl":' + msgspec.json.encode(f"{base}/{url}")
    content = b"" if stored.deleted else b',"resource":' + stored.body
    method = stored.method or ("POST" if stored.version == 1 else "PUT")
    request = {"method": method, "url": stored.resource_type if method == "POST" else url}
    response = {
        "status": "204" if stored.deleted else "201" if stored.version == 1 else "200",
        "etag": f'W/"{stored.version}"',
        "lastModified": resources.instant(stored.updated),
    }
    return (
        full
        + content
        + b',"request":'
        + msgspec.json.encode(request)
        + b',"response":'
        + msgspec.json.encode(response)
        + b"}"
    )
