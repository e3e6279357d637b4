"""What a QIDO-RS query string asks for; one that is not understood whole is refused (PS3.18 sections 8.3.4, 10.6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from pydicom.datadict import dictionary_has_tag, keyword_dict, keyword_for_tag, tag_for_keyword

from app.dicom import criteria
from app.dicom.criteria import KEYS, LIST, LISTS, Row, Wanted
from app.dicom.dicomjson import element as element
from app.dicom.dicomjson import tag as tag
from app.dicom.matching import READERS
from app.dicom.paths import Level
from app.errors import BadRequest, NotAcceptable

MAX_RESULTS = 1000
MAX_FIELDS = 100
MAX_VALUES = 1000
"""A list of UIDs has at most so many."""
MAX_LENGTH = 1024
"""No value of an attribute that can be asked for is longer, but a list."""
MAX_DEPTH = 4
HEX_TAG = re.compile(r"[0-9A-Fa-f]{8}")
SHOWN = re.compile(r"[\w.]{1,64}", re.ASCII)
EMPTY = '""'
"""Asks for what has no value, if emptyvaluematching says so (PS3.4 C.2.2.2.7)."""
JSON_TYPES = frozenset({"application/dicom+json", "application/json", "*/*"})
CHARSETS = frozenset({"utf-8", "utf8", ""})
SWITCHES = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")


@dataclass(frozen=True, slots=True)
class Query:
    """What to match, which attributes to add, and which page."""

    level: Level
    wanted: tuple[Wanted, ...] = ()
    include: frozenset[str] = frozenset()
    everything: bool = False
    """`includefield=all`"""
    limit: int = MAX_RESULTS
    offset: int = 0
    fuzzy: bool = False

    def at(self, level: Level) -> tuple[Wanted, ...]:
        """The keys of this level."""
        return tuple(one for one in self.wanted if one.path[0] in KEYS[level])

    def needs(self, level: Level, source: criteria.Source) -> bool:
        """Whether a key of the level can only be answered by this source."""
        return any(KEYS[level].get(one.path[0]) == source for one in self.wanted)

    def meets(self, row: Row, level: Level) -> bool:
        """Whether a row meets every key of the level."""
        return criteria.demand(self.at(level)).meets(row)

    def asks_for(self, row: Row) -> set[str]:
        """The attributes of a row to be sent besides the required ones."""
        return {one for one in row if self.everything or one in self.include}


@dataclass(slots=True)
class _Reading:
    """A query string as far as it was read."""

    level: Level
    values: dict[tuple[str, ...], list[str]] = field(default_factory=dict[tuple[str, ...], list[str]])
    include: set[str] = field(default_factory=set[str])
    numbers: dict[str, int] = field(default_factory=dict[str, int])
    switches: dict[str, bool] = field(default_factory=dict[str, bool])


def parse(level: Level, query_string: str) -> Query:
    """The query of a request; anything it does not know is refused, since ignoring it would widen the answer."""
    try:
        pairs = parse_qsl(query_string, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise BadRequest(f"the query is not percent-encoded UTF-8 with at most {MAX_FIELDS} parameters") from error
    reading = _Reading(level)
    for name, value in pairs:
        if "\0" in name + value:
            raise BadRequest("a query parameter has no NUL character")
        PARAMETERS.get(name, _match)(reading, name, value)
    wanted = tuple(found for path, values in reading.values.items() if (found := _wanted(path, values, reading)))
    # What was asked for is told, with or without a value (PS3.18 section 10.6.3.3).
    include = frozenset(reading.include | {path[0] for path in reading.values})
    limit, offset = min(reading.numbers.get("limit", MAX_RESULTS), MAX_RESULTS), reading.numbers.get("offset", 0)
    fuzzy = reading.switches.get("fuzzymatching", False)
    return Query(level, wanted, include - {"all"}, "all" in include, limit, offset, fuzzy)


# --- what shapes the answer -----------------------------------------------------------------------------------------


def _number(reading: _Reading, name: str, value: str) -> None:
    _once(name, reading.numbers)
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise BadRequest(f"{name} is not a whole number")
    reading.numbers[name] = int(value)


def _switch(reading: _Reading, name: str, value: str) -> None:
    _once(name, reading.switches)
    if value not in {"true", "false"}:
        raise BadRequest(f"{name} is true or false")
    reading.switches[name] = value == "true"


def _include(reading: _Reading, _name: str, value: str) -> None:
    for named in filter(None, value.split(",")):
        if named == "all":
            reading.include.add("all")
            continue
        try:
            reading.include.add(_path(named)[0])
        except BadRequest as error:
            raise BadRequest(f"includefield names what is no attribute of the standard: {_shown(named)}") from error


def _accept(_reading: _Reading, _name: str, value: str) -> None:
    offered = {one.partition(";")[0].strip() for one in value.split(",")}
    if not offered & JSON_TYPES:
        raise NotAcceptable("this is sent as application/dicom+json")


def _charset(_reading: _Reading, _name: str, value: str) -> None:
    if value.lower() not in CHARSETS:
        raise NotAcceptable("this is sent in UTF-8")


def _once(name: str, given: Mapping[str, Any]) -> None:
    if name in given:
        raise BadRequest(f"{name} is given twice")


# --- what must match ------------------------------------------------------------------------------------------------


def _match(reading: _Reading, name: str, value: str) -> None:
    try:
        path = _path(name)
    except BadRequest as error:
        raise BadRequest(f"{reading.level} searches do not know the parameter {_shown(name)}") from error
    if path[0] not in criteria.known(reading.level):
        raise BadRequest(f"{reading.level} searches cannot match {'.'.join(path)}")
    if (criteria.vr_of(path[-1]) == "SQ") or any(criteria.vr_of(one) != "SQ" for one in path[:-1]):
        raise BadRequest(f"{'.'.join(path)} does not name a value: that is sequence.attribute")
    if path in reading.values and not path[-1].endswith("UID"):
        raise BadRequest(f"{'.'.join(path)} is given twice")
    reading.values.setdefault(path, []).append(value)


def _wanted(path: tuple[str, ...], given: list[str], reading: _Reading) -> Wanted | None:
    """The key; None when it restricts nothing."""
    keyword = path[-1]
    if given == [EMPTY] and reading.switches.get("emptyvaluematching"):
        return Wanted(path, ())
    is_list = keyword in LISTS or criteria.vr_of(keyword) == "UI"
    if not is_list and criteria.vr_of(keyword) not in READERS and reading.switches.get("multiplevaluematching"):
        values = [one for value in given for one in value.split("\\")]
    else:
        values = [one for value in given for one in LIST.split(value)] if is_list else given
    values = [stripped for value in values if (stripped := value.strip(" "))]
    if not values or any(criteria.is_universal(keyword, value) for value in values):
        return None
    _check(keyword, values)
    return Wanted(path, tuple(dict.fromkeys(values)))


def _check(keyword: str, values: list[str]) -> None:
    if len(values) > MAX_VALUES or any(len(value) > MAX_LENGTH for value in values):
        raise BadRequest(f"{keyword} has too many values, or a value that is longer than any there is")
    for value in values:
        criteria.check(keyword, value)


def _path(name: str) -> tuple[str, ...]:
    """Keywords of an attribute and of the sequences it stands in."""
    steps = name.split(".")
    if len(steps) > MAX_DEPTH:
        raise BadRequest
    return tuple(_keyword(step) for step in steps)


def _keyword(name: str) -> str:
    if HEX_TAG.fullmatch(name):
        number = int(name, 16)
        found = keyword_for_tag(number) if dictionary_has_tag(number) else ""
    else:
        found = name if tag_for_keyword(name) is not None else _spelled().get(name.lower(), "")
    if not found:
        raise BadRequest("there is no such attribute")
    return found


def _spelled() -> Mapping[str, str]:
    """The keywords by themselves in lower case: names are understood in any case."""
    if not _SPELLED:
        _SPELLED.update({keyword.lower(): keyword for keyword in keyword_dict if keyword})
    return _SPELLED


_SPELLED: dict[str, str] = {}


def _shown(name: str) -> str:
    return name if SHOWN.fullmatch(name) else "(unprintable)"


Parameter = Callable[[_Reading, str, str], None]
PARAMETERS: Mapping[str, Parameter] = {
    "includefield": _include,
    "limit": _number,
    "offset": _number,
    **dict.fromkeys(SWITCHES, _switch),
    "accept": _accept,
    "charset": _charset,
}
"""What is no attribute; all else is a key to match."""
