"""The REST interface: the routes of resources.toml, each with the access it needs (https://hl7.org/fhir/R4/http.html)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.engine import Connection

from app.access import Access, Action, Facts, decide, permits
from app.audit import Record, of
from app.errors import (
    BadRequest,
    Forbidden,
    Gone,
    IsocenterError,
    Issue,
    NotFound,
    NotSupported,
    Unauthenticated,
)
from app.fhir import bundle, capability, granted, http, outcome, resources, search
from app.fhir.registry import Offer, offers
from app.fhir.resources import Draft
from app.fhir.search import Include, Search
from app.fhir.validation import Json
from app.settings import Settings
from app.store import resources as rows
from app.store.database import Store
from app.store.resources import Hit, Stored

Authenticate = Callable[[Request], Access]
Hook = Callable[[Connection, Access, Json, Json | None], None]
"""(transaction, caller, resource now, resource before): after a write, in its transaction; may edit, may raise."""
Guard = Hook
"""The same before the write, with the resource as the client wants it; raises to refuse."""

MAX_INCLUDED = 1000
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_NOTHING = Facts()


@dataclass(frozen=True, slots=True)
class Door:
    """What every interaction works with; `key` seals paging links."""

    store: Store
    settings: Settings
    authenticate: Authenticate
    hooks: Mapping[str, Hook]
    guards: Mapping[str, Guard]
    audit: Callable[[Record], None]
    key: bytes
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One request for one interaction; `about` gathers what its audit record will tell."""

    door: Door
    offer: Offer
    interaction: str
    request: Request
    body: bytes
    about: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def resource_id(self) -> str:
        """The id in the address."""
        return self.request.path_params.get("resource_id", "")

    @property
    def target(self) -> str:
        """Type, and id when the address has one."""
        return f"{self.offer.resource_type}/{self.resource_id}".rstrip("/")

    def action(self, verb: str) -> Action:
        """The SMART verb on this type."""
        return Action(verb, self.offer.resource_type)

    def tell(self, facts: Facts) -> None:
        """Let the audit record name the patient and the study."""
        self.about["patient_id"] = facts.patient_id
        self.about["study_uid"] = min(facts.study_uids, default=None)


Handler = Callable[[Call, Access], Response]


def routes(  # noqa: PLR0913 - the parts that main hands over, each by name
    *,
    store: Store,
    settings: Settings,
    authenticate: Authenticate,
    hooks: Mapping[str, Hook],
    guards: Mapping[str, Guard],
    audit: Callable[[Record], None],
    key: bytes,
    read_only: bool = False,
) -> APIRouter:
    """Everything below the FHIR base. Its last route answers every other address there, so mount it last."""
    door = Door(store, settings, authenticate, hooks, guards, audit, key, read_only)
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/metadata", _metadata(door), methods=["GET", "HEAD"])
    router.add_api_route("/metadata", _disallowed({"GET", "HEAD"}), methods=list(_METHODS))
    for offer in offers().values():
        _serve(router, door, offer)
    router.add_api_route("/{rest:path}", _unsupported, methods=list(_METHODS))
    return router


# --- routes --------------------------------------------------------------------------------------------------


def _serve(router: APIRouter, door: Door, offer: Offer) -> None:
    """The routes of one type, and at each of its addresses the refusal of every other method."""
    served = offer.interactions & capability.READING if door.read_only else offer.interactions
    addresses: dict[str, set[str]] = {}
    for address, methods, interaction, handler in _ROUTES:
        path = address.replace("{type}", offer.resource_type)
        allowed = addresses.setdefault(path, set())
        if interaction in served and not (door.read_only and "GET" not in methods):
            endpoint = _endpoint(door, offer, interaction, handler)
            known = Depends(_authenticated(door, offer, interaction))
            router.add_api_route(path, endpoint, methods=list(methods), dependencies=[known])
            allowed.update(methods)
    for path, allowed in addresses.items():
        router.add_api_route(path, _disallowed(allowed), methods=list(_METHODS))


