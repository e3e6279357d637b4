"""Dates as intervals of milliseconds; one without a zone is in the site's (https://hl7.org/fhir/R4/search.html#date)."""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta, timezone, tzinfo

from app.fhir.site import here

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_DAY = 86_400_000
_FORM = re.compile(
    r"(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)"
    r"(?:T(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d+))?)?(?P<zone>Z|[+-]\d\d:\d\d)?)?)?)?",
    re.ASCII,
)
_WHOLE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d)", re.ASCII).fullmatch
"""What nearly all times of machines are, which the library reads in a tenth of the time."""

LEAST = -(2**62)
MOST = 2**62
"""The open ends of an interval."""

Interval = tuple[int, int]


def interval(text: str, zone: tzinfo | None = None) -> Interval | None:
    """[lo, hi) of a date, dateTime or instant of any precision; None when it is none."""
    try:
        if _WHOLE(text):
            lo = (datetime.fromisoformat(text) - _EPOCH) // _MILLISECOND
            return lo, lo + 1000
    except ValueError:
        # A leap second, or nothing in the calendar.
        pass
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    try:
        start = _start(found, zone or here().zone)
        lo = (start - _EPOCH) // _MILLISECOND
        return lo, lo + _width(found, start)
    except (ValueError, OverflowError):
        return None


def _start(found: re.Match[str], zone: tzinfo) -> datetime:
    fraction = (found["fraction"] or "0")[:6].ljust(6, "0")
    leap = found["second"] == "60"
    start = datetime(
        int(found["year"]),
        int(found["month"] or 1),
        int(found["day"] or 1),
        int(found["hour"] or 0),
        int(found["minute"] or 0),
        59 if leap else int(found["second"] or 0),
        int(fraction),
        tzinfo=_zone(found["zone"], zone),
    )
    return start + timedelta(seconds=leap)


def _zone(text: str | None, otherwise: tzinfo) -> tzinfo:
    if text is None:
        return otherwise
    if text == "Z":
        return UTC
    minutes = int(text[1:3]) * 60 + int(text[4:6])
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))


def _width(found: re.Match[str], start: datetime) -> int:
    if found["fraction"]:
        return 10 ** max(0, 3 - len(found["fraction"]))
    for part, width in (("second", 1000), ("minute", 60_000)):
        if found[part]:
            return width
    return _days(found, start) * _DAY + _shift(found, start)


def _days(found: re.Match[str], start: datetime) -> int:
    if found["day"]:
        return 1
    if found["month"]:
        return monthrange(start.year, start.month)[1]
    return 366 if monthrange(start.year, 2)[1] == 29 else 365


def _shift(found: re.Match[str], start: datetime) -> int:
    """What the clock's change inside the interval adds: a day of summer time's end has 25 hours."""
    if start.tzinfo is UTC or start.year == 9999:
        return 0
    end = start.replace(tzinfo=None) + timedelta(days=_days(found, start))
    before, after = start.utcoffset(), end.replace(tzinfo=start.tzinfo).utcoffset()
    return (before - after) // _MILLISECOND if before is not None and after is not None else 0
