"""Role edge: the DIMSE sockets, so that a C-FIND storm cannot slow HTTP."""

from __future__ import annotations

import structlog

from app.dicom import edge
from app.main.signals import stopped_by_signal
from app.settings import Settings
from app.store.database import Store
from app.workflow import orders, site, steps

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve worklist and MPPS until a signal."""
    stop = stopped_by_signal()
    store = Store(settings.database)
    items = orders.worklist_of(store, site.of(settings))
    served = edge.serve(settings.dicom_host, settings.dicom_port, settings.ae_title, items, steps.handler(store))
    log.info("dimse listening", host=served.host, port=served.port, ae_title=served.ae_title)
    stop.wait()
    served.stop()
    store.close()
