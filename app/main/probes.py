"""Probes for whoever runs the server: /health, /ready and /metrics (Prometheus text format)."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from app.dicom.orthanc import Orthanc
from app.errors import ArchiveUnavailable, ConfigurationError, IsocenterError
from app.settings import Settings
from app.store import outbox, schema, sync
from app.store.database import Store


def routes(store: Store, settings: Settings) -> APIRouter:
    """The three probes; none shows patient data, none needs a token."""
    router = APIRouter()

    @router.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready")
    def ready() -> Response:
        status, body = readiness(store, settings)
        return Response(json.dumps(body), status, {"Cache-Control": "no-store"}, "application/json")

    @router.get("/metrics")
    def metrics() -> Response:
        return Response(_metrics(store), media_type=CONTENT_TYPE_LATEST)

    return router


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
    password = settings.orthanc_password.get_secret_value()
    try:
        with Orthanc(settings.orthanc_root, settings.orthanc_username, password) as orthanc:
            orthanc.system()
    except (ArchiveUnavailable, IsocenterError) as error:
        return str(error)
    return ""


def _metrics(store: Store) -> bytes:
    registry = CollectorRegistry()
    pending = Gauge("isocenter_outbox_pending", "Effects still to be delivered", ["kind"], registry=registry)
    dirty = Gauge("isocenter_sync_dirty_studies", "Studies to be looked at", registry=registry)
    with store.read() as connection:
        for kind, count in outbox.pending(connection).items():
            pending.labels(kind).set(count)
        dirty.set(sync.waiting(connection))
    return generate_latest(registry)
