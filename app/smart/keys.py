"""The key that signs id_tokens: made on first use, published as JWKS (OpenID Connect Core 1.0, RFC 7517)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from app.settings import Settings
from app.store import keys
from app.store.database import Store, now

PURPOSE = "id_token"
ALGORITHM = "RS256"
RSA_BITS = 2048
RETIRED_KEYS_SHOWN = 24 * 3600 * 1000


def sign(store: Store, settings: Settings, claims: Mapping[str, Any]) -> str:
    """A signed JWT of these claims."""
    # Loaded late: only logins sign (docs/decisions/0078).
    from joserfc import jwt
    from joserfc.jwk import RSAKey

    key = _signing_key(store, keys.wrapping_secret(settings))
    header = {"alg": ALGORITHM, "kid": key.id, "typ": "JWT"}
    return jwt.encode(header, dict(claims), RSAKey.import_key(orjson.loads(key.secret)), algorithms=[ALGORITHM])


def jwks(store: Store) -> dict[str, Any]:
    """The public keys that verify our signatures, the recently retired ones included."""
    with store.read() as connection:
        shown = keys.public_keys(connection, purpose=PURPOSE, retired_after=now() - RETIRED_KEYS_SHOWN)
    return {"keys": [dict(key) for key in shown]}


def ensure_key(store: Store, settings: Settings) -> None:
    """Make the signing key if there is none; safe to repeat. Raises ConfigurationError without a usable secret."""
    _signing_key(store, keys.wrapping_secret(settings))


def rotate(store: Store, settings: Settings) -> None:
    """Sign with a new key from now on; the old one still verifies for a day."""
    wrapping, fresh = keys.wrapping_secret(settings), _made()

    def work(connection: Any) -> None:
        keys.retire_keys(connection, purpose=PURPOSE)
        keys.add_key(connection, wrapping, purpose=PURPOSE, key=fresh)

    store.transact(work)


def _signing_key(store: Store, wrapping: bytes) -> keys.Key:
    with store.read() as connection:
        held = keys.keys(connection, wrapping, purpose=PURPOSE)
    if held:
        return held[0]
    fresh = _made()
    # Two processes may each make one: both are published, so both verify.
    store.transact(lambda connection: keys.add_key(connection, wrapping, purpose=PURPOSE, key=fresh))
    return fresh


def _made() -> keys.Key:
    # Loaded late: a key is made once in an installation's life.
    from joserfc.jwk import RSAKey

    key = RSAKey.generate_key(RSA_BITS, {"use": "sig", "alg": ALGORITHM}, auto_kid=True)
    return keys.Key(str(key.kid), orjson.dumps(key.as_dict(private=True)), key.as_dict(private=False))
