"""What the probes say of keeping in step (app.main.probes), on both engines."""

from __future__ import annotations

import re

import pytest

from app.main import probes
from app.settings import Settings
from app.store import sync, truth
from app.store.database import Store, now
from app.workflow import sweep
from tests.processes import free_port


@pytest.fixture
def settings() -> Settings:
    """An archive that nobody runs."""
    return Settings(orthanc_url=f"http://127.0.0.1:{free_port()}")


def gauges(store: Store, settings: Settings) -> dict[str, float]:
    text = bytes(probes._metrics(store, settings).body).decode()
    return {name: float(value) for name, value in re.findall(r"^isocenter_sync_(\w+) (\S+)$", text, re.MULTILINE)}


def test_an_archive_that_does_not_answer_degrades_and_does_not_stop(store: Store, settings: Settings) -> None:
    status, body = probes.readiness(store, settings)
    assert (status, body["status"]) == (200, "degraded")
    assert body["degraded"] == {"archive": "the archive does not answer (ConnectionRefusedError)"}


def test_what_is_held_is_told_with_what_to_do(store: Store, settings: Settings) -> None:
    store.transact(lambda tx: truth.note(tx, at=now(), hold=sweep.MASS, missing=7))
    _, body = probes.readiness(store, settings)
    assert body["degraded"]["sync"] == (
        "nothing is withdrawn: studies disappeared in a mass (7 missing). Bring them back, or accept it with "
        "`isocenter sync reconcile --accept-missing`"
    )


def test_an_archive_that_nobody_compares_any_more_is_told(store: Store, settings: Settings) -> None:
    store.transact(lambda tx: truth.note(tx, at=now() - 3600_000))
    _, body = probes.readiness(store, settings)
    assert body["degraded"]["sync"].endswith("is a worker running?")


def test_the_gauges_tell_what_waits_what_differed_and_what_is_held(store: Store, settings: Settings) -> None:
    assert gauges(store, settings)["last_sweep_timestamp_seconds"] == 0
    store.transact(lambda tx: sync.mark(tx, ["a", "b"], "test"))
    store.transact(lambda tx: truth.note(tx, at=1_790_000_000_000, new=1, missing=2, hold=sweep.MASS))
    found = gauges(store, settings)
    assert (found["dirty_studies"], found["drift_studies"], found["held"]) == (2, 3, 1)
    assert found["last_sweep_timestamp_seconds"] == 1_790_000_000
    assert found["lag_seconds"] >= 0
