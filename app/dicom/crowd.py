"""How much one grant may ask for at once, so that nobody keeps the others waiting (RFC 6585 section 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from app.errors import TooMany

AT_ONCE: Final = 256
"""A viewer asks for a hundred things at once through HTTP/2, and for six through HTTP/1.1."""
SECONDS: Final = 1


class Crowd:
    """The requests under way, by grant. Used in one event loop only."""

    def __init__(self, limit: int = AT_ONCE) -> None:
        """`limit` requests of one grant are answered side by side."""
        self._limit = limit
        self._under: Counter[str] = Counter()

    @contextmanager
    def passed(self, grant: str) -> Generator[None]:
        """While one request is answered, to its last byte; raises when there are too many."""
        if self._under[grant] >= self._limit:
            raise TooMany(f"more than {self._limit} requests at once under one grant", retry_after=SECONDS)
        self._under[grant] += 1
        try:
            yield
        finally:
            self._under[grant] -= 1
            if not self._under[grant]:
                del self._under[grant]
