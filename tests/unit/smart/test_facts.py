"""The fact-book says what the code does."""

from __future__ import annotations

from app.access import parse_scopes
from app.smart import clients, scopes, token_endpoint, users
from app.smart.facts import facts


def test_the_methods_advertised_are_those_tried() -> None:
    """D12"""
    book = facts()
    assert set(book.token_endpoint_auth_methods) == set(token_endpoint.AUTH_METHODS)
    assert set(book.token_endpoint_auth_methods) == set().union(*clients.AUTH_METHODS.values())
    assert set(book.introspection_auth_methods) == set(token_endpoint.Introspection.CLIENT_AUTH_METHODS)
    grants = (token_endpoint.CodeGrant, token_endpoint.RefreshGrant, token_endpoint.SystemGrant)
    assert list(book.grant_types) == [grant.GRANT_TYPE for grant in grants]


def test_every_role_is_described_and_its_scopes_read_back() -> None:
    roles = facts().roles
    assert set(roles) == {*users.ROLES, "foreign"}
    for words in roles.values():
        found, rights = parse_scopes(words)
        assert rights <= {"isocenter/sign", "isocenter/operate"}
        assert all(scope.context == "user" and scopes.enforceable(scope) for scope in found)


def test_no_word_is_both_a_persons_and_a_programs() -> None:
    assert not set(facts().words) & set(facts().system_words)
