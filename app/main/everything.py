"""Role all: our own Orthanc when none is configured, and every role in a process of its own."""

from __future__ import annotations

from app.main import processes
from app.main.signals import stopped_by_signal
from app.main.supervisor import Supervisor
from app.settings import Settings
from app.store import keys


def run(settings: Settings) -> None:
    """Start everything and keep it running until a signal."""
    # What no process could start without is said once, before any is started.
    keys.wrapping_secret(settings)
    supervisor = Supervisor()
    stop = stopped_by_signal()
    try:
        processes.start_all(settings, supervisor)
        supervisor.run(stop)
    finally:
        supervisor.end()
