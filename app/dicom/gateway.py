"""The DICOMweb gateway: each request becomes a typed target, is decided, proved to belong, and asked anew (PS3.18).

Neither path nor query nor header of a caller ever reaches the archive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from msgspec.structs import replace
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app import audit as audit_trail
from app.access import Access, Action, decide, permits, study_facts
from app.audit import Outcome, Record
from app.dicom import accept, admission, capabilities, finding, paths, prepared, qido, shown, stow, wado
from app.dicom.accept import Form
from app.dicom.ahead import Ahead
from app.dicom.cache import OFF, Cache
from app.dicom.crowd import AT_ONCE, Crowd
from app.dicom.flights import Flights
from app.dicom.headless import Headless
from app.dicom.holdings import Holding, Holdings
from app.dicom.orthanc import Orthanc
from app.dicom.paths import Target
from app.dicom.relay import HEADERS, Way
from app.dicom.shelf import Catalogue, Shelf
from app.dicom.spool import Gate
from app.dicom.trail import Trail
from app.dicom.unread import Unread
from app.dicom.upstream import Upstream
from app.errors import BadRequest, Conflict, Forbidden, IsocenterError, MethodNotAllowed, NotFound, TooMany
from app.store import studies
from app.store.database import Store, seen
from app.store.studies import HeldStudy

Authenticate = Callable[[Request], Access]
Answer = TypeVar("Answer")
Base = Callable[[Request], str]

MOUNT = b"/dicom-web"
JSON = "application/dicom+json"
VERBS = {"search": "s", "store": "u"}
GROUPED = frozenset({"frames", "rendered", "thumbnail", "bulkdata"})
"""Audited once per grant, series and window, with a count."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the gateway is made of: the store, the archive's address, and whom to tell."""

    store: Store
    url: str
    username: str
    password: str
    audit: Callable[[Record], None]
    on_stored: Callable[[str], None]
    """Hears the Orthanc id of a study that was stored into."""
    catalogue: Catalogue
    """What searches are answered from."""
    rules: stow.Rules = stow.RULES
    """What may be stored."""
    cache: Cache = OFF
    """Where what was served is kept."""
    at_once: int = AT_ONCE
    """So many requests of one grant are answered side by side."""
    accel: str = ""
    """The internal location of a proxy that keeps and sends bytes for us (ISOCENTER_ACCEL_REDIRECT)."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may go on: who asks, for what, and the one study it is about."""

    request: Request
    access: Access
    target: Target
    study: HeldStudy | None
    base: str


