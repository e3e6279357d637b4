"""The viewer as a SMART app of this server: the code flow with PKCE, and one-time handles (SMART App Launch 2.2)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx
from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from msgspec.structs import replace
from sqlalchemy.engine import Connection

from app.audit import Record
from app.errors import NotFound, Unavailable
from app.settings import Settings
from app.smart import authorize, clients, launches, opaque, tokens, users
from app.smart.authorize import Address, Asking, Offer, Person
from app.smart.launches import LaunchContext
from app.store import grants, keys
from app.store.database import Store, now
from app.viewer import sessions
from app.viewer.pages import HEADERS, Message, page
from app.viewer.registration import CLIENT_ID, SCOPE, redirect_uri

LAUNCH_SECONDS = 300
SEE_OTHER = 303

Http = Callable[[str, Mapping[str, str]], tuple[int, Mapping[str, Any]]]
"""Posts a form to a token endpoint and returns status and JSON."""
Audit = Callable[[Record], None]
Entered = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Desk:
    """What every address of the viewer needs. `secret` binds a launch's PKCE verifier to this installation."""

    store: Store
    settings: Settings
    http: Http
    audit: Audit
    secret: bytes = field(repr=False)
    entered: Entered = lambda _study, _imaging_study: None
    """Hears which study somebody is about to look at: its UID and the id of its ImagingStudy."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A grant for exactly one study."""

    grant_id: str
    study_uid: str
    imaging_study_id: str
    user_name: str
    record: Record


class Stopped(Exception):
    """The launch goes no further; a page says at which step and what to do."""

    def __init__(self, status: int, sentence: str) -> None:
        """`sentence` names the step and holds no patient data."""
        self.status = status
        super().__init__(sentence)


def own_server(settings: Settings) -> Http:
    """Posts to our own addresses over the loopback listener, so that no proxy before us has to be passed."""
    # A server that listens everywhere is asked on loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    own = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"

    def post(url: str, form: Mapping[str, str]) -> tuple[int, Mapping[str, Any]]:
        address = own + url.removeprefix(settings.public_url)
        try:
            answer = httpx.post(address, data=dict(form), timeout=10, trust_env=False)
            return answer.status_code, answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable("the token endpoint does not answer") from error

    return post


def verifying_secret(settings: Settings) -> bytes:
    """A secret of the installation for PKCE verifiers only."""
    return hmac.digest(keys.wrapping_secret(settings), b"viewer launch", "sha256")


# --- the code flow ----------------------------------------------------------------------------------------------------


def begin(desk: Desk, request: Request) -> Response:
    """/launch: send the browser to the authorization server of a known issuer."""
    settings, query = desk.settings, request.query_params
    if query.get("iss", "").removesuffix("/") != settings.fhir_base:
        # Compared before anything is fetched: an unknown issuer could be any address.
        raise Stopped(400, "Step 1, the launch: its issuer (iss) is not an EHR this viewer is configured for.")
    if len(query.getlist("iss")) != 1 or len(query.getlist("launch")) != 1 or not query["launch"]:
        raise Stopped(400, "Step 1, the launch: the parameters iss and launch must each be there once.")
    state = f"{secrets.token_urlsafe(24)}.{now() + LAUNCH_SECONDS * 1000}"
    challenge = base64.urlsafe_b64encode(hashlib.sha256(_verifier(desk, state).encode()).digest())
    asked = {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": redirect_uri(settings),
        "scope": SCOPE,
        "state": state,
        "aud": settings.fhir_base,
        "launch": query["launch"],
        "code_challenge": challenge.rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    }
    response = redirect(f"{settings.public_url}/auth/authorize?{urlencode(asked)}")
    # Lax: the way back from the authorization server may begin on another site.
    response.set_cookie(
        _launch_cookie(settings, state), state, max_age=LAUNCH_SECONDS, path="/launch",
        secure=settings.https, httponly=True, samesite="lax",
    )  # fmt: skip
    return response


