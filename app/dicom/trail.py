"""The audit trail of many small reads: the first is written at once, the rest as a number (docs/decisions/0061)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from msgspec.structs import replace

from app.audit import Record

WINDOW_SECONDS = 300.0
LOOK_SECONDS = 1.0


class Trail:
    """Audits at once, but counts the many small reads of a series: the first is written, the rest as one number."""

    def __init__(self, audit: Callable[[Record], None], window: float = WINDOW_SECONDS) -> None:
        """`audit` stores one record durably."""
        self.add = audit
        self._window = window
        self._lock = threading.Lock()
        self._looked = 0.0
        self._counts: dict[tuple[str | None, ...], tuple[Record, float, int]] = {}

    def count(self, record: Record, series_uid: str | None) -> None:
        """One more read of this kind from this series."""
        key = (record.grant_id, record.client_id, record.study_uid, record.patient_id, series_uid, record.action)
        now = time.monotonic()
        with self._lock:
            # Each look goes through all that is open: a second later is soon enough.
            over = self._over(now) if now - self._looked >= LOOK_SECONDS else []
            first = key not in self._counts
            _, since, count = self._counts.get(key, (record, now, -1))
            self._counts[key] = (record, since, count + 1)
        for ended in over:
            self.add(ended)
        if first:
            self.add(replace(record, detail={"count": 1, "series": series_uid}))

    def close(self) -> None:
        """Write every count that is still open."""
        with self._lock:
            over = self._over(float("inf"))
        for ended in over:
            self.add(ended)

    def _over(self, now: float) -> list[Record]:
        self._looked = min(now, time.monotonic())
        ended = [key for key, (_, since, _) in self._counts.items() if now - since >= self._window]
        closed = [(key, *self._counts.pop(key)) for key in ended]
        return [
            replace(record, detail={"count": count, "series": key[4], "more": True})
            for key, record, _, count in closed
            if count > 0
        ]
