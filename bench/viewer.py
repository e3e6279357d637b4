"""OHIF in Chromium on Isocenter beside the same OHIF behind a stock nginx on Orthanc's own DICOMweb, in turns.

Each opening has a browser context of its own, so nothing is in the browser's cache. Results go to docs/benchmarks.md.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import re
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import sync as bench_sync
from playwright.sync_api import Browser, Page, sync_playwright
from pydicom.dataset import Dataset

from app.dicom import phantom, uids
from app.smart import clients, launches
from app.smart.clients import Client
from app.smart.launches import LaunchContext
from app.store import studies
from app.store.database import Store
from app.store.studies import HeldStudy
from app.viewer.ohif import data_source
from app.viewer.registration import CLIENT_ID
from tests.browser.ohif import CANVAS, RENDERED
from tests.conftest import FLAGS
from tests.orthanc.conftest import Orthanc
from tests.processes import answers, free_port, running
from tests.story.installation import Installation

ROOT = Path(__file__).parents[1]
ROUNDS, SLICES = int(os.environ.get("BENCH_ROUNDS", "5")), int(os.environ.get("BENCH_SLICES", "150"))
MATRIX = int(os.environ.get("BENCH_MATRIX", "512"))
TRACE = os.environ.get("BENCH_TRACE", "")
"""A file for every request of the last opening of each party, with its times."""
PAGE, START, END = ROOT / "docs" / "benchmarks.md", "<!-- bench/viewer.py -->", "<!-- end -->"
SECONDS = 60_000

WATCH = """(() => {
    performance.setResourceTimingBufferSize(5000);
    const seen = window.__bench = {first: 0, frames: new Map(), all: []};
    new PerformanceObserver(list => list.getEntries().forEach(entry => {
        seen.all.push([entry.name, entry.startTime, entry.responseEnd, entry.transferSize]);
        if (entry.name.includes('/frames/')) seen.frames.set(entry.name, entry.responseEnd);
    })).observe({type: 'resource', buffered: true});
    const drawn = DRAWN;
    const look = () => {
        if (drawn('CANVAS')) seen.first = performance.now(); else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
})()""".replace("DRAWN", RENDERED).replace("CANVAS", CANVAS)


@dataclass(frozen=True, slots=True)
class Opening:
    """One opening of the study, in seconds since its navigation."""

    first: float
    """The first image is on the screen."""
    loaded: float
    """Every image of the series has arrived."""


Party = Callable[[Page], None]
"""Takes a fresh page to the viewer."""


def opened(browser: Browser, party: Party, trace: Path | None = None) -> Opening:
    """Open the study once, with nothing in the browser's cache, and wait for its last image."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.add_init_script(WATCH)
    page.set_default_timeout(SECONDS)
    party(page)
    page.wait_for_function("() => window.__bench && window.__bench.first")
    page.wait_for_function("count => window.__bench.frames.size >= count", arg=SLICES)
    first, loaded, asked = page.evaluate(
        "() => [window.__bench.first, Math.max(...window.__bench.frames.values()), window.__bench.all]"
    )
    if trace:
        trace.write_text(
            "\n".join(f"{a:9.0f} {b:9.0f} {size:9} {name}" for name, a, b, size in sorted(asked, key=lambda o: o[1]))
        )
    context.close()
    return Opening(first / 1000, loaded / 1000)


# --- the parties -----------------------------------------------------------------------------------------------------

NGINX = """
daemon off;
{user}
worker_processes auto;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 768; }}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    gzip on;
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /ohif/ {{ alias {ohif}/; gzip_static on; expires max; }}
        location = /app-config.js {{ alias {folder}/app-config.js; }}
        location /viewer {{ root {folder}; try_files /index.html =404; }}
        location /dicom-web/ {{
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header Authorization "Basic {password}";
            {encoding}
            proxy_pass {archive};
        }}
    }}
}}
"""


@contextmanager
def stock(folder: Path, archive: Orthanc, study_uid: str, encoding: str = "") -> Iterator[Party]:
    """OHIF's files and Orthanc's DICOMweb plugin behind Debian's nginx, as many sites have it."""
    ohif = ROOT / "var" / "ohif"
    folder.mkdir()
    origin = f"http://localhost:{free_port()}"
    source = data_source(f"{origin}/dicom-web")
    config = {
        "routerBasename": "/", "showStudyList": False, "extensions": [], "modes": [], "customizationService": {},
        "investigationalUseDialog": {"option": "never"}, "maxNumberOfWebWorkers": 3, "showLoadingIndicator": True,
        "maxNumRequests": {"interaction": 100, "thumbnail": 5, "prefetch": 25},
        "strictZSpacingForVolumeViewport": True, "groupEnabledModesFirst": True,
        "defaultDataSourceName": "dicomweb", "dataSources": [source],
    }  # fmt: skip
    (folder / "app-config.js").write_text(f"window.config = {json.dumps(config)};")
    page = (ohif / "index.html").read_text().replace("{{APP_CONFIG}}", "/app-config.js")
    (folder / "index.html").write_text(page)
    password = base64.b64encode(f"{archive.username}:{archive.password}".encode()).decode()
    port = int(origin.rsplit(":", 1)[1])
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    text = NGINX.format(
        folder=folder, user=user, port=port, ohif=ohif, password=password, archive=archive.url, encoding=encoding
    )
    (folder / "nginx.conf").write_text(text)
    log = folder / "nginx.log"
    with running(["/usr/sbin/nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], log) as process:
        answers(process, log, lambda: _listens(port), "nginx", 20)
        yield lambda page: _goto(page, f"{origin}/viewer?StudyInstanceUIDs={study_uid}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _goto(page: Page, address: str) -> None:
    page.goto(address, wait_until="commit")


def ours(made: Installation, study: HeldStudy) -> Party:
    """A link of a launch, followed to the viewer; the clock starts with the viewer's page, as for the others."""
    store = Store(made.settings.database)
    ehr = Client("ehr", "EHR", "symmetric", scope="isocenter/launch user/ImagingStudy.u")
    store.transact(lambda connection: clients.ensure_client(connection, ehr))

    def go(page: Page) -> None:
        context = LaunchContext(
            client_id=CLIENT_ID, user_id="ehr:7", fhir_user="Practitioner/7", user_name="Bench",
            patient_id=study.patient_id, imaging_study_id=study.imaging_study_id, study_uid=study.study_uid,
            order_id="bench", made_by="ehr",
        )  # fmt: skip
        handle = store.transact(lambda connection: launches.open_launch(connection, context, kind="viewer"))
        _goto(page, f"{made.base}/v/l/{handle}")
        page.wait_for_url(re.compile(r"/viewer\?"), wait_until="commit")

    return go


# --- the study -------------------------------------------------------------------------------------------------------


def acquire(made: Installation, archive: Orthanc) -> HeldStudy:
    """One CT series of the phantom in the archive, as the sync publishes it."""
    common = Dataset()
    common.SpecificCharacterSet = "ISO_IR 192"
    study_uid = uids.new()
    common.StudyInstanceUID, common.StudyID, common.AccessionNumber = study_uid, "1", "BENCH1"
    common.PatientID, common.PatientName, common.PatientBirthDate = "BENCH", "Bench^Bruno", "19700101"
    common.PatientSex, common.ReferringPhysicianName = "O", ""
    common.StudyDate, common.StudyTime, common.Modality = "20260301", "101500", "CT"
    common.StudyDescription, common.SeriesDescription, common.SeriesNumber = "CT of a phantom", "axial", 1
    series = phantom.Series(common, uids.new(), datetime(2026, 3, 1, 10, 15))  # noqa: DTZ001
    shape = phantom.Phantom(slices=SLICES, matrix=MATRIX, spacing=0.4, thickness=1.0)
    with archive.client() as client:
        for image in phantom.images("CT", shape, series):
            content = BytesIO()
            image.save_as(content, enforce_file_format=True)
            client.post("/instances", content=content.getvalue()).raise_for_status()
    store = Store(made.settings.database)

    def published() -> list[HeldStudy]:
        with store.read() as connection:
            found = studies.with_uid(connection, str(study_uid))
            return (
                found if found and studies.count_images(connection, found[0].orthanc_id, frozenset()) == SLICES else []
            )

    bench_sync.until(published, "the study to be published")
    (held,) = published()
    store.close()
    return held


# --- the table -------------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Sequence[Opening]]) -> str:
    names = list(found)
    lines = [f"| OHIF in Chromium, {SLICES} images of {MATRIX}² | target | {' | '.join(names)} |"]
    lines += [f"|---|---|{'---|' * len(names)}"]
    asked: dict[str, tuple[Callable[[Opening], float], str]] = {
        "navigation → first image": (lambda one: one.first, "≤ 0.85×, aim 0.6×"),
        f"navigation → all {SLICES} images loaded": (lambda one: one.loaded, "≤ 0.5×, aim 0.35×"),
    }
    for what, (of, target) in asked.items():
        middle = {name: statistics.median(map(of, found[name])) for name in names}
        mine = middle[names[0]]
        cells = [f"{mine:.2f} s"] + [f"{middle[name]:.2f} s: {mine / middle[name]:.2f}×" for name in names[1:]]
        lines.append(f"| {what} | {target} | {' | '.join(cells)} |")
        spread = [f"{min(map(of, found[name])):.2f} – {max(map(of, found[name])):.2f} s" for name in names]
        lines.append(f"| fastest and slowest of {len(found[names[0]])} | | {' | '.join(spread)} |")
    return "\n".join(lines)


def publish(text: str) -> None:
    """Put the table between its marks in docs/benchmarks.md."""
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}")


def rounds(browser: Browser, parties: Mapping[str, Party]) -> dict[str, list[Opening]]:
    """Every party once in each round, so that other work on the machine hits all alike."""
    found: dict[str, list[Opening]] = {name: [] for name in parties}
    for number in range(ROUNDS):
        for name, party in parties.items():
            trace = Path(f"{TRACE}-{name.split()[0]}") if TRACE and number == ROUNDS - 1 else None
            opening = opened(browser, party, trace)
            found[name].append(opening)
            print(f"  {number + 1} {name:<44} first {opening.first:6.2f} s   all {opening.loaded:6.2f} s", flush=True)
    return found


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isocenter-bench-")))
        archive = stack.enter_context(bench_sync.archive(folder / "orthanc"))
        made, _ = stack.enter_context(bench_sync.served(folder / "site", archive))
        study = acquire(made, archive)
        identity = 'proxy_set_header Accept-Encoding "identity";'
        parties: dict[str, Party] = {
            "Isocenter": ours(made, study),
            "stock nginx on Orthanc": stack.enter_context(stock(folder / "stock", archive, study.study_uid)),
            "plain nginx on Orthanc, uncompressed": stack.enter_context(
                stock(folder / "plain", archive, study.study_uid, identity)
            ),
        }
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=list(FLAGS))
        found = rounds(browser, parties)
        browser.close()
    cores = len(os.sched_getaffinity(0))
    told = (
        f"{datetime.now(UTC).date()}: medians of {ROUNDS} openings each, in turns, software rendering, {cores} cores,"
        f" load of the machine {os.getloadavg()[0]:.1f}.\n\n"
    )
    text = told + table(found)
    print(text)
    if (ROUNDS >= 5 and SLICES >= 150) or "BENCH_PUBLISH" in os.environ:
        publish(text)


if __name__ == "__main__":
    main()
