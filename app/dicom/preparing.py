"""Metadata of studies that became complete, made before anybody asks for it: no more than a third of one connection."""

from __future__ import annotations

import threading
import time
from typing import Final

import structlog

from app.dicom import prepared
from app.dicom.cache import Cache
from app.dicom.holdings import Holdings
from app.dicom.orthanc import Orthanc
from app.store import studies
from app.store.database import Store, now

log = structlog.get_logger(__name__)

PAUSE_SECONDS: Final = 1.0
RECENT: Final = 10 * 60 * 1000
"""A study whose last change is so many milliseconds ago was not just made: nobody waits for it."""
PORTION: Final = 8
REST: Final = 2.0
"""After each study a rest, so many times as long as the work on it: whoever reads or stores goes first."""


def run(store: Store, orthanc: Orthanc, cache: Cache, stop: threading.Event) -> None:
    """Prepare until stopped. What fails is left to the first who asks."""
    holdings, since = Holdings(orthanc), 0
    while cache.limit and not stop.is_set():
        since = max(since, now() - RECENT)
        try:
            with store.read() as connection:
                found = studies.completed(connection, since, PORTION)
            for study, changed in found:
                since, began = changed, time.monotonic()
                prepared.prepare(orthanc, cache, holdings.read(study))
                stop.wait(REST * (time.monotonic() - began))
        except Exception as error:  # noqa: BLE001 - goes on with the next study
            log.warning("metadata not prepared", error=type(error).__name__)
            found = []
        if not found:
            stop.wait(PAUSE_SECONDS)
