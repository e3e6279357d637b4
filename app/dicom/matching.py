"""How one value meets another: wildcards, person names, days and times (PS3.4 C.2.2.2)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from app.errors import BadRequest

WILDCARD_VRS: Final = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})

# --- text and names -------------------------------------------------------------------------------------------------


def wildcard(pattern: str, text: str) -> bool:
    """`*` is any run of characters, `?` any one; never more than pattern times text steps."""
    at, star, mark = 0, -1, 0
    place = 0
    while place < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, mark = at, place
            at += 1
        elif at < len(pattern) and pattern[at] in {"?", text[place]}:
            at += 1
            place += 1
        elif star >= 0:
            mark += 1
            at, place = star + 1, mark
        else:
            return False
    return not pattern[at:].strip("*")


def name_matches(wanted: str, stored: str) -> bool:
    """A key without `=` may match any group of the name; otherwise group meets group."""
    groups = [fold(group) for group in stored.split("=")]
    if "=" not in wanted:
        return any(_group_matches(fold(wanted), group) for group in groups if group)
    keys = [fold(group) for group in wanted.split("=")]
    groups += [""] * (len(keys) - len(groups))
    return all(_group_matches(key, group) for key, group in zip(keys, groups, strict=False) if key)


def _group_matches(wanted: str, stored: str) -> bool:
    # A name without given name is also `Name^`, so that `Name^*` finds it (PS3.5 6.2.1.2: trailing nulls go).
    return wildcard(wanted, stored) or wildcard(wanted, f"{stored}^")


def fold(group: str) -> str:
    """Without case, accents, width, and empty components at the end."""
    decomposed = unicodedata.normalize("NFKD", group.casefold())
    # Only U+0300 to U+036F: the marks of kana and of other scripts make another letter.
    plain = "".join(letter for letter in decomposed if not "\u0300" <= letter <= "\u036f")
    components = [" ".join(part.split()) for part in unicodedata.normalize("NFKC", plain).split("^")]
    return "^".join(components).rstrip("^")


# --- date and time --------------------------------------------------------------------------------------------------

Interval: TypeAlias = tuple[datetime | None, datetime | None]
"""From (inclusive) and to (exclusive); None is open."""
Reader: TypeAlias = Callable[[str], tuple[datetime, datetime]]
"""From and to of one value; ValueError for what is none."""
DAY_ZERO: Final = datetime(1, 1, 1)  # noqa: DTZ001  a time of day without date; DICOM times here have no zone


def _days(text: str) -> tuple[datetime, datetime]:
    """The day of a DA value, from its first moment to the first of the next."""
    digits = text.replace(".", "") if len(text) == 10 else text
    if len(digits) != 8 or not (digits.isascii() and digits.isdecimal()):
        raise ValueError("not a DA value")
    start = datetime(int(digits[:4]), int(digits[4:6]), int(digits[6:]))  # noqa: DTZ001  site-local wall time
    # The last day there is: people write it for "open".
    is_last = digits == "99991231"
    return start, start.replace(hour=23, minute=59, second=59) if is_last else start + timedelta(days=1)


def _times(text: str) -> tuple[datetime, datetime]:
    """The span that a TM value leaves open: 0830 is the whole minute (PS3.5 6.2)."""
    whole, point, fraction = text.replace(":", "").partition(".")
    digits = whole + fraction
    is_written = len(whole) == 6 and fraction if point else len(whole) in {2, 4, 6}
    if not (is_written and digits.isascii() and digits.isdecimal()):
        raise ValueError("not a TM value")
    hour, minute, second = (int(whole[at : at + 2] or 0) for at in (0, 2, 4))
    start = DAY_ZERO.replace(hour=hour, minute=minute, second=min(second, 59))
    if fraction:
        start += timedelta(microseconds=int(fraction[:6].ljust(6, "0")))
        return start, start + timedelta(microseconds=10 ** (6 - len(fraction[:6])))
    return start, start + {2: timedelta(hours=1), 4: timedelta(minutes=1), 6: timedelta(seconds=1)}[len(whole)]


READERS: Final[dict[str, Reader]] = {"DA": _days, "TM": _times}


def interval(keyword: str, text: str, reader: Reader) -> Interval:
    """What a single value or a range spans; BadRequest for what is neither."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    try:
        if not dash or not (first or last):
            return reader(first)
        return reader(first)[0] if first else None, reader(last)[1] if last else None
    except ValueError as error:
        raise BadRequest(f"{keyword} is neither a value nor a range") from error


def moment(text: str, reader: Reader) -> datetime | None:
    """When a stored value begins; None where it is none."""
    try:
        return reader(text.strip(" \0"))[0]
    except ValueError:
        return None


def is_within(stored: datetime | None, wanted: Interval) -> bool:
    """Whether a moment lies in an interval."""
    first, last = wanted
    return stored is not None and (first is None or first <= stored) and (last is None or stored < last)


def combined(days: Interval, times: Interval) -> Interval:
    """One span from the first day's first time to the last day's last."""
    (first_day, last_day), (first_time, last_time) = days, times
    first = first_day + (first_time - DAY_ZERO) if first_day and first_time else first_day
    # The last day ends with the midnight after it: go back to its start before adding the time.
    last = last_day - timedelta(days=1) + (last_time - DAY_ZERO) if last_day and last_time else last_day
    return first, last
