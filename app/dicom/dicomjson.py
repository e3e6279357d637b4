"""Attributes as the DICOM JSON Model writes them (PS3.18 Annex F)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from typing import Any, cast

from pydicom.datadict import dictionary_VR, tag_for_keyword

from app.errors import BadRequest

Json = dict[str, Any]

GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
WHOLE = frozenset({"IS", "US", "UL", "SS", "SL", "UV", "SV"})
DECIMAL = frozenset({"DS", "FD", "FL"})
SINGLE = frozenset({"LT", "ST", "UT", "UR"})
"""VRs in which a backslash is just a sign."""


@lru_cache(maxsize=4096)
def tag(keyword: str) -> str:
    """The tag as DICOM JSON writes it."""
    number = tag_for_keyword(keyword)
    if number is None:
        raise BadRequest("no such attribute")
    return f"{number:08X}"


def element(keyword: str, value: Any) -> Json:
    """One attribute; without a value it has only its VR (PS3.18 F.2.5). What is written already stays as it is."""
    if isinstance(value, dict):
        return cast("Json", value)
    vr = _vr(keyword)
    values = value if isinstance(value, list) else [] if value is None or value == "" else _split(vr, value)
    converted = [_value(vr, one) for one in values]
    return {"vr": vr, "Value": converted} if converted else {"vr": vr}


@lru_cache(maxsize=4096)
def _vr(keyword: str) -> str:
    return dictionary_VR(keyword).split(" ", 1)[0]


def item(attributes: Mapping[str, Any]) -> Json:
    """Attributes by keyword as one object, in the order of their tags."""
    return dict(sorted((tag(keyword), element(keyword, value)) for keyword, value in attributes.items()))


def _split(vr: str, value: Any) -> list[Any]:
    is_one = vr in SINGLE or not isinstance(value, str)
    return [value] if is_one else value.split("\\")


def _value(vr: str, value: Any) -> Any:
    if vr == "SQ":
        return item(value)
    text = _encodable(str(value).strip(" \0"))
    if vr == "PN":
        return {name: group for name, group in zip(GROUPS, text.split("="), strict=False) if group}
    if vr in WHOLE and text.lstrip("+-").isdecimal():
        return _whole(text)
    return _decimal(text) if vr in DECIMAL else text


def _encodable(text: str) -> str:
    """An invalid name may hold half of a surrogate pair, which no JSON in UTF-8 can."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _whole(text: str) -> int | str:
    try:
        number = int(text)
    except ValueError:
        return text
    # Beyond this a reader of JSON would take it for another number.
    return number if abs(number) < 2**53 else text


def _decimal(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if isfinite(number) else text
