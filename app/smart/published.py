"""Keys that a client publishes at its own address (SMART App Launch 2.2, asymmetric client authentication, 3.1).

A set is kept as long as its Cache-Control says, within bounds. A key that is not in it is looked for anew, but seldom:
whoever sends made-up key ids must not have the client's server called for each.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, RSAKey

from app.egress import Answer, Egress
from app.errors import IsocenterError, Unavailable
from app.smart.clients import SMALLEST_RSA, is_strong

log = structlog.get_logger(__name__)

SHORTEST = 60.0
LONGEST = 3600.0
USUAL = 300.0
"""Seconds that a set is kept whose answer does not say how long."""
MAX_KEYS = 100
MAX_BYTES = 256 * 1024
_AGE = re.compile(r"(?:^|[\s,])max-age=(\d{1,9})")
_FRESH = re.compile(r"(?:^|[\s,])(?:no-store|no-cache)(?:$|[\s,])")


@dataclass(frozen=True, slots=True)
class _Held:
    keys: tuple[RSAKey | ECKey, ...]
    since: float
    until: float


class PublishedKeys:
    """The sets of all clients of one process."""

    def __init__(self, egress: Egress) -> None:
        """Asks through this way out only."""
        self._egress = egress
        self._held: dict[str, _Held] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def find(self, url: str, key_id: str) -> list[RSAKey | ECKey]:
        """The keys of this id that are published there now; Unavailable when nothing usable can be had."""
        held = self._held.get(url)
        if held is None or not self._is_good(held, key_id):
            held = self._renewed(url, key_id)
        return [key for key in held.keys if key.kid == key_id]

    def _is_good(self, held: _Held, key_id: str) -> bool:
        at = time.monotonic()
        if at >= held.until:
            return False
        return at < held.since + SHORTEST or any(key.kid == key_id for key in held.keys)

    def _renewed(self, url: str, key_id: str) -> _Held:
        with self._lock_of(url):
            held = self._held.get(url)
            # Somebody else may have fetched it meanwhile.
            if held is not None and self._is_good(held, key_id):
                return held
            try:
                fetched = _read(self._egress.get(url, limit=MAX_BYTES))
            except IsocenterError as error:
                if held is None or time.monotonic() > held.since + LONGEST:
                    raise
                # A client's server that is away for a minute must not lock the client out.
                log.warning("published keys not renewed", error=type(error).__name__)
                fetched = _Held(held.keys, held.since, time.monotonic() + SHORTEST)
            self._held[url] = fetched
            return fetched

    def _lock_of(self, url: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(url, threading.Lock())


def _read(answer: Answer) -> _Held:
    if answer.status != 200:
        raise Unavailable(f"the client's keys cannot be had: its server answered {answer.status}")
    try:
        listed = orjson.loads(answer.body)["keys"]
        keys = tuple(key for one in listed[:MAX_KEYS] if (key := _usable(one)) is not None)
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable("the client's keys cannot be had: its server answered no JWK set") from error
    at = time.monotonic()
    return _Held(keys, at, at + _lifetime(answer.headers))


def _usable(given: Any) -> RSAKey | ECKey | None:
    """A public signing key of the kinds that SMART takes; a set may hold others, for other purposes."""
    if not isinstance(given, dict) or not isinstance(given.get("kid"), str):
        return None
    if given.get("kty") not in {"RSA", "EC"} or given.get("use", "sig") != "sig" or "d" in given:
        return None
    # joserfc warns of a short key where it should refuse it.
    if given["kty"] == "RSA" and len(str(given.get("n"))) * 6 < SMALLEST_RSA:
        return None
    try:
        key = KeySet.import_key_set({"keys": [given]}).keys[0]
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return key if isinstance(key, RSAKey | ECKey) and is_strong(key) else None


def _lifetime(headers: Mapping[str, str]) -> float:
    said = headers.get("cache-control", "").lower()
    if _FRESH.search(said):
        return SHORTEST
    age = _AGE.search(said)
    return min(max(float(age[1]), SHORTEST), LONGEST) if age else USUAL
