"""Local users: refused alike, throttled, and gone with their sessions (checklist H05, V05)."""

from __future__ import annotations

import pytest

from app.errors import BadRequest, Conflict
from app.settings import Settings
from app.smart import users
from app.smart.users import Throttle, User
from app.store.database import Store

ADA = User("ada", "Ada", "radiologist", "Practitioner/1")


def test_only_the_right_password_opens(store: Store) -> None:
    store.transact(lambda c: users.add(c, ADA, "correct horse"))
    with store.read() as connection:
        assert users.verify(connection, "ada", "correct horse") == ADA
        assert users.verify(connection, "ada", "wrong") is None
        assert users.verify(connection, "ada", "") is None
        assert users.verify(connection, "nobody", "correct horse") is None
    store.transact(lambda c: users.disable(c, "ada"))
    with store.read() as connection:
        assert users.verify(connection, "ada", "correct horse") is None


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (User("a:b", "", "admin"), "long enough"),
        (User("", "", "admin"), "long enough"),
        (User("a", ""), "long enough"),
        (User("a", "", "admin"), "short"),
    ],
)
def test_unsafe_users_are_refused(store: Store, user: User, password: str) -> None:
    with pytest.raises(BadRequest):
        store.transact(lambda c: users.add(c, user, password))


def test_a_login_name_is_given_once(store: Store) -> None:
    store.transact(lambda c: users.add(c, ADA, "correct horse"))
    with pytest.raises(Conflict):
        store.transact(lambda c: users.add(c, ADA, "another horse"))


def test_a_session_is_known_by_its_cookie_until_it_is_closed(store: Store) -> None:
    store.transact(lambda c: users.add(c, ADA, "correct horse"))
    value = store.transact(lambda c: users.open_session(c, ADA))
    with store.read() as connection:
        session = users.find_session(connection, value)
        assert users.find_session(connection, "x") is None
        assert users.find_session(connection, None) is None
    assert session is not None
    assert session.user == ADA
    store.transact(lambda c: users.close_session(c, value))
    with store.read() as connection:
        assert users.find_session(connection, value) is None


def test_a_disabled_user_has_no_session(store: Store) -> None:
    store.transact(lambda c: users.add(c, ADA, "correct horse"))
    value = store.transact(lambda c: users.open_session(c, ADA))
    store.transact(lambda c: users.disable(c, "ada"))
    with store.read() as connection:
        assert users.find_session(connection, value) is None


def test_tries_are_counted_per_user_and_address() -> None:
    throttle = Throttle()
    assert [throttle.take("ada", "1") for _ in range(6)] == [True] * 5 + [False]
    assert throttle.take("ada", "2")
    assert throttle.take("bob", "1")
    throttle.forgive("ada", "1")
    assert throttle.take("ada", "1")


def test_cookies_of_two_issuers_on_one_host_have_two_names() -> None:
    one, two = (Settings(public_url=f"http://localhost:{port}") for port in (8080, 8081))
    assert users.cookie_name(one) != users.cookie_name(two)
