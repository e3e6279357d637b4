"""Probes for whoever runs the server: /health, /ready and /metrics (Prometheus text format)."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.errors import ArchiveUnavailable, ConfigurationError, IsocenterError
from app.settings import Settings
from app.store import outbox, schema, sync
from app.store.database import Store


def routes(store: Store, settings: Settings) -> list[Route]:
    """The three probes; none shows patient data, none needs a token."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def ready(_: Request) -> Response:
        status, body = readiness(store, settings)
        return Response(json.dumps(body), status, {"Cache-Control": "no-store"}, "application/json")

    def metrics(_: Request) -> Response:
        return _metrics(store)

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]


def readiness(store: Store, settings: Settings) -> tuple[int, dict[str, Any]]:
    """503 when nothing can be served; 200 with what is degraded otherwise."""
    try:
        schema.require_current(store)
        with store.read() as connection:
            hold = (sync.position(connection, "sweep").detail or {}).get("hold", "")
    except (ConfigurationError, SQLAlchemyError) as error:
        reason = str(error) if isinstance(error, ConfigurationError) else "the database does not answer"
        return 503, {"status": "not ready", "database": reason}
    degraded = {"archive": _archive(settings), "sync": hold}
    notes = [] if settings.authority else ["no [[authority]] is configured: numbers count as this server's own"]
    named = {name: reason for name, reason in degraded.items() if reason}
    return 200, {"status": "degraded" if named else "ready", "degraded": named, "notes": notes}


def _archive(settings: Settings) -> str:
    # Loaded late: /health needs no HTTP client (docs/decisions/0078).
    from app.dicom.orthanc import Orthanc

    password = settings.orthanc_password.get_secret_value()
    try:
        with Orthanc(settings.orthanc_root, settings.orthanc_username, password) as orthanc:
            orthanc.system()
    except (ArchiveUnavailable, IsocenterError) as error:
        return str(error)
    return ""


def _metrics(store: Store) -> Response:
    # Loaded late: many sites do not measure.
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    pending = Gauge("isocenter_outbox_pending", "Effects still to be delivered", ["kind"], registry=registry)
    dirty = Gauge("isocenter_sync_dirty_studies", "Studies to be looked at", registry=registry)
    with store.read() as connection:
        for kind, count in outbox.pending(connection).items():
            pending.labels(kind).set(count)
        dirty.set(sync.waiting(connection))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
