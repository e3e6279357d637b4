"""Lexical rules of the primitive types (https://hl7.org/fhir/R4/datatypes.html#primitive)."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """Why a value is not allowed: issue code and sentence, never the value itself."""

    code: str
    diagnostics: str


Test = Callable[[Any], Fault | None]

MAX_STRING = 1024 * 1024
_INTEGER_LIMIT = 2**31
# A surrogate without its partner, or a control character, can be neither stored nor shown.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
_VISIBLE = r"[^\x00-\x20\ud800-\udfff]"
_DATE = r"(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)%s)?)?"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?"
_ZONE = r"(?:Z|[+-](?:0\d|1[0-3]):[0-5]\d|[+-]14:00)"

EMPTY = Fault("structure", "must not be empty")
NULL = Fault("structure", "must not be null")


def _not_json(kind: str) -> Fault:
    return Fault("structure", f"must be a JSON {kind}")


_NOT_TEXT = _not_json("string")
_NOT_NUMBER = _not_json("number")
_NOT_BOOLEAN = _not_json("boolean")


def boolean(value: Any) -> Fault | None:
    """True or false, no text and no number."""
    return None if type(value) is bool else _NOT_BOOLEAN


def decimal(value: Any) -> Fault | None:
    """Any finite JSON number."""
    if type(value) not in {int, float, Decimal}:
        return _NOT_NUMBER
    return None if abs(value) < float("inf") else Fault("value", "must be a finite number")


def whole(least: int) -> Test:
    """A whole number of 32 bits, written without fraction or exponent."""
    fault = Fault("value", f"must be a whole number from {least} to {_INTEGER_LIMIT - 1}")

    def test(value: Any) -> Fault | None:
        if type(value) is int:
            return None if least <= value < _INTEGER_LIMIT else fault
        return fault if type(value) in {float, Decimal} else _NOT_NUMBER

    return test


def string(value: Any) -> Fault | None:
    """Text of at most one million characters without control characters."""
    if type(value) is not str:
        return _NOT_TEXT
    if not value:
        return EMPTY
    if len(value) > MAX_STRING:
        return Fault("too-long", "must not be longer than 1 MB")
    # isprintable is the quick answer for nearly all text.
    if value.isprintable() or not _FORBIDDEN.search(value):
        return None
    return Fault("value", "contains a character that text must not have")


def matching(pattern: str, sentence: str) -> Test:
    """Text that matches as a whole."""
    match = re.compile(pattern, re.ASCII).fullmatch
    fault = Fault("value", sentence)

    def test(value: Any) -> Fault | None:
        if type(value) is not str:
            return _NOT_TEXT
        if match(value):
            return None
        return fault if value else EMPTY

    return test


def dated(pattern: str, sentence: str) -> Test:
    """Text that matches, and whose date is in the calendar."""
    match = re.compile(pattern, re.ASCII).fullmatch
    fault = Fault("value", sentence)

    def test(value: Any) -> Fault | None:
        if type(value) is not str:
            return _NOT_TEXT
        found = match(value)
        if found is None:
            return fault if value else EMPTY
        return None if _in_calendar(found) else Fault("value", "is a day that the calendar does not have")

    return test


def _in_calendar(found: re.Match[str]) -> bool:
    try:
        date(int(found["year"]), int(found["month"] or 1), int(found["day"] or 1))
    except ValueError:
        return False
    return True


_OID = r"urn:oid:[0-2](?:\.(?:0|[1-9]\d*))+"
_UUID = r"urn:uuid:[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
# Those that say they are OIDs or UUIDs must be such.
_uri = matching(
    rf"(?!urn:(?:oid|uuid):){_VISIBLE}+|{_OID}|{_UUID}",
    "must be a URI without blanks; after urn:oid: an OID, after urn:uuid: a UUID",
)


def base64(value: Any) -> Fault | None:
    """RFC 4648 base64; blanks and line ends between the groups are legal in R4."""
    if type(value) is not str:
        return _NOT_TEXT
    try:
        data = binascii.a2b_base64("".join(value.split()), strict_mode=True)
    except ValueError:
        return Fault("value", "must be base64")
    return None if data else EMPTY


TESTS: dict[str, Test] = {
    "boolean": boolean,
    "integer": whole(-_INTEGER_LIMIT),
    "unsignedInt": whole(0),
    "positiveInt": whole(1),
    "decimal": decimal,
    "string": string,
    "markdown": string,
    "code": matching(f"{_VISIBLE}+(?: {_VISIBLE}+)*", "must be a code: no blanks at the ends, single ones inside"),
    "id": matching(r"[A-Za-z0-9\-.]{1,64}", "must be 1 to 64 letters, digits, hyphens and dots"),
    "uri": _uri,
    "url": _uri,
    "canonical": _uri,
    "oid": matching(_OID, "must be an OID such as urn:oid:1.2.3"),
    "uuid": matching(_UUID, "must be a UUID such as urn:uuid:c757873d-ec9a-4326-a141-556f43239520"),
    "base64Binary": base64,
    "date": dated(_DATE % "", "must be a date such as 2020, 2020-01 or 2020-01-31"),
    "dateTime": dated(
        _DATE % f"(?:T{_CLOCK}{_ZONE})?",
        "must be a date, or a date and time with seconds and zone such as 2020-01-31T09:30:00+01:00",
    ),
    "instant": dated(
        rf"(?P<year>\d{{4}})-(?P<month>\d\d)-(?P<day>\d\d)T{_CLOCK}{_ZONE}",
        "must be a date and time with seconds and zone such as 2020-01-31T09:30:00.000Z",
    ),
    "time": matching(_CLOCK, "must be a time such as 09:30:00"),
}


def coded(test: Test, codes: frozenset[str], value_set: str) -> Test:
    """A test whose text must also be one of the codes."""
    fault = Fault("code-invalid", f"must be a code of the value set {value_set}")

    def check(value: Any) -> Fault | None:
        if type(value) is str and value in codes:
            return None
        return test(value) or fault

    return check


# Value sets that cannot be listed offline: their syntax is checked, UCUM units and LOINC answers are not.
SYNTAX: dict[str, Test] = {
    "mimetypes": matching(
        rf"[\w!#$&^.+\-]+(?:/[\w!#$&^.+*\-]+)?(?: ?; ?[\w!#$&^.+\-]+={_VISIBLE}+(?: {_VISIBLE}+)*)?",
        "must be a media type such as image/png",
    ),
    "currencies": matching("[A-Z]{3}", "must be a currency code of three letters such as EUR"),
}
