"""Lexical rules of the primitive types (https://hl7.org/fhir/R4/datatypes.html#primitive)."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """Why a value is not allowed: issue code and sentence, never the value itself."""

    code: str
    diagnostics: str


Test = Callable[[Any], Fault | None]
"""Judges any JSON value."""


class Primitive(NamedTuple):
    """How a value is judged: nearly all are of the JSON type and good at a glance, the test has the last word."""

    json: type
    good: Callable[[Any], object]
    """True only when the test would find no fault; asked only about values of the JSON type."""
    test: Test


_never: Callable[[Any], object] = frozenset[Any]().__contains__
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
_canonical = matching(
    rf"(?!urn:(?:oid|uuid):){_VISIBLE}+|(?:{_OID}|{_UUID})(?:\|{_VISIBLE}+)?",
    "must be a canonical address without blanks, perhaps with |version",
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


# --- the quick glance ------------------------------------------------------------------------------------------

_MANY = 4096
_SHORT = 100


def familiar(test: Test) -> Primitive:
    """For texts that come again and again, such as the addresses of code systems: those found good are remembered."""
    known: set[str] = set()

    def judge(value: Any) -> Fault | None:
        fault = test(value)
        if fault is None and len(value) <= _SHORT:
            if len(known) >= _MANY:
                known.clear()
            known.add(value)
        return fault

    return Primitive(str, known.__contains__, judge)


def unhurried(test: Test) -> Primitive:
    """For what is rare or long: the test alone."""
    return Primitive(object, _never, test)


def _numbered(least: int) -> Primitive:
    return Primitive(int, range(least, _INTEGER_LIMIT).__contains__, whole(least))


def _seen(pattern: str, test: Test) -> Primitive:
    return Primitive(str, re.compile(pattern, re.ASCII).fullmatch, test)


_text = _seen("[ -~]{1,1000}", string)
_SURE_DAY = (
    r"(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31"  # all but 29 February
)
_SURE_DATE = rf"(?!0000)\d{{4}}(?:-(?:(?:{_SURE_DAY})%s|0[1-9]|1[0-2]))?"
_ID = r"[A-Za-z0-9\-.]{1,64}"
_DATE_TIME = _DATE % f"(?:T{_CLOCK}{_ZONE})?"
_INSTANT = rf"(?P<year>\d{{4}})-(?P<month>\d\d)-(?P<day>\d\d)T{_CLOCK}{_ZONE}"

PRIMITIVES: Mapping[str, Primitive] = {
    "boolean": Primitive(bool, frozenset({True, False}).__contains__, boolean),
    "integer": _numbered(-_INTEGER_LIMIT),
    "unsignedInt": _numbered(0),
    "positiveInt": _numbered(1),
    "decimal": unhurried(decimal),
    "string": _text,
    "markdown": _text,
    "code": familiar(
        matching(f"{_VISIBLE}+(?: {_VISIBLE}+)*", "must be a code: no blanks at the ends, single ones inside")
    ),
    "id": _seen(_ID, matching(_ID, "must be 1 to 64 letters, digits, hyphens and dots")),
    "uri": familiar(_uri),
    "url": familiar(_uri),
    "canonical": familiar(_canonical),
    "oid": familiar(matching(_OID, "must be an OID such as urn:oid:1.2.3")),
    "uuid": familiar(matching(_UUID, "must be a UUID such as urn:uuid:c757873d-ec9a-4326-a141-556f43239520")),
    "base64Binary": unhurried(base64),
    "date": _seen(_SURE_DATE % "", dated(_DATE % "", "must be a date such as 2020, 2020-01 or 2020-01-31")),
    "dateTime": _seen(
        _SURE_DATE % f"(?:T{_CLOCK}{_ZONE})?",
        dated(
            _DATE_TIME,
            "must be a date, or a date and time with seconds and zone such as 2020-01-31T09:30:00+01:00",
        ),
    ),
    "instant": unhurried(
        dated(_INSTANT, "must be a date and time with seconds and zone such as 2020-01-31T09:30:00.000Z")
    ),
    "time": unhurried(matching(_CLOCK, "must be a time such as 09:30:00")),
}

# An element's id is no id: any text without blanks.
ELEMENT_ID = familiar(matching(f"{_VISIBLE}+", "must be text without blanks"))


def coded(primitive: Primitive, codes: frozenset[str], value_set: str) -> Primitive:
    """One whose text must also be one of the codes."""
    fault = Fault("code-invalid", f"must be a code of the value set {value_set}")

    def test(value: Any) -> Fault | None:
        if type(value) is str and value in codes:
            return None
        return primitive.test(value) or fault

    return Primitive(str, codes.__contains__, test)


# Value sets that cannot be listed offline: their syntax is checked, UCUM units and LOINC answers are not.
SYNTAX: Mapping[str, Primitive] = {
    "mimetypes": familiar(
        matching(
            rf"[\w!#$&^.+\-]+(?:/[\w!#$&^.+*\-]+)?(?: ?; ?[\w!#$&^.+\-]+={_VISIBLE}+(?: {_VISIBLE}+)*)?",
            "must be a media type such as image/png",
        )
    ),
    "currencies": familiar(matching("[A-Z]{3}", "must be a currency code of three letters such as EUR")),
}
