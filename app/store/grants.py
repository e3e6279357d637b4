"""Clients, users, sessions, launches, codes, grants and tokens; secrets are known by their hash only (RFC 9700)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from app.store.database import insert, upsert
from app.store.tables import (
    access_grant,
    access_token,
    assertion_id,
    authorization_code,
    client,
    launch,
    login_session,
    user_account,
)

Row = Mapping[str, Any]
MOST_SHOWN = 200


def _one(connection: Connection, statement: sa.Select[Any]) -> Row | None:
    row = connection.execute(statement).mappings().first()
    return None if row is None else _row(row)


def _row(row: RowMapping) -> Row:
    return {str(name): value for name, value in row.items()}


def find_client(connection: Connection, client_id: str) -> Row | None:
    """One registered app."""
    return _one(connection, sa.select(client).where(client.c.id == client_id))


def clients(connection: Connection) -> list[Row]:
    """Every registered app, by id."""
    return [_row(row) for row in connection.execute(sa.select(client).order_by(client.c.id)).mappings()]


def put_client(connection: Connection, values: Row) -> None:
    """Register an app, or replace the registration with the same id."""
    upsert(connection, client, dict(values), keys=("id",))


def set_client(connection: Connection, client_id: str, **values: Any) -> bool:
    """Change an app's registration; whether there is one."""
    return connection.execute(client.update().where(client.c.id == client_id).values(values)).rowcount > 0


def find_user(connection: Connection, user_id: str) -> Row | None:
    """One local user."""
    return _one(connection, sa.select(user_account).where(user_account.c.id == user_id))


def users(connection: Connection) -> list[Row]:
    """Every local user, by login name."""
    return [_row(row) for row in connection.execute(sa.select(user_account).order_by(user_account.c.id)).mappings()]


def put_user(connection: Connection, values: Row) -> None:
    """Add a local user, or replace the one with the same login name."""
    upsert(connection, user_account, dict(values), keys=("id",))


def set_user(connection: Connection, user_id: str, **values: Any) -> bool:
    """Change a local user; whether there is one."""
    return connection.execute(user_account.update().where(user_account.c.id == user_id).values(values)).rowcount > 0


def add_session(connection: Connection, values: Row) -> None:
    """Remember a login."""
    connection.execute(login_session.insert().values(dict(values)))


def find_session(connection: Connection, digest: str, at: int) -> Row | None:
    """A login that has not expired."""
    alive = (login_session.c.hash == digest, login_session.c.expires > at)
    return _one(connection, sa.select(login_session).where(*alive))


def end_session(connection: Connection, digest: str, at: int) -> None:
    """Forget a login and end the grants that live no longer than it."""
    connection.execute(login_session.delete().where(login_session.c.hash == digest))
    _revoke(connection, access_grant.c.session_hash == digest, at=at)


def end_user_sessions(connection: Connection, user_id: str, at: int) -> None:
    """Forget every login of a user and end all their grants."""
    connection.execute(login_session.delete().where(login_session.c.user_id == user_id))
    _revoke(connection, access_grant.c.user_id == user_id, at=at)


def add_launch(connection: Connection, values: Row) -> None:
    """Keep a launch context."""
    connection.execute(launch.insert().values(dict(values)))


def find_launch(connection: Connection, digest: str, kind: str, at: int) -> Row | None:
    """A launch that is neither used nor expired."""
    return _one(connection, sa.select(launch).where(*_open_launch(digest, kind, at)))


def use_launch(connection: Connection, digest: str, kind: str, at: int) -> bool:
    """Mark a launch as used; whether this call was the first."""
    marked = launch.update().where(*_open_launch(digest, kind, at)).values(used=at)
    return connection.execute(marked).rowcount == 1


