"""DICOM values as FHIR primitives: no value raises, and what comes out is valid (app.fhir.mapping.values)."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.multival import MultiValue

from app.fhir import validation
from app.fhir.mapping import values

BERLIN = ZoneInfo("Europe/Berlin")
ANYTHING = st.one_of(st.none(), st.text(), st.integers(), st.lists(st.text(), max_size=3), st.binary(max_size=8))


def is_date_time(value: str) -> bool:
    study = {
        "resourceType": "ImagingStudy",
        "status": "available",
        "subject": {"reference": "Patient/1"},
        "started": value,
    }
    return validation.validate(study, "ImagingStudy") == []


@given(st.dates(), st.times(), st.sampled_from([UTC, BERLIN, ZoneInfo("Asia/Kathmandu"), ZoneInfo("America/Caracas")]))
def test_any_valid_date_and_time_is_a_fhir_date_time(day: date, clock: time, zone: Any) -> None:
    written = f"{day.year:04}{day:%m%d}"
    found = values.date_time(written, f"{clock:%H%M%S}.{clock.microsecond:06}", zone)
    assert found is not None
    assert is_date_time(found)
    assert found.startswith(f"{day.year:04}-{day:%m-%d}")


@given(ANYTHING, ANYTHING, ANYTHING)
def test_no_value_makes_a_conversion_raise(one: Any, two: Any, three: Any) -> None:
    found = values.date_time(one, two, values.offset(three) or BERLIN)
    assert found is None or is_date_time(found)
    assert (values.unsigned(one) or 0) >= 0
    assert values.identity(one) is None or len(values.identity(one) or "") <= 64
    text = values.text(two)
    assert text is None or (text.isprintable() and text == text.strip())


@given(st.integers(-840, 840))
def test_an_offset_that_dicom_allows_is_one_that_fhir_allows(minutes: int) -> None:
    sign = "-" if minutes < 0 else "+"
    zone = values.offset(f"{sign}{abs(minutes) // 60:02}{abs(minutes) % 60:02}")
    assert zone is not None
    assert zone.utcoffset(None) == timedelta(minutes=minutes)
    assert is_date_time(values.date_time("20260301", "101500", zone) or "")


@pytest.mark.parametrize(
    ("da", "tm", "expected"),
    [
        ("20260301", "101500", "2026-03-01T10:15:00+01:00"),
        ("2026.03.01", "10:15", "2026-03-01T10:15:00+01:00"),
        ("20260701", "10", "2026-07-01T10:00:00+02:00"),
        ("20260301", "101500.25", "2026-03-01T10:15:00.250+01:00"),
        ("20161231", "235960", "2016-12-31T23:59:59+01:00"),
        ("20260301", "240000", "2026-03-01"),
        ("20260301", None, "2026-03-01"),
        ("18800301", "101500", "1880-03-01"),
        ("20260230", "101500", None),
        ("", "101500", None),
    ],
)
def test_dates_and_times_as_modalities_write_them(da: str, tm: str | None, expected: str | None) -> None:
    assert values.date_time(da, tm, BERLIN) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("7", 7),
        (" 3 ", 3),
        ("1.0", 1),
        ("+5", 5),
        ("-1", None),
        ("2147483648", None),
        ("9" * 5000, None),
        ("1e3", None),
    ],
)
def test_integer_strings_as_modalities_write_them(written: str, expected: int | None) -> None:
    assert values.unsigned(written) == expected


@pytest.mark.parametrize("written", ["+1430", "+1500", "0100", "+1", "+0160"])
def test_an_offset_that_is_none_is_left_out(written: str) -> None:
    assert values.offset(written) is None


def test_of_several_values_the_first_counts() -> None:
    assert values.text(MultiValue(str, ["", "CT", "MR"])) == "CT"


def test_a_text_is_one_printable_line() -> None:
    assert values.text(" a\x1b\tb \0") == "a b"


def test_numbers_that_tell_people_apart_are_not_tidied() -> None:
    assert values.verbatim(" A  1\0") == "A  1"
    assert values.verbatim("A\x1b1") is None


@pytest.mark.parametrize(("value", "expected"), [("2026", "2026-01-01"), ("2026-03", "2026-03-01"), ("2026-03-04", "2026-03-04")])  # fmt: skip # noqa: E501
def test_a_part_of_a_date_begins_with_its_first_day(value: str, expected: str) -> None:
    assert values.first_day(value).isoformat() == expected


def test_a_leap_second_can_be_read() -> None:
    assert values.parse_instant("2016-12-31T23:59:60Z") == datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert values.parse_instant("2016-12-31") is None
