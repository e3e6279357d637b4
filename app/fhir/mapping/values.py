"""DICOM values as FHIR primitives; what is unknown or invalid is left out, never guessed (PS3.5 section 6.2)."""

from __future__ import annotations

import re
from collections.abc import MutableSequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any

from app.fhir.mapping import codes

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DA = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
DT = re.compile(r"(?P<date>\d{8})(?P<time>\d{2,6}(?:\.\d{1,6})?)?(?P<offset>[+-]\d{4})?")
TM = re.compile(r"(\d{2}):?(?:(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?")
OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")
FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
MINUTE = timedelta(minutes=1)


def text(value: Any) -> str | None:
    """The first value as one line of text, or None."""
    if value is None:
        return None
    # Most values are plain text, and to ask whether they are sequences costs more than to read them.
    if type(value) is str:
        return codes.line(value) or None
    if isinstance(value, (list, tuple, MutableSequence)):
        return next((found for one in value if (found := text(one))), None)
    return codes.line(str(value)) or None


def texts(value: Any) -> list[str]:
    """Each value as one line of text."""
    many: Any = value if isinstance(value, (list, tuple, MutableSequence)) else [value]
    return [found for one in many if (found := text(one))]


def verbatim(value: Any) -> str | None:
    """A number that tells people or orders apart: trimmed, else as written; None when it holds unprintable signs."""
    trimmed = str(value).strip(" \0") if value is not None else ""
    return trimmed if trimmed and trimmed.isprintable() else None


def identity(value: Any) -> str | None:
    """A UID that can be a FHIR id, or None."""
    if isinstance(value, str) and FHIR_ID.fullmatch(value):
        return value
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


def positive(value: Any) -> int | None:
    """A FHIR positiveInt, or None."""
    number = integer(value)
    return number if number is not None and number > 0 else None


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


def instant(value: Any, zone: tzinfo) -> str | None:
    """A DICOM date and time in one value, with its own offset if it has one."""
    match = DT.fullmatch(text(value) or "")
    return date_time(match["date"], match["time"], offset(match["offset"]) or zone) if match else None


@dataclass(frozen=True, slots=True)
class Code:
    """A coded entry as an item of a code sequence says it (PS3.3 section 8)."""

    value: str
    scheme: str
    meaning: str
    version: str | None = None
    scheme_uid: str | None = None
    spellings: tuple[Code, ...] = ()


def code(item: Dataset) -> Code | None:
    """The code of an item, from whichever of the three value attributes carries it; None when it says nothing."""
    spelled = (text(item.get(name)) for name in ("LongCodeValue", "CodeValue", "URNCodeValue"))
    value, meaning = next((found for found in spelled if found), ""), text(item.get("CodeMeaning")) or ""
    if not value and not meaning:
        return None
    scheme = text(item.get("CodingSchemeDesignator")) or ""
    return Code(value, scheme, meaning, text(item.get("CodingSchemeVersion")), text(item.get("CodingSchemeUID")))


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; nothing when it is absent or no sequence."""
    found: Any = header.get(keyword)
    return [item for item in found if hasattr(item, "keys")] if isinstance(found, MutableSequence) else []


def coded(header: Dataset, keyword: str) -> list[Code]:
    """The codes of a code sequence."""
    return [found for item in items(header, keyword) if (found := code(item))]


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
