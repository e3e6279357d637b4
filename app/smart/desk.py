"""What every page of the authorization server needs: its parts, its cookies, and forms that other sites cannot send."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.engine import Connection

from app.audit import Outcome, Record
from app.settings import Settings
from app.smart import choosing, opaque, users
from app.smart.users import Session
from app.store.database import Store

Audit = Callable[[Record], None]


@dataclass(frozen=True, slots=True)
class PatientReader:
    """What the consent page tells of a patient and of a study; handed in, for the FHIR store lies above."""

    patient: Callable[[Connection, str], str]
    study: Callable[[Connection, str], str]
    records: choosing.Records


@dataclass(frozen=True, slots=True)
class Desk:
    """What every page of the flow needs."""

    store: Store
    settings: Settings
    audit: Audit
    patients: PatientReader
    throttle: users.Throttle


@dataclass(frozen=True, slots=True)
class Login:
    """How a try to log in ended: the cookie of the new session, or why there is none."""

    cookie: str = ""
    fault: str = ""
    status: int = 200


def try_login(desk: Desk, request: Request, fields: Mapping[str, str], *, csrf: str, client_id: str = "") -> Login:
    """Check form, number of tries, name and password (OWASP ASVS V2.2)."""
    if not is_own_form(fields, csrf):
        return Login(fault="The form had expired. Please try again.", status=403)
    name, address = fields.get("username", ""), request.client.host if request.client else ""
    if not desk.throttle.take(name, address):
        return Login(fault="Too many tries. Please wait a minute.", status=429)
    with desk.store.read() as connection:
        user = users.verify(connection, name, fields.get("password", ""))
    if user is None:
        note(desk, "login", "denied", client_id=client_id)
        return Login(fault="Name or password is wrong.", status=401)
    desk.throttle.forgive(name, address)
    value = desk.store.transact(lambda connection: users.open_session(connection, user))
    note(desk, "login", "allowed", client_id=client_id, fhir_user=user.fhir_user)
    return Login(value)


def is_own_form(fields: Mapping[str, str], csrf: str) -> bool:
    """Whether the form was made here for this person."""
    return hmac.compare_digest(fields.get("csrf", "").encode(), csrf.encode())


def session_of(desk: Desk, request: Request) -> Session | None:
    """Who is logged in."""
    with desk.store.read() as connection:
        return users.find_session(connection, request.cookies.get(users.cookie_name(desk.settings)))


def note(desk: Desk, action: str, outcome: Outcome, **about: Any) -> None:
    """Tell the audit trail."""
    desk.audit(Record("smart", action, outcome, **about))


def redirect(location: str) -> Response:
    """Go on elsewhere with a GET (RFC 9700 section 4.12), telling nobody from where."""
    return RedirectResponse(location, 303, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


def set_cookie(desk: Desk, response: Response, name: str, value: str) -> None:
    """A cookie that scripts and other sites do not get."""
    response.set_cookie(name, value, path="/", secure=desk.settings.https, httponly=True, samesite="lax")


def form_token(desk: Desk, request: Request) -> str:
    """The token in a form before any login: derived from a cookie that other sites cannot set or send."""
    held = request.cookies.get(users.cookie_name(desk.settings, "form")) or getattr(request.state, "form", None)
    if held is None:
        request.state.form = held = opaque.make()
    return opaque.digest(f"form {held}")


def with_form_cookie(desk: Desk, request: Request, response: Response) -> Response:
    """The response with the cookie that the token in its form was derived from, if that is new."""
    fresh = getattr(request.state, "form", None)
    if fresh is not None:
        set_cookie(desk, response, users.cookie_name(desk.settings, "form"), fresh)
    return response
