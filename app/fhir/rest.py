"""The REST interface as one ASGI application: who may ask what at which address (https://hl7.org/fhir/R4/http.html).

A table and not a framework routes the requests, since reading a stored resource takes less time than finding its route
would. On SQLite short reads run in the event loop, each under a time limit; all else runs in threads.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from sqlalchemy.engine import Connection
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from app.access import Access
from app.audit import Outcome, Record
from app.errors import BadRequest, Forbidden, IsocenterError, Unauthenticated, Unavailable
from app.fhir import (
    audit_events,
    binary,
    capability,
    http,
    interactions,
    openapi,
    outcome,
    resources,
    routing,
    transaction,
)
from app.fhir.calls import Authenticate, Call, Door, Reply
from app.fhir.http import Asked
from app.fhir.registry import Offer, offers
from app.fhir.routing import Route
from app.fhir.search import REMEMBERED, refusal
from app.settings import Settings
from app.store.inloop import LoopWriter

T = TypeVar("T")

THREADS = 16
LOOP_SECONDS = 0.03
"""A read that takes longer leaves the event loop to others and begins again in a thread."""
READ_SECONDS = 30
JUDGED_IN_LOOP = 32 * 1024
"""Bodies up to this size are parsed and validated in the event loop."""

FORM_IN_LOOP = 8 * 1024
COUNT_IN_LOOP = 100
"""Longer forms are read, and larger pages are made, in a thread."""

SEARCHES = frozenset({"search-type", "search-system", "search-compartment"})
POINTS = frozenset({"read", "vread"})
QUICK = POINTS | {"search-type"}
"""Mostly point reads and indexed pages: tried in the event loop first."""
BUNDLES: Mapping[str, Callable[[Call], Reply]] = {"bundle": transaction.process}
_COUNTS = re.compile(rb"(?:^|&)_count=([^&]*)")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "ETag, Location, Content-Location, Last-Modified, Retry-After, X-Request-Id",
}
_PREFLIGHT = {
    "Access-Control-Allow-Methods": ", ".join(_METHODS),
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Accept, Prefer, If-Match, If-None-Match, "
    "If-None-Exist, If-Modified-Since, X-Request-Id",
    "Access-Control-Max-Age": "3600",
}


class Interface:
    """Everything below a FHIR base, mounted with the base as its root path."""

    def __init__(self, door: Door) -> None:
        """`door.read_only` leaves reading and searching."""
        self.door = door
        self.pages = _pages(door)
        # In the loop only where credential and row cost microseconds: SQLite, and a bearer token, which writes nothing.
        self.in_loop = door.store.sqlite and not door.read_only
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="fhir")
        self.writer = LoopWriter(door.store, self.pool)

    def close(self) -> None:
        """Let the threads end."""
        self.pool.shutdown(wait=False)
        self.writer.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked = Asked(scope["method"] == "HEAD", takes_gzip=http.takes_gzip(headers))
        open_to = {} if self.door.read_only or "origin" not in headers else _CORS
        try:
            asked, reply = await self._replied(scope, receive, headers, asked)
        except IsocenterError as error:
            if error.status == 500:
                raise
            status, body, told = outcome.render(error, _id(scope))
            reply = Reply(status, body, {name: value for name, value in told.items() if name != "Content-Type"})
        await http.answer(send, asked, reply.status, reply.body, {**reply.headers, **open_to})

    async def _replied(
        self, scope: Scope, receive: Receive, headers: Mapping[str, str], asked: Asked
    ) -> tuple[Asked, Reply]:
        method, path = scope["method"], scope["path"][len(scope.get("root_path", "")) :]
        if "\0" in path:
            raise BadRequest("an address has no NUL character")
        if method == "OPTIONS" and not self.door.read_only:
            return asked, Reply(204, b"", _PREFLIGHT)
        query = scope["query_string"]
        criteria = _remembered(query) if len(query) <= REMEMBERED else _criteria(query)
        if ("_pretty", "true") in criteria:
            asked = Asked(asked.is_head, is_pretty=True, takes_gzip=asked.takes_gzip)
        page = self.pages.get(path.strip("/"))
        if page is not None:
            return asked, _page(page, method, headers, criteria)
        route = routing.route(self.door, method, [part for part in path.split("/") if part])
        scope["route"] = route
        made = partial(_call, self.door, scope, criteria, headers)
        if self.door.recognize and method in {"GET", "HEAD"} and not (route.resource_type and _offered(route).kept):
            return asked, await self._got(scope, route, made)
        call = made(await self._access(scope, route))
        return asked, await self._answered(call, method, receive)

    async def _access(self, scope: Scope, route: Route) -> Access:
        """Who calls is known before the body is read."""
        known = partial(self._identified, scope, route, self.door.authenticate)
        return known() if self.in_loop else await self._threaded(known)

    def _identified(self, scope: Scope, route: Route, authenticate: Authenticate) -> Access:
        try:
            return authenticate(Request(scope))
        except Unauthenticated:
            where: dict[str, Any] = {"target": route.resource_type, "request_id": _id(scope)}
            self.door.audit(Record("fhir", route.interaction, "denied", **where, detail=_address(scope)))
            raise

    async def _got(self, scope: Scope, route: Route, made: Callable[[Access], Call]) -> Reply:
        """A GET: caller and answer are read on one connection."""
        if self.in_loop and (route.interaction in POINTS or (route.interaction in QUICK and _is_small(scope))):
            # What takes long begins again in a thread.
            with suppress(Unavailable):
                return self._gathered(scope, route, made, LOOP_SECONDS)
        is_point = route.interaction in POINTS
        return await self._threaded(partial(self._gathered, scope, route, made, None if is_point else READ_SECONDS))

    def _gathered(self, scope: Scope, route: Route, made: Callable[[Access], Call], seconds: float | None) -> Reply:
        recognize, call = self.door.recognize, None
        try:
            with self.door.store.read(seconds) as connection:
                known = partial(recognize, connection) if recognize else self.door.authenticate
                call = made(self._identified(scope, route, known))
                _negotiate(call)
                reply = _read(call, connection)
        except Exception as error:
            is_late = isinstance(error, Unavailable) and seconds == LOOP_SECONDS
            if call is not None and not is_late:
                self.door.audit(call.record(_failure(error)))
            raise
        self.door.audit(call.record("allowed"))
        return reply

    async def _answered(self, call: Call, method: str, receive: Receive) -> Reply:
        try:
            body = await http.body(receive, call.headers) if method not in {"GET", "HEAD"} else b""
            _negotiate(call)
            if body:
                call = replace(call, body=body)
            if call.interaction in routing.READERS:
                reply = await self._looked(call, method)
                self.door.audit(call.record("allowed"))
            elif call.interaction in BUNDLES:
                reply = await self._threaded(lambda: BUNDLES[call.interaction](call))
            else:
                reply = await self._write(call)
        except Exception as error:
            self.door.audit(call.record(_failure(error)))
            raise
        return reply

    async def _looked(self, call: Call, method: str) -> Reply:
        """A search by POST, and what is kept elsewhere than the other resources."""
        if method == "POST":
            form = partial(interactions.require_form, call)
            call = replace(
                call, criteria=tuple(form() if len(call.body) <= FORM_IN_LOOP else await self._threaded(form))
            )
        if call.resource_type and call.offer.kept:
            await self._threaded(self.door.settle_audit)
        return await self._threaded(partial(self._look, call))

    def _look(self, call: Call) -> Reply:
        with self.door.store.read(READ_SECONDS) as connection:
            return _read(call, connection)

    async def _write(self, call: Call) -> Reply:
        if not self.in_loop:
            return await self._threaded(lambda: self.door.store.transact(_audited(call, interactions.prepare(call))))
        planned = partial(interactions.planner, call)
        decided = planned() if len(call.body) <= JUDGED_IN_LOOP else await self._threaded(planned)
        if interactions.is_free(call):
            return await self.writer.join(decided, self._finish)
        work = interactions.following(decided)
        if call.resource_type in self.door.hooks:
            # What an order or a report causes takes its time.
            return await asyncio.wrap_future(self.door.store.submit(_audited(call, work)))
        return await self.writer.write(_audited(call, work))

    def _finish(self, connection: Connection, plans: Sequence[interactions.Plan]) -> list[Reply]:
        """Carry out what was decided, with its audit records."""
        replies = interactions.carry_out(connection, plans)
        interactions.keep(self.door, connection, [plan.call.record("allowed") for plan in plans])
        return replies

    async def _threaded(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


def _call(door: Door, scope: Scope, criteria: http.Criteria, headers: Mapping[str, str], access: Access) -> Call:
    route: Route = scope["route"]
    return Call(
        door,
        access,
        route.interaction,
        route.resource_type,
        route.resource_id,
        route.version,
        tuple(criteria),
        headers,
        request_id=_id(scope),
        about={"detail": _address(scope)},
    )


def _criteria(query: bytes) -> tuple[tuple[str, str], ...]:
    """The parameters of an address in their order, empty ones included."""
    return tuple(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else ()


_remembered = lru_cache(maxsize=1024)(_criteria)


def _address(scope: Scope) -> dict[str, Any]:
    """Where a request came from, for the audit trail."""
    client = scope.get("client")
    return {"address": client[0]} if client else {}


def _offered(route: Route) -> Offer:
    return offers()[route.resource_type]


def _negotiate(call: Call) -> None:
    if call.resource_type != "Binary" or not binary.takes(call.headers):
        http.negotiate(call.headers, call.criteria)


def _read(call: Call, connection: Connection) -> Reply:
    """Run the reader; the trail of a search tells what was asked, without what may be a name."""
    if call.interaction in SEARCHES:
        kind = call.offer if call.interaction == "search-type" else None
        call.about["detail"]["query"] = audit_events.asked(kind, call.criteria)
    return routing.READERS[call.interaction](call, connection)


def _failure(error: Exception) -> Outcome:
    return "denied" if isinstance(error, Forbidden) else "failed"


def _is_small(scope: Scope) -> bool:
    """Whether few resources are asked for: the time limit is the database's, and many take long to put together."""
    counts = _COUNTS.findall(scope["query_string"])
    return all(len(count) < 4 and count.isdigit() and int(count) <= COUNT_IN_LOOP for count in counts)


