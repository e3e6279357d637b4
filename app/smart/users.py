"""Local users of small sites and the demo: passwords, throttled login and login sessions (RFC 9700, OWASP ASVS V2)."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy.engine import Connection

from app.errors import BadRequest, Conflict, NotFound
from app.settings import Settings
from app.smart import opaque
from app.smart.clients import check_secret, hasher
from app.smart.facts import facts, limits
from app.store import grants
from app.store.database import now

ROLES = ("radiologist", "technologist", "operator", "admin")
SHORTEST_PASSWORD = 8
WINDOW = 60.0


@dataclass(frozen=True, slots=True)
class User:
    """A person: a local account, or one a trusted client vouches for (then without a role)."""

    id: str
    name: str
    role: str = ""
    fhir_user: str | None = None
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """A logged-in person; `hash` names the session in the store."""

    hash: str
    user: User
    csrf: str
    created: int
    expires: int


@dataclass(slots=True)
class Throttle:
    """Failed tries per user and address, in this process."""

    tries: dict[tuple[str, str], list[float]] = field(default_factory=dict[tuple[str, str], list[float]])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, user_id: str, address: str) -> bool:
        """Count one try; False when there were too many in the last minute."""
        at = time.monotonic()
        with self.lock:
            recent = {key: kept for key, times in self.tries.items() if (kept := [t for t in times if t > at - WINDOW])}
            mine = recent.setdefault((opaque.digest(user_id), address), [])
            allowed = len(mine) < limits().login_tries_per_minute
            if allowed:
                mine.append(at)
            self.tries = recent
        return allowed

    def forgive(self, user_id: str, address: str) -> None:
        """A successful login clears the count."""
        with self.lock:
            self.tries.pop((opaque.digest(user_id), address), None)


def add(connection: Connection, user: User, password: str) -> None:
    """Add a local user."""
    if not user.id or ":" in user.id or not user.id.isprintable() or user.id != user.id.strip():
        raise BadRequest("a login name is printable and has no colon")
    if user.role not in ROLES:
        raise BadRequest(f"a role is one of {', '.join(ROLES)}")
    if len(password) < SHORTEST_PASSWORD:
        raise BadRequest(f"a password has at least {SHORTEST_PASSWORD} characters")
    if grants.find_user(connection, user.id) is not None:
        raise Conflict("a user with this login name exists")
    row = {name: getattr(user, name) for name in User.__slots__}
    grants.put_user(connection, {**row, "fhir_user": user.fhir_user or "", "password_hash": hasher().hash(password)})


def list_users(connection: Connection) -> list[User]:
    """Every local user."""
    return [_user(row) for row in grants.users(connection)]


def disable(connection: Connection, user_id: str) -> None:
    """Refuse a user from now on, and end their sessions and grants."""
    if not grants.set_user(connection, user_id, disabled=True):
        raise NotFound("there is no such user")
    grants.end_user_sessions(connection, user_id, now())


def find(connection: Connection, user_id: str) -> User | None:
    """A local user that is not disabled."""
    row = grants.find_user(connection, user_id)
    return None if row is None or row["disabled"] else _user(row)


def verify(connection: Connection, username: str, password: str) -> User | None:
    """The user, when the password is right; unknown and disabled users cost the same work."""
    row, nobody = grants.find_user(connection, username), _nobodys_hash()
    right = check_secret(nobody if row is None else row["password_hash"], password)
    return _user(row) if row is not None and right and not row["disabled"] else None


@cache
def _nobodys_hash() -> str:
    """Verified when the user does not exist, so that both answers take the same time."""
    return hasher().hash(opaque.make())


def _user(row: Mapping[str, Any]) -> User:
    return User(row["id"], row["name"], row["role"], row["fhir_user"] or None, row["disabled"])


def open_session(connection: Connection, user: User) -> str:
    """Remember a login; the returned cookie value is the only copy."""
    value, at = opaque.make(), now()
    expires = at + limits().login_seconds * 1000
    row = {"hash": opaque.digest(value), "user_id": user.id, "csrf": opaque.make(), "created": at, "expires": expires}
    grants.add_session(connection, row)
    return value


def find_session(connection: Connection, value: str | None) -> Session | None:
    """The session behind a cookie value, of a user that is not disabled."""
    row = grants.find_session(connection, opaque.digest(value), now()) if value else None
    user = find(connection, row["user_id"]) if row is not None else None
    if row is None or user is None:
        return None
    return Session(row["hash"], user, row["csrf"], row["created"], row["expires"])


def close_session(connection: Connection, value: str) -> None:
    """Log out: the session ends, and the grants that live no longer than it."""
    grants.end_session(connection, opaque.digest(value), now())


def cookie_name(settings: Settings, purpose: str = "session") -> str:
    """Cookies ignore ports, so the name carries the issuer."""
    return f"isocenter_{purpose}_{hashlib.sha256(settings.public_url.encode()).hexdigest()[:8]}"


def cap(connection: Connection, user: User, made_by: str | None) -> str:
    """The most this user may do: by role, or, without an account here, by the client that vouches for them."""
    if user.role:
        return facts().roles[user.role]
    row = grants.find_client(connection, made_by) if made_by else None
    words = row["scope"].split() if row else []
    vouched = [word for word in words if word.startswith("user/") or word == "isocenter/sign"]
    return " ".join((facts().roles["foreign"], *vouched))
