"""Role api: HTTP. Any number of these processes may run beside each other on PostgreSQL."""

from __future__ import annotations

import sys

import uvicorn

from app.main.prepare import prepare
from app.main.server import create_app
from app.settings import Settings

GRACEFUL_SECONDS = 10


SWITCH_SECONDS = 0.0002
"""SQLite lets go of the interpreter at every step: with Python's 5 ms a writer would wait so long for each of its rows
whenever requests keep the event loop busy."""


def run(settings: Settings) -> None:
    """Serve HTTP until a signal."""
    sys.setswitchinterval(SWITCH_SECONDS)
    prepare(settings)
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        # Addresses come from ISOCENTER_PUBLIC_URL; forwarded headers are believed from nobody.
        proxy_headers=False,
    )
    uvicorn.Server(config).run()
