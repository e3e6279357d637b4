"""Drives OHIF 3.13 as a radiologist does: open, look, measure by mouse, save. Its selectors stand here only."""

from __future__ import annotations

import re

from playwright.sync_api import FloatRect, Page, expect

CANVAS = ".cornerstone-canvas"
SECONDS = 60_000
"""The first start compiles 17 MB of script and renders in software."""

# OHIF draws into a 2D canvas: anything but one flat colour in it is an image.
RENDERED = """selector => [...document.querySelectorAll(selector)].some(canvas => {
    if (!canvas.width || !canvas.height) return false;
    const probe = new OffscreenCanvas(32, 32).getContext('2d');
    probe.drawImage(canvas, 0, 0, 32, 32);
    const values = probe.getImageData(0, 0, 32, 32).data.filter((_, index) => index % 4 === 0);
    return Math.max(...values) - Math.min(...values) > 20;
})"""


def open_viewer(page: Page, url: str) -> None:
    """Follow a launch until the first image is on the screen."""
    page.goto(url)
    wait_until_rendered(page)


def wait_until_rendered(page: Page) -> None:
    """Wait until a viewport shows pixels and its tools can be used."""
    page.wait_for_selector(CANVAS, timeout=SECONDS)
    page.wait_for_function(RENDERED, arg=CANVAS, timeout=SECONDS)
    expect(page.locator('[data-cy="Length-btn"]')).to_be_enabled(timeout=SECONDS)


def measure_length(page: Page, *, start: tuple[float, float], end: tuple[float, float]) -> str:
    """Draw a tracked Length between two points, given as fractions of the image area; the text it shows."""
    texts = page.locator("svg text", has_text=re.compile(r"\d\s*(mm|px|cm)"))
    before = texts.count()
    page.click('[data-cy="Length-btn"]')
    box = page.locator(CANVAS).first.bounding_box()
    assert box is not None
    page.mouse.move(*_point(box, start))
    page.mouse.down()
    # A press becomes a point only when it can no longer be a double click; a move before that would be its start.
    expect(texts).to_have_count(before + 1, timeout=SECONDS)
    page.mouse.move(*_point(box, end), steps=12)
    page.mouse.up()
    _track(page, rows=before + 1)
    return (texts.nth(before).text_content() or "").strip()


def save_report(page: Page, description: str) -> None:
    """Save the tracked measurements as a structured report; returns once OHIF says that they are stored."""
    page.get_by_role("button", name="Create SR").click(timeout=SECONDS)
    dialog = page.get_by_role("dialog").filter(has_text="Create Report")
    dialog.locator("input").first.fill(description)
    dialog.locator('[data-cy="input-dialog-save-button"]').click()
    toast = page.locator("[data-sonner-toast]").filter(has_text=re.compile("saved successfully|Failed", re.IGNORECASE))
    toast.first.wait_for(timeout=SECONDS)
    assert "successfully" in toast.first.inner_text(), toast.first.inner_text()


def _point(box: FloatRect, fraction: tuple[float, float]) -> tuple[float, float]:
    return box["x"] + fraction[0] * box["width"], box["y"] + fraction[1] * box["height"]


def _track(page: Page, *, rows: int) -> None:
    """Answer the question that comes with the first measurement and show the list of tracked ones."""
    listed = page.locator('[data-cy="data-row"]')
    if rows == 1:
        page.click('[data-cy="prompt-begin-tracking-yes-btn"]', timeout=SECONDS)
        if not page.locator('[data-cy="trackedMeasurements-panel"]').is_visible():
            page.click('[data-cy="trackedMeasurements-btn"]', timeout=SECONDS)
    expect(listed).to_have_count(rows, timeout=SECONDS)