def _authenticated(door: Door, offer: Offer, interaction: str) -> Callable[[Request], None]:
    """Who calls is known before the body is read."""

    def dependency(request: Request) -> None:
        try:
            request.state.access = door.authenticate(request)
        except Unauthenticated:
            door.audit(
                Record(
                    door="fhir",
                    action=interaction,
                    outcome="denied",
                    target=offer.resource_type,
                    request_id=_id(request),
                )
            )
            raise

    return dependency


def _endpoint(door: Door, offer: Offer, interaction: str, handler: Handler) -> Callable[..., Response]:
    def endpoint(request: Request, body: Annotated[bytes, Depends(http.body)]) -> Response:
        access: Access = request.state.access
        call = Call(door, offer, interaction, request, body)
        try:
            http.negotiate(request)
            response = handler(call, access)
        except Exception as error:
            _audit(call, access, "denied" if isinstance(error, Forbidden) else "failed")
            raise
        _audit(call, access, "allowed")
        return response

    return endpoint


def _audit(call: Call, access: Access, how: Any) -> None:
    about: dict[str, Any] = {"target": call.target, "request_id": _id(call.request), **call.about}
    call.door.audit(of(access, Record(door="fhir", action=call.interaction, outcome=how, **about)))


def _id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))


def _metadata(door: Door) -> Callable[[Request], Response]:
    modes = {
        **dict.fromkeys(("full", "normative"), capability.statement(door.settings, read_only=door.read_only)),
        "terminology": capability.terminology(),
    }

    def endpoint(request: Request) -> Response:
        http.negotiate(request)
        found = modes.get(request.query_params.get("mode", "full"))
        if found is None:
            raise search.refusal("mode must be full, normative or terminology", "mode")
        return http.answer(request, resources.dumps(found), {})

    return endpoint


def _disallowed(allowed: set[str]) -> Callable[[], Response]:
    def endpoint() -> Response:
        raise outcome.Disallowed(allowed)

    return endpoint


def _unsupported() -> Response:
    raise NotSupported("this server does not offer that resource type or operation")


# --- read ----------------------------------------------------------------------------------------------------


def read(call: Call, access: Access) -> Response:
    """`GET [base]/[type]/[id]`."""
    _permit(call, access, "r")
    with call.door.store.read() as connection:
        stored = _visible(call, access, connection)
    return _shown(call, stored)


def vread(call: Call, access: Access) -> Response:
    """`GET [base]/[type]/[id]/_history/[version]`: allowed who may read both this version and the current one."""
    _permit(call, access, "r")
    number = call.request.path_params["version"]
    with call.door.store.read() as connection:
        _visible(call, access, connection)
        known = number.isdecimal() and number.isascii() and len(number) < 10
        stored = rows.version(connection, call.offer.resource_type, call.resource_id, int(number)) if known else None
    if stored is None:
        raise NotFound("there is no such version of it")
    if not decide(access, call.action("r"), resources.facts_of(resources.loads(stored.body))):
        raise Forbidden
    return _shown(call, stored)


def _permit(call: Call, access: Access, verb: str) -> None:
    if not permits(access, call.action(verb)):
        raise Forbidden


def _visible(call: Call, access: Access, connection: Connection) -> Stored:
    """The current version if the caller may read it. What it may not and what is not there look the same to it."""
    stored = rows.current(connection, call.offer.resource_type, call.resource_id)
    facts = resources.facts_of(resources.loads(stored.body)) if stored else _NOTHING
    call.tell(facts)
    if stored and not decide(access, call.action("r"), facts):
        raise Forbidden
    if stored is None or stored.deleted:
        raise _absent(call, access, "r", stored)
    return stored


def _absent(call: Call, access: Access, verb: str, stored: Stored | None) -> IsocenterError:
    if granted.is_bounded(access, call.action(verb)):
        return Forbidden()
    return Gone() if stored else NotFound()


def _shown(call: Call, stored: Stored) -> Response:
    headers = http.version_headers(stored)
    if http.is_known(call.request, stored):
        return http.answer(call.request, b"", headers, 304)
    located = {"Content-Location": _version_address(call, stored)}
    return http.answer(call.request, stored.body, headers | located)


