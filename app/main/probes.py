"""Probes for whoever runs the server: /health, /ready and /metrics (Prometheus text format)."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.errors import ConfigurationError
from app.main import watch
from app.settings import Settings
from app.store import outbox, schema
from app.store.database import Store
from app.workflow import standing
from app.workflow.standing import Seen, Standing


def routes(store: Store, settings: Settings) -> list[Route]:
    """The three probes; none shows patient data, none needs a token."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def ready(_: Request) -> Response:
        status, body = readiness(store, settings)
        return Response(json.dumps(body), status, {"Cache-Control": "no-store"}, "application/json")

    def metrics(_: Request) -> Response:
        return _metrics(store, settings)

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]


def readiness(store: Store, settings: Settings) -> tuple[int, dict[str, Any]]:
    """503 when nothing can be served; 200 with what is degraded otherwise."""
    try:
        schema.require_current(store)
        with store.read() as connection:
            trouble = standing.trouble(connection, settings)
    except (ConfigurationError, SQLAlchemyError) as error:
        reason = str(error) if isinstance(error, ConfigurationError) else "the database does not answer"
        return 503, {"status": "not ready", "database": reason}
    degraded = {"archive": watch.seen(settings).error, "sync": trouble}
    notes = [] if settings.authority else ["no [[authority]] is configured: numbers count as this server's own"]
    named = {name: reason for name, reason in degraded.items() if reason}
    return 200, {"status": "degraded" if named else "ready", "degraded": named, "notes": notes}


def _metrics(store: Store, settings: Settings) -> Response:
    # Loaded late: many sites do not measure.
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    pending = Gauge("isocenter_outbox_pending", "Effects still to be delivered", ["kind"], registry=registry)
    with store.read() as connection:
        for kind, count in outbox.pending(connection).items():
            pending.labels(kind).set(count)
        here = standing.of(connection, settings, Seen())
    for name, (meaning, value) in _gauges(here).items():
        Gauge(f"isocenter_sync_{name}", meaning, registry=registry).set(value)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _gauges(here: Standing) -> dict[str, tuple[str, float]]:
    """What of keeping in step can be a curve; the archive is not asked for it."""
    swept = datetime.fromisoformat(here.last_sweep["at"]).timestamp() if here.last_sweep else 0
    return {
        "dirty_studies": ("Studies to be looked at", here.waiting),
        "failing_studies": ("Those of them that could not be read several times", here.failing),
        "lag_seconds": ("How long the oldest study has waited to be looked at", here.lag),
        "cursor": ("Number of the last change of the archive that was read", here.cursor),
        "drift_studies": ("Studies that differed at the last sweep", here.drift),
        "held": ("1 while nothing is withdrawn", float(bool(here.hold))),
        "last_sweep_timestamp_seconds": ("When the archive was compared last", swept),
        "studies": ("Studies told of that are in the archive", here.studies),
        "instances": ("Their instances", here.instances),
    }
