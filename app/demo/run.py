"""Sets up the demo's data folder, starts everything, plays the story, and serves until a signal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from app.fhir import rebuild
from app.main import processes
from app.main.signals import stopped_by_signal
from app.main.supervisor import Supervisor
from app.settings import Settings


def environment(data_dir: Path) -> None:
    """What the demo fixes for itself and its child processes, unless the caller has set it."""
    host, port = os.environ.get("ISOCENTER_HOST", "127.0.0.1"), os.environ.get("ISOCENTER_PORT", "8080")
    shown = "localhost" if host == "127.0.0.1" else host
    os.environ["ISOCENTER_DEMO"] = "true"
    os.environ["ISOCENTER_DATA_DIR"] = str(data_dir.resolve())
    os.environ.setdefault("ISOCENTER_PUBLIC_URL", f"http://{shown}:{port}")


def demo(data_dir: Path, *, once: bool) -> int:
    """The whole demo; the exit status."""
    environment(data_dir)
    settings = Settings()
    rebuild.upgrade(settings)
    supervisor = Supervisor()
    stop = stopped_by_signal()
    try:
        _say("Starting the archive and the server …")
        logs = settings.data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        processes.start_all(settings, supervisor, logs=logs)
        # The story's own libraries take a while to load: they do while the server answers already.
        from app.demo import play

        played = play.story(settings, _say)
        if once:
            supervisor.end()
            sys.stdout.write(played.summary() + "\n")
            return 0 if played.ok else 1
        if not played.ok:
            _say(f"The story stopped; the server keeps serving. Its logs are in {logs}.")
        _say(play.what_next(settings))
        supervisor.run(stop)
    finally:
        supervisor.end()
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
