"""Token, introspection and revocation endpoints on authlib's core, not on its defaults (RFC 6749, 7009, 7662)."""

# The type stubs of authlib that exist describe an older version of it: what we override is checked by tests.
# pyright: reportIncompatibleMethodOverride=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    InvalidClientError,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
)
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, ClientCredentialsGrant, RefreshTokenGrant
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from fastapi.responses import JSONResponse
from sqlalchemy.engine import Connection

from app.audit import Record
from app.egress import Egress
from app.errors import Unauthenticated
from app.settings import Settings
from app.smart import clients, keys, opaque, scopes, tokens, users
from app.smart.assertions import PrivateKeyJwt
from app.smart.clients import Client
from app.smart.facts import limits
from app.smart.published import PublishedKeys
from app.smart.requests import TokenRequest
from app.store import grants
from app.store.database import Store, now

# The strongest first: an asymmetric client's assertion wins over anything else in the request.
AUTH_METHODS = ["private_key_jwt", "client_secret_basic", "client_secret_post", "none"]
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class Server(AuthorizationServer):
    """authlib's dispatcher, bound to our store. It serves tokens only; /authorize is app/smart/authorize.py."""

    def __init__(self, store: Store, settings: Settings, audit: Callable[[Record], None]) -> None:
        """Registers every grant and endpoint offered."""
        super().__init__()
        self.store, self.settings, self.audit = store, settings, audit
        published = PublishedKeys(Egress(settings.egress_allow))
        assertion = PrivateKeyJwt(store, f"{settings.public_url}/auth/token", published)
        self.register_client_auth_method(assertion.CLIENT_AUTH_METHOD, assertion)
        self.register_grant(CodeGrant, [CodeChallenge(required=True)])
        self.register_grant(RefreshGrant)
        self.register_grant(SystemGrant)
        self.register_endpoint(Introspection)
        self.register_endpoint(Revocation)

    def query_client(self, client_id: str) -> Client | None:
        """A registered app that is not disabled."""
        if not (client_id.isascii() and client_id.isprintable()):
            return None
        with self.store.read() as connection:
            return clients.find(connection, client_id)

    def create_oauth2_request(self, request: TokenRequest) -> TokenRequest:  # pyright: ignore
        """Already one."""
        return request

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> JSONResponse:
        """JSON that nobody may keep."""
        plain = {name: value for name, value in headers if name.lower() != "content-type"}
        return JSONResponse(body, status, headers={**plain, **NO_STORE})

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Code:
    """An unused authorization code, as authlib's PKCE check reads it."""

    row: Mapping[str, Any]

    code_challenge_method = "S256"

    @property
    def code_challenge(self) -> str:
        """Never empty: /authorize takes no request without one."""
        return self.row["challenge"]

    def get_redirect_uri(self) -> str:
        """The address the code was sent to."""
        return self.row["redirect_uri"]


class CodeGrant(AuthorizationCodeGrant):
    """authorization_code: the code is spent, the grant opened and the tokens made in one transaction."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTH_METHODS

    def query_authorization_code(self, code: str, client: Client) -> Code | None:
        """The client's unused code; a used one ends the grant its first use made (RFC 9700 section 2.1.1)."""
        with self.server.store.read() as connection:
            row = grants.find_code(connection, opaque.digest(code), client.id)
            user = grants.find_user(connection, row["user_id"]) if row and row["user_id"] else None
        if row is None or (user is not None and user["disabled"]):
            return None
        if row["used"] is not None:
            _replayed(self.server, row["grant_id"], client.id, "code")
            return None
        return Code(row) if row["expires"] > now() else None

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """Exactly one of two parallel uses gets here past the UPDATE."""
        server, row = self.server, self.request.authorization_code.row
        body = server.store.transact(lambda connection: _redeem(connection, row))
        if body is None:
            # Another request was first: that is a replay as well.
            self.query_authorization_code(self.request.form["code"], self.request.client)
            raise InvalidGrantError("Invalid 'code' in request.")
        if "openid" in body["scope"].split():
            body["id_token"] = keys.sign(server.store, server.settings, _identity(server.settings, row))
        return 200, body, self.TOKEN_RESPONSE_HEADER