def _audited(call: Call, work: interactions.Work) -> interactions.Work:
    """The work with its audit record in the same transaction."""

    def both(connection: Connection) -> Reply:
        reply = work(connection)
        interactions.keep(call.door, connection, [call.record("allowed")])
        return reply

    return both


def _id(scope: Scope) -> str:
    return scope.get("state", {}).get("request_id", "")


# --- what needs no token -------------------------------------------------------------------------------------

Page = Callable[[http.Criteria], Reply]


def _pages(door: Door) -> Mapping[str, Page]:
    """The public pages by their address: what the server offers, for clients, tools and people."""
    pages: dict[str, Page] = {"metadata": _metadata(door)}
    if not door.read_only:
        document, page = _once(openapi.document, door), _once(openapi.page, door)
        pages["openapi.json"] = lambda _: Reply(200, document(), {"Content-Type": "application/json"})
        pages["api"] = lambda _: Reply(200, page(), openapi.PAGE_HEADERS)
    return pages


def _once(make: Callable[[Settings], Any], door: Door) -> Callable[[], bytes]:
    """What a page shows, made when somebody first asks for it."""

    @cache
    def made() -> bytes:
        found = make(door.settings)
        return found.encode() if isinstance(found, str) else resources.dumps(found)

    return made


def _page(page: Page, method: str, headers: Mapping[str, str], criteria: http.Criteria) -> Reply:
    if method not in {"GET", "HEAD"}:
        raise outcome.Disallowed({"GET", "HEAD"})
    reply = page(criteria)
    if "Content-Type" not in reply.headers:
        http.negotiate(headers, criteria)
    return reply


def _metadata(door: Door) -> Page:
    modes = {
        **dict.fromkeys(("full", "normative"), capability.statement(door.settings, read_only=door.read_only)),
        "terminology": capability.terminology(door.settings),
    }
    bodies = {mode: resources.dumps(found) for mode, found in modes.items()}

    def page(criteria: http.Criteria) -> Reply:
        found = bodies.get(http.single(criteria, "mode") or "full")
        if found is None:
            raise refusal("mode must be full, normative or terminology", "mode")
        return Reply(200, found)

    return page
