"""The DICOMweb gateway beside Orthanc's own DICOMweb: frames, metadata, memory under load, and where time goes.

Both are asked in turns, in one run, by the same load generator. Results go to docs/benchmarks.md as a table.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import numpy as np
import sync as bench_sync

from app.dicom import prepared
from app.dicom.cache import Cache
from app.dicom.holdings import TICK_SECONDS, Holdings
from app.dicom.orthanc import Orthanc as Archive
from app.store.studies import HeldStudy
from tests.orthanc import phantoms
from tests.orthanc.conftest import Orthanc
from tests.story.installation import Installation, _roles

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[1]
SCALE = float(os.environ.get("BENCH_SCALE", "0.1"))
"""1 is the whole measurement, which replaces the table of docs/benchmarks.md."""
ROUNDS = max(2, int(5 * SCALE))
FRAMES = max(40, int(300 * SCALE))
INSTANCES = max(60, int(600 * SCALE))
STREAMED, STREAMS = max(30, int(300 * SCALE)), 8
SLOW_MB = int(os.environ.get("BENCH_SLOW_MB", str(int(2000 * SCALE))))
SLOW_SECONDS = max(5, int(60 * SCALE))
CONNECTIONS = 4
GZIP_FRAMES = max(20, int(100 * SCALE))
ASKED = max(200, int(1000 * SCALE))
PAGE, START, END = ROOT / "docs" / "benchmarks.md", "<!-- bench/gateway.py -->", "<!-- end -->"

FRAME_TYPE = "multipart/related; type=application/octet-stream; transfer-syntax=*"
WHOLE_TYPE = "multipart/related; type=application/dicom; transfer-syntax=*"


@dataclass(slots=True)
class Table:
    """What was measured, as rows of the table."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def tell(self, what: str, target: str, found: str, beside: str = "") -> None:
        self.rows.append((what, target, found, beside))
        print(f"{what:<72} {found:<36} {beside}", flush=True)

    def text(self) -> str:
        lines = ["| what | target | Isocenter | Orthanc direct |", "|---|---|---|---|"]
        notes = [f"\n```text\n{note.strip()}\n```" for note in self.notes]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows), *notes])


# --- objects -------------------------------------------------------------------------------------------------------


def pixels(side: int, chance: np.random.Generator) -> bytes:
    """A smooth picture with noise in it: neither empty nor incompressible."""
    ramp = np.add.outer(np.arange(side), np.arange(side)) % 2000
    return (ramp + chance.integers(0, 60, (side, side))).astype("<u2").tobytes()


def stored(server: Orthanc, study: str, count: int, side: int = 512) -> None:
    """A CT study of one series, straight into Orthanc."""
    chance, content = np.random.default_rng(1), b""
    with server.client() as client:
        for number in range(1, count + 1):
            instance = phantoms.image(mrn="BENCH", study=study, series=f"{study}.1", instance=f"{study}.1.{number}")
            instance.Rows = instance.Columns = side
            # A few pictures are enough, but each differs from the one before it.
            content = pixels(side, chance) if number % 50 == 1 else content[2:] + content[:2]
            instance.PixelData = content
            client.post("/instances", content=phantoms.part10(instance)).raise_for_status()


def series_path(study: str) -> str:
    return f"/dicom-web/studies/{study}/series/{study}.1"


def frame_paths(study: str, count: int) -> list[str]:
    return [f"{series_path(study)}/instances/{study}.1.{number}/frames/1" for number in range(1, count + 1)]


# --- load ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Party:
    """One server and the credential that opens it."""

    url: str
    authorization: str
    encoding: str = "identity"

    def requests(self, paths: Sequence[str], accept: str) -> list[bytes]:
        host = urlsplit(self.url).netloc
        head = f"Host: {host}\r\nAuthorization: {self.authorization}\r\nAccept-Encoding: {self.encoding}\r\n"
        return [f"GET {path} HTTP/1.1\r\n{head}Accept: {accept}\r\n\r\n".encode() for path in paths]

    def client(self) -> httpx.Client:
        headers = {"Authorization": self.authorization, "Accept-Encoding": self.encoding}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)


def load(party: Party, paths: Sequence[str], accept: str, connections: int = CONNECTIONS) -> dict[str, Any]:
    """Each path once, over several kept connections, from a process of its own."""
    parts = urlsplit(party.url)
    orders = {
        "requests": [base64.b64encode(one).decode() for one in party.requests(paths, accept)],
        "connections": connections,
        "host": socket.gethostbyname(parts.hostname or ""),
        "port": parts.port,
        "seconds": 120,
        "limit": len(paths),
    }
    command = [sys.executable, str(HERE / "_load.py")]
    done = subprocess.run(command, input=json.dumps(orders).encode(), capture_output=True, check=True)
    found = json.loads(done.stdout)
    if set(found["statuses"]) != {"200"}:
        raise SystemExit(f"{party.url} answered {found['statuses']}")
    return found


def ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}×"


# --- the measurements ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bench:
    """Both parties, and what stands behind them."""

    told: Table
    made: Installation
    server: Orthanc
    gateway: Party
    direct: Party
    browser: Party
    """Orthanc as a browser asks it."""

    def forget(self) -> None:
        """Empty the cache, as on the first day."""
        shutil.rmtree(self.made.settings.web_cache, ignore_errors=True)


def frames(bench: Bench) -> None:
    """Frames a second: cold, warm, and beside Orthanc with and without compression."""
    paths, rates = frame_paths("1.2.826.5.1", FRAMES), {name: [] for name in ("cold", "warm", "direct", "gzip")}
    load(bench.gateway, paths[:4], FRAME_TYPE)
    for _ in range(ROUNDS):
        bench.forget()
        time.sleep(1.2)
        rates["cold"].append(load(bench.gateway, paths, FRAME_TYPE)["rate"])
        rates["direct"].append(load(bench.direct, paths, FRAME_TYPE)["rate"])
        rates["warm"].append(load(bench.gateway, paths, FRAME_TYPE)["rate"])
        rates["direct"].append(load(bench.direct, paths, FRAME_TYPE)["rate"])
        rates["gzip"].append(load(bench.browser, paths[:GZIP_FRAMES], FRAME_TYPE)["rate"])
    middle = {name: statistics.median(found) for name, found in rates.items()}
    direct = f"{middle['direct']:.0f}/s"
    what = f"frames of 512² a second, {CONNECTIONS} connections"
    for name, target in (("warm", "≥ 0.8×, aim 1.5×"), ("cold", "≥ 0.45×, aim 0.7×")):
        found = f"{ratio(middle[name], middle['direct'])} ({middle[name]:.0f}/s)"
        bench.told.tell(f"{what}, {name}, Orthanc uncompressed", target, found, direct)
    found = f"{ratio(middle['warm'], middle['gzip'])} ({middle['warm']:.0f}/s)"
    bench.told.tell(f"{what}, warm, Orthanc with gzip", "≥ 8×, aim 20×", found, f"{middle['gzip']:.0f}/s")


def metadata(bench: Bench) -> None:
    """The metadata of one large series."""
    path = f"{series_path('1.2.826.5.2')}/metadata"

    def timed(client: httpx.Client) -> float:
        began = time.perf_counter()
        answer = client.get(path, headers={"Accept": "application/dicom+json"}).raise_for_status()
        took = time.perf_counter() - began
        if len(answer.json()) != INSTANCES:
            raise SystemExit("metadata of another number of instances")
        return took

    bench_sync.until(lambda: _prepared(bench, "1.2.826.5.2"), "the metadata to be prepared")
    with bench.gateway.client() as ours, bench.direct.client() as theirs:
        first = timed(ours)
        # A series that changed a moment ago is looked at twice; those of yesterday are not.
        time.sleep(TICK_SECONDS + 0.5)
        timed(ours)
        warm, direct = [], []
        for _ in range(max(3, ROUNDS)):
            direct.append(timed(theirs))
            warm += [timed(ours), timed(ours)]
        bench.forget()
        cold = timed(ours)
    ours_middle, theirs_middle = statistics.median(warm), statistics.median(direct)
    what, beside = f"metadata of a series of {INSTANCES} instances", f"{theirs_middle * 1000:.0f} ms"
    found = f"{theirs_middle / ours_middle:.0f}× ({ours_middle * 1000:.0f} ms)"
    bench.told.tell(f"{what}, warm", "≥ 15× faster, aim 50×", found, beside)
    found = f"{theirs_middle / first:.1f}× ({first * 1000:.0f} ms)"
    bench.told.tell(f"{what}, the first request after its sync", "", found, beside)
    bench.told.tell(f"{what}, nothing kept", "", f"{theirs_middle / cold:.1f}× ({cold * 1000:.0f} ms)", beside)


def _prepared(bench: Bench, study: str) -> bool:
    """Whether the worker has made the metadata of the study, as it does when the study is complete."""
    settings, server = bench.made.settings, bench.server
    with Archive(server.url, server.username, server.password) as archive:
        found = [one.orthanc_id for one in archive.lookup(study) if one.level == "Study"]
        held = HeldStudy(found[0], study, "", "")
        (series,) = Holdings(archive).read(held).series.values()
    time.sleep(0.5)
    return Cache(settings.web_cache, 1 << 30).has(prepared.name(series.version))


