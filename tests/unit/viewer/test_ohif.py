"""OHIF's files and its configuration (reference checks L04, L07; DESIGN of the viewer in docs/viewer.md)."""

from __future__ import annotations

import gzip
import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from app.viewer import ohif
from tests.unit.viewer.conftest import BUNDLE
from tests.unit.viewer.site import Site
from tests.unit.viewer.test_launch import opened

HOSTILE = 'Rita "R" O\'Neil </script><script>alert(1)</script> Müller\u2028'


def test_a_file_comes_in_the_best_encoding_the_client_takes(site: Site) -> None:
    seen = {}
    for accepted, encoding in (("gzip, br", "br"), ("gzip", "gzip"), ("br;q=0, gzip;q=0.5", "gzip"), ("identity", "")):
        with httpx.stream("GET", f"{site.url}/ohif/{BUNDLE}", headers={"Accept-Encoding": accepted}) as answer:
            body = b"".join(answer.iter_raw())
        assert answer.headers.get("content-encoding", "") == encoding, accepted
        assert answer.headers["content-type"].startswith("text/javascript")
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.headers["x-content-type-options"] == "nosniff"
        seen[encoding] = (answer.headers["etag"], body)
    assert len({tag for tag, _ in seen.values()}) == 3
    assert gzip.decompress(seen["gzip"][1]) == seen[""][1]


def test_a_file_that_the_client_has_is_not_sent_again(site: Site) -> None:
    url = f"{site.url}/ohif/assets/logo.png"
    first = httpx.get(url)
    assert first.headers["cache-control"] == "public, no-cache"
    again = httpx.get(url, headers={"If-None-Match": f'"x", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.head(url).headers["content-length"] == "4"


OUTSIDE = (
    "/ohif/../secret.txt",
    "/ohif/%2e%2e/secret.txt",
    "/ohif/..%2fsecret.txt",
    "/ohif//etc/passwd",
    "/ohif/index.html",
    "/ohif/manifest.json",
    f"/ohif/{BUNDLE}.br",
    "/ohif/ort/x.wasm",
    "/ohif/",
    "/ohif/assets",
)


def test_only_files_of_the_viewer_exist(site: Site) -> None:
    port = urlsplit(site.url).port or 0
    for path in OUTSIDE:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            # Raw, because a client library would tidy the path.
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            with connection.makefile("rb") as answer:
                assert answer.readline().split()[1] == b"404", path


def test_the_page_may_talk_to_nobody_else(site: Site) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open("viewer"))
        page = browser.get(f"/v/{session}/viewer", params={"StudyInstanceUIDs": "1.2"})
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["connect-src"] == "'self' data: blob:"
    assert "unsafe-inline" not in policy["script-src"]
    assert "'unsafe-eval'" not in policy["script-src"]
    assert "http" not in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cross-origin-resource-policy"] == "same-origin"
    assert not {"cross-origin-opener-policy", "cross-origin-embedder-policy"} & set(page.headers)


def test_the_configuration_knows_one_archive_and_no_other_address(site: Site) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open("viewer", user_name=HOSTILE))
        answer = browser.get(f"/v/{session}/app-config.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["cache-control"] == "no-store"
    line = answer.text.splitlines()[0]
    assert "<" not in line
    config = json.loads(line.removeprefix("window.config = ").removesuffix(";"))
    assert config["routerBasename"] == f"/v/{session}"
    assert config["showStudyList"] is False
    (source,) = config["dataSources"]
    roots = {source["configuration"][name] for name in ("qidoRoot", "wadoRoot", "wadoUriRoot")}
    assert roots == {f"/v/{session}/dicom-web"}
    assert "oidc" not in config
    assert "http" not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Rita Radiologist", "Rita Radiologist"),
        ("Meier, Rita", "Meier^Rita"),
        ("a^b=c\\d", "a b c d"),
        (" spaced \n out ", "spaced out"),
        ("Müller", "Müller"),
        ("x" * 100, "x" * 64),
        ("", ""),
    ],
)
def test_a_name_becomes_a_person_name(name: str, value: str) -> None:
    assert ohif.person_name(name) == value