def _redeem(connection: Connection, row: Mapping[str, Any]) -> dict[str, Any] | None:
    promised = row["grant"]
    grant_id = str(uuid.uuid4())
    if not grants.use_code(connection, row["hash"], grant_id, now()):
        return None
    tokens.open_grant(
        connection,
        client_id=row["client_id"],
        user=users.User(row["user_id"], promised["user_name"], fhir_user=promised["fhir_user"]),
        patient_id=promised["patient_id"],
        studies=promised["studies"],
        scope=promised["scope"],
        context=promised["context"],
        lifetime=promised["lifetime"],
        session_hash=promised["session_hash"],
        grant_id=grant_id,
    )
    return tokens.issue(connection, grant_id, seconds=promised["seconds"])


def _identity(settings: Settings, row: Mapping[str, Any]) -> dict[str, Any]:
    at, promised = now() // 1000, row["grant"]
    claims = {
        "iss": settings.public_url,
        "aud": row["client_id"],
        "sub": row["user_id"],
        "iat": at,
        "exp": at + limits().id_token_seconds,
        "auth_time": row["auth_time"] // 1000,
    }
    words = promised["scope"].split()
    if row["nonce"]:
        claims["nonce"] = row["nonce"]
    if promised["fhir_user"] and "fhirUser" in words:
        claims["fhirUser"] = f"{settings.fhir_base}/{promised['fhir_user']}"
    if promised["user_name"] and "profile" in words:
        claims["name"] = promised["user_name"]
    return claims


def _replayed(server: Server, grant_id: str | None, client_id: str, what: str) -> None:
    if grant_id is None:
        return
    server.store.transact(lambda connection: tokens.revoke_grant(connection, grant_id))
    server.audit(Record("smart", "revoke", "denied", client_id, grant_id, detail={"replayed": what}))


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token with its living grant, as authlib's grant reads it."""

    digest: str
    grant: Mapping[str, Any]

    def check_client(self, client: Client) -> bool:
        """Whether it was given to this client."""
        return self.grant["client_id"] == client.id


class RefreshGrant(RefreshTokenGrant):
    """refresh_token: rotated at every use for every client; an old one that comes again ends the whole grant."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTH_METHODS
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> RefreshToken | None:
        """A refresh token whose grant lives; whether it was spent is decided by the UPDATE later."""
        digest = opaque.digest(refresh_token)
        with self.server.store.read() as connection:
            row = grants.find_token(connection, digest)
            if row is None or row["kind"] != "refresh" or row["expires"] <= now():
                return None
            grant = grants.find_grant(connection, row["grant_id"], now())
        return None if grant is None else RefreshToken(digest, grant)

    def _validate_token_scope(self, token: RefreshToken) -> None:
        wanted = self.request.payload.scope
        if wanted and not scopes.covers(token.grant["scope"], wanted):
            raise InvalidScopeError

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """Spend the token and issue the next pair in one transaction."""
        token: RefreshToken = self.request.refresh_token
        grant, client = token.grant, self.request.client
        narrowed = " ".join(dict.fromkeys((self.request.payload.scope or "").split()))

        def rotate(connection: Connection) -> dict[str, Any] | None:
            if not grants.spend_token(connection, token.digest, now()):
                return None
            seconds = access_seconds(client)
            return tokens.issue(connection, grant["id"], seconds=seconds, scope=narrowed)

        try:
            body = self.server.store.transact(rotate)
        except Unauthenticated as error:
            raise InvalidGrantError from error
        if body is None:
            _replayed(self.server, grant["id"], client.id, "refresh token")
            raise InvalidGrantError
        return 200, body, self.TOKEN_RESPONSE_HEADER


class SystemGrant(ClientCredentialsGrant):
    """client_credentials: programs that prove themselves by key, for system scopes registered before (SMART 2.2)."""

    TOKEN_ENDPOINT_AUTH_METHODS = ["private_key_jwt"]  # noqa: RUF012 - authlib reads a list

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """What was asked, cut to what is registered; no refresh token."""
        client: Client = self.request.client
        granted = system_scope(client, self.request.payload.scope or "")
        if not granted:
            raise InvalidScopeError
        seconds = limits().system_access_seconds

        def work(connection: Connection) -> dict[str, Any]:
            grant_id = tokens.open_grant(
                connection,
                client_id=client.id,
                user=None,
                patient_id=None,
                studies=list(client.studies) if client.access == "listed" and client.studies else None,
                scope=granted,
                context={},
                lifetime=seconds,
            )
            return tokens.issue(connection, grant_id, seconds=seconds)

        return 200, self.server.store.transact(work), self.TOKEN_RESPONSE_HEADER


def system_scope(client: Client, asked: str) -> str:
    """The system scopes a client gets; a listed client's are cut to its patients."""
    if len(asked.split()) > limits().scopes:
        return ""
    granted = scopes.within(scopes.for_system(scopes.parse(asked)), client.scope)
    if client.access == "listed" and client.patients:
        granted = scopes.for_patients(granted, client.patients)
    elif client.access == "listed" and not client.studies:
        granted = scopes.Asked((), granted.words)
    return granted.text


