"""Dates as intervals: precision, zones and the days on which the clock changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from app.fhir import dates, site

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def in_berlin() -> Iterator[None]:
    before = site.here()
    site.settle("", BERLIN)
    yield
    site.settle(before.base, before.zone)


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    ("text", "lo", "hi"),
    [
        ("2024", "2024-01-01T00:00+00:00", "2025-01-01T00:00+00:00"),
        ("2024-02", "2024-02-01T00:00+00:00", "2024-03-01T00:00+00:00"),
        ("2024-02-29", "2024-02-29T00:00+00:00", "2024-03-01T00:00+00:00"),
        ("2024-02-29T10:30Z", "2024-02-29T10:30+00:00", "2024-02-29T10:31+00:00"),
        ("2024-02-29T10:30:15+02:00", "2024-02-29T08:30:15+00:00", "2024-02-29T08:30:16+00:00"),
        ("2024-02-29T10:30:15.1-05:30", "2024-02-29T16:00:15.100+00:00", "2024-02-29T16:00:15.200+00:00"),
        ("2024-02-29T10:30:15.123456Z", "2024-02-29T10:30:15.123+00:00", "2024-02-29T10:30:15.124+00:00"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00+00:00", "2017-01-01T00:00:01+00:00"),
    ],
)
def test_a_date_is_the_interval_that_its_precision_leaves_open(text: str, lo: str, hi: str) -> None:
    assert dates.interval(text, UTC) == (_ms(lo), _ms(hi))


@pytest.mark.parametrize("text", ["", "24", "2024-13", "2024-02-30", "2024-2-3", "2024-02-29T25:00Z", "today", "٢٠٢٤"])
def test_what_is_no_date_is_none(text: str) -> None:
    assert dates.interval(text, UTC) is None


def test_the_last_year_there_is_ends_too() -> None:
    lo, hi = dates.interval("9999-12-31", BERLIN) or (0, 0)
    assert hi - lo == 86_400_000
    assert dates.interval("9999", UTC) is not None


def test_a_value_without_a_zone_is_in_the_given_one_and_one_with_a_zone_is_not_moved() -> None:
    assert dates.interval("2024-01-10", BERLIN) == (_ms("2024-01-10T00:00+01:00"), _ms("2024-01-11T00:00+01:00"))
    assert dates.interval("2024-07-10T12:00", BERLIN) == (_ms("2024-07-10T12:00+02:00"), _ms("2024-07-10T12:01+02:00"))
    assert dates.interval("2024-07-10T12:00Z", BERLIN) == dates.interval("2024-07-10T12:00Z", UTC)


@pytest.mark.parametrize(
    ("text", "hours"),
    [("2026-03-29", 23), ("2026-10-25", 25), ("2026-03-28", 24), ("2026-03", 31 * 24 - 1), ("2026", 365 * 24)],
)
def test_a_day_on_which_the_clock_changes_is_as_long_as_it_is(text: str, hours: int) -> None:
    lo, hi = dates.interval(text, BERLIN) or (0, 0)
    assert timedelta(milliseconds=hi - lo) == timedelta(hours=hours)


def test_days_follow_each_other_without_a_gap_for_a_whole_year() -> None:
    days = [(date(2026, 1, 1) + timedelta(days=n)).isoformat() for n in range(366)]
    found = [dates.interval(day, BERLIN) or (0, 0) for day in days]
    assert [hi for _, hi in found[:-1]] == [lo for lo, _ in found[1:]]


@pytest.mark.usefixtures("in_berlin")
def test_where_nothing_is_said_the_zone_is_the_sites() -> None:
    assert dates.interval("2024-01-10") == dates.interval("2024-01-10", BERLIN)


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-29T23:59:59Z",
        "2016-12-31T23:59:60Z",
        "2023-02-29T00:00:00Z",
        "2024-01-10T12:00:00+14:00",
        "2024-01-10T12:00:00-00:00",
        "2024-01-10T12:00:00+99:99",
        "2024-01-10T24:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
    ],
)
def test_a_second_begins_where_its_first_millisecond_does(text: str) -> None:
    whole = dates.interval(text)
    first = dates.interval(f"{text[:19]}.000{text[19:]}")
    assert whole == (first and (first[0], first[0] + 1000))