class Gateway:
    """The gateway of one process, whatever number of addresses it is mounted at."""

    def __init__(self, parts: Parts) -> None:
        """Opens no connection yet."""
        self.store = parts.store
        self.on_stored = parts.on_stored
        self.catalogue = parts.catalogue
        self.rules = parts.rules
        self.gate = Gate()
        self.orthanc = Orthanc(parts.url, parts.username, parts.password, connections=4)
        self.upstream = Upstream(parts.url, parts.username, parts.password, parts.rules.folder)
        self.holdings = Holdings(self.orthanc)
        self.crowd = Crowd(parts.at_once)
        self.flights = Flights(parts.cache)
        self.accel = parts.accel
        self.ahead = Ahead(self.orthanc, self.flights)
        self.renderer = shown.Renderer()
        self.trail = Trail(parts.audit)

    async def close(self) -> None:
        """Write what is still counted and let go of every connection."""
        await run_in_threadpool(self.trail.close)
        await run_in_threadpool(self.flights.close)
        await self.upstream.close()
        self.orthanc.close()

    def prepare(self, study_uid: str, imaging_study_id: str) -> None:
        """A viewer is about to open for this study, which was granted: fetch what it will ask for first."""
        self.flights.soon(lambda: self._prepare(study_uid, imaging_study_id))

    def _prepare(self, study_uid: str, imaging_study_id: str) -> None:
        with self.store.read() as connection:
            held = studies.with_uid(connection, study_uid)
        for study in held:
            if study.imaging_study_id == imaging_study_id:
                holding = self.holdings.fresh(study, None, None)
                self.ahead.launched(holding)
                prepared.prepare(self.orthanc, self.flights.cache, holding)

    def admit(self, request: Request, target: Target, access: Access, base: str) -> Admitted:
        """Decide before anything is looked up, then find the one study; a refusal is audited."""
        try:
            study = self._decided(access, target)
        except (Forbidden, NotFound, Conflict):
            self.trail.add(_record(access, target, None, "denied", _request_id(request)))
            raise
        return Admitted(request, access, target, study, base)

    def _decided(self, access: Access, target: Target) -> HeldStudy | None:
        action = Action(VERBS.get(target.resource, "r"), "ImagingStudy")
        if not permits(access, action):
            raise Forbidden
        return None if target.study is None else self.study(access, action, target.study)

    def study(self, access: Access, action: Action, study_uid: str) -> HeldStudy:
        """The study with this UID that the grant covers. Outside the grant, known and unknown are refused alike."""
        if access.studies is not None and study_uid not in access.studies:
            raise Forbidden
        with self.store.read() as connection:
            known, key = seen(connection), ("held", study_uid)
            held: list[HeldStudy] | None = known.get(key)
            if held is None and (held := studies.with_uid(connection, study_uid)):
                known[key] = held
        covered = [study for study in held if covers(access, action, study)]
        if len(covered) > 1:
            raise Conflict("this Study Instance UID was used for more than one patient: ask under one patient's grant")
        if covered:
            return covered[0]
        # A grant that names the study, or that no patient bounds, may know that it is not there.
        if access.studies is not None or decide(access, action, study_facts(study_uid, None)):
            raise NotFound("the archive holds no such study")
        raise Forbidden

    def holding(self, admitted: Admitted) -> Holding:
        """What the archive holds of the study, with the named series and instance in it."""
        target, study = admitted.target, admitted.study
        if study is None:
            raise NotFound
        # Whoever asks for all there is must get what arrived a moment ago; one known object is there or is not.
        if target.instance is not None:
            holding = self.holdings.fresh(study, target.series, target.instance)
        else:
            holding = self.holdings.read(study)
        if not holding.has(target.series, target.instance):
            raise NotFound("the study has no such series or instance")
        return holding

    def _kept(self, admitted: Admitted) -> Holding | None:
        target, study = admitted.target, admitted.study
        if study is None or target.instance is None:
            return None
        return self.holdings.kept(study, target.series, target.instance)

    def search(self, admitted: Admitted) -> Response:
        """QIDO-RS: a list of what matches within the grant."""
        media_type = _must_accept_json(admitted.request)
        target, access, action = admitted.target, admitted.access, Action("s", "ImagingStudy")
        query = qido.parse(target.level, admitted.request.url.query)
        # A series just stored must be found, so the tree is read as it is now.
        tree = admitted.study and finding.Tree(admitted.study, self.holdings.read(admitted.study))
        shelf = Shelf(
            self.store,
            self.orthanc,
            self.catalogue,
            access,
            lambda study: covers(access, action, study),
            admitted.base,
        )
        page = finding.find(shelf, query, target, tree)
        return Response(page.body(), headers={**HEADERS, **page.headers()}, media_type=media_type)

    def metadata(self, admitted: Admitted) -> bytes:
        """WADO-RS metadata of a study, a series or an instance."""
        _must_accept_json(admitted.request)
        holding, target = self.holding(admitted), admitted.target
        if target.series is not None and target.instance is None:
            self.ahead.opened(holding, target.series)
        return prepared.read(self.orthanc, self.flights.cache, holding, target, admitted.base)

    async def pixels(self, admitted: Admitted) -> Response:
        """WADO-RS instances, frames, renderings, bulk data."""
        target = admitted.target
        holding = self._kept(admitted) or await run_in_threadpool(self.holding, admitted)
        way = self._way(admitted, holding)
        if target.resource == "retrieve":
            return await wado.retrieve(way, admitted.request, holding, target)
        if target.resource == "pixeldata":
            return await wado.all_pixel_data(way, admitted.request, holding, target)
        if target.resource == "bulkdata" and not target.element:
            return await wado.all_bulk_data(way, admitted.request, holding, target)
        if target.resource in {"rendered", "thumbnail"}:
            return await shown.rendered(way, self.renderer, admitted.request, holding, target)
        instance = holding.instance(target.series, target.instance)
        if instance is None:
            raise NotFound("the study has no such instance")
        if target.resource == "bulkdata":
            return await wado.bulk_data(way, admitted.request, instance, target)
        return await wado.frames(way, admitted.request, instance, target)

    def _way(self, admitted: Admitted, holding: Holding) -> Way:
        series = holding.series.get(admitted.target.series or "")
        instance = holding.instance(admitted.target.series, admitted.target.instance)

        def follow(number: int) -> None:
            if series is not None and instance is not None:
                self.ahead.asked(series, instance, number)

        way = Way(self.orthanc, self.upstream, admitted.base, self.flights, admitted.request, holding.versions)
        return dataclasses.replace(way, follow=follow, proxy=admission.place(self.accel, admitted.request))

    async def stored(self, admitted: Admitted) -> Response:
        """STOW-RS: spool, check, forward, verify, answer."""
        _must_accept_json(admitted.request)
        with self.gate.passed(admitted.access.grant_id or admitted.access.client_id):
            received = await stow.receive(admitted.request, self.rules)
            try:
                outcome = await run_in_threadpool(self._store_parts, admitted, received)
            finally:
                received.close()
        await run_in_threadpool(self.trail.add, self._told(admitted, outcome))
        content = orjson.dumps(outcome.body(admitted.base))
        return Response(content, outcome.status, {**HEADERS, **outcome.headers()}, outcome.media_type)

    def _store_parts(self, admitted: Admitted, received: stow.Received) -> stow.Outcome:
        door = stow.Door(self.store, self.orthanc, self.holdings, admitted.access, self.rules.classes)
        action = Action("u", "ImagingStudy")
        batch = stow.Batch(door, admitted.study, lambda uid: self.study(admitted.access, action, uid))
        try:
            return batch.store(received.parts)
        finally:
            for orthanc_id in batch.outcome.touched:
                self.on_stored(orthanc_id)

    @staticmethod
    def _told(admitted: Admitted, outcome: stow.Outcome) -> Record:
        request_id, ended = _request_id(admitted.request), "allowed" if outcome.stored else "failed"
        record = _record(admitted.access, admitted.target, admitted.study, ended, request_id)
        return replace(record, detail=outcome.detail())


