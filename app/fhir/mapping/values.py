"""DICOM values as FHIR primitives; what is unknown or invalid is left out, never guessed (PS3.5 section 6.2)."""

from __future__ import annotations

import re
from collections.abc import MutableSequence
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any

from app.fhir.mapping import codes

DA = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
TM = re.compile(r"(\d{2}):?(?:(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?")
OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")
FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
MINUTE = timedelta(minutes=1)


def text(value: Any) -> str | None:
    """The first value as one line of text, or None."""
    if isinstance(value, (list, tuple, MutableSequence)):
        return next((found for one in value if (found := text(one))), None)
    return codes.line(str(value)) or None if value is not None else None


def verbatim(value: Any) -> str | None:
    """A number that tells people or orders apart: trimmed, else as written; None when it holds unprintable signs."""
    trimmed = str(value).strip(" \0") if value is not None else ""
    return trimmed if trimmed and trimmed.isprintable() else None


def identity(value: Any) -> str | None:
    """A UID that can be a FHIR id, or None."""
    found = text(value)
    return found if found and FHIR_ID.fullmatch(found) else None


def integer(value: Any) -> int | None:
    """An integer string as modalities write it: padded, signed, sometimes with a fraction of zeros."""
    match = re.fullmatch(r"([+-]?\d{1,20})(?:\.0*)?", text(value) or "")
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
    # FHIR ends at fourteen hours, as DICOM does.
    if match is None or int(match[3]) > 59 or int(match[2]) * 60 + int(match[3]) > 14 * 60:
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
    moment = datetime.combine(found, at, zone)
    # Before zones were made by law, local mean time differed by odd seconds, which FHIR cannot say.
    if (moment.utcoffset() or timedelta()) % MINUTE:
        return found.isoformat()
    return moment.isoformat(timespec="milliseconds" if at.microsecond else "seconds")


def oid(uid: str) -> str:
    """A DICOM UID as FHIR writes it in identifiers and codings."""
    return f"urn:oid:{uid}"


def bare(value: str) -> str:
    """The UID inside `urn:oid:…`, or the value itself."""
    return value.removeprefix("urn:oid:")


def parse_instant(value: str | None) -> datetime | None:
    """A FHIR dateTime or instant with a zone; None for a date or nothing. A leap second is the second before it."""
    if not value or "T" not in value:
        return None
    return datetime.fromisoformat(re.sub(r"(T\d{2}:\d{2}):60", r"\1:59", value))


def first_day(value: str) -> date:
    """The first day that a FHIR date or dateTime covers: a year or a month begins with its first."""
    year, month, day_of_month = (*value.partition("T")[0].split("-"), "1", "1")[:3]
    return date(int(year), int(month), int(day_of_month))
