"""Clients that prove themselves by a signed JWT (private_key_jwt: RFC 7523, SMART App Launch 2.2, asymmetric)."""

from __future__ import annotations

# The type stubs of authlib that exist describe an older version of it: what we override is checked by tests.
# pyright: reportIncompatibleMethodOverride=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
import time
from collections.abc import Mapping
from typing import Any

from authlib.oauth2.rfc6749 import InvalidClientError
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, RSAKey

from app.errors import IsocenterError
from app.smart.clients import Client
from app.smart.facts import facts, limits
from app.smart.published import PublishedKeys
from app.store import grants
from app.store.database import Store

LONGEST_JTI = 256
LONGEST_KID = 256


class PrivateKeyJwt(JWTBearerClientAssertion):
    """authlib's steps with SMART's rules: its defaults refuse RS384 and ES384 and accept a year-long assertion."""

    CLIENT_AUTH_METHOD = "private_key_jwt"

    def __init__(self, store: Store, token_url: str, published: PublishedKeys) -> None:
        """`token_url` is the only audience accepted; `published` finds the keys of clients that publish theirs."""
        super().__init__()
        self.store, self.published = store, published
        self.audience = token_url

    def extract_assertion(self, assertion: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The unverified header and claims; whatever cannot be read is an invalid client, never a server error."""
        try:
            return super().extract_assertion(assertion)
        except (ValueError, TypeError) as error:
            raise InvalidClientError("the client assertion is no JWT") from error

    def resolve_client_public_key(self, client: Client) -> Client:
        """Whose keys are to be looked at: which of them is known from the header only."""
        if client.kind != "asymmetric" or (client.jwks is None and not client.jwks_uri):
            raise InvalidClientError("the client has no registered keys")
        return client

    def process_assertion_claims(self, assertion: str, resolve_key: Client) -> dict[str, Any]:
        """Verify signature and claims, then spend the `jti`."""
        header = jws.extract_compact(assertion.encode()).headers()
        key = self._key(header, resolve_key)
        try:
            token = jwt.decode(assertion, key, algorithms=list(facts().assertion_algorithms))
        except (JoseError, ValueError, TypeError) as error:
            raise InvalidClientError("the client assertion's signature does not verify") from error
        fault = _fault(token.claims, self.audience)
        if fault:
            raise InvalidClientError(fault)
        self._spend(token.claims)
        return token.claims

    def _key(self, header: Mapping[str, Any], client: Client) -> RSAKey | ECKey:
        if "jku" in header and header["jku"] != client.jwks_uri:
            raise InvalidClientError("the jku of the client assertion is not the registered address")
        key_id = header.get("kid")
        matching = self._keys(client, key_id) if _is_text(key_id, LONGEST_KID) else []
        fitting = {"RS384": RSAKey, "ES384": ECKey}.get(str(header.get("alg")))
        if len(matching) != 1 or fitting is None or not isinstance(matching[0], fitting):
            raise InvalidClientError("the client assertion's kid and alg name no registered key")
        return matching[0]

    def _keys(self, client: Client, key_id: Any) -> list[Any]:
        if client.jwks is None:
            try:
                return self.published.find(client.jwks_uri, key_id)
            except IsocenterError as error:
                raise InvalidClientError("the client's keys cannot be had from its address") from error
        held = KeySet.import_key_set(dict(client.jwks))  # pyright: ignore[reportArgumentType]
        return [key for key in held.keys if key.kid == key_id]

    def _spend(self, claims: Mapping[str, Any]) -> None:
        expires = (int(claims["exp"]) + limits().assertion_leeway_seconds) * 1000
        client_id, jti = claims["sub"], claims["jti"]
        # One INSERT decides, also between processes and hosts.
        if not self.store.transact(lambda connection: grants.remember_assertion(connection, client_id, jti, expires)):
            raise InvalidClientError("the client assertion has been used before")


def _fault(claims: Mapping[str, Any], audience: str) -> str:
    at, leeway = time.time(), limits().assertion_leeway_seconds
    if not _is_time(claims.get("exp")):
        return "the client assertion needs an exp"
    expires, audiences = float(claims["exp"]), claims.get("aud")
    early = [claims[name] for name in ("nbf", "iat") if name in claims]
    rules = (
        (_is_text(claims.get("jti"), LONGEST_JTI), "the client assertion needs a jti"),
        (claims.get("iss") == claims.get("sub"), "iss and sub of the client assertion differ"),
        (
            audience in (audiences if isinstance(audiences, list) else [audiences]),
            "the aud of the client assertion is not the token endpoint",
        ),
        (expires > at - leeway, "the client assertion has expired"),
        (
            expires <= at + limits().assertion_seconds + leeway,
            "the client assertion lives longer than five minutes",
        ),
        (
            all(_is_time(value) and value <= at + leeway for value in early),
            "the client assertion is not valid yet",
        ),
    )
    return next((sentence for kept, sentence in rules if not kept), "")


def _is_text(value: object, longest: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**40