def finish(desk: Desk, request: Request) -> Response:
    """/launch/callback: exchange the code on the server's side and open a session for the granted study."""
    state = _returned_state(desk, request)
    opened = _granted(desk, _exchange(desk, request.query_params["code"], state))
    response = _enter(desk, request, opened)
    response.delete_cookie(
        _launch_cookie(desk.settings, state), path="/launch", secure=desk.settings.https, httponly=True, samesite="lax"
    )
    return response


def _returned_state(desk: Desk, request: Request) -> str:
    query = request.query_params
    state = query.get("state", "")
    if query.get("iss", desk.settings.public_url) != desk.settings.public_url:
        raise Stopped(400, "Step 3, the answer: it comes from another authorization server than the one asked.")
    kept = request.cookies.get(_launch_cookie(desk.settings, state), "")
    if not state or not hmac.compare_digest(kept.encode(), state.encode()) or _expiry(state) <= now():
        raise Stopped(400, "Step 3, the answer: this browser has no launch under way that it belongs to.")
    if "error" in query:
        raise Stopped(403, f"Step 2, the authorization: it was refused ({_refusal(query)}).")
    if not query.get("code"):
        raise Stopped(400, "Step 3, the answer: it holds no code.")
    return state


def _refusal(query: Mapping[str, str]) -> str:
    said = query.get("error_description") or query.get("error", "")
    return "".join(letter for letter in said[:200] if letter.isprintable())


def _expiry(state: str) -> int:
    text = state.rpartition(".")[2]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _verifier(desk: Desk, state: str) -> str:
    # Derived, not kept: a state with another expiry has another verifier, and the exchange fails.
    return hmac.new(desk.secret, state.encode(), "sha256").hexdigest()


def _launch_cookie(settings: Settings, state: str) -> str:
    # One cookie per launch, so that two tabs may launch at the same time.
    return f"{users.cookie_name(settings, 'launch')}_{opaque.digest(state)[:16]}"


def _exchange(desk: Desk, code: str, state: str) -> Mapping[str, Any]:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri(desk.settings),
        "client_id": CLIENT_ID,
        "code_verifier": _verifier(desk, state),
    }
    status, body = desk.http(f"{desk.settings.public_url}/auth/token", form)
    if status != 200 or "access_token" not in body:
        raise Stopped(403, f"Step 4, the exchange of the code: it was refused ({body.get('error', status)}).")
    return body


def _granted(desk: Desk, body: Mapping[str, Any]) -> Opened:
    """The grant behind the token; the tokens themselves are dropped here and reach no browser."""
    with desk.store.read() as connection:
        row = grants.living_token(connection, opaque.digest(body["access_token"]), now())
    if row is None:
        raise Stopped(403, "Step 4, the exchange of the code: the grant has ended already.")
    study_uid = _study_uid(body)
    if study_uid is None or row["studies"] != [study_uid]:
        raise Stopped(403, "Step 5, the study: the launch does not name exactly one.")
    return Opened(row["id"], study_uid, _imaging_study_id(body), row["user_name"], _record(row, study_uid))


def _study_uid(context: Mapping[str, Any]) -> str | None:
    """The one study of `authorization_details` (RFC 9396)."""
    named = [
        name
        for detail in context.get("authorization_details", [])
        if detail.get("type") == authorize.STUDY_DETAILS
        for name in detail.get("identifier", [])
    ]
    return named[0].removeprefix("urn:oid:") if len(named) == 1 else None


def _imaging_study_id(context: Mapping[str, Any]) -> str:
    """The ImagingStudy of `fhirContext`."""
    references = [entry.get("reference", "") for entry in context.get("fhirContext", [])]
    return next((text.partition("/")[2] for text in references if text.startswith("ImagingStudy/")), "")


def _record(row: Mapping[str, Any], study_uid: str) -> Record:
    return Record(
        "viewer", "launch", "allowed", row["client_id"], row["id"], row["fhir_user"], row["patient_id"], study_uid
    )


