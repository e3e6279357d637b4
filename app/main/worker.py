"""Role worker: reads the archive and delivers the outbox. Any number may run; leases name who polls."""

from __future__ import annotations

import gc
import threading

from app.dicom.cache import Cache
from app.dicom.orthanc import Orthanc
from app.dicom.preparing import run as prepare
from app.main.processes import reach
from app.main.signals import stopped_by_signal
from app.settings import Settings
from app.store.database import Store
from app.workflow import site, worker
from app.workflow.arrivals import Archive

GARBAGE = (20_000, 20, 20)
"""A header is hundreds of objects that live for a moment: the collector need not look at each."""


def run(settings: Settings) -> None:
    """Work until a signal."""
    gc.set_threshold(*GARBAGE)
    stop = stopped_by_signal()
    store = Store(settings.database)
    cache = Cache(settings.web_cache, settings.cache_mb << 20)
    with Orthanc(*reach(settings)) as orthanc:
        preparing = threading.Thread(target=prepare, args=(store, orthanc, cache, stop), name="preparing", daemon=True)
        preparing.start()
        worker.run(Archive(store, orthanc, site.of(settings)), stop)
        preparing.join()
    store.close()
