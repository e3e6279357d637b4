"""The entries of a batch or transaction as interactions (https://hl7.org/fhir/R4/bundle.html#bundle)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import format_datetime
from urllib.parse import parse_qsl

import msgspec

from app.errors import BadRequest, IsocenterError, Issue, TooLarge, Unprocessable
from app.fhir import routing, validation
from app.fhir.calls import Call
from app.fhir.resources import Draft
from app.fhir.routing import READERS, Route
from app.fhir.validation import Json

MAX_ENTRIES = 10_000
KINDS = ("batch", "transaction")
VERBS = {"create": "c", "update": "u", "patch": "u", "delete": "d"}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_NEEDING = frozenset({"create", "update", "patch"})
"""Interactions that need a resource in their entry."""
_HEADERS = {"ifNoneMatch": "if-none-match", "ifMatch": "if-match", "ifNoneExist": "if-none-exist"}
_JSON = "application/fhir+json"
_INDEX = re.compile(r"Bundle\.entry\[(\d+)\]")


class _Resource(msgspec.Struct):
    resource: msgspec.Raw = msgspec.Raw(b"")


class _Resources(msgspec.Struct):
    entry: list[_Resource] = []


_RESOURCES = msgspec.json.Decoder(_Resources)


Routes = dict[tuple[str, str], Route]
"""What methods at addresses without an id mean, as far as it was asked."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: what it asks for, and where it stands in the Bundle."""

    index: int
    call: Call
    full_url: str = ""
    issues: tuple[Issue, ...] = ()
    """Why it cannot be carried out, known before anything is looked up."""
    is_malformed: bool = False
    """Whether it is no interaction at all."""

    @property
    def is_read(self) -> bool:
        """Whether it only looks."""
        return self.call.interaction in READERS

    @property
    def expression(self) -> str:
        """Its FHIRPath."""
        return place(self.index)


@dataclass(frozen=True, slots=True)
class Entries:
    """A Bundle that was read: all its entries, and the faults that are no entry's."""

    kind: str
    entries: tuple[Entry, ...]
    issues: tuple[Issue, ...] = field(default=())


def read(outer: Call) -> Entries:
    """The Bundle in the body of a POST to the base; BadRequest or TooLarge when it cannot be one."""
    bundle = validation.parse(outer.body)
    if bundle.get("resourceType") != "Bundle":
        raise BadRequest(issues=(Issue("invalid", "what is posted to the base must be a Bundle", "resourceType"),))
    kind = bundle.get("type")
    if kind not in KINDS:
        sentence = "only a Bundle of type batch or transaction can be processed; store others at Bundle"
        raise BadRequest(issues=(Issue("invalid", sentence, "Bundle.type"),))
    rows = bundle.get("entry", [])
    if type(rows) is not list or not all(type(row) is dict for row in rows):
        raise BadRequest(issues=(Issue("structure", "must be a list of JSON objects", "Bundle.entry"),))
    if len(rows) > MAX_ENTRIES:
        raise TooLarge(f"a Bundle may have at most {MAX_ENTRIES} entries")
    faults: dict[int, list[Issue]] = {}
    for issue in validation.validate(bundle, "Bundle"):
        found = _INDEX.match(issue.expression or "")
        faults.setdefault(int(found[1]) if found else -1, []).append(issue)
    bodies = _RESOURCES.decode(outer.body).entry if rows else []
    routes: Routes = {}
    entries = tuple(
        _entry(outer, index, (row, bytes(bodies[index].resource), routes), faults.get(index, []))
        for index, row in enumerate(rows)
    )
    return Entries(kind, entries, tuple(faults.get(-1, ())))


def refusal(found: Sequence[Entry]) -> BadRequest | Unprocessable | None:
    """All that is wrong with these entries; None when nothing is."""
    issues = tuple(issue for entry in found for issue in entry.issues)
    if not issues:
        return None
    return (BadRequest if any(entry.is_malformed for entry in found) else Unprocessable)(issues=issues)


def place(index: int) -> str:
    """The FHIRPath of an entry."""
    return f"Bundle.entry[{index}]"


def named(error: IsocenterError, index: int) -> IsocenterError:
    """The error with every issue told as one of an entry."""
    error.issues = tuple(
        Issue(issue.code, issue.diagnostics, _within(index, issue.expression), issue.severity) for issue in error.issues
    )
    return error


def _within(index: int, expression: str | None) -> str:
    """`Patient.name[0]` as seen from the Bundle; what names no element of a resource is the entry's."""
    if expression is not None and _INDEX.match(expression):
        return expression
    kind, _, rest = (expression or "").partition(".")
    return f"{place(index)}.resource.{rest}" if rest and kind[:1].isupper() else place(index)


# --- one entry -------------------------------------------------------------------------------------------------


