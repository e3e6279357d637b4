"""Registered SMART apps: who they are, how they prove it and what they may ask for (SMART App Launch 2.2, RFC 7591)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from sqlalchemy.engine import Connection

from app.access import parse_scopes
from app.errors import BadRequest, Conflict, NotFound
from app.smart import opaque
from app.store import grants
from app.store.database import now

if TYPE_CHECKING:
    from argon2 import PasswordHasher
    from joserfc.jwk import KeySet, RSAKey

Kind = Literal["public", "symmetric", "asymmetric"]
AUTH_METHODS: Mapping[str, frozenset[str]] = {
    "public": frozenset({"none"}),
    "symmetric": frozenset({"client_secret_basic", "client_secret_post"}),
    "asymmetric": frozenset({"private_key_jwt"}),
}
CURVES = frozenset({"P-384"})
SMALLEST_RSA = 2048
LOCAL_NAMES = frozenset({"localhost"})


@dataclass(frozen=True, slots=True)
class Client:
    """One registered app; its methods are those authlib asks a client."""

    id: str
    name: str
    kind: Kind
    redirect_uris: tuple[str, ...] = ()
    launch_uri: str = ""
    scope: str = ""
    jwks: Mapping[str, Any] | None = None
    jwks_uri: str = ""
    """Where an asymmetric client publishes its keys, instead of `jwks`."""
    access: Literal["all", "listed"] = "all"
    patients: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    skip_consent: bool = False
    study_bound: bool = False
    disabled: bool = False
    secret_hash: str = field(default="", repr=False)

    @property
    def client_id(self) -> str:
        """The id, by authlib's name."""
        return self.id

    @property
    def trusted_to_launch(self) -> bool:
        """Whether it may open launches and vouch for their users."""
        return "isocenter/launch" in self.scope.split() and not self.disabled

    @property
    def runs_alone(self) -> bool:
        """Whether it may get tokens without a person: only a client that proves itself by key, for system scopes."""
        scopes, words = parse_scopes(self.scope)
        own = any(scope.context == "system" for scope in scopes) or any(w.startswith("isocenter/") for w in words)
        return self.kind == "asymmetric" and own

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Character by character (RFC 9700 section 2.1)."""
        return redirect_uri in self.redirect_uris

    def check_client_secret(self, client_secret: str) -> bool:
        """Against the hash."""
        return check_secret(self.secret_hash, client_secret)

    def check_endpoint_auth_method(self, method: str, _endpoint: str) -> bool:
        """Each kind of client proves itself in its own way only, at every endpoint."""
        return method in AUTH_METHODS[self.kind]

    def check_grant_type(self, grant_type: str) -> bool:
        """Codes need a redirect address, client_credentials a key."""
        if grant_type == "client_credentials":
            return self.runs_alone
        return grant_type in {"authorization_code", "refresh_token"} and bool(self.redirect_uris)


@cache
def hasher() -> PasswordHasher:
    """OWASP's argon2id profile of least memory: a flood of logins must not take the server's memory."""
    # Loaded late: only logins need it (docs/decisions/0078).
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)


def check_secret(secret_hash: str, secret: str) -> bool:
    """Whether the argon2 hash is that of the secret."""
    # Loaded late: see above.
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        return bool(secret_hash) and hasher().verify(secret_hash, secret)
    except (VerificationError, InvalidHashError):
        return False


def find(connection: Connection, client_id: str) -> Client | None:
    """A registered app that is not disabled."""
    row = grants.find_client(connection, client_id)
    return None if row is None or row["disabled"] else _client(row)


def list_clients(connection: Connection) -> list[Client]:
    """Every registered app."""
    return [_client(row) for row in grants.clients(connection)]


def origins(connection: Connection) -> frozenset[str]:
    """Where the pages of registered apps come from, as a browser writes it (RFC 6454 section 6.2)."""
    uris = (uri for client in list_clients(connection) if not client.disabled for uri in client.redirect_uris)
    return frozenset(_origin(uri) for uri in uris if uri.startswith(("http://", "https://")))


def _origin(uri: str) -> str:
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2].lower()
    return f"{parts.scheme}://{host.removesuffix(':443' if parts.scheme == 'https' else ':80')}"


def register(connection: Connection, client: Client) -> str | None:
    """Register an app; the secret of a symmetric one is returned this once."""
    if grants.find_client(connection, client.id) is not None:
        raise Conflict(f"a client with the id {client.id} exists")
    _check(client)
    secret = opaque.make() if client.kind == "symmetric" else None
    grants.put_client(connection, {**_row(client), "secret_hash": hasher().hash(secret) if secret else ""})
    return secret


def ensure_client(connection: Connection, client: Client) -> None:
    """Register a built-in app or bring its registration up to date; safe to repeat. Its secret and state stay."""
    _check(client)
    held = grants.find_client(connection, client.id)
    kept = {name: held[name] for name in ("secret_hash", "disabled", "created")} if held else {}
    grants.put_client(connection, {**_row(client), **kept})


def rotate(
    connection: Connection, client_id: str, *, jwks: Mapping[str, Any] | None = None, jwks_uri: str = ""
) -> str | None:
    """Give a symmetric app a new secret, returned this once, or an asymmetric one new keys; its grants stay."""
    client = _existing(connection, client_id)
    if client.kind == "asymmetric" and (jwks is not None or jwks_uri):
        _check_keys(replace(client, jwks=jwks, jwks_uri=jwks_uri))
        grants.set_client(connection, client_id, jwks=jwks, jwks_uri=jwks_uri)
        return None
    if client.kind != "symmetric":
        raise BadRequest(
            f"{client_id} is {client.kind}: it has no secret to rotate; give --jwks or --jwks-uri for new keys"
        )
    secret = opaque.make()
    grants.set_client(connection, client_id, secret_hash=hasher().hash(secret))
    return secret


def disable(connection: Connection, client_id: str) -> None:
    """Refuse an app from now on and end its grants."""
    _existing(connection, client_id)
    grants.set_client(connection, client_id, disabled=True)
    grants.revoke_client_grants(connection, client_id, now())


def _existing(connection: Connection, client_id: str) -> Client:
    row = grants.find_client(connection, client_id)
    if row is None:
        raise NotFound(f"there is no client {client_id}")
    return _client(row)


def _client(row: Mapping[str, Any]) -> Client:
    held: dict[str, Any] = {name: row[name] for name in Client.__slots__}
    lists: dict[str, Any] = {name: tuple(row[name]) for name in ("redirect_uris", "patients", "studies")}
    return Client(**{**held, **lists})


def _row(client: Client) -> dict[str, Any]:
    plain = {name: getattr(client, name) for name in Client.__slots__}
    lists = {name: list(plain[name]) for name in ("redirect_uris", "patients", "studies")}
    jwks = None if client.jwks is None else dict(client.jwks)
    return {**plain, **lists, "jwks": jwks, "created": now()}


def _check(client: Client) -> None:
    if not client.id or not client.id.isascii() or not client.id.isprintable() or {" ", ":"} & set(client.id):
        raise BadRequest("a client id is printable ASCII without spaces and colons")
    for uri in (*client.redirect_uris, *([client.launch_uri] if client.launch_uri else [])):
        _check_address(uri)
    _check_keys(client)
    if client.study_bound and not client.redirect_uris:
        raise BadRequest("a study-bound client needs a redirect address")


def _check_keys(client: Client) -> None:
    if client.kind != "asymmetric":
        if client.jwks is not None or client.jwks_uri:
            raise BadRequest("only an asymmetric client has keys")
    elif client.jwks_uri:
        if client.jwks is not None:
            raise BadRequest("an asymmetric client has keys or their address, not both")
        # Loaded late: only registrations need it.
        from app.egress import check_url

        check_url(client.jwks_uri)
    else:
        check_jwks(client.jwks)


def _check_address(uri: str) -> None:
    parts = urlsplit(uri)
    if not uri.isascii() or not uri.isprintable() or " " in uri or parts.fragment or "#" in uri:
        raise BadRequest(f"{uri!r} is no absolute address without a fragment")
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and _is_local(parts.hostname or ""):
        return
    # A native app's own scheme is a reversed domain name (RFC 8252 section 7.1).
    if "." in parts.scheme:
        return
    raise BadRequest(f"{uri!r} must be https, loopback http or a native app's own scheme")


def _is_local(host: str) -> bool:
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_jwks(jwks: Mapping[str, Any] | None) -> KeySet:
    """The public keys of an asymmetric client: RSA of 2048 bits or P-384, each with its own `kid`."""
    # Loaded late: keys are read at registrations and logins.
    from joserfc.errors import JoseError
    from joserfc.jwk import KeySet

    try:
        keys = KeySet.import_key_set(dict(jwks or {}))  # pyright: ignore[reportArgumentType]
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise BadRequest("the JWKS cannot be read") from error
    # joserfc would name a nameless key by its thumbprint, which no client sends.
    names = [key.get("kid") for key in (jwks or {})["keys"]]
    if not names or None in names or len(set(names)) != len(names):
        raise BadRequest("the JWKS needs keys, each with a kid of its own")
    for key in keys.keys:
        if not is_strong(key):
            raise BadRequest(f"key {key.kid} must be public and RSA of {SMALLEST_RSA} bits or more, or EC P-384")
    return keys


def is_strong(key: object) -> bool:
    """Whether it is a public key of a kind that SMART names, and long enough."""
    # Loaded late: see above.
    from joserfc.jwk import ECKey, RSAKey

    if isinstance(key, RSAKey):
        return _bits(key) >= SMALLEST_RSA and not key.is_private
    return isinstance(key, ECKey) and key.curve_name in CURVES and not key.is_private


def _bits(key: RSAKey) -> int:
    return key.public_key.key_size