def access_seconds(client: Client) -> int:
    """How long this app's access tokens live."""
    return limits().study_access_seconds if client.study_bound else limits().access_seconds


class Introspection(IntrospectionEndpoint):
    """Who holds a token and for what: for its own client, and for those trusted with `isocenter/introspect`."""

    CLIENT_AUTH_METHODS = AUTH_METHODS[:-1]

    def authenticate_endpoint_client(self, request: TokenRequest) -> Client:
        """By the client's own method, or by a bearer token that has the right."""
        scheme, _, value = request.headers["Authorization"].partition(" ")
        if scheme.lower() != "bearer":
            return super().authenticate_endpoint_client(request)
        try:
            access = tokens.authenticate(self.server.store)(value.strip())
        except Unauthenticated as error:
            raise InvalidClientError("the bearer token is not valid", status_code=401) from error
        client = self.server.query_client(access.client_id)
        if client is None or "isocenter/introspect" not in access.rights:
            raise InvalidClientError("the bearer token may not introspect", status_code=401)
        return client

    def check_params(self, request: TokenRequest, client: Client) -> None:  # noqa: ARG002 - authlib's signature
        """A hint is only a hint (RFC 7662 section 2.1)."""
        if "token" not in request.form:
            raise InvalidRequestError("Missing 'token' in request.")

    def query_token(self, token_string: str, token_type_hint: str | None) -> Mapping[str, Any] | None:  # noqa: ARG002
        """A valid access token's grant."""
        with self.server.store.read() as connection:
            return grants.living_token(connection, opaque.digest(token_string), now())

    def check_permission(self, token: Mapping[str, Any], client: Client, request: TokenRequest) -> bool:  # noqa: ARG002
        """Foreign tokens are as unknown as random ones."""
        return token["client_id"] == client.id or "isocenter/introspect" in client.scope.split()

    def create_introspection_payload(self, token: Mapping[str, Any] | None) -> dict[str, Any]:
        """The token response's own words, with the study restriction, so that a separate archive can enforce it."""
        if token is None:
            return {"active": False}
        settings: Settings = self.server.settings
        body: dict[str, Any] = {
            "active": True,
            "scope": token["token_scope"] or token["scope"],
            "client_id": token["client_id"],
            "token_type": "Bearer",
            "exp": token["token_expires"] // 1000,
            "iss": settings.public_url,
            "aud": [settings.fhir_base, settings.dicomweb_base],
            **token["context"],
        }
        if token["user_id"] is not None:
            body["sub"] = token["user_id"]
        if token["fhir_user"] and "fhirUser" in token["scope"].split():
            body["fhirUser"] = f"{settings.fhir_base}/{token['fhir_user']}"
        return body


class Revocation(RevocationEndpoint):
    """Any of a grant's tokens ends the whole grant; unknown and foreign ones are answered alike."""

    CLIENT_AUTH_METHODS = AUTH_METHODS

    def check_params(self, request: TokenRequest, client: Client) -> None:  # noqa: ARG002 - authlib's signature
        """A hint is only a hint (RFC 7009 section 2.1)."""
        if "token" not in request.form:
            raise InvalidRequestError("Missing 'token' in request.")

    def authenticate_token(self, request: TokenRequest, client: Client) -> Mapping[str, Any] | None:
        """The client's own token."""
        self.check_params(request, client)
        with self.server.store.read() as connection:
            row = grants.find_token(connection, opaque.digest(request.form["token"]))
            grant = grants.find_grant(connection, row["grant_id"], now()) if row else None
        return grant if grant is not None and grant["client_id"] == client.id else None

    def revoke_token(self, token: Mapping[str, Any], request: TokenRequest) -> None:
        """End the grant."""
        self.server.store.transact(lambda connection: tokens.revoke_grant(connection, token["id"]))
        self.server.audit(Record("smart", "revoke", "allowed", request.client.id, token["id"]))