def _entry(outer: Call, index: int, row: tuple[Json, bytes, Routes], faults: list[Issue]) -> Entry:
    content, body, routes = row
    request = content.get("request")
    full_url = content.get("fullUrl")
    url = full_url if type(full_url) is str else ""
    try:
        if type(request) is not dict:
            raise _refused("required", "is required", "request")
        route, criteria = _route(outer, request, routes)
        resource = _resource(route, content)
    except BadRequest as error:
        told = _told(error, index)
        known = {issue.expression for issue in told}
        issues = (*told, *(issue for issue in faults if issue.expression not in known))
        return Entry(index, _call(outer, Route(""), (), {}), url, issues, is_malformed=True)
    headers = dict(_headers(outer, request))
    if faults:
        return Entry(index, _call(outer, route, criteria, headers), url, tuple(faults))
    if resource is not None and route.interaction != "patch":
        return Entry(index, _call(outer, route, criteria, headers, Draft(resource, body)), url)
    call = _call(outer, route, criteria, headers)
    try:
        return Entry(index, call if resource is None else _patching(call, resource, body), url)
    except BadRequest as error:
        return Entry(index, call, url, _told(error, index), is_malformed=True)


def _told(error: BadRequest, index: int) -> tuple[Issue, ...]:
    """The issues of an entry's own parts, such as `request.url`."""
    return tuple(Issue(one.code, one.diagnostics, f"{place(index)}.{one.expression}") for one in error.issues)


def _refused(code: str, diagnostics: str, part: str) -> BadRequest:
    return BadRequest(issues=(Issue(code, diagnostics, part),))


def _route(outer: Call, request: Json, routes: Routes) -> tuple[Route, tuple[tuple[str, str], ...]]:
    method, url = request.get("method"), request.get("url")
    if type(method) is str and type(url) is str and (method, url) in routes:
        return routes[method, url], ()
    if type(method) is not str or method not in _METHODS:
        raise _refused("value", "must be GET, HEAD, POST, PUT, PATCH or DELETE", "request.method")
    if type(url) is not str or "\0" in url:
        raise _refused("value", "must be an address relative to the base", "request.url")
    path, _, query = url.removeprefix(f"{outer.door.base}/").partition("?")
    try:
        route = routing.route(outer.door, method, [part for part in path.split("/") if part])
    except IsocenterError as error:
        sentence = "this server does not offer that interaction at this address, relative to its base"
        raise _refused("not-supported", sentence, "request.url") from error
    if route.interaction == "bundle":
        raise _refused("not-supported", "a Bundle within a Bundle is not processed", "request.url")
    if not query and not route.resource_id:
        # Nearly all entries of a load go to few addresses.
        routes[method, url] = route
    return route, tuple(parse_qsl(query, keep_blank_values=True))


def _resource(route: Route, content: Json) -> Json | None:
    resource = content.get("resource")
    if route.interaction not in _NEEDING:
        return None
    if type(resource) is not dict:
        raise _refused("required", "is required for this interaction", "resource")
    kind = resource.get("resourceType")
    if route.interaction == "patch" and kind not in {"Binary", "Parameters"}:
        raise _refused("value", "a patch is a Binary with a JSON Patch, or Parameters", "resource")
    if route.interaction != "patch" and kind != route.resource_type:
        raise _refused("value", f"must be a {route.resource_type}, as request.url says", "resource")
    return resource


def _call(
    outer: Call,
    route: Route,
    criteria: tuple[tuple[str, str], ...],
    headers: dict[str, str],
    draft: Draft | None = None,
) -> Call:
    return Call(
        outer.door,
        outer.access,
        route.interaction,
        route.resource_type,
        route.resource_id,
        route.version,
        criteria,
        headers,
        draft=draft,
        request_id=outer.request_id,
    )


def _headers(outer: Call, request: Json) -> Iterator[tuple[str, str]]:
    yield "content-type", _JSON
    if "prefer" in outer.headers:
        yield "prefer", outer.headers["prefer"]
    for name, header in _HEADERS.items():
        if type(value := request.get(name)) is str:
            yield header, value
    if type(since := request.get("ifModifiedSince")) is str:
        try:
            yield "if-modified-since", format_datetime(datetime.fromisoformat(since))
        except ValueError:
            # It is a fault of the entry, which the validator tells.
            return


def _patching(call: Call, resource: Json, body: bytes) -> Call:
    """The call with its patch."""
    if resource["resourceType"] == "Parameters":
        return replace(call, draft=Draft(resource, body), body=body)
    try:
        data = base64.b64decode("".join(resource.get("data", "").split()), validate=True)
    except binascii.Error as error:
        raise _refused("value", "must be base64", "resource.data") from error
    headers = {**call.headers, "content-type": resource.get("contentType", "")}
    return replace(call, headers=headers, body=data)