# --- the one-time handle ----------------------------------------------------------------------------------------------


def open_handle(desk: Desk, request: Request, handle: str) -> Response:
    """/v/l/{handle}: take it, grant what the code flow would grant, and open a session."""
    if "prefetch" in request.headers.get("sec-purpose", ""):
        # A browser that only guesses must not use the link up.
        return Response(status_code=204, headers=HEADERS)
    cookie = request.cookies.get(users.cookie_name(desk.settings))

    def work(connection: Connection) -> Opened:
        context = launches.take_launch(connection, handle, kind="viewer")
        session = users.find_session(connection, cookie)
        person = authorize.person_of(connection, session, context)
        if person is None:
            raise Stopped(403, "The link was not made by a program that may vouch for its user.")
        return _grant(desk.settings, connection, context, person)

    try:
        opened = desk.store.transact(work)
    except NotFound as error:
        raise Stopped(410, "This link is unknown, expired or was used before: it opens one viewer, once.") from error
    except authorize.Refused as error:
        raise Stopped(403, f"The authorization was refused ({error}).") from error
    return _enter(desk, request, opened)


def _grant(settings: Settings, connection: Connection, context: LaunchContext, person: Person) -> Opened:
    client = clients.find(connection, CLIENT_ID)
    if client is None:
        raise Stopped(403, "The viewer is not registered as an app here, or it is disabled.")
    asking = Asking(Address(client, redirect_uri(settings), None), SCOPE, "", "")
    offer = authorize.offer_of(settings, asking, context, authorize.cap_of(connection, person, context))
    grant_id = _open_grant(connection, person, offer)
    row = grants.find_grant(connection, grant_id, now())
    study_uid = _study_uid(offer.context)
    if row is None or study_uid is None:
        raise Stopped(403, "The link does not name exactly one study.")
    return Opened(grant_id, study_uid, _imaging_study_id(offer.context), person.user.name, _record(row, study_uid))


def _open_grant(connection: Connection, person: Person, offer: Offer) -> str:
    return tokens.open_grant(
        connection,
        client_id=CLIENT_ID,
        user=person.user,
        patient_id=offer.patient_id,
        studies=offer.studies,
        scope=offer.scope,
        context=offer.context,
        lifetime=sessions.LONGEST // 1000,
        session_hash=person.session_hash,
    )


# --- both -------------------------------------------------------------------------------------------------------------


def _enter(desk: Desk, request: Request, opened: Opened) -> Response:
    def work(connection: Connection) -> tuple[str, str]:
        return sessions.enter(
            connection,
            grant_id=opened.grant_id,
            study_uid=opened.study_uid,
            imaging_study_id=opened.imaging_study_id,
            user_name=opened.user_name,
        )

    session_id, value = desk.store.transact(work)
    note(desk, request, opened.record)
    desk.entered(opened.study_uid, opened.imaging_study_id)
    response = redirect(f"/v/{session_id}/")
    sessions.set_cookie(response, desk.settings, session_id, value)
    return response


def answered(desk: Desk, request: Request, step: Callable[[], Response]) -> Response:
    """Run a step of a launch; what stops it becomes a readable page and an audited denial."""
    try:
        return step()
    except Stopped as stopped:
        note(desk, request, Record("viewer", "launch", "denied", CLIENT_ID, detail={"status": stopped.status}))
        return page(request, stopped.status, Message("The study cannot be opened", str(stopped)))
    except Unavailable:
        note(desk, request, Record("viewer", "launch", "failed", CLIENT_ID))
        return page(request, 503, Message("The study cannot be opened now", "A part of the server does not answer."))


def note(desk: Desk, request: Request, record: Record) -> None:
    """Audit, with the request's id."""
    desk.audit(replace(record, request_id=str(getattr(request.state, "request_id", ""))))


def redirect(location: str) -> Response:
    """See Other, told to nobody."""
    return RedirectResponse(location, SEE_OTHER, headers=HEADERS)