def covers(access: Access, action: Action, study: HeldStudy) -> bool:
    """Whether the grant covers this very study: its UID, its patient and its ImagingStudy."""
    facts = replace(study_facts(study.study_uid, study.patient_id), resource_id=study.imaging_study_id)
    return decide(access, action, facts)


def _must_accept_json(request: Request) -> str:
    return accept.must_take_text(request, JSON, "application/json")


def _record(access: Access, target: Target, study: HeldStudy | None, outcome: Outcome, request_id: str) -> Record:
    record = Record(
        "dicomweb",
        target.resource,
        outcome,
        patient_id=study.patient_id if study else access.patient_id,
        study_uid=target.study,
        target=f"{target.path()}/{target.resource}",
        request_id=request_id,
    )
    return audit_trail.of(access, record)


def _request_id(request: Request) -> str:
    return getattr(request.state, "request_id", "")


class Service:
    """The gateway under one address that ends in /dicom-web, as an ASGI application: no framework stands before it."""

    def __init__(self, gateway: Gateway, authenticate: Authenticate, base: Base, *, in_loop: bool = False) -> None:
        """`base(request)` is the address as clients see it. `in_loop`: who asks is known in microseconds."""
        self._gateway, self._authenticate, self._base, self._in_loop = gateway, authenticate, base, in_loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        with ExitStack() as passed:
            response = await self._serve(Request(scope, Unread(scope, receive).receive, send), passed)
            await response(scope, receive, send)

    async def _serve(self, request: Request, passed: ExitStack) -> Response:
        path = below(request.scope)
        if request.method == "OPTIONS" or paths.is_root(path):
            # No credential: a browser sends none with its preflight, and nothing here is about anybody.
            return self._offered(request, path)
        target = paths.parse(request.method, path)
        if self._in_loop:
            admitted = self._admit(request, target)
        else:
            admitted = await run_in_threadpool(self._admit, request, target)
        try:
            passed.enter_context(self._gateway.crowd.passed(admitted.access.grant_id or admitted.access.client_id))
        except TooMany as error:
            _failed(self._gateway, admitted, error)
            raise
        response = await _answer(self._gateway, admitted)
        return Headless(response) if request.method == "HEAD" else response

    def _offered(self, request: Request, path: bytes) -> Response:
        allow = paths.allowed(path)
        if request.method not in allow:
            raise MethodNotAllowed(f"{request.method} is not offered here", allow=allow)
        headers = {**HEADERS, "Allow": ", ".join(allow)}
        if not paths.is_root(path):
            return Response(status_code=204, headers=headers)
        _, form = accept.select(request, [Form(capabilities.WADL), Form("application/xml"), Form("application/json")])
        describe = capabilities.as_json if form.media_type == "application/json" else capabilities.wadl
        return Response(describe(self._base(request)), headers=headers, media_type=form.media_type)

    def _admit(self, request: Request, target: Target) -> Admitted:
        return self._gateway.admit(request, target, self._authenticate(request), self._base(request))


