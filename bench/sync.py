"""How far ImagingStudies are behind the archive, and how fast they catch up, beside bare REST calls to the same one.

Five measurements, each on an Orthanc and a database of its own run; results go to docs/benchmarks.md as a table.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx

from app.dicom.orthanc import Orthanc as Archive
from app.settings import Settings
from app.store import schema, sync
from app.store.database import Store
from app.workflow import arrivals, site
from tests.orthanc import phantoms
from tests.orthanc.conftest import Orthanc, configuration
from tests.processes import free_port, running
from tests.story.installation import Installation, installed

ROOT = Path(__file__).parents[1]
SCALE = float(os.environ.get("BENCH_SCALE", "0.1"))
"""1 is the whole measurement, which replaces the table of docs/benchmarks.md."""
STUDIES = int(os.environ.get("BENCH_STUDIES", str(max(20, int(200 * SCALE)))))
BURST_STUDIES, BURST_SLICES = max(5, int(50 * SCALE)), 100
BACKFILL, SMALL = max(100, int(2000 * SCALE)), 2
SLOW_IMAGES, SLOW_SECONDS = max(100, int(1000 * SCALE)), max(6, int(60 * SCALE))
SERIES, SLICES = 4, 150
READERS = 4
SCANNERS = 4
"""Associations that send side by side in a burst."""
NAGLE_OFF = {"TCP_NODELAY": "1"}
"""DCMTK writes a message in several pieces. Held back by Nagle's algorithm until the other side's delayed
acknowledgement, an image takes 90 ms instead of 4, with every sender and without this server."""
PAUSE = 0.005

Row = tuple[str, str, str, str]


@dataclass(slots=True)
class Table:
    """What was measured, as rows of the table."""

    rows: list[Row] = field(default_factory=list)

    def tell(self, what: str, target: str, found: str, bare: str = "") -> None:
        self.rows.append((what, target, found, bare))
        print(f"{what:<66} {found:<34} {bare}", flush=True)

    def text(self) -> str:
        lines = ["| what | target | Isocenter | bare REST calls |", "|---|---|---|---|"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])


# --- an archive and an installation ------------------------------------------------------------------------------


@contextmanager
def archive(folder: Path) -> Iterator[Orthanc]:
    """An empty Orthanc."""
    folder.mkdir(parents=True)
    made = Orthanc(f"http://127.0.0.1:{free_port()}", "127.0.0.1", free_port(), "ORTHANC", "bench", "bench-secret")
    settings = folder / "orthanc.json"
    settings.write_text(json.dumps(configuration(made, folder) | {"StableAge": 10, "HttpThreadsCount": 16}))
    binary = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    log = folder / "orthanc.log"
    with running([binary, str(settings)], log, environment=NAGLE_OFF), made.client() as client:
        until(lambda: _up(client), "Orthanc to answer")
        yield made


def _up(client: httpx.Client) -> bool:
    try:
        return client.get("/system").is_success
    except httpx.TransportError:
        return False


@contextmanager
def served(folder: Path, server: Orthanc) -> Iterator[tuple[Installation, httpx.Client]]:
    """An installation on this archive, and a client of its FHIR interface."""
    reached = {
        "ISOCENTER_ORTHANC_URL": server.url,
        "ISOCENTER_ORTHANC_USERNAME": server.username,
        "ISOCENTER_ORTHANC_PASSWORD": server.password,
    }
    folder.mkdir(parents=True)
    with installed(folder, "", **reached) as made:
        made.start()
        headers = {"Authorization": f"Bearer {made.places.token}"}
        with httpx.Client(base_url=made.base, headers=headers, trust_env=False, timeout=60) as fhir:
            yield made, fhir


def until(look: Callable[[], object], what: str, seconds: float = 300) -> float:
    """Seconds until this is true."""
    began = time.perf_counter()
    while not look():
        if time.perf_counter() - began > seconds:
            raise SystemExit(f"waited {seconds} s for {what}")
        time.sleep(PAUSE)
    return time.perf_counter() - began


def pictures(study: str, slices: int, series: int = 1) -> list[bytes]:
    """The files of one study of one patient."""
    return [
        phantoms.part10(
            phantoms.image(mrn=f"B-{study}", study=study, series=f"{study}.{row}", instance=f"{study}.{row}.{number}")
        )
        for row in range(1, series + 1)
        for number in range(1, slices + 1)
    ]


def storescu(server: Orthanc, *folders: Path) -> None:
    """C-STORE of every file of some folders, over one association."""
    command = [shutil.which("storescu") or "/usr/bin/storescu", "-aec", server.aet, "+sd", "+r", server.dicom_host]
    command += [str(server.dicom_port), *map(str, folders)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | NAGLE_OFF)


def written(folder: Path, files: Sequence[bytes]) -> Path:
    folder.mkdir(parents=True)
    for number, content in enumerate(files):
        (folder / f"{number:05}.dcm").write_bytes(content)
    return folder


def found(fhir: httpx.Client, uid: str) -> dict[str, Any]:
    query = {"identifier": f"urn:dicom:uid|urn:oid:{uid}", "_elements": "status,numberOfInstances"}
    entries = fhir.get("/fhir/ImagingStudy", params=query).raise_for_status().json().get("entry", [])
    return entries[0]["resource"] if entries else {}


def percentile(seconds: Sequence[float], share: float) -> str:
    ordered = sorted(seconds)
    return f"{ordered[min(len(ordered) - 1, int(len(ordered) * share))]:.2f} s"


# --- the measurements ----------------------------------------------------------------------------------------------


def behind(told: Table, folder: Path, server: Orthanc, fhir: httpx.Client) -> None:
    """From the end of the last C-STORE until the study can be read with all its images."""
    readable, indexed = [], []
    with server.client() as bare:
        for number in range(STUDIES):
            uid, slices = f"1.2.826.1.{number + 1}", (1, 4, 20)[number % 3]
            sent = written(folder / uid, pictures(uid, slices))
            storescu(server, sent)
            indexed.append(until(lambda uid=uid: bare.post("/tools/lookup", content=uid).json(), "the lookup"))
            waited = until(
                lambda uid=uid, slices=slices: found(fhir, uid).get("numberOfInstances") == slices, "the study"
            )
            readable.append(indexed[-1] + waited)
    what = f"last C-STORE → ImagingStudy readable, {STUDIES} studies of 1, 4 and 20 images: p50 / p99"
    ours = f"{percentile(readable, 0.5)} / {percentile(readable, 0.99)}"
    told.tell(what, "0.5 s / 2 s, aim 0.25 s / 1 s", ours, f"{percentile(indexed, 0.5)} / {percentile(indexed, 0.99)}")


def burst(told: Table, folder: Path, server: Orthanc, fhir: httpx.Client) -> None:
    """How long after the last of many images every study is complete."""
    uids = [f"1.2.826.2.{number + 1}" for number in range(BURST_STUDIES)]
    folders = [written(folder / uid, pictures(uid, BURST_SLICES)) for uid in uids]
    began = time.perf_counter()
    with ThreadPoolExecutor(SCANNERS) as scanners:
        list(scanners.map(lambda first: storescu(server, *folders[first::SCANNERS]), range(SCANNERS)))
    sent = time.perf_counter() - began
    began = time.perf_counter()
    with server.client() as bare:
        for uid in uids:
            until(lambda uid=uid: bare.post("/tools/lookup", content=uid).json(), "the archive")
    indexed = time.perf_counter() - began
    for uid in uids:
        until(lambda uid=uid: found(fhir, uid).get("numberOfInstances") == BURST_SLICES, "the studies")
    lag = time.perf_counter() - began
    what = f"lag after a burst of {BURST_STUDIES * BURST_SLICES:,} instances in {BURST_STUDIES} studies"
    what += f", {SCANNERS} associations ({sent:.0f} s)"
    told.tell(what, "≤ 5 s, aim 1 s", f"{lag:.2f} s", f"{indexed:.2f} s")


def slowly(told: Table, server: Orthanc, fhir: httpx.Client) -> None:
    """How many versions a study gets while its images trickle in."""
    uid = "1.2.826.3.1"
    files = pictures(uid, SLOW_IMAGES)
    with server.client() as bare:
        began = time.perf_counter()
        for number, content in enumerate(files):
            time.sleep(max(0, began + number * SLOW_SECONDS / SLOW_IMAGES - time.perf_counter()))
            bare.post("/instances", content=content).raise_for_status()
        took = time.perf_counter() - began
    last = until(lambda: found(fhir, uid).get("numberOfInstances") == SLOW_IMAGES, "the last image")
    study = fhir.get("/fhir/ImagingStudy", params={"identifier": f"urn:dicom:uid|urn:oid:{uid}"}).json()
    version = study["entry"][0]["resource"]["meta"]["versionId"]
    what = f"versions of one ImagingStudy while {SLOW_IMAGES:,} instances arrive in {took:.0f} s"
    told.tell(what, "≤ 10, aim 5", f"{version} (readable {last:.2f} s after the last)")


def requests(told: Table, folder: Path, server: Orthanc) -> None:
    """HTTP requests for one study rebuilt: when it is new, and when one image came."""
    uid = "1.2.826.4.1"
    with server.client() as bare:
        for content in pictures(uid, SLICES, SERIES):
            bare.post("/instances", content=content).raise_for_status()
        [orthanc_id] = [one["ID"] for one in bare.post("/tools/lookup", content=uid).json() if one["Type"] == "Study"]
        store = Store(f"sqlite:///{folder / 'requests.sqlite'}")
        schema.migrate(store)
        counts = []
        with Archive(server.url, server.username, server.password) as orthanc:
            at = arrivals.Archive(store, orthanc, site.of(Settings(data_dir=folder)))
            asked, send = [], orthanc._wire.send

            def counted(method: str, path: str, **more: Any) -> tuple[int, bytes]:
                asked.append(path)
                return send(method, path, **more)

            orthanc._wire.send = counted
            for number in range(2):
                asked.clear()
                store.transact(lambda tx: sync.mark(tx, [orthanc_id], "bench"))
                began = time.perf_counter()
                arrivals.rebuild_one(at)
                counts.append((len(asked), (time.perf_counter() - began) * 1000))
                late = phantoms.image(
                    mrn=f"B-{uid}", study=uid, series=f"{uid}.1", instance=f"{uid}.1.{SLICES + number + 1}"
                )
                bare.post("/instances", content=phantoms.part10(late)).raise_for_status()
        store.close()
    (new, first), (again, second) = counts
    what = f"HTTP requests to Orthanc for a study of {SERIES * SLICES} instances in {SERIES} series"
    told.tell(what, "≤ 8, aim 6", f"{new} ({first:.0f} ms); {again} after one more image ({second:.0f} ms)")


def backfill(told: Table, folder: Path) -> None:
    """How fast an archive full of small studies is taken over, beside bare calls that read the same."""
    with archive(folder / "full") as server:
        files = [one for number in range(BACKFILL) for one in pictures(f"1.2.826.5.{number + 1}", SMALL)]
        with server.client() as bare:
            for content in files:
                bare.post("/instances", content=content).raise_for_status()
        bare_rate = _bare_rate(server)
        with served(folder / "site", server) as (made, _):
            path = made.settings.data_dir / "isocenter.sqlite"
            rate = _rate(path)
    what = f"backfill of {BACKFILL:,} studies of {SMALL} images"
    told.tell(what, "≥ 0.5×, aim 0.8×", f"{rate / bare_rate:.2f}× ({rate:.0f}/s)", f"{bare_rate:.0f} studies/s")


def _bare_rate(server: Orthanc) -> float:
    """Studies a second: the study, its series, its instances and the tags of one, four readers side by side."""
    with server.client() as bare:
        ids = bare.get("/studies").json()

    def read(some: Sequence[str]) -> None:
        with server.client() as bare:
            for orthanc_id in some:
                _read(bare, orthanc_id)

    with ThreadPoolExecutor(READERS) as threads:
        began = time.perf_counter()
        list(threads.map(read, [ids[first::READERS] for first in range(READERS)]))
        return len(ids) / (time.perf_counter() - began)


def _read(bare: httpx.Client, orthanc_id: str) -> None:
    bare.get(f"/studies/{orthanc_id}").raise_for_status().json()
    rows = bare.get(f"/studies/{orthanc_id}/series").raise_for_status().json()
    held = [one for row in rows for one in row["Instances"]]
    asked = {"Resources": held, "Level": "Instance", "Metadata": True}
    bare.post("/tools/bulk-content", json=asked).raise_for_status().json()
    for row in rows:
        bare.get(f"/instances/{min(row['Instances'])}/tags").raise_for_status().json()


def _rate(path: Path) -> float:
    """Studies published a second, from the first to the last."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        query = "SELECT count(*), min(changed), max(changed) FROM study"
        until(lambda: connection.execute(query).fetchone()[0] == BACKFILL, "the backfill", 900)
        count, first, last = connection.execute(query).fetchone()
    return (count - 1) / ((last - first) / 1000)