@contextmanager
def watched(pid: int) -> Iterator[list[float]]:
    """The resident memory of a process, in MB, as often as it can be looked at."""
    found, over = [resident(pid)], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            found.append(resident(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


def listening(made: Installation) -> int:
    """The process that serves HTTP."""
    port = f"{made.settings.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port}") and row[3] == "0A"}
    assert made.process is not None
    for pid in _roles(made.process.pid):
        names = {str(entry.readlink()) for entry in _sockets(pid)}
        if names & inodes:
            return pid
    raise SystemExit("no process listens")


def _sockets(pid: int) -> Iterator[Path]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if entry.is_symlink():
            yield entry


def streaming(bench: Bench) -> None:
    """Memory while many clients each read a whole series."""
    path, pid = series_path("1.2.826.5.1"), listening(bench.made)

    def read(_: int) -> int:
        with bench.gateway.client() as client, client.stream("GET", path, headers={"Accept": WHOLE_TYPE}) as answer:
            return sum(len(chunk) for chunk in answer.iter_raw())

    with watched(pid) as memory, ThreadPoolExecutor(STREAMS) as clients:
        began = time.perf_counter()
        received = sum(clients.map(read, range(STREAMS)))
        took = time.perf_counter() - began
    what = f"memory of the server while {STREAMS} clients each stream {FRAMES} slices"
    found = f"{max(memory):.0f} MB ({memory[0]:.0f} MB before; {received / took / 1e6:.0f} MB/s)"
    bench.told.tell(what, "≤ 300 MB, aim 200 MB", found)


def slowly(bench: Bench) -> None:
    """Memory while clients read a large study slowly, and what another client notices of them."""
    study, pid = "1.2.826.5.3", listening(bench.made)
    bench_sync.until(lambda: _published(bench, study), "the large study")
    path, frame, over = f"/dicom-web/studies/{study}", frame_paths("1.2.826.5.1", 1)[0], threading.Event()

    def read(number: int) -> int:
        """The first reads all of it at its own pace; the others take a little and wait."""
        received, pace = 0, (SLOW_MB << 20) / SLOW_SECONDS
        with bench.gateway.client() as client, client.stream("GET", path, headers={"Accept": WHOLE_TYPE}) as answer:
            began = time.perf_counter()
            for chunk in answer.iter_raw(1 << 18):
                received += len(chunk)
                if number:
                    over.wait(SLOW_SECONDS * 2)
                    return received
                time.sleep(max(0.0, received / pace - (time.perf_counter() - began)))
        over.set()
        return received

    others: list[float] = []
    with watched(pid) as memory, ThreadPoolExecutor(STREAMS + 1) as clients, bench.gateway.client() as quick:
        readers = [clients.submit(read, number) for number in range(STREAMS)]
        while not over.wait(0.5) and not readers[0].done():
            began = time.perf_counter()
            quick.get(frame, headers={"Accept": FRAME_TYPE}).raise_for_status()
            others.append((time.perf_counter() - began) * 1000)
        received = readers[0].result()
        over.set()
        for reader in readers:
            reader.result()
    what = f"memory while one client reads {received >> 20} MB in {SLOW_SECONDS} s and {STREAMS - 1} hardly read at all"
    bench.told.tell(what, "flat", f"{max(memory):.0f} MB ({memory[0]:.0f} MB before)")
    slowest = max(others, default=0.0)
    bench.told.tell(
        "a frame for another client meanwhile, middle / slowest", "", f"{_middle(others)} / {slowest:.0f} ms"
    )


def _middle(milliseconds: Sequence[float]) -> str:
    return f"{statistics.median(milliseconds):.1f} ms" if milliseconds else "–"


def _published(bench: Bench, study: str) -> bool:
    with bench.gateway.client() as client:
        found = client.get("/dicom-web/studies", params={"StudyInstanceUID": study})
        return found.status_code == 200 and bool(found.json())


# --- inside --------------------------------------------------------------------------------------------------------


def inside(bench: Bench) -> None:
    """What deciding costs, and where the rest of a frame's time goes: a second server in this process."""
    import uvicorn
    from starlette.requests import Request

    from app.dicom import paths as table
    from app.main.server import create_app

    settings = bench.made.settings.model_copy(
        update={"orthanc_url": bench.server.url, "orthanc_username": bench.server.username}
    )
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, proxy_headers=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    bench_sync.until(lambda: server.started, "the server inside")
    party = Party(f"http://127.0.0.1:{listener.getsockname()[1]}", bench.gateway.authorization)
    wanted = frame_paths("1.2.826.5.1", FRAMES)
    with unheard():
        load(party, wanted, FRAME_TYPE)
    service = _inmost(app.app._framework.state.dicomweb)._open
    headers = [(b"authorization", party.authorization.encode())]
    costs = []
    for number in range(ASKED):
        path = wanted[number % len(wanted)].encode()
        scope = {"type": "http", "method": "GET", "path": path.decode(), "raw_path": path, "query_string": b""}
        request = Request({**scope, "headers": headers, "path_params": {}, "state": {}})
        began = time.perf_counter()
        service._admit(request, table.parse("GET", path.partition(b"/dicom-web")[2]))
        costs.append((time.perf_counter() - began) * 1000)
    costs.sort()
    what = f"authorization of {ASKED:,} frame requests, middle / p95"
    found = f"{costs[len(costs) // 2]:.2f} / {costs[int(len(costs) * 0.95)]:.2f} ms"
    bench.told.tell(what, "p95 < 1 ms", found)
    with unheard():
        where = profile(thread, lambda: [load(party, wanted, FRAME_TYPE) for _ in range(3)])
    bench.told.notes.append(where)
    server.should_exit = True
    thread.join(10)
    listener.close()


