"""DICOM values as FHIR primitives; what is unknown or invalid is left out, never guessed (PS3.5 section 6.2)."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any

DA = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
TM = re.compile(r"(\d{2}):?(?:(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?")
OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")
FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


def text(value: Any) -> str | None:
    """A trimmed text, or None."""
    trimmed = str(value).strip(" \0") if value is not None else ""
    return trimmed or None


def integer(value: Any) -> int | None:
    """An integer string as modalities write it: padded, signed, sometimes with a fraction of zeros."""
    match = re.fullmatch(r"\s*([+-]?\d+)(?:\.0*)?\s*", str(value)) if value is not None else None
    number = int(match[1]) if match else None
    return number if number is not None and abs(number) < 2**31 else None


def unsigned(value: Any) -> int | None:
    """A FHIR unsignedInt, or None."""
    number = integer(value)
    return number if number is not None and number >= 0 else None


def day(value: Any) -> date | None:
    """A DICOM date that exists in the calendar."""
    match = DA.fullmatch(text(value) or "")
    try:
        return date(int(match[1]), int(match[2]), int(match[3])) if match else None
    except ValueError:
        return None


def clock(value: Any) -> time | None:
    """A DICOM time; a leap second counts as the second before it."""
    match = TM.fullmatch(text(value) or "")
    if match is None:
        return None
    hour, minute, second = int(match[1]), int(match[2] or 0), min(int(match[3] or 0), 59)
    try:
        return time(hour, minute, second, int((match[4] or "").ljust(6, "0")))
    except ValueError:
        return None


def offset(value: Any) -> tzinfo | None:
    """Timezone Offset From UTC (0008,0201)."""
    match = OFFSET.fullmatch(text(value) or "")
    if match is None or int(match[2]) > 14 or int(match[3]) > 59:
        return None
    delta = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(-delta if match[1] == "-" else delta)


def date_time(da: Any, tm: Any, zone: tzinfo | None) -> str | None:
    """A FHIR dateTime; only the date when time or zone is missing, because a FHIR time needs a zone."""
    found = day(da)
    if found is None:
        return None
    at = clock(tm)
    if at is None or zone is None:
        return found.isoformat()
    return datetime.combine(found, at, zone).isoformat(timespec="milliseconds" if at.microsecond else "seconds")


def oid(uid: str) -> str:
    """A DICOM UID as FHIR writes it in identifiers and codings."""
    return f"urn:oid:{uid}"


def bare(value: str) -> str:
    """The UID inside `urn:oid:…`, or the value itself."""
    return value.removeprefix("urn:oid:")


def parse_instant(value: str | None) -> datetime | None:
    """A FHIR dateTime or instant with a zone; None for a date or nothing."""
    if not value or "T" not in value:
        return None
    return datetime.fromisoformat(value)
