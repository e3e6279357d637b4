"""The viewer's addresses: /launch, /v/{session}/… and /ohif/… (docs/viewer.md)."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.audit import Record, of
from app.errors import Unauthenticated, Unavailable
from app.settings import Settings
from app.store.database import Store, now
from app.viewer import launch, ohif, sessions
from app.viewer.launch import Audit, Desk, Entered, Http
from app.viewer.pages import HEADERS, Message, entering, page
from app.viewer.sessions import Session

READ = ["GET", "HEAD"]


def routes(
    *,
    store: Store,
    settings: Settings,
    http: Http,
    audit: Audit,
    entered: Entered = lambda _study, _imaging_study: None,
) -> APIRouter:
    """Everything but the session's DICOMweb and FHIR, which main mounts beside it. `entered` hears what is opened."""
    router = APIRouter(include_in_schema=False)
    desk = Desk(store, settings, http, audit, launch.verifying_secret(settings), entered)
    _launch_routes(router, desk)
    _page_routes(router, desk)
    _session_routes(router, desk)

    @router.api_route("/ohif/{path:path}", methods=READ)
    def static_file(request: Request, path: str) -> Response:
        return ohif.static_file(settings, request, path)

    return router


def _launch_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/launch")
    def begin(request: Request) -> Response:
        return launch.answered(desk, request, lambda: launch.begin(desk, request))

    @router.get("/launch/callback")
    def finish(request: Request) -> Response:
        return launch.answered(desk, request, lambda: launch.finish(desk, request))

    @router.get("/v/l/{handle}")
    def open_handle(request: Request, handle: str) -> Response:
        return launch.answered(desk, request, lambda: launch.open_handle(desk, request, handle))

    @router.head("/v/l/{handle}")
    def look_at_handle() -> Response:
        # A program that only looks where a link leads must not use it up.
        return Response(headers=HEADERS)


def _page_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/v/{session}/")
    def enter() -> Response:
        # The same for every session, known or not: it tells nothing.
        return entering()

    @router.get("/v/{session}/viewer")
    def viewer(request: Request) -> Response:
        return _shown(desk, request, lambda found: _viewer(desk, request, found))


def _viewer(desk: Desk, request: Request, session: Session) -> Response:
    query = request.query_params
    if "token" in query or "StudyInstanceUIDs" not in query:
        # OHIF would take `token` for a bearer token: it is dropped before OHIF can see it.
        kept = [(name, value) for name, value in query.multi_items() if name != "token"]
        named = any(name == "StudyInstanceUIDs" for name, _ in kept)
        kept += [] if named else [("StudyInstanceUIDs", session.study_uid)]
        return launch.redirect(f"/v/{session.id}/viewer?{urlencode(kept)}")
    return ohif.page(desk.settings, sessions.keep(desk.store, session))


def _shown(desk: Desk, request: Request, step: Callable[[Session], Response]) -> Response:
    try:
        return step(sessions.find(desk.store, desk.settings, request))
    except Unauthenticated:
        return page(request, 401, Message("This viewer session has ended", "It was idle, closed or never opened here."))
    except Unavailable as error:
        return page(request, 503, Message("The viewer cannot be shown now", str(error), advice="Try again soon."))


def _session_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/v/{session}/app-config.js")
    def app_config(request: Request) -> Response:
        return ohif.app_config(sessions.find(desk.store, desk.settings, request))

    @router.get("/v/{session}/status")
    def status(request: Request) -> Response:
        found = sessions.find(desk.store, desk.settings, request)
        if request.query_params.get("active") == "1":
            found = sessions.keep(desk.store, found)
        return JSONResponse(_status(found), headers=ohif.PRIVATE)

    @router.post("/v/{session}/logout")
    def logout(request: Request) -> Response:
        found = sessions.find(desk.store, desk.settings, request)
        sessions.check_origin(desk.settings, request, found.id)
        desk.store.transact(lambda connection: sessions.end(connection, found))
        launch.note(desk, request, of(found.access, Record("viewer", "logout", "allowed", study_uid=found.study_uid)))
        response = Response(status_code=204, headers={**ohif.PRIVATE, "Clear-Site-Data": '"cache"'})
        sessions.drop_cookie(response, desk.settings, found.id)
        return response


def _status(session: Session) -> dict[str, object]:
    at = now()
    return {
        "user": session.user_name,
        "study_uid": session.study_uid,
        "ends_in": max(0, (session.ends - at) // 1000),
        "final": session.expires <= session.idle_at,
    }