def _version_address(call: Call, stored: Stored) -> str:
    base = call.door.settings.fhir_base
    return f"{base}/{stored.resource_type}/{stored.resource_id}/_history/{stored.version}"


# --- create and update ---------------------------------------------------------------------------------------


def create(call: Call, access: Access) -> Response:
    """`POST [base]/[type]`."""
    _permit(call, access, "c")
    _refuse_conditions(call)
    http.require_json(call.request)
    draft = resources.accepted(call.offer.resource_type, call.body)
    _allow(call, access, "c", {name: value for name, value in draft.resource.items() if name != "id"})

    def work(connection: Connection) -> Stored:
        _guard(call, access, connection, draft, None)
        stored = resources.create(connection, call.offer.resource_type, draft, cause=_cause(call, access))
        return _hooked(call, access, connection, stored, None)

    return _written(call, call.door.store.transact(work), 201)


def update(call: Call, access: Access) -> Response:
    """`PUT [base]/[type]/[id]`, which creates what is not there."""
    _permit(call, access, "u")
    http.require_json(call.request)
    if_match = http.if_match(call.request)
    draft = resources.accepted(call.offer.resource_type, call.body)

    def work(connection: Connection) -> tuple[Stored, bool]:
        known = rows.current(connection, call.offer.resource_type, call.resource_id, for_update=True)
        before = resources.loads(known.body) if known else None
        if before is None and granted.is_bounded(access, call.action("u")):
            raise Forbidden
        for resource in filter(None, (before, draft.resource)):
            _allow(call, access, "u", resource)
        _guard(call, access, connection, draft, before)
        stored, is_new = resources.update(
            connection,
            call.offer.resource_type,
            call.resource_id,
            draft,
            if_match=if_match,
            cause=_cause(call, access),
        )
        if known and stored.version == known.version:
            return stored, False
        return _hooked(call, access, connection, stored, before), is_new

    stored, is_new = call.door.store.transact(work)
    return _written(call, stored, 201 if is_new else 200)


def _refuse_conditions(call: Call) -> None:
    if "if-none-exist" in call.request.headers:
        raise BadRequest(issues=(Issue("not-supported", "conditional create is not offered", "http.If-None-Exist"),))


def _allow(call: Call, access: Access, verb: str, resource: Json) -> None:
    facts = resources.facts_of(resource)
    call.tell(facts)
    if not decide(access, call.action(verb), facts):
        raise Forbidden


def _guard(call: Call, access: Access, connection: Connection, draft: Draft, before: Json | None) -> None:
    guard = call.door.guards.get(call.offer.resource_type)
    if guard:
        guard(connection, access, draft.resource, before)


def _hooked(call: Call, access: Access, connection: Connection, stored: Stored, before: Json | None) -> Stored:
    """The resource as it stands after the work its arrival causes."""
    hook = call.door.hooks.get(call.offer.resource_type)
    if hook is None:
        return stored
    hook(connection, access, resources.loads(stored.body), before)
    return rows.current(connection, stored.resource_type, stored.resource_id) or stored


def _cause(call: Call, access: Access) -> str:
    return f"{call.interaction} by {access.client_id}"


def _written(call: Call, stored: Stored, status: int) -> Response:
    call.about["target"] = f"{stored.resource_type}/{stored.resource_id}"
    headers = {**http.version_headers(stored), "Location": _version_address(call, stored)}
    match http.preference(call.request):
        case "minimal":
            content = b""
        case "OperationOutcome":
            told = Issue("informational", f"version {stored.version} is stored", severity="information")
            content = resources.dumps(outcome.outcome([told], _id(call.request)))
        case _:
            content = stored.body
            headers["Content-Location"] = headers["Location"]
    return http.answer(call.request, content, headers, status)


# --- search --------------------------------------------------------------------------------------------------


