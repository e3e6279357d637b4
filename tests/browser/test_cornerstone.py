"""The Cornerstone example in a real browser: an app of another origin draws pixels that it gets with a bearer token."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy.engine import Connection

from app.dicom.orthanc import Orthanc
from app.smart import clients, tokens
from app.smart.clients import Client
from tests.browser.conftest import ADAM, BERTA, House
from tests.orthanc.conftest import Orthanc as Archive

pytestmark = [pytest.mark.browser, pytest.mark.orthanc, pytest.mark.slow]

BUNDLE = Path(__file__).parents[2] / "examples" / "cornerstone" / "dist"
PICTURES = os.environ.get("ISOCENTER_PICTURES", "")
"""A folder for the pictures of the documentation."""
SECONDS = 60_000
# The mean grey of a square of image pixels: the image is square and fills the height of its canvas.
GREY = """([column, row, size, matrix]) => {
    const canvas = document.querySelector('#view canvas'), scale = canvas.height / matrix;
    const x = canvas.width / 2 + (column - matrix / 2) * scale, y = row * scale;
    const values = canvas.getContext('2d').getImageData(x, y, size * scale, size * scale).data;
    return values.filter((_, index) => index % 4 === 0).reduce((sum, one) => sum + one, 0) / (values.length / 4);
}"""
STORED = "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state])"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def served() -> Iterator[str]:
    """The example's files on an origin of their own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(BUNDLE)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(scope="module")
def app(house: House) -> Iterator[str]:
    """The page's address, registered as an app."""
    if not (BUNDLE / "main.js").is_file():
        pytest.fail("the Cornerstone example is not built: run `make setup-test`")
    with served() as origin:
        registered = Client(
            "cornerstone", "Cornerstone", "public", redirect_uris=(f"{origin}/",), scope="patient/ImagingStudy.rs"
        )
        house.store.transact(lambda connection: clients.ensure_client(connection, registered))
        yield origin


@pytest.fixture
def token(house: House, app: str) -> str:
    """What the app would get for Adam's study after a launch."""

    def granted(connection: Connection) -> str:
        grant_id = tokens.open_grant(
            connection, client_id="cornerstone", user=None, patient_id="p1", studies=[ADAM],
            scope="patient/ImagingStudy.rs", context={}, lifetime=600,
        )  # fmt: skip
        return tokens.issue(connection, grant_id, seconds=600)["access_token"]

    return house.store.transact(granted)


def show(page: Page, address: str, house: House, token: str, study: str = ADAM) -> None:
    page.goto(address)
    for name, value in (("server", house.url), ("token", token), ("study", study)):
        page.fill(f"#{name}", value)
    page.click("button")


def test_an_app_draws_the_pixels_that_were_stored(
    page: Page, house: House, app: str, token: str, orthanc: Archive
) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    show(page, f"{app}/", house, token)
    says = page.locator("#says")
    expect(says).to_have_text("image 4 of 6, window 400 / 40", timeout=SECONDS)
    with Orthanc(orthanc.url, orthanc.username, orthanc.password) as archive:
        stored = [archive.dataset(one, stop_before_pixels=False) for one in images(archive)]
    image = next(dataset for dataset in stored if dataset.InstanceNumber == 4)
    grey = partial(page.evaluate, GREY)
    # Water, bone, air: each is as grey as its Hounsfield units are within the window of 400 about 40.
    for column, row in ((128, 60), (70, 165), (4, 4)):
        assert grey([column, row, 6, 256]) == pytest.approx(expected(image, column, row, 6), abs=4), (column, row)
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / "cornerstone.png")
    box = page.locator("#view").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, 100)
    expect(says).to_have_text("image 5 of 6, window 400 / 40", timeout=SECONDS)
    before = grey([128, 60, 6, 256])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 120, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    expect(says).not_to_contain_text("window 400 / 40", timeout=SECONDS)
    assert grey([128, 60, 6, 256]) != pytest.approx(before, abs=2)
    assert token not in page.evaluate(STORED)
    assert errors == []


def images(archive: Orthanc) -> list[str]:
    return [
        instance
        for study in archive.study_ids()
        for series in archive.series_of(study)
        if archive.dataset(series["Instances"][0]).StudyInstanceUID == ADAM
        for instance in series["Instances"]
    ]


def expected(image: pydicom.Dataset, column: int, row: int, size: int) -> float:
    """The mean grey that PS3.3 C.11.2.1.2 gives the stored values of a square."""
    hounsfield = image.pixel_array[row : row + size, column : column + size] * float(image.RescaleSlope)
    shown = (hounsfield + float(image.RescaleIntercept) - (40 - 0.5)) / (400 - 1) + 0.5
    return float(np.mean(np.clip(shown, 0, 1) * 255))


def test_the_app_sees_what_its_token_does_not_cover_as_refused(page: Page, house: House, app: str, token: str) -> None:
    show(page, f"{app}/", house, token, BERTA)
    expect(page.locator("#says.failed")).to_contain_text("403", timeout=SECONDS)
    show(page, f"{app}/", house, "made-up")
    expect(page.locator("#says.failed")).to_contain_text("401", timeout=SECONDS)
    assert page.locator("#view canvas").count() == 0


def test_a_page_that_no_app_registered_gets_nothing_even_with_a_token(page: Page, house: House, token: str) -> None:
    with served() as stranger:
        show(page, f"{stranger}/", house, token)
        expect(page.locator("#says.failed")).to_contain_text("Failed to fetch", timeout=SECONDS)
