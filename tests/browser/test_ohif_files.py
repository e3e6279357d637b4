"""The unpacked OHIF runs under /ohif/ with a session's page elsewhere, and asks nobody else for anything."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import ConsoleMessage, Page, Request, Response

pytestmark = [pytest.mark.browser, pytest.mark.slow]

VIEWER = Path(os.environ.get("ISOCENTER_OHIF_DIR", Path(__file__).parents[2] / "var" / "ohif"))
CONFIG = {
    "routerBasename": "/v/x",
    "showStudyList": True,
    "extensions": [],
    "modes": [],
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "dicomweb",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "dicomweb",
            "configuration": {
                "friendlyName": "here",
                "name": "here",
                "qidoRoot": "/v/x/dicom-web",
                "wadoRoot": "/v/x/dicom-web",
                "qidoSupportsIncludeField": False,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
            },
        }
    ],
}
STUDY = [
    {
        "00080020": {"vr": "DA", "Value": ["20260101"]},
        "00080050": {"vr": "SH", "Value": ["ACC-1"]},
        "00080061": {"vr": "CS", "Value": ["CT"]},
        "00081030": {"vr": "LO", "Value": ["Proof of the prefix"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Phantom^Prefix"}]},
        "00100020": {"vr": "LO", "Value": ["P-1"]},
        "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
        "00201206": {"vr": "IS", "Value": [1]},
        "00201208": {"vr": "IS", "Value": [1]},
    }
]


class Handler(http.server.BaseHTTPRequestHandler):
    """The viewer's files at /ohif/, one session at /v/x/, nothing else."""

    manifest: dict[str, Any]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        known = {f"/ohif/{row['path']}" for row in self.manifest["files"]} - {"/ohif/index.html"}
        if path in known:
            self.answer(VIEWER / path.removeprefix("/ohif/"))
        elif path == "/v/x/app-config.js":
            self.send(f"window.config = {json.dumps(CONFIG)}".encode(), "text/javascript")
        elif path == "/v/x/dicom-web/studies":
            self.send(json.dumps(STUDY).encode(), "application/dicom+json")
        elif path.startswith("/v/x/") and "dicom-web" not in path:
            page = (VIEWER / "index.html").read_text().replace("{{APP_CONFIG}}", "/v/x/app-config.js")
            self.send(page.encode(), "text/html")
        else:
            self.send_error(404)

    def answer(self, file: Path) -> None:
        types = {".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm", ".svg": "image/svg+xml"}
        small = file.with_name(file.name + ".br")
        encoded = small.is_file() and "br" in self.headers["Accept-Encoding"]
        data = (small if encoded else file).read_bytes()
        self.send(data, types.get(file.suffix, "application/octet-stream"), "br" if encoded else "identity")

    def send(self, data: bytes, media_type: str, encoding: str = "identity") -> None:
        scripts = " ".join(f"'{source}'" for source in self.manifest["inline_scripts"])
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Length", str(len(data)))
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'self'; script-src 'self' 'unsafe-eval' blob: {scripts}; worker-src 'self' blob:;"
            " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:",
        )
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet: the test keeps its own record."""


@dataclass
class Visit:
    page: Page
    address: str
    requests: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def on_request(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.requests.append(request.url)

    def on_response(self, response: Response) -> None:
        if response.status >= 400:
            self.failures.append(f"{response.status} {response.url}")

    def on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)


@pytest.fixture
def visit(page: Page) -> Iterator[Visit]:
    assert (VIEWER / "manifest.json").is_file(), f"the viewer is not in {VIEWER}: run `make setup`"
    handler = type("Here", (Handler,), {"manifest": json.loads((VIEWER / "manifest.json").read_text())})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen = Visit(page, f"http://127.0.0.1:{server.server_port}")
        page.on("request", seen.on_request)
        page.on("response", seen.on_response)
        page.on("console", seen.on_console)
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        yield seen
        server.shutdown()


def test_the_viewer_starts_under_its_prefix_and_asks_only_here(visit: Visit, tmp_path: Path) -> None:
    visit.page.goto(f"{visit.address}/v/x/")
    visit.page.get_by_text("Proof of the prefix").wait_for(timeout=60_000)
    visit.page.screenshot(path=tmp_path / "list.png")
    allowed = (f"{visit.address}/ohif/", f"{visit.address}/v/x/")
    assert [url for url in visit.requests if not url.startswith(allowed)] == []
    assert visit.failures == []
    assert visit.complaints == []


def test_the_microscopy_viewer_of_the_package_loads_from_under_the_prefix(visit: Visit) -> None:
    visit.page.goto(f"{visit.address}/v/x/")
    visit.page.get_by_text("Proof of the prefix").wait_for(timeout=60_000)
    visit.page.evaluate("browserImportFunction('/ohif/dicom-microscopy-viewer/dicomMicroscopyViewer.min.js')")
    assert visit.page.evaluate("typeof window.dicomMicroscopyViewer") == "object"
    assert visit.failures == []
