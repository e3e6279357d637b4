"""Grants and the opaque tokens that point to them (RFC 6749, RFC 6750, RFC 9700; SMART App Launch 2.2)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy.engine import Connection
from starlette.requests import Request

from app.access import Access, parse_scopes
from app.errors import BadRequest, Unauthenticated
from app.smart import opaque
from app.smart.facts import limits
from app.smart.users import User
from app.store import grants
from app.store.database import Store, now, seen

_BEARER = "bearer"


def bearer(request: Request) -> str:
    """The bearer token of a request, from the Authorization header only (RFC 9700 section 4.3.2)."""
    if b"access_token" in request.scope["query_string"] and "access_token" in request.query_params:
        raise BadRequest("an access token does not belong in an address; send it as Authorization: Bearer")
    # The first one, as it came: a mapping of all headers would cost more than looking through them.
    for name, given in request.scope["headers"]:
        if name == b"authorization":
            scheme, _, value = given.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer" and (value := value.strip()):
                return value
            break
    raise Unauthenticated


def authenticate(store: Store) -> Callable[[str], Access]:
    """What turns the text of an access token into the access of its grant, or raises Unauthenticated."""

    def access(token: str) -> Access:
        with store.read() as connection:
            return find(connection, token)

    return access


def find(connection: Connection, token: str) -> Access:
    """The access of the grant behind an access token; a revocation counts at once.

    It is looked up again as soon as anything was written since, and its end is always looked at.
    """
    at, known = now(), seen(connection)
    row: grants.Bearer | None = known.get((_BEARER, token))
    if row is None:
        row = grants.bearer(connection, opaque.digest(token), at)
        if row is not None:
            known[_BEARER, token] = row
    if row is None or row[-1] <= at:
        raise Unauthenticated("the access token is unknown, expired or revoked")
    return _access(row)


@lru_cache(maxsize=4096)
def _access(row: grants.Bearer) -> Access:
    """Equal rows mean the same access; only reading the scopes is spared, never the look-up."""
    grant_id, client_id, user_id, fhir_user, patient_id, studies, scope, _ = row
    scopes, words = _parsed(scope)
    allowed: list[str] | None = json.loads(studies) if studies else None
    bound = None if allowed is None else frozenset(allowed)
    return Access(client_id, grant_id, user_id, fhir_user, patient_id, bound, scopes, words)


_parsed = lru_cache(maxsize=1024)(parse_scopes)


def access_of(grant_row: Mapping[str, Any]) -> Access:
    """The access a grant gives; of a token's row, what the token narrowed it to."""
    scopes, words = _parsed(grant_row.get("token_scope") or grant_row["scope"])
    studies = grant_row["studies"]
    return Access(
        client_id=grant_row["client_id"],
        grant_id=grant_row["id"],
        user_id=grant_row["user_id"],
        fhir_user=grant_row["fhir_user"],
        patient_id=grant_row["patient_id"],
        studies=None if studies is None else frozenset(studies),
        scopes=scopes,
        rights=words,
    )


def open_grant(  # noqa: PLR0913 - a grant has these parts
    connection: Connection,
    *,
    client_id: str,
    user: User | None,
    patient_id: str | None,
    studies: list[str] | None,
    scope: str,
    context: Mapping[str, Any],
    lifetime: int,
    session_hash: str | None = None,
    grant_id: str | None = None,
) -> str:
    """Keep a grant for `lifetime` seconds and return its id. `studies` None binds it to no study."""
    grant_id, at = grant_id or str(uuid.uuid4()), now()
    row = {
        "id": grant_id,
        "client_id": client_id,
        "user_id": user.id if user else None,
        "fhir_user": user.fhir_user if user else None,
        "user_name": user.name if user else "",
        "patient_id": patient_id,
        "studies": studies,
        "scope": scope,
        "context": dict(context),
        "session_hash": session_hash,
        "created": at,
        "expires": at + lifetime * 1000,
    }
    grants.add_grant(connection, row)
    return grant_id


def revoke_grant(connection: Connection, grant_id: str) -> None:
    """End a grant, and with it its tokens, cookies and viewer sessions."""
    grants.revoke_grant(connection, grant_id, now())


def issue(connection: Connection, grant_id: str, *, seconds: int, scope: str = "") -> dict[str, Any]:
    """A token response for a living grant; `scope` narrows the access token, never the refresh token."""
    row = grants.find_grant(connection, grant_id, now())
    if row is None:
        raise Unauthenticated("the grant has ended")
    life = min(seconds * 1000, row["expires"] - now())
    response: dict[str, Any] = {
        "access_token": _add(connection, grant_id, "access", life=life, scope=scope),
        "token_type": "Bearer",
        "expires_in": life // 1000,
        "scope": scope or row["scope"],
        **row["context"],
    }
    if {"online_access", "offline_access"} & set(row["scope"].split()):
        response["refresh_token"] = _add(connection, grant_id, "refresh", life=row["expires"] - now())
    return response


def _add(connection: Connection, grant_id: str, kind: str, *, life: int, scope: str = "") -> str:
    value, at = opaque.make(), now()
    row = {"hash": opaque.digest(value), "grant_id": grant_id, "kind": kind, "scope": scope}
    grants.add_token(connection, {**row, "created": at, "expires": at + life})
    return value


def grant_seconds(scope: str, access_seconds: int) -> int:
    """How long a grant lives: as long as its access token unless it may be refreshed."""
    words = scope.split()
    if "offline_access" in words:
        return limits().offline_seconds
    return limits().online_seconds if "online_access" in words else access_seconds