def _open_launch(digest: str, kind: str, at: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (launch.c.hash == digest, launch.c.kind == kind, launch.c.used.is_(None), launch.c.expires > at)


def add_code(connection: Connection, values: Row) -> None:
    """Keep an authorization code."""
    connection.execute(authorization_code.insert().values(dict(values)))


def find_code(connection: Connection, digest: str, client_id: str) -> Row | None:
    """A code of this client, used and expired ones included."""
    own = (authorization_code.c.hash == digest, authorization_code.c.client_id == client_id)
    return _one(connection, sa.select(authorization_code).where(*own))


def use_code(connection: Connection, digest: str, grant_id: str, at: int) -> bool:
    """Mark a code as used for this grant; whether this call was the first and in time."""
    code = authorization_code.c
    fresh = (code.hash == digest, code.used.is_(None), code.expires > at)
    marked = authorization_code.update().where(*fresh).values(used=at, grant_id=grant_id)
    return connection.execute(marked).rowcount == 1


def add_grant(connection: Connection, values: Row) -> None:
    """Keep a grant."""
    connection.execute(access_grant.insert().values(dict(values)))


def find_grant(connection: Connection, grant_id: str, at: int) -> Row | None:
    """A grant that lives, of a client that is not disabled."""
    return _one(connection, _living_grants(at).where(access_grant.c.id == grant_id))


def of_user(connection: Connection, user_id: str, at: int) -> list[Row]:
    """The living grants of a user with the names of their apps, the newest first."""
    named = _living_grants(at).add_columns(client.c.name.label("client_name"))
    own = named.where(access_grant.c.user_id == user_id).order_by(access_grant.c.created.desc(), access_grant.c.id)
    return [_row(row) for row in connection.execute(own.limit(MOST_SHOWN)).mappings()]


def revoke_grant(connection: Connection, grant_id: str, at: int) -> None:
    """End a grant, and with it everything that points to it."""
    _revoke(connection, access_grant.c.id == grant_id, at=at)


def revoke_client_grants(connection: Connection, client_id: str, at: int) -> None:
    """End every grant of an app."""
    _revoke(connection, access_grant.c.client_id == client_id, at=at)


def _revoke(connection: Connection, which: sa.ColumnElement[bool], *, at: int) -> None:
    connection.execute(access_grant.update().where(which, access_grant.c.revoked.is_(None)).values(revoked=at))


def _living_grants(at: int) -> sa.Select[Any]:
    joined = access_grant.join(client, client.c.id == access_grant.c.client_id)
    alive = (access_grant.c.revoked.is_(None), access_grant.c.expires > at, client.c.disabled.is_(False))
    return sa.select(access_grant).select_from(joined).where(*alive)


def add_token(connection: Connection, values: Row) -> None:
    """Keep a token."""
    connection.execute(access_token.insert().values(dict(values)))


def find_token(connection: Connection, digest: str) -> Row | None:
    """A token, spent and expired ones included."""
    return _one(connection, sa.select(access_token).where(access_token.c.hash == digest))


def living_token(connection: Connection, digest: str, at: int) -> Row | None:
    """The grant behind a valid access token, with `token_scope` and `token_expires`: the look-up of every request."""
    token = access_token.c
    fresh = (token.hash == digest, token.kind == "access", token.expires > at)
    columns = (token.scope.label("token_scope"), token.expires.label("token_expires"))
    joined = _living_grants(at).join_from(access_grant, access_token, token.grant_id == access_grant.c.id)
    return _one(connection, joined.add_columns(*columns).where(*fresh))


def bearer(connection: Connection, digest: str, at: int) -> Bearer | None:
    """The same for the hot path, by the driver: what a caller may do, of a token and grant that live."""
    at_driver = connection.connection.driver_connection
    if at_driver is None:
        return None
    statement = _BEARER_SQLITE if connection.dialect.name == "sqlite" else _BEARER_POSTGRES
    row: Bearer | None = at_driver.execute(statement, (digest, at, at)).fetchone()
    return row


Bearer = tuple[str, str, str | None, str | None, str | None, str | None, str, int]
"""(grant, client, user, fhirUser, patient, studies as JSON, scopes, when the first of token and grant ends)"""

# One statement, one round trip; it keeps the rules of `living_token`, and a test holds the two together.
_BEARER_SQLITE = """
SELECT g.id, g.client_id, g.user_id, g.fhir_user, g.patient_id, CAST(g.studies AS TEXT),
       CASE t.scope WHEN '' THEN g.scope ELSE t.scope END,
       CASE WHEN t.expires < g.expires THEN t.expires ELSE g.expires END
FROM accesstoken t JOIN accessgrant g ON g.id = t.grant_id JOIN client c ON c.id = g.client_id
WHERE t.hash = ? AND t.kind = 'access' AND t.expires > ? AND g.expires > ? AND g.revoked IS NULL AND NOT c.disabled
"""
_BEARER_POSTGRES = _BEARER_SQLITE.replace("?", "%s")


def spend_token(connection: Connection, digest: str, at: int) -> bool:
    """Mark a refresh token as rotated; whether this call was the first and in time."""
    token = access_token.c
    fresh = (token.hash == digest, token.kind == "refresh", token.spent.is_(None), token.expires > at)
    return connection.execute(access_token.update().where(*fresh).values(spent=at)).rowcount == 1


def remember_assertion(connection: Connection, client_id: str, jti: str, expires: int) -> bool:
    """Note a client assertion's `jti`; whether it is new."""
    row = {"client_id": client_id, "jti": jti, "expires": expires}
    # Counted by RETURNING: the row count of an INSERT is unknown under psycopg.
    statement = insert(connection, assertion_id).values(row).on_conflict_do_nothing().returning(assertion_id.c.jti)
    return connection.execute(statement).first() is not None


def forget_expired(connection: Connection, at: int) -> None:
    """Delete what can never be valid again; codes and grants only when no replay of theirs can matter."""
    for table in (assertion_id, login_session, launch, access_token):
        connection.execute(table.delete().where(table.c.expires < at))
    # A code that comes again must still find the grant its first use made.
    expired = sa.select(access_grant.c.id).where(access_grant.c.expires < at)
    gone = sa.or_(authorization_code.c.grant_id.is_(None), authorization_code.c.grant_id.in_(expired))
    connection.execute(authorization_code.delete().where(authorization_code.c.expires < at, gone))
    unused = sa.select(access_token.c.hash).where(access_token.c.grant_id == access_grant.c.id)
    connection.execute(access_grant.delete().where(access_grant.c.expires < at, ~unused.exists()))
