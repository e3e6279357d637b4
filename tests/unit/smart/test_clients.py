"""Registration refuses what could not be safe (RFC 9700, checklist REG01-REG07)."""

from __future__ import annotations

from typing import Any

import pytest
from joserfc.jwk import ECKey, OctKey, RSAKey

from app.errors import BadRequest, Conflict, NotFound
from app.smart import clients
from app.smart.clients import Client
from app.store import grants
from app.store.database import Store

RSA = RSAKey.generate_key(2048, {"kid": "a"})


def public(*keys: Any) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


def test_a_secret_is_shown_once_and_kept_as_a_hash(store: Store) -> None:
    """REG07"""
    client = Client("portal", "Portal", "symmetric", ("https://a.example/cb",))
    secret = store.transact(lambda c: clients.register(c, client))
    assert secret
    with store.read() as connection:
        found = clients.find(connection, "portal")
        assert secret not in repr(grants.find_client(connection, "portal"))
    assert found is not None
    assert found.check_client_secret(secret)
    assert not found.check_client_secret("x")
    fresh = store.transact(lambda c: clients.rotate(c, "portal"))
    with store.read() as connection:
        found = clients.find(connection, "portal")
    assert found is not None
    assert fresh
    assert (found.check_client_secret(secret), found.check_client_secret(fresh)) == (False, True)


def test_an_id_is_given_once(store: Store) -> None:
    client = Client("app", "App", "public", ("https://a.example/cb",))
    store.transact(lambda c: clients.register(c, client))
    with pytest.raises(Conflict):
        store.transact(lambda c: clients.register(c, client))


def test_a_built_in_client_is_brought_up_to_date_and_stays_disabled(store: Store) -> None:
    for name in ("One", "Two"):
        client = Client("app", name, "public", ("https://a.example/cb",))
        store.transact(lambda c, client=client: clients.ensure_client(c, client))
        with store.read() as connection:
            assert [client.name for client in clients.list_clients(connection)] == [name]
        store.transact(lambda c: clients.disable(c, "app"))
    with store.read() as connection:
        assert clients.find(connection, "app") is None
    with pytest.raises(NotFound):
        store.transact(lambda c: clients.disable(c, "nobody"))


@pytest.mark.parametrize(
    "uri",
    [
        "/relative",
        "http://app.example.org/cb",
        "https://app.example.org/cb#part",
        "https://app.example.org/a b",
        "https://äpp.example.org/cb",
        "javascript:alert(1)",
        "data:text/html,x",
        "https://",
    ],
)
def test_an_unsafe_redirect_address_is_refused(store: Store, uri: str) -> None:
    """REG01 REG02"""
    with pytest.raises(BadRequest):
        store.transact(lambda c: clients.register(c, Client("app", "App", "public", (uri,))))


@pytest.mark.parametrize(
    "uri", ["https://a.example/cb", "http://127.0.0.1:1234/cb", "http://localhost/cb", "org.app:/cb"]
)
def test_a_safe_redirect_address_is_compared_letter_by_letter(store: Store, uri: str) -> None:
    """REG02"""
    client = Client("app", "App", "public", (uri,))
    store.transact(lambda c: clients.register(c, client))
    assert client.check_redirect_uri(uri)
    assert not client.check_redirect_uri(uri + "/")


@pytest.mark.parametrize(
    "jwks",
    [
        None,
        {},
        {"keys": []},
        {"keys": [{"kty": "RSA"}]},
        {"keys": [RSA.as_dict(private=True)]},
        public(RSA, RSA),
        public(RSAKey.generate_key(2048)),
        public(ECKey.generate_key("P-256", {"kid": "a"})),
        {"keys": [OctKey.generate_key(256, {"kid": "a"}).as_dict()]},
    ],
)
def test_only_strong_public_keys_with_names_are_registered(store: Store, jwks: dict[str, Any] | None) -> None:
    """REG04 B08"""
    with pytest.raises(BadRequest):
        store.transact(lambda c: clients.register(c, Client("robot", "Robot", "asymmetric", jwks=jwks)))


def test_new_keys_replace_the_old(store: Store) -> None:
    store.transact(lambda c: clients.register(c, Client("robot", "Robot", "asymmetric", jwks=public(RSA))))
    fresh = public(ECKey.generate_key("P-384", {"kid": "b"}))
    store.transact(lambda c: clients.rotate(c, "robot", jwks=fresh))
    with store.read() as connection:
        found = clients.find(connection, "robot")
    assert found is not None
    assert found.jwks == fresh
