"""The radiologist's way in a real browser (reference checks L02, L05, L06, L08, L09)."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from app.dicom.orthanc import Orthanc
from app.store.database import now
from app.store.tables import viewer_session
from app.viewer.sessions import IDLE
from tests.browser import ohif
from tests.browser.conftest import ADAM, BERTA, Ehr, House
from tests.orthanc.conftest import Orthanc as Archive

pytestmark = [pytest.mark.browser, pytest.mark.orthanc, pytest.mark.slow]

HOSTILE = 'O\'Neil, "Rita" </script><b>Müller'
STORED = "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"

# Parts of OHIF that are fetched ahead, those that were run, and how many bytes of scripts came besides.
AHEAD = """() => {
    const part = address => /ohif.(\\d+)[.]bundle/.exec(address)?.[1];
    const ahead = [...document.querySelectorAll('link[rel=preload][as=script]')].map(one => part(one.href));
    const ran = window.rspackChunk.flatMap(one => one[0]).map(String);
    const others = performance.getEntriesByType('resource').filter(
        one => part(one.name) && one.name.endsWith('.js') && !ahead.includes(part(one.name)));
    return [ahead, ran, others.reduce((sum, one) => sum + one.decodedBodySize, 0)];
}"""


def watch(page: Page) -> tuple[list[str], list[str]]:
    """Every address the page asks for, and every error it meets."""
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return asked, errors


def session_of(page: Page) -> str:
    return urlsplit(page.url).path.split("/")[2]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_link_in_an_ehr_opens_the_study(page: Page, house: House, ehr: Ehr, host: str) -> None:
    """From the same site and from another one, where a Strict cookie needs its extra step."""
    asked, errors = watch(page)
    ehr.link = house.open()
    page.goto(ehr.address(host))
    page.click("#open")
    ohif.wait_until_rendered(page)
    assert urlsplit(page.url).query == f"StudyInstanceUIDs={ADAM}"
    expect(page.locator('[data-cy="studyBrowser-panel"]')).to_contain_text("axial", timeout=ohif.SECONDS)
    expect(page.locator('[data-cy="studyBrowser-panel"] img').first).to_be_visible(timeout=ohif.SECONDS)
    hosts = {urlsplit(url).hostname for url in asked if urlsplit(url).scheme not in {"data", "blob"}}
    assert hosts <= {"localhost", "127.0.0.1"}
    assert errors == []
    # What is fetched ahead of its turn is all needed; the rest of what is needed is small.
    ahead, ran, besides = page.evaluate(AHEAD)
    assert len(ahead) > 20
    assert set(ahead) <= set(ran)
    assert besides < 600_000
    kept = page.evaluate(STORED)
    assert "isocenter_viewer" not in kept
    for word in ("access_token", "refresh_token", "Bearer", "code="):
        assert word not in kept
    page.go_back()
    assert page.url == ehr.address(host)


def test_a_length_is_drawn_and_saved_under_the_users_name(page: Page, house: House, orthanc: Archive) -> None:
    _, errors = watch(page)
    ohif.open_viewer(page, house.open(BERTA, kind="viewer", user_name=HOSTILE))
    shown = ohif.measure_length(page, start=(0.35, 0.4), end=(0.65, 0.4))
    # 955 of 955 × 742 pixels show 204.8 mm per height: three tenths of the width are about 79 mm.
    assert shown.endswith(" mm")
    assert float(shown.removesuffix(" mm")) == pytest.approx(79, abs=1)
    ohif.save_report(page, "Length of nothing")
    assert errors == []
    with Orthanc(orthanc.url, orthanc.username, orthanc.password) as archive:
        (document,) = [
            dataset
            for found in archive.study_ids()
            for series in archive.series_of(found)
            for dataset in [archive.dataset(series["Instances"][0])]
            if dataset.Modality == "SR"
        ]
    assert document.StudyInstanceUID == BERTA
    assert (document.PreliminaryFlag, document.SeriesDescription) == ("PRELIMINARY", "Length of nothing")
    observers = [item.PersonName for item in document.ContentSequence if item.ValueType == "PNAME"]
    assert observers == ['O\'Neil^"Rita" </script><b>Müller']


def test_two_launches_in_one_browser_stay_apart(chromium: Browser, house: House) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    first, second = context.new_page(), context.new_page()
    ohif.open_viewer(first, house.open(ADAM))
    ohif.open_viewer(second, house.open(BERTA))
    assert session_of(first) != session_of(second)
    asked, _ = watch(first)
    first.reload()
    ohif.wait_until_rendered(first)
    images = [url for url in asked if "/dicom-web/studies/" in url]
    assert images
    assert all(f"/v/{session_of(first)}/dicom-web/studies/{ADAM}" in url for url in images)
    context.close()


def test_another_study_in_the_address_shows_nothing(page: Page, house: House) -> None:
    ohif.open_viewer(page, house.open(ADAM))
    answers: list[tuple[int, str, str]] = []

    def hear(url: str, status: int, body: str) -> None:
        answers.append((status, url, body))

    page.on(
        "requestfinished",
        lambda request: (
            hear(request.url, request.response().status, request.response().text())  # type: ignore[union-attr]
            if "/dicom-web/" in request.url
            else None
        ),
    )
    page.goto(page.url.replace(ADAM, BERTA))
    expect(page.locator("body")).to_contain_text("requested studies are not available", timeout=ohif.SECONDS)
    assert page.locator(ohif.CANVAS).count() == 0
    assert answers
    for status, url, body in answers:
        assert BERTA not in body, url
        assert "Berta" not in body, url
        assert status in {200, 204, 403} or "frames" not in url


def test_the_end_of_a_session_is_announced_and_said(page: Page, house: House) -> None:
    ohif.open_viewer(page, house.open(ADAM, kind="viewer"))
    session = session_of(page)

    def age(milliseconds: int) -> None:
        change = viewer_session.update().where(viewer_session.c.id == session)
        house.store.transact(lambda connection: connection.execute(change.values(seen=now() - milliseconds)))
        # What the page does anyway when somebody comes back to it.
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    age(IDLE - 100_000)
    banner = page.locator("#isocenter-ending")
    expect(banner).to_contain_text("2 min")
    banner.get_by_role("button").click()
    expect(banner).to_be_hidden()
    age(IDLE + 1)
    expect(page.locator("#isocenter-ended")).to_contain_text("open the study again")
    page.reload()
    expect(page.locator("h1")).to_have_text("This viewer session has ended")