def _inmost(app: Any) -> Any:
    """The gateway behind what stands before it."""
    while not hasattr(app, "_open"):
        app = getattr(app, "app", None) or app._app
    return app


@contextmanager
def unheard() -> Iterator[None]:
    """Without the lines of the server's log, which is ours meanwhile."""
    silence = os.open(os.devnull, os.O_WRONLY)
    kept = {one.fileno(): os.dup(one.fileno()) for one in (sys.stdout, sys.stderr)}
    sys.stdout.flush()
    for number in kept:
        os.dup2(silence, number)
    try:
        yield
    finally:
        sys.stdout.flush()
        for number, former in kept.items():
            os.dup2(former, number)
            os.close(former)
        os.close(silence)


def profile(thread: threading.Thread, work: Callable[[], object]) -> str:
    """Where the event loop was, looked at a thousand times a second."""
    own: Counter[str] = Counter()
    ours: Counter[str] = Counter()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            frame = sys._current_frames().get(thread.ident or 0)
            if frame is not None:
                own[_place(frame)] += 1
                while frame is not None and "/app/" not in frame.f_code.co_filename:
                    frame = frame.f_back
                ours[_place(frame) if frame else "outside the gateway"] += 1

    looking = threading.Thread(target=look)
    looking.start()
    try:
        work()
    finally:
        over.set()
        looking.join()
    total = max(1, own.total())
    lines = [f"\nwhere the event loop was, {total} looks"]
    for title, counts in (("innermost function", own), ("innermost function of ours", ours)):
        lines += [f"  {title}", *(f"    {count / total:6.1%}  {name}" for name, count in counts.most_common(14))]
    return "\n".join(lines)


def _place(frame: Any) -> str:
    path = frame.f_code.co_filename
    short = path.rpartition("/site-packages/")[2] if "site-packages" in path else "/".join(path.split("/")[-2:])
    return f"{short}:{frame.f_code.co_name}"


# --- the table -----------------------------------------------------------------------------------------------------

# What the worker has prepared is looked at before the others empty the cache.
PARTS: dict[str, Callable[[Bench], None]] = {
    "metadata": metadata, "frames": frames, "streaming": streaming, "slowly": slowly, "inside": inside
}  # fmt: skip


def publish(text: str) -> None:
    """Put the table between its marks in docs/benchmarks.md."""
    before, _, rest = PAGE.read_text().partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n{text}\n{END}{after}")


def main() -> None:
    told, only = Table(), os.environ.get("BENCH_ONLY", ",".join(PARTS)).split(",")
    with tempfile.TemporaryDirectory(prefix="isocenter-bench-") as made:
        folder = Path(made)
        with bench_sync.archive(folder / "archive") as server:
            stored(server, "1.2.826.5.1", FRAMES)
            if "metadata" in only:
                stored(server, "1.2.826.5.2", INSTANCES, side=64)
            if "slowly" in only:
                stored(server, "1.2.826.5.3", max(2, SLOW_MB // 2), side=1024)
            with bench_sync.served(folder / "site", server) as (site, _):
                gateway = Party(site.base, f"Bearer {site.places.token}")
                basic = base64.b64encode(f"{server.username}:{server.password}".encode()).decode()
                direct = Party(server.url, f"Basic {basic}")
                bench = Bench(told, site, server, gateway, direct, Party(direct.url, direct.authorization, "gzip"))
                bench_sync.until(lambda: _published(bench, "1.2.826.5.1"), "the study")
                for name, part in PARTS.items():
                    if name in only:
                        part(bench)
    cores, today = len(os.sched_getaffinity(0)), datetime.now(UTC).date()
    note = f"{today}: scale {SCALE:g}, SQLite, one api process, {cores} cores"
    text = f"{note}, load of the machine {os.getloadavg()[0]:.1f}.\n\n{told.text()}"
    print(text)
    if SCALE >= 1 or "BENCH_PUBLISH" in os.environ:
        publish(text)


if __name__ == "__main__":
    main()