# --- the table -----------------------------------------------------------------------------------------------------


def publish(text: str) -> None:
    """Put the table between its marks in docs/benchmarks.md."""
    page, start, end = ROOT / "docs/benchmarks.md", "<!-- bench/sync.py -->", "<!-- end -->"
    before, _, rest = page.read_text().partition(start)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")


def main() -> None:
    told, only = Table(), os.environ.get("BENCH_ONLY", "behind,burst,slowly,requests,backfill").split(",")
    with tempfile.TemporaryDirectory(prefix="isocenter-bench-") as made:
        folder = Path(made)
        with archive(folder / "archive") as server:
            if {"behind", "burst", "slowly"} & {*only}:
                with served(folder / "site", server) as (_, fhir):
                    if "behind" in only:
                        behind(told, folder / "behind", server, fhir)
                    if "burst" in only:
                        burst(told, folder / "burst", server, fhir)
                    if "slowly" in only:
                        slowly(told, server, fhir)
            if "requests" in only:
                requests(told, folder, server)
        if "backfill" in only:
            backfill(told, folder / "backfill")
    cores, today = len(os.sched_getaffinity(0)), datetime.now(UTC).date()
    load = os.getloadavg()[0]
    head = (
        f"{today}: scale {SCALE:g}, SQLite, Orthanc's SQLite index, {cores} cores, load of the machine {load:.1f}.\n\n"
    )
    print(head + told.text())
    if SCALE >= 1 or "BENCH_PUBLISH" in os.environ:
        publish(head + told.text())


if __name__ == "__main__":
    main()
