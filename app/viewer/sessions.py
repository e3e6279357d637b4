"""Viewer sessions: a cookie bound to one path stands for one grant, so two tabs never mix (RFC 6265bis)."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from sqlalchemy.engine import Connection
from starlette.requests import Request
from starlette.responses import Response

from app.access import Access
from app.errors import Forbidden, Unauthenticated
from app.settings import Settings
from app.smart import opaque, tokens, users
from app.store import grants, viewers
from app.store.database import Store, now

IDLE = 15 * 60 * 1000
LONGEST = 8 * 60 * 60 * 1000
TOUCH = 30 * 1000
"""A session's last use is written at most this often."""
GUARD = "X-Isocenter-Viewer"
"""The header our extension sends with every write: a foreign page cannot set it without a preflight we never answer."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Session:
    """A living viewer session and the access of its grant."""

    id: str
    study_uid: str
    imaging_study_id: str
    user_name: str
    access: Access
    idle_at: int
    expires: int

    @property
    def ends(self) -> int:
        """When it ends unless it is used."""
        return min(self.idle_at, self.expires)


def enter(
    connection: Connection, *, grant_id: str, study_uid: str, imaging_study_id: str, user_name: str
) -> tuple[str, str]:
    """Open a session for a grant; the returned cookie value is the only copy."""
    session_id, value, at = secrets.token_urlsafe(16), opaque.make(), now()
    row = {
        "id": session_id,
        "cookie_hash": opaque.digest(value),
        "grant_id": grant_id,
        "study_uid": study_uid,
        "imaging_study_id": imaging_study_id,
        "user_name": user_name,
        "created": at,
        "seen": at,
        "expires": at + LONGEST,
    }
    viewers.add(connection, row)
    return session_id, value


def cookie_name(settings: Settings) -> str:
    """With the issuer in it; over https in the protected form (RFC 6265bis section 4.1.3)."""
    name = users.cookie_name(settings, "viewer")
    return f"__Secure-{name}" if settings.https else name


def set_cookie(response: Response, settings: Settings, session_id: str, value: str) -> None:
    """Sent by the browser to this session's addresses only, and never from another site."""
    response.set_cookie(
        cookie_name(settings),
        value,
        path=f"/v/{session_id}/",
        secure=settings.https,
        httponly=True,
        samesite="strict",
    )


def drop_cookie(response: Response, settings: Settings, session_id: str) -> None:
    """Take the cookie back."""
    response.delete_cookie(
        cookie_name(settings), path=f"/v/{session_id}/", secure=settings.https, httponly=True, samesite="strict"
    )


def find(store: Store, settings: Settings, request: Request) -> Session:
    """The session of a request's path and cookie, which must belong together; raises Unauthenticated."""
    value = request.cookies.get(cookie_name(settings), "")
    session_id = str(request.path_params.get("session", ""))
    at = now()
    with store.read() as connection:
        row = viewers.find(connection, session_id, opaque.digest(value)) if value else None
        if row is None or row["ended"] is not None or at >= min(row["seen"] + IDLE, row["expires"]):
            raise Unauthenticated("the viewer session has ended; open the study again from where you came")
        grant = grants.find_grant(connection, row["grant_id"], at)
    if grant is None:
        raise Unauthenticated("the viewer session's grant has ended; open the study again from where you came")
    return Session(
        id=row["id"],
        study_uid=row["study_uid"],
        imaging_study_id=row["imaging_study_id"],
        user_name=row["user_name"],
        access=tokens.access_of(grant),
        idle_at=row["seen"] + IDLE,
        expires=min(row["expires"], grant["expires"]),
    )


def keep(store: Store, session: Session) -> Session:
    """Count this request as use of the session; the row is written only every half minute."""
    at = now()
    if at - (session.idle_at - IDLE) < TOUCH:
        return session
    store.transact(lambda connection: viewers.touch(connection, session.id, at))
    return Session(
        session.id,
        session.study_uid,
        session.imaging_study_id,
        session.user_name,
        session.access,
        at + IDLE,
        session.expires,
    )


def end(connection: Connection, session: Session) -> None:
    """Log out: the session ends, and its grant with it."""
    viewers.end(connection, session.id, now())
    if session.access.grant_id is not None:
        tokens.revoke_grant(connection, session.access.grant_id)


def authenticate(store: Store, settings: Settings) -> Callable[[Request], Access]:
    """The access of a request below /v/{session}/: by its cookie, or by its Authorization header alone."""
    by_token = tokens.authenticate(store)

    def access(request: Request) -> Access:
        # Two credentials are never merged: a token decides alone.
        if "authorization" in request.headers:
            return by_token(tokens.bearer(request))
        session = find(store, settings, request)
        check_origin(settings, request, session.id)
        return keep(store, session).access

    return access


def check_origin(settings: Settings, request: Request, session_id: str) -> None:
    """A write must come from this session's own page (Fetch Metadata; RFC 6454); raises Forbidden."""
    if request.method in SAFE:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = {_origin(settings.public_url), _origin(settings.viewer_url or settings.public_url)}
    same = (
        (site is not None or origin is not None) and site in {None, "same-origin"} and (origin is None or origin in own)
    )
    guard = request.headers.get(GUARD, "")
    if not same or not hmac.compare_digest(guard.encode(), session_id.encode()):
        raise Forbidden("a viewer session takes writes only from its own page")


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}".lower()
