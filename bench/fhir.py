"""The FHIR interface of one api process against a bare Starlette route that returns the same bytes, in the same run.

The load comes from a process of its own (`_load.py`), alike for both. Results go to docs/benchmarks.md as a table.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))

import _hospital

from app.fhir import rebuild
from app.settings import Settings
from app.smart import opaque
from app.store import grants
from app.store.database import Store, now
from tests.processes import free_port

HERE = Path(__file__).parent
ROOT = HERE.parent
SECRET = "k" * 44
STUDIES = int(os.environ.get("BENCH_STUDIES", "5000"))
PATIENTS = int(os.environ.get("BENCH_PATIENTS", str(max(50, STUDIES // 20))))
SECONDS = float(os.environ.get("BENCH_SECONDS", "4"))
CLIENTS = int(os.environ.get("BENCH_CLIENTS", "16"))
ENGINES = os.environ.get("BENCH_ENGINES", "sqlite,postgres").split(",")
DEPTH = int(os.environ.get("BENCH_PAGE", "400"))
FHIR = {"Content-Type": "application/fhir+json"}


@dataclass(slots=True)
class Measured:
    """The numbers of one engine: by row of the table, a text."""

    told: dict[str, str] = field(default_factory=dict)

    def tell(self, what: str, text: str) -> None:
        self.told[what] = text
        print(f"  {what:<58} {text}", flush=True)


# --- what is measured ----------------------------------------------------------------------------------------


def measure(url: str, folder: Path) -> Measured:
    """All rows of the table for one engine; the database is filled in two steps, for the growth."""
    found, token = Measured(), opaque.make()
    store = Store(url)
    rebuild.upgrade(Settings(database_url=url))
    store.transact(lambda connection: grant(connection, token))
    smaller = STUDIES // 10
    timed(f"{smaller} studies", lambda: _hospital.fill(store, 0, smaller, PATIENTS))
    settle(store)
    with served(url, folder) as (port, began, pid):
        found.tell("start-up until /health answers", f"{began:.2f} s")
        found.tell("start-up: processor time", f"{processor(pid):.2f} s")
        before = growing(Site(port, token, pid))
        found.tell("idle memory (RSS after the first requests)", f"{memory(pid):.0f} MB")
    timed(f"{STUDIES} studies", lambda: _hospital.fill(store, smaller, STUDIES, PATIENTS))
    settle(store)
    with served(url, folder) as (port, _, pid):
        site = Site(port, token, pid)
        after = growing(site)
        reading(site, found, folder)
        paging(site, found)
        for what, p50 in after.items():
            found.tell(f"growth ×10: {what}", f"{p50 / before[what]:.2f}× ({before[what]:.2f} → {p50:.2f} ms)")
        writing(site, found)
        big(site, found)
        found.tell("memory at the end", f"{memory(pid):.0f} MB")
    store.close()
    return found


@dataclass(frozen=True, slots=True)
class Site:
    """A running server and a token for it."""

    port: int
    token: str
    pid: int

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}", **FHIR}
        return httpx.Client(base_url=self.base, headers=headers, trust_env=False, timeout=60)

    def request(self, path: str, *, method: str = "GET", body: bytes = b"") -> bytes:
        """The bytes of one HTTP request."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
        sent = f"Content-Type: application/fhir+json\r\nContent-Length: {len(body)}\r\n" if body else ""
        return f"{head}{sent}\r\n".encode() + body

    def load(self, requests: Sequence[bytes], *, clients: int = CLIENTS, **more: Any) -> Mapping[str, Any]:
        """Rate and latencies under load; every answer must be a success."""
        began = processor(self.pid)
        answer = dict(load(self.port, requests, clients=clients, **more))
        answer["cpu"] = (processor(self.pid) - began) / max(1, answer["n"]) * 1e6
        if any(not 200 <= int(status) < 300 for status in answer["statuses"]):
            raise SystemExit(f"not all answers were successes: {answer['statuses']}")
        return answer


