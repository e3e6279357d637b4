"""How often a study is written while its images come (app.workflow.changes)."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from app.workflow.changes import Burst, pace


def versions(arrivals: Iterable[float]) -> tuple[int, float]:
    """How many versions these moments of arrival make, and how long after the last image it is readable."""
    moments = list(arrivals)
    burst = Burst(moments[0], moments[0], 1)
    # The first image is written at once.
    written, due, latest, last = 1, None, 0.0, 0.0
    for moment in moments[1:]:
        if due is not None and due < moment:
            written, due = written + 1, None
        burst.more(moment, 1)
        quiet, longest = pace(burst)
        latest = min(latest, moment + longest / 1000) if due is not None else moment + longest / 1000
        due = min(moment + quiet / 1000, latest)
        last = moment
    if due is not None:
        written += 1
        return written, due - last
    return written, 0.0


EXAMINATIONS = [
    (1000, 60, 5), (1000, 600, 9), (1000, 1000, 10), (400, 1200, 18), (200, 2, 2), (5000, 100, 5), (10_000, 20, 4),
]  # fmt: skip


@pytest.mark.parametrize(("images", "seconds", "most"), EXAMINATIONS)
def test_the_versions_of_a_study_grow_with_the_logarithm_of_its_time(images: int, seconds: int, most: int) -> None:
    count, behind = versions(number * seconds / images for number in range(images))
    assert count <= most
    assert behind <= (0.61 if seconds < 600 else 5)


def test_images_that_come_together_wait_for_the_shortest_pause() -> None:
    assert versions([0, 0.02, 0.03, 0.05]) == (2, pytest.approx(0.15))


def test_a_stumble_of_the_sender_makes_no_version() -> None:
    moments = [number * 0.06 + (0.2 if number > 500 else 0) for number in range(1000)]
    assert versions(moments)[0] <= 5


def test_images_that_come_seldom_are_each_written_soon() -> None:
    count, behind = versions([0, 1, 2, 3])
    assert count == 4
    assert behind <= 0.61
