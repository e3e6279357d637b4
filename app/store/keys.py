"""Keys of this installation, kept in the database wrapped by ISOCENTER_SECRET_KEY (AES-256-GCM, NIST SP 800-38D)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy.engine import Connection, RowMapping

from app.errors import ConfigurationError
from app.settings import Settings
from app.store.database import now
from app.store.tables import secret_key

SHORTEST = 32
NONCE = 12


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its secret part unwrapped, its public part (a JWK) as it is shown."""

    id: str
    secret: bytes
    public: Mapping[str, Any]

    def __repr__(self) -> str:
        """Without the secret, so that no log can hold it."""
        return f"Key({self.id})"


def wrapping_secret(settings: Settings) -> bytes:
    """The configured secret, or the one generated beside the SQLite file."""
    text = settings.secret_key.get_secret_value()
    if not text and settings.secret_key_file is not None:
        text = _read(settings.secret_key_file)
    if not text and settings.database.startswith("sqlite"):
        text = _generated(settings.data_dir / "secret.key")
    if len(text) < SHORTEST:
        raise ConfigurationError(
            f"set ISOCENTER_SECRET_KEY or ISOCENTER_SECRET_KEY_FILE to at least {SHORTEST} random characters"
        )
    return HKDF(hashes.SHA256(), 32, salt=None, info=b"isocenter key wrapping").derive(text.encode())


def add_key(connection: Connection, wrapping: bytes, *, purpose: str, key: Key) -> None:
    """Keep a key, wrapped."""
    nonce = os.urandom(NONCE)
    # The id and purpose are authenticated: a row cannot be passed off as another.
    wrapped = nonce + AESGCM(wrapping).encrypt(nonce, key.secret, f"{purpose}/{key.id}".encode())
    row = {"id": key.id, "purpose": purpose, "wrapped": wrapped, "public": dict(key.public), "created": now()}
    connection.execute(secret_key.insert().values(row))


def keys(connection: Connection, wrapping: bytes, *, purpose: str) -> list[Key]:
    """The unretired keys of a purpose, the newest first."""
    own = (secret_key.c.purpose == purpose, secret_key.c.retired.is_(None))
    newest = sa.select(secret_key).where(*own).order_by(secret_key.c.created.desc(), secret_key.c.id)
    rows = connection.execute(newest).mappings()
    return [Key(row["id"], _unwrap(wrapping, row, purpose), row["public"]) for row in rows]


def public_keys(connection: Connection, *, purpose: str, retired_after: int) -> list[Mapping[str, Any]]:
    """The public parts of the keys in use and of those retired since."""
    shown = sa.or_(secret_key.c.retired.is_(None), secret_key.c.retired > retired_after)
    statement = sa.select(secret_key.c.public).where(secret_key.c.purpose == purpose, shown)
    return list(connection.execute(statement.order_by(secret_key.c.created)).scalars())


def retire_keys(connection: Connection, *, purpose: str) -> None:
    """Use a purpose's present keys no longer; their public parts stay readable for a while."""
    live = (secret_key.c.purpose == purpose, secret_key.c.retired.is_(None))
    connection.execute(secret_key.update().where(*live).values(retired=now()))


def _unwrap(wrapping: bytes, row: RowMapping, purpose: str) -> bytes:
    wrapped = bytes(row["wrapped"])
    try:
        return AESGCM(wrapping).decrypt(wrapped[:NONCE], wrapped[NONCE:], f"{purpose}/{row['id']}".encode())
    except InvalidTag as error:
        raise ConfigurationError(
            "ISOCENTER_SECRET_KEY is not the one that wrapped this database's keys: set the original one"
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"the secret key file {path} cannot be read: {error.strerror}") from error


def _generated(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    if not path.exists():
        # Written aside and linked: of two processes that start together one wins, and none reads half a key.
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return _read(path)
