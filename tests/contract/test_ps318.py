"""The table of PS3.18's clauses names a test for each that is met, and says so truly (docs/dicomweb-conformance.md)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripts import script


@pytest.fixture(scope="module")
def made() -> Any:
    return script("dicomweb_clauses")


def test_the_page_says_what_the_rows_and_the_tests_say(made: Any, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--golden", default=False):
        made.PAGE.write_text(made.page())
    assert made.PAGE.read_text() == made.page(), "it has changed: run python scripts/dicomweb_clauses.py and review it"


def test_every_clause_that_is_met_is_shown_by_a_test(made: Any) -> None:
    assert made.unshown() == set()


def test_no_test_names_a_clause_that_is_no_row(made: Any) -> None:
    assert made.unknown() == set()