def search_type(call: Call, access: Access) -> Response:
    """`GET [base]/[type]?…`, and with the parameters in the body as well `POST [base]/[type]/_search`."""
    _permit(call, access, "s")
    offer, key = call.offer, call.door.key
    given = _criteria(call)
    criteria = [(name, value) for name, value in given if name != bundle.PAGE]
    pages = [value for name, value in given if name == bundle.PAGE]
    wanted = search.parse(offer, criteria, call.door.settings.fhir_base)
    search.check_size(wanted.query)
    query = granted.confine(wanted.query, offer, access)
    bound = (offer.resource_type, wanted.applied, access)
    after = bundle.unseal(key, bound, pages[0]) if pages else None
    call.about["patient_id"] = access.patient_id
    with call.door.store.read() as connection:
        hits = rows.search(connection, query, limit=wanted.count + 1, after=after) if wanted.count else []
        page, more = hits[: wanted.count], len(hits) > wanted.count
        total = rows.count(connection, query) if not wanted.count else None if more or after else len(page)
        extra = _extras(call, access, connection, wanted, page)
    base = call.door.settings.fhir_base
    links = [("self", bundle.address(base, offer.resource_type, [*wanted.applied, *((bundle.PAGE, p) for p in pages)]))]
    if more:
        following = (bundle.PAGE, bundle.seal(key, bound, page[-1]))
        links.append(("next", bundle.address(base, offer.resource_type, [*wanted.applied, following])))
    entries = [*(bundle.entry(base, hit.stored, "match") for hit in page), *extra]
    return http.answer(call.request, bundle.searchset(entries, links, total), {})


def _criteria(call: Call) -> list[tuple[str, str]]:
    found = call.request.query_params.multi_items()
    if call.request.method == "POST":
        http.require_form(call.request)
        try:
            found += parse_qsl(call.body.decode(), keep_blank_values=True)
        except UnicodeDecodeError as error:
            raise BadRequest("the form is not UTF-8") from error
    if any("\0" in name + value for name, value in found):
        # PostgreSQL keeps no NUL, so nothing could match.
        raise BadRequest("a search parameter has no NUL character")
    return [(name, value) for name, value in found if name not in http.FORMATS]


def _extras(call: Call, access: Access, connection: Connection, wanted: Search, page: list[Hit]) -> list[bytes]:
    """The entries that _include and _revinclude add: each once, none that is a match, none the caller may not read."""
    matches = {(hit.stored.resource_type, hit.stored.resource_id) for hit in page}
    found: set[tuple[str, str]] = set()
    for include in wanted.include:
        found |= _included(connection, include, matches)
    for include in wanted.revinclude:
        ids = rows.referrers(connection, include.resource_type, include.param, matches) if matches else []
        found |= {(include.resource_type, resource_id) for resource_id in ids}
    by_type: dict[str, list[str]] = {}
    for resource_type, resource_id in sorted(found - matches)[:MAX_INCLUDED]:
        by_type.setdefault(resource_type, []).append(resource_id)
    stored = [one for kind, ids in by_type.items() if kind in offers() for one in rows.several(connection, kind, ids)]
    entries = [bundle.entry(call.door.settings.fhir_base, one, "include") for one in stored if _readable(access, one)]
    if len(found - matches) > MAX_INCLUDED:
        cut = Issue("incomplete", f"only {MAX_INCLUDED} included resources are shown", severity="warning")
        entries.append(bundle.remark(outcome.outcome([cut])))
    return entries


def _included(connection: Connection, include: Include, matches: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    ids = [resource_id for resource_type, resource_id in matches if resource_type == include.resource_type]
    pairs = rows.targets(connection, include.resource_type, include.param, ids) if ids else []
    return {pair for pair in pairs if pair[0] and include.target_type in {"", pair[0]}}


def _readable(access: Access, stored: Stored) -> bool:
    return decide(access, Action("r", stored.resource_type), resources.facts_of(resources.loads(stored.body)))


_ROUTES: tuple[tuple[str, tuple[str, ...], str, Handler], ...] = (
    ("/{type}", ("GET", "HEAD"), "search-type", search_type),
    ("/{type}", ("POST",), "create", create),
    ("/{type}/_search", ("POST",), "search-type", search_type),
    ("/{type}/{resource_id}", ("GET", "HEAD"), "read", read),
    ("/{type}/{resource_id}", ("PUT",), "update", update),
    ("/{type}/{resource_id}/_history/{version}", ("GET", "HEAD"), "vread", vread),
)
