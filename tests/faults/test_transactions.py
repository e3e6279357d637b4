"""kill -9 of a serving process amid transactions: each is wholly there or not at all, an answered one is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from app.store.database import Store, run
from tests.processes import answers, free_port, running, wait_until

ROUNDS = int(os.environ.get("ISOCENTER_KILL_ROUNDS", "2"))
CLIENTS = int(os.environ.get("ISOCENTER_KILL_CLIENTS", "3"))
ENTRIES = int(os.environ.get("ISOCENTER_KILL_ENTRIES", "40"))
HEADERS = {"Authorization": "Bearer all"}


@dataclass(slots=True)
class Senders:
    """Clients that send transactions until the server is gone; what they sent, and what was answered."""

    base: str
    sent: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)

    def run(self) -> None:
        with httpx.Client(base_url=self.base, headers=HEADERS, trust_env=False, timeout=60) as client:
            while True:
                mark = uuid.uuid4().hex
                self.sent.append(mark)
                try:
                    answer = client.post("/fhir", json=transaction(mark))
                except httpx.TransportError:
                    return
                assert answer.status_code == 200, answer.text
                self.answered.append(mark)


def transaction(mark: str) -> dict[str, object]:
    """New resources, and the next version of one that every transaction of the same client changes."""
    who = f"urn:uuid:{uuid.uuid4()}"
    rows: list[dict[str, object]] = [
        {
            "fullUrl": who,
            "resource": {"resourceType": "Patient", "identifier": [{"system": "urn:mark", "value": mark}]},
            "request": {"method": "POST", "url": "Patient"},
        }
    ]
    for number in range(ENTRIES):
        observation = {
            "resourceType": "Observation",
            "status": "final",
            "identifier": [{"system": "urn:mark", "value": mark}],
            "code": {"text": str(number)},
            "subject": {"reference": who},
        }
        rows.append({"resource": observation, "request": {"method": "POST", "url": "Observation"}})
    shared = {"resourceType": "Patient", "id": "shared", "name": [{"text": mark}]}
    rows.append({"resource": shared, "request": {"method": "PUT", "url": "Patient/shared"}})
    return {"resourceType": "Bundle", "type": "transaction", "entry": rows}


def play(url: str, folder: Path, senders: Senders, port: int) -> None:
    """Serve, let the clients send, and kill the server while they do."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "tests.faults.fhir_server", url, str(port)]
    before = len(senders.answered)
    with running(command, log, cwd=Path(__file__).parents[2]) as process:
        answers(process, log, lambda: is_up(senders.base), "the FHIR server")
        if not senders.sent:
            shared = {"resourceType": "Patient", "id": "shared"}
            httpx.put(f"{senders.base}/fhir/Patient/shared", json=shared, headers=HEADERS, trust_env=False)
        threads = [threading.Thread(target=senders.run) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(senders.answered) < before + CLIENTS and time.monotonic() < deadline:
            threads[0].join(0.01)
        kill(process)
        for thread in threads:
            thread.join()


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)


def is_up(base: str) -> bool:
    try:
        return httpx.get(f"{base}/fhir/metadata", trust_env=False).is_success
    except httpx.TransportError:
        return False


def kept(store: Store, mark: str) -> int:
    text = "CAST(body AS TEXT)" if store.sqlite else "convert_from(body, 'UTF8')"
    sql = f"SELECT count(*) FROM resource WHERE {text} LIKE ? AND resource_id <> 'shared'"
    with store.read() as connection:
        return run(connection, sql, (f"%{mark}%",)).fetchone()[0]


def is_alone(store: Store) -> bool:
    """Whether nothing that the killed process had begun is still under way in the database server."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with store.read() as connection:
        return store.sqlite or run(connection, sql).fetchone()[0] == 0


@pytest.mark.slow
def test_a_killed_server_leaves_each_transaction_whole_or_absent(database_url: str, tmp_path: Path) -> None:
    port = free_port()
    senders = Senders(f"http://127.0.0.1:{port}")
    for _ in range(ROUNDS):
        play(database_url, tmp_path, senders, port)
    store = Store(database_url)
    wait_until(lambda: is_alone(store), "the end of what was under way")
    counts = {mark: kept(store, mark) for mark in senders.sent}
    with store.read() as connection:
        versions = run(connection, "SELECT version FROM resource WHERE resource_id = 'shared'").fetchone()[0]
        old = run(connection, "SELECT count(*) FROM resourceversion").fetchone()[0]
    store.close()
    assert set(counts.values()) <= {0, ENTRIES + 1}
    assert [mark for mark in senders.answered if not counts[mark]] == []
    assert len(senders.answered) >= ROUNDS
    # The shared patient has one more version for each transaction that is there, and none for another.
    whole = sum(1 for count in counts.values() if count)
    assert (versions, old) == (whole + 1, whole)
