"""The table of what can happen to images names a test for each row, and says so truly (docs/sync-cases.md)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripts import script

IMAGES = {*range(1, 19), 20, 21, 23, *range(31, 44), 47}
"""The rows about images. The others are about messages, worklists and people, or wait for such a part."""


@pytest.fixture(scope="module")
def made() -> Any:
    return script("sync_cases")


def test_the_page_says_what_the_rows_and_the_tests_say(made: Any, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--golden", default=False):
        made.PAGE.write_text(made.page())
    assert made.PAGE.read_text() == made.page(), "it has changed: run python scripts/sync_cases.py and review it"


def test_every_row_about_images_is_shown_by_a_test(made: Any) -> None:
    assert {number for number, row in made.cases().items() if row.get("images")} == IMAGES
    assert made.unshown() == set()


def test_no_test_names_a_row_that_is_not_there(made: Any) -> None:
    assert made.unknown() == set()


def test_a_row_that_is_not_about_images_is_shown_or_said_to_be_missing(made: Any) -> None:
    silent = {number for number, row in made.cases().items() if "open" not in row} - made.shown("case").keys()
    assert silent == set()