def numbers(count: int, below: int = 0) -> list[int]:
    return random.Random(7).sample(range(below or STUDIES // 10), min(count, below or STUDIES // 10))


def searches(kind: str, count: int = 200) -> list[str]:
    """Addresses of searches; the smaller database has what they ask for, too."""
    made = [_hospital.study(number, PATIENTS) for number in numbers(count)]
    if kind == "read":
        return [f"/fhir/ImagingStudy/{one['id']}" for one in made]
    if kind == "accession":
        return [f"/fhir/ImagingStudy?identifier={one['identifier'][1]['value']}" for one in made]
    since = "started=ge2017&_sort=-started&_count=50"
    if kind == "patient":
        return [
            f"/fhir/ImagingStudy?patient={one['subject']['reference']}&modality={one['modality'][0]['code']}&{since}"
            for one in made
        ]
    return [f"/fhir/ImagingStudy?modality={code}&{since}" for code in _hospital.MODALITIES]


SEARCHES = {
    "read": "read by id",
    "patient": "search patient+modality+started, sorted, _count=50",
    "modality": "search modality+started, sorted, full page of 50",
    "accession": "search by accession number",
}


def growing(site: Site) -> dict[str, float]:
    """The middle latency of each indexed search, one client."""
    found: dict[str, float] = {}
    for kind in ("patient", "modality", "accession"):
        requests = [site.request(path) for path in searches(kind)]
        site.load(requests, clients=1, seconds=SECONDS / 4)
        found[SEARCHES[kind]] = site.load(requests, clients=1, seconds=SECONDS / 2)["p50"]
    return found


def reading(site: Site, found: Measured, folder: Path) -> None:
    for kind, what in SEARCHES.items():
        paths = searches(kind)
        with bare(site, paths, folder) as plain:
            ours, theirs = against(site, plain, [site.request(path) for path in paths])
        found.tell(what, f"{ours['rate'] / theirs['rate']:.2f}× ({ours['rate']:.0f}/s of {theirs['rate']:.0f}/s)")
        by_cpu = f"{theirs['cpu'] / ours['cpu']:.2f}× ({theirs['cpu']:.0f} of {ours['cpu']:.0f} µs)"
        found.tell(f"{what}: processor time", by_cpu)
        found.tell(f"{what}: p50 / p99", f"{ours['p50']:.2f} / {ours['p99']:.2f} ms")


def against(site: Site, plain: Site, requests: Sequence[bytes]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Ours and the bare route in turns, the better of two each: other work on the machine hits both alike."""
    site.load(requests, seconds=SECONDS / 4)
    ours, theirs = [], []
    for _ in range(2):
        ours.append(site.load(requests, seconds=SECONDS / 2))
        theirs.append(plain.load(requests, seconds=SECONDS / 2))
    return max(ours, key=lambda one: one["rate"]), max(theirs, key=lambda one: one["rate"])


def paging(site: Site, found: Measured) -> None:
    """A page far behind against the first one, of all studies by date."""
    first = path = "/fhir/ImagingStudy?_count=50&_sort=-started"
    depth = min(DEPTH, STUDIES // 50 - 1)
    with site.client() as client:
        for _ in range(depth - 1):
            links = {one["relation"]: one["url"] for one in client.get(path).json()["link"]}
            address = urlsplit(links["next"])
            path = f"{address.path}?{address.query}"
    rates = {
        page: max(site.load([site.request(at)], seconds=SECONDS / 2)["rate"] for _ in range(2))
        for page, at in ((depth, path), (1, first))
    }
    found.tell("page 400 against page 1", f"{rates[depth] / rates[1]:.2f}× (page {depth}, {rates[depth]:.0f}/s)")


def writing(site: Site, found: Measured) -> None:
    """Creates with validation, index, history and audit, each durable before it is answered."""
    fresh = iter(range(STUDIES + 1_000_000, STUDIES + 9_000_000))
    single = [site.request("/fhir/ImagingStudy", method="POST", body=body(next(fresh))) for _ in range(6000)]
    told = site.load(single, seconds=SECONDS, limit=len(single))
    found.tell(
        f"create, {CLIENTS} clients", f"{told['rate']:.0f}/s (p50 {told['p50']:.1f} ms, p99 {told['p99']:.1f} ms)"
    )
    found.tell("create: processor time", f"{told['cpu']:.0f} µs")
    told = site.load(single[-400:], clients=1, seconds=SECONDS / 2, limit=300)
    found.tell("create, 1 client", f"{told['rate']:.0f}/s")
    size = 100
    bundles = [site.request("/fhir", method="POST", body=transaction(fresh, size)) for _ in range(80)]
    told = site.load(bundles, clients=4, seconds=SECONDS, limit=len(bundles))
    found.tell(f"create in transactions of {size}", f"{told['rate'] * size:.0f}/s")
    found.tell("create in transactions: processor time", f"{told['cpu'] / size:.0f} µs each")


def body(number: int) -> bytes:
    made = _hospital.study(number, PATIENTS)
    return orjson.dumps({name: value for name, value in made.items() if name != "id"})


def transaction(fresh: Iterator[int], size: int) -> bytes:
    entries = [
        {"resource": orjson.loads(body(next(fresh))), "request": {"method": "POST", "url": "ImagingStudy"}}
        for _ in range(size)
    ]
    return orjson.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries})


def big(site: Site, found: Measured) -> None:
    """One study of five series with two hundred images each."""
    made = [_hospital.study(20_000_000 + number, PATIENTS, series=5, instances=200) for number in range(60)]
    bodies = [orjson.dumps(one) for one in made]
    puts = [
        site.request(f"/fhir/ImagingStudy/{one['id']}", method="PUT", body=sent)
        for one, sent in zip(made, bodies, strict=True)
    ]
    size = len(bodies[0]) // 1000
    told = site.load(puts, clients=1, seconds=60, limit=len(puts))
    found.tell(f"the {size} kB study: accept", f"{told['p50']:.1f} ms")
    found.tell(f"the {size} kB study: accept, processor time", f"{told['cpu'] / 1000:.1f} ms")
    gets = [site.request(f"/fhir/ImagingStudy/{one['id']}") for one in made]
    told = site.load(gets, clients=1, seconds=SECONDS / 2)
    found.tell(f"the {size} kB study: serve", f"{told['p50']:.2f} ms")


# --- the parties ---------------------------------------------------------------------------------------------


def grant(connection: Any, token: str) -> None:
    """A token that may do everything."""
    at = now()
    ends = at + 86_400_000
    grants.put_client(connection, {"id": "bench", "name": "Bench", "kind": "asymmetric"})
    row = {"id": "00000000-0000-4000-8000-000000000000", "client_id": "bench", "scope": "system/*.cruds"}
    grants.add_grant(connection, {**row, "created": at, "expires": ends})
    known = {"hash": opaque.digest(token), "grant_id": row["id"], "kind": "access", "created": at, "expires": ends}
    grants.add_token(connection, known)


@contextmanager
def served(url: str, folder: Path) -> Iterator[tuple[int, float, int]]:
    """One api process: port, seconds until it answered, process id."""
    port = free_port()
    settings = {
        "ISOCENTER_DATABASE_URL": url,
        "ISOCENTER_DATA_DIR": str(folder / "data"),
        "ISOCENTER_PORT": str(port),
        "ISOCENTER_PUBLIC_URL": f"http://localhost:{port}",
        "ISOCENTER_SECRET_KEY": SECRET,
    }
    command = [str(ROOT / ".venv/bin/isocenter"), "serve", "--role", "api"]
    with running(command, folder / "api.log", port, "/health", {**os.environ, **settings}) as (began, pid):
        yield port, began, pid


@contextmanager
def bare(site: Site, paths: Sequence[str], folder: Path) -> Iterator[Site]:
    """The bare route with what our server answered to these paths."""
    answers: dict[str, tuple[bytes, dict[str, str]]] = {}
    with site.client() as client:
        client.headers["Accept-Encoding"] = "identity"
        for path in paths:
            answer = client.get(path).raise_for_status()
            headers = {name: value for name, value in answer.headers.items() if name not in {"date", "content-length"}}
            address = urlsplit(path)
            answers[f"{address.path}?{address.query}"] = answer.content, headers
    kept = folder / "answers.pickle"
    kept.write_bytes(pickle.dumps(answers))
    port = free_port()
    command = [sys.executable, str(HERE / "_bare.py"), str(kept), str(port)]
    with running(command, folder / "bare.log", port, paths[0], dict(os.environ)) as (_, pid):
        yield Site(port, site.token, pid)


@contextmanager
def running(
    command: Sequence[str], log: Path, port: int, path: str, environment: Mapping[str, str]
) -> Iterator[tuple[float, int]]:
    """A process that answers at its port: seconds until it did, process id. It is gone after the block."""
    began = time.perf_counter()
    with log.open("wb") as told, subprocess.Popen(command, stdout=told, stderr=told, env=dict(environment)) as process:
        try:
            while True:
                with suppress(httpx.TransportError):
                    httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False)
                    break
                if process.poll() is not None or time.perf_counter() - began > 60:
                    raise SystemExit(f"{command[0]} does not answer: {log.read_text()[-2000:]}")
                time.sleep(0.02)
            yield time.perf_counter() - began, process.pid
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def load(port: int, requests: Sequence[bytes], *, clients: int, seconds: float, limit: int = 0) -> Mapping[str, Any]:
    orders = {
        "host": "127.0.0.1",
        "port": port,
        "requests": [base64.b64encode(one).decode() for one in requests],
        "connections": clients,
        "seconds": seconds,
        "limit": limit,
    }
    command = [sys.executable, str(HERE / "_load.py")]
    done = subprocess.run(command, input=json.dumps(orders).encode(), capture_output=True, check=True)
    return json.loads(done.stdout)


def memory(pid: int) -> float:
    """Resident memory in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


def processor(pid: int) -> float:
    """Seconds of processor time the process has used, all its threads together."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def settle(store: Store) -> None:
    """What a database does by itself in quiet hours."""
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
        if store.sqlite:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own that waits for the disk, as in production; its database's address."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    cluster = Path(tempfile.mkdtemp(prefix="isocenter-bench-pg-"))
    user: list[str] = []
    if os.geteuid() == 0:
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(cluster, "postgres")
    make = [*user, programs / "initdb", "-D", cluster / "data", "-U", "isocenter", "--auth=trust", "-E", "UTF8"]
    subprocess.run([str(part) for part in make], check=True, stdout=subprocess.DEVNULL, cwd="/")
    port = free_port()
    options = ["-c", f"unix_socket_directories={cluster}", "-c", "listen_addresses=127.0.0.1"]
    options += ["-c", "shared_buffers=256MB", "-c", "max_connections=100"]
    command = [*user, programs / "postgres", "-D", cluster / "data", "-p", str(port), *options]
    with (folder / "postgres.log").open("wb") as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, cwd="/")
    try:
        ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, check=False).returncode != 0:
            if process.poll() is not None:
                raise SystemExit("PostgreSQL does not start")
            time.sleep(0.1)
        yield f"postgresql+psycopg://isocenter@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(cluster, ignore_errors=True)


def timed(what: str, work: Callable[[], None]) -> None:
    began = time.perf_counter()
    work()
    print(f"  {what}: loaded in {time.perf_counter() - began:.0f} s", flush=True)


# --- the table -----------------------------------------------------------------------------------------------

TARGETS = {
    "read by id": "≥ 0.45×, aim 0.7×",
    SEARCHES["patient"]: "≥ 0.35×, aim 0.6×",
    SEARCHES["modality"]: "≥ 0.35×, aim 0.6×",
    "page 400 against page 1": "≥ 0.8×, aim 1.0×",
    f"create, {CLIENTS} clients": "≥ 800/s SQLite, aim 1,500/s",
    "create in transactions of 100": "aim ≥ 4,000/s",
    "start-up until /health answers": "≤ 2.5 s, aim 1.5 s",
    "idle memory (RSS after the first requests)": "≤ 180 MB, aim 120 MB",
}


def table(found: Mapping[str, Measured], beside: Mapping[str, str]) -> str:
    names = list(dict.fromkeys(name for one in found.values() for name in one.told))
    columns = [*found, *(["Medplum router, in memory"] if beside else [])]
    lines = [f"| what | target | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for name in names:
        target = TARGETS.get(name) or _target(name)
        cells = [one.told.get(name, "") for one in found.values()] + ([beside.get(name, "")] if beside else [])
        lines.append(f"| {name} | {target} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _target(name: str) -> str:
    if name.startswith("growth"):
        return "≤ 1.3×, aim 1.1×"
    if name.endswith("accept"):
        return "≤ 10 ms, aim 5 ms"
    return "≤ 3 ms, aim 1.5 ms" if name.endswith("serve") else ""


def publish(text: str) -> None:
    """Put the table between its marks in docs/benchmarks.md."""
    page, start, end = ROOT / "docs/benchmarks.md", "<!-- bench/fhir.py -->", "<!-- end -->"
    before, _, rest = page.read_text().partition(start)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")


def main() -> None:
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="isocenter-bench-") as made:
        folder = Path(made)
        for engine in ENGINES:
            print(f"{engine}: {STUDIES} studies of {PATIENTS} patients", flush=True)
            if engine == "sqlite":
                found["SQLite"] = measure(f"sqlite:///{folder}/bench.sqlite", folder)
            else:
                with postgres(folder) as url:
                    found["PostgreSQL"] = measure(url, folder)
    beside = medplum()
    cores = len(os.sched_getaffinity(0))
    today = datetime.now(UTC).date()
    told = (
        f"{today}: {STUDIES:,} ImagingStudies of {PATIENTS:,} patients, one api process, load from a process beside it"
        f" ({CLIENTS} connections), {cores} cores, load of the machine {os.getloadavg()[0]:.1f}.\n\n"
    )
    text = told + table(found, beside)
    print(text)
    if STUDIES >= 100_000 or "BENCH_PUBLISH" in os.environ:
        publish(text)


def medplum() -> dict[str, str]:
    """What the in-memory router of Medplum does, where its packages are installed."""
    if not (ROOT / "tests/judges/node_modules/@medplum/fhir-router").is_dir() or "BENCH_ALONE" in os.environ:
        return {}
    node = shutil.which("node") or str(ROOT / ".venv/bin/node")
    # It looks at every resource for every search: with more of them nothing would end.
    count = min(500, STUDIES // 10)
    patients = max(1, count // 20)
    made = [_hospital.patient(number) for number in range(patients)]
    made += [_hospital.study(number, patients) for number in range(count)]
    done = subprocess.run(
        [node, str(HERE / "medplum.mjs")], input=orjson.dumps({"resources": made, "seconds": SECONDS / 2}),
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr.decode()[-1500:])
        return {}
    told = json.loads(done.stdout)
    note = f"of {count:,} studies, without HTTP"
    return {
        SEARCHES["read"]: f"{told['read']:.0f}/s {note}",
        SEARCHES["patient"]: f"{told['patient']:.1f}/s {note}",
        SEARCHES["modality"]: f"{told['modality']:.1f}/s {note}",
        SEARCHES["accession"]: f"{told['accession']:.1f}/s {note}",
        f"create, {CLIENTS} clients": f"{told['create']:.0f}/s, not durable, not validated",
    }


if __name__ == "__main__":
    main()
