"""A process ends when it is asked to: SIGTERM and SIGINT set one event."""

from __future__ import annotations

import signal
import threading


def stopped_by_signal() -> threading.Event:
    """The event; to be asked for in the main thread."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