def below(scope: Any) -> bytes:
    """The raw path below the service root; a path that would have to be decoded is refused."""
    raw: bytes = scope.get("raw_path") or b""
    path, _, _ = raw.partition(b"?")
    _, mount, rest = path.partition(MOUNT)
    if not mount or b"%" in path:
        raise BadRequest("the path has characters that no DICOMweb address has")
    return rest


async def _answer(gateway: Gateway, admitted: Admitted) -> Response:
    target = admitted.target
    try:
        match target.resource:
            case "search":
                return await run_in_threadpool(_audited, gateway, admitted, gateway.search)
            case "metadata":
                return _json(await run_in_threadpool(_audited, gateway, admitted, gateway.metadata))
            case "store":
                return await gateway.stored(admitted)
            case _:
                response = await gateway.pixels(admitted)
    except IsocenterError as error:
        await run_in_threadpool(_failed, gateway, admitted, error)
        raise
    _read(gateway, admitted)
    return response


def _json(content: bytes) -> Response:
    return Response(content, media_type=JSON, headers=HEADERS)


def _audited(gateway: Gateway, admitted: Admitted, work: Callable[[Admitted], Answer]) -> Answer:
    content = work(admitted)
    gateway.trail.add(
        _record(admitted.access, admitted.target, admitted.study, "allowed", _request_id(admitted.request))
    )
    return content


def _read(gateway: Gateway, admitted: Admitted) -> None:
    record = _record(admitted.access, admitted.target, admitted.study, "allowed", _request_id(admitted.request))
    if admitted.target.resource in GROUPED:
        gateway.trail.count(record, admitted.target.series)
    else:
        gateway.trail.add(record)


def _failed(gateway: Gateway, admitted: Admitted, error: IsocenterError) -> None:
    record = _record(admitted.access, admitted.target, admitted.study, "failed", _request_id(admitted.request))
    gateway.trail.add(replace(record, detail={"status": error.status}))
