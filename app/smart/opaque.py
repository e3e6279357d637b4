"""Opaque secrets: 256 random bits for the holder, their SHA-256 for the store (RFC 9700 section 4.2.4)."""

from __future__ import annotations

import hashlib
import secrets


def make() -> str:
    """A new secret value."""
    return secrets.token_urlsafe(32)


def digest(value: str) -> str:
    """What is stored and looked up in its place; a random value needs no salt."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
