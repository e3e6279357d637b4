"""One grant may ask for much at once, but not for everything."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from app.dicom.crowd import Crowd
from app.errors import TooMany


def test_one_grant_has_so_many_requests_at_once_and_another_has_its_own() -> None:
    crowd = Crowd(2)
    with ExitStack() as under_way:
        under_way.enter_context(crowd.passed("a"))
        under_way.enter_context(crowd.passed("a"))
        with pytest.raises(TooMany) as refused, crowd.passed("a"):
            pass
        assert (refused.value.status, refused.value.retry_after) == (429, 1)
        with crowd.passed("b"):
            pass
    with crowd.passed("a"):
        pass


def test_a_request_that_fails_counts_no_more() -> None:
    crowd = Crowd(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), crowd.passed("a"):
            raise ValueError("broken")
