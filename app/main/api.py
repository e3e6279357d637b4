"""Role api: HTTP. Any number of these processes may run beside each other on PostgreSQL."""

from __future__ import annotations

import gc
import sys

import uvicorn

from app.main.prepare import prepare
from app.main.server import create_app
from app.settings import Settings

GRACEFUL_SECONDS = 10


SWITCH_SECONDS = 0.0002
"""SQLite lets go of the interpreter at every step: with Python's 5 ms a writer would wait so long for each of its rows
whenever requests keep the event loop busy."""
GARBAGE = (20_000, 20, 20)
"""A body of a thousand images is thousands of objects: with Python's 700 the collector would look at them again and
again while they are read, and each time at the whole program, too."""


def run(settings: Settings) -> None:
    """Serve HTTP until a signal."""
    sys.setswitchinterval(SWITCH_SECONDS)
    prepare(settings)
    app = create_app(settings)
    # What is here now stays: the collector need not look at it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    config = uvicorn.Config(
        app,
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
