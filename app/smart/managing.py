"""Where people see the apps and viewers that act for them, and end them (SMART App Launch 2.2, management_endpoint)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.engine import Connection

from app.smart import pages, tokens, users
from app.smart.desk import (
    Desk,
    form_token,
    is_own_form,
    note,
    redirect,
    session_of,
    set_cookie,
    try_login,
    with_form_cookie,
)
from app.smart.requests import Form, form_of
from app.smart.token_endpoint import NO_STORE
from app.smart.users import Session
from app.store import grants
from app.store.database import now

Posted = Annotated[Form, Depends(form_of)]


@dataclass(frozen=True, slots=True)
class Shown:
    """One grant as its owner reads it."""

    id: str
    app: str
    patient: str
    study: str
    since: str
    until: str
    rights: tuple[str, ...]


def add_routes(router: APIRouter, desk: Desk) -> None:
    """/auth/manage and /auth/logout."""

    @router.get("/manage")
    def manage(request: Request) -> Response:
        return with_form_cookie(desk, request, _page(desk, request))

    @router.post("/manage")
    def change(request: Request, form: Posted) -> Response:
        return with_form_cookie(desk, request, _changed(desk, request, form))

    @router.post("/logout")
    def logout(request: Request, form: Posted) -> Response:
        return _logout(desk, request, form)


def _page(desk: Desk, request: Request, *, fault: str = "", status: int = 200) -> Response:
    session = session_of(desk, request)
    if session is None:
        csrf = form_token(desk, request)
        return pages.page("manage-login.html", status, base=desk.settings.public_url, csrf=csrf, fault=fault)
    with desk.store.read() as connection:
        held = [_shown(desk, connection, row) for row in grants.of_user(connection, session.user.id, now())]
    return pages.page(
        "manage.html",
        status,
        base=desk.settings.public_url,
        csrf=session.csrf,
        user=session.user,
        held=held,
        fault=fault,
    )


def _shown(desk: Desk, connection: Connection, row: Mapping[str, Any]) -> Shown:
    study_id = next(
        (one["reference"].removeprefix("ImagingStudy/") for one in row["context"].get("fhirContext", ())), None
    )
    study = desk.patients.study(connection, study_id) if study_id else ""
    return Shown(
        id=row["id"],
        app=row["client_name"] or row["client_id"],
        patient=desk.patients.patient(connection, row["patient_id"]) if row["patient_id"] else "",
        study=study,
        since=_moment(desk, row["created"]),
        until=_moment(desk, row["expires"]),
        rights=tuple(dict.fromkeys(pages.in_words(scope, study) for scope in row["scope"].split())),
    )


def _moment(desk: Desk, milliseconds: int) -> str:
    at = datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone(ZoneInfo(desk.settings.timezone))
    return f"{at:%Y-%m-%d %H:%M}"


def _changed(desk: Desk, request: Request, form: Form) -> Response:
    """Log in, or end one of the person's grants."""
    session, fields = session_of(desk, request), form.fields
    if session is None:
        tried = try_login(desk, request, fields, csrf=form_token(desk, request))
        if not tried.cookie:
            return _page(desk, request, fault=tried.fault, status=tried.status)
        response = redirect(f"{desk.settings.public_url}/auth/manage")
        set_cookie(desk, response, users.cookie_name(desk.settings), tried.cookie)
        return response
    if not is_own_form(fields, session.csrf):
        return _page(desk, request, fault="The form had expired. Please try again.", status=403)
    response = redirect(f"{desk.settings.public_url}/auth/manage")
    if "logout" in fields:
        _close(desk, request, response)
    else:
        desk.store.transact(lambda connection: _ended(desk, connection, session, fields.get("end", "")))
    return response


def _ended(desk: Desk, connection: Connection, session: Session, grant_id: str) -> None:
    """End the grant if it is this person's; what is another's is as unknown as what never was."""
    row = grants.find_grant(connection, grant_id, now())
    if row is None or row["user_id"] != session.user.id:
        return
    tokens.revoke_grant(connection, grant_id)
    about = {"client_id": row["client_id"], "grant_id": grant_id, "patient_id": row["patient_id"]}
    note(desk, "manage", "allowed", fhir_user=session.user.fhir_user, **about)


def _logout(desk: Desk, request: Request, form: Form) -> Response:
    """The same for programs: 204, or why not."""
    session = session_of(desk, request)
    if session is None:
        return JSONResponse({"error": "invalid_request"}, 400, headers=NO_STORE)
    if not is_own_form(form.fields, session.csrf):
        return JSONResponse({"error": "invalid_request", "error_description": "csrf"}, 403, headers=NO_STORE)
    response = Response(status_code=204, headers=NO_STORE)
    _close(desk, request, response)
    return response


def _close(desk: Desk, request: Request, response: Response) -> None:
    name = users.cookie_name(desk.settings)
    value = request.cookies.get(name, "")
    desk.store.transact(lambda connection: users.close_session(connection, value))
    response.delete_cookie(name, path="/", secure=desk.settings.https, httponly=True, samesite="lax")
