"""The look-up of every request finds exactly the tokens that live, and finds out at once when one does not."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from app.errors import Unauthenticated
from app.smart import opaque, tokens
from app.store import grants
from app.store.database import Store, now

VALUE = opaque.make()
DIGEST = opaque.digest(VALUE)
SCOPE = "patient/ImagingStudy.rs patient/Observation.rs launch"


def client(**changes: Any) -> dict[str, Any]:
    return {"id": "app", "name": "App", "kind": "public", **changes}


def granted(connection: Connection, **changes: Any) -> None:
    at = now()
    grants.put_client(connection, client())
    grant = {"id": "g1", "client_id": "app", "user_id": "u", "fhir_user": "Practitioner/1", "patient_id": "p1"}
    grant |= {"studies": ["1.2.3"], "scope": SCOPE, "context": {}, "session_hash": "s", "created": at}
    grants.add_grant(connection, grant | {"expires": at + 60_000} | changes)
    token = {"hash": DIGEST, "grant_id": "g1", "kind": "access", "scope": "", "created": at}
    grants.add_token(connection, token | {"expires": at + 30_000})


def both(store: Store, at: int | None = None) -> tuple[bool, bool]:
    """What the hot path and the full look-up say of the token."""
    with store.read() as connection:
        quick = grants.bearer(connection, DIGEST, at or now())
        full = grants.living_token(connection, DIGEST, at or now())
    return quick is not None, full is not None


ENDS: dict[str, Callable[[Connection], object]] = {
    "revoked": lambda connection: grants.revoke_grant(connection, "g1", now()),
    "its login ended": lambda connection: grants.end_session(connection, "s", now()),
    "its user was shut out": lambda connection: grants.end_user_sessions(connection, "u", now()),
    "its app's grants ended": lambda connection: grants.revoke_client_grants(connection, "app", now()),
    "its app was disabled": lambda connection: grants.set_client(connection, "app", disabled=True),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_a_token_is_known_until_the_moment_its_grant_ends(store: Store, end: Callable[[Connection], object]) -> None:
    store.transact(granted)
    authenticate = tokens.authenticate(store)
    assert authenticate(VALUE).grant_id == "g1"
    assert both(store) == (True, True)

    store.transact(end)
    assert both(store) == (False, False)
    with pytest.raises(Unauthenticated):
        authenticate(VALUE)


def test_a_token_ends_with_its_own_time_and_with_its_grants(store: Store) -> None:
    store.transact(lambda connection: granted(connection, expires=now() + 20_000))
    assert both(store, now() + 19_000) == (True, True)
    assert both(store, now() + 25_000) == (False, False), "the grant has expired"
    assert both(store, now() + 35_000) == (False, False), "the token has expired"


def test_a_token_that_was_just_known_ends_by_the_clock_alone(store: Store) -> None:
    store.transact(lambda connection: granted(connection, expires=now() + 1_000))
    authenticate = tokens.authenticate(store)
    assert authenticate(VALUE).grant_id == "g1"
    deadline = monotonic() + 20

    def use_up() -> None:
        while monotonic() < deadline:
            authenticate(VALUE)

    with pytest.raises(Unauthenticated):
        use_up()


def test_a_refresh_token_opens_nothing(store: Store) -> None:
    def given(connection: Connection) -> None:
        granted(connection)
        row = {"hash": opaque.digest("refresh"), "grant_id": "g1", "kind": "refresh", "scope": ""}
        grants.add_token(connection, row | {"created": now(), "expires": now() + 30_000})

    store.transact(given)
    with pytest.raises(Unauthenticated):
        tokens.authenticate(store)("refresh")


@pytest.mark.parametrize("studies", [None, [], ["1.2.3", "1.2.4"]])
def test_the_access_is_the_one_that_the_whole_row_gives(store: Store, studies: list[str] | None) -> None:
    store.transact(lambda connection: granted(connection, studies=studies))
    with store.read() as connection:
        row = grants.living_token(connection, DIGEST, now())
        assert row is not None
        assert tokens.find(connection, VALUE) == tokens.access_of(row)
        assert tokens.find(connection, VALUE).studies == (None if studies is None else frozenset(studies))


def test_a_token_that_was_narrowed_gives_only_what_it_was_narrowed_to(store: Store) -> None:
    def given(connection: Connection) -> None:
        granted(connection)
        row = {"hash": opaque.digest("narrow"), "grant_id": "g1", "kind": "access", "scope": "patient/Observation.rs"}
        grants.add_token(connection, row | {"created": now(), "expires": now() + 30_000})

    store.transact(given)
    narrow = tokens.authenticate(store)("narrow")
    assert [scope.resource_type for scope in narrow.scopes] == ["Observation"]
    assert narrow.rights == frozenset()
