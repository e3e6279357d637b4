"""What a search demands of a study, a series or an instance, key by key (PS3.4 C.2.2.2, PS3.18 section 8.3.4.1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from pydicom.datadict import dictionary_VR

from app.dicom.matching import (
    DAY_ZERO,
    READERS,
    WILDCARD_VRS,
    Interval,
    combined,
    interval,
    is_within,
    moment,
    name_matches,
    wildcard,
)
from app.dicom.paths import Level

Row = dict[str, Any]
"""Attributes by keyword: text, a number, a list of them, or the items of a sequence."""
Source = Literal["store", "archive"]

LISTS = frozenset({"Modality", "ModalitiesInStudy"})
"""A list of these matches any of its values, as everybody writes it."""
SPANS = (("StudyDate", "StudyTime"), ("SeriesDate", "SeriesTime"), ("InstanceCreationDate", "InstanceCreationTime"))
"""A day and its time; a range of times beside days is one span (PS3.18 section 8.3.4.1.1)."""
IDENTITY = frozenset({"PatientID", "IssuerOfPatientID"})
"""A number and who gave it: one of the patient's numbers has to meet both."""
OTHERS = "OtherPatientIDsSequence"
LIST = re.compile(r"[\\,]")
SINGLE = frozenset({"LT", "ST", "UT", "UR"})
"""Values in which a backslash is just a sign."""

# --- the keys -------------------------------------------------------------------------------------------------------

KEYS: Mapping[Level, Mapping[str, Source]] = {
    "study": {
        "StudyInstanceUID": "store",
        "StudyDate": "store",
        "StudyTime": "store",
        "AccessionNumber": "store",
        "IssuerOfAccessionNumberSequence": "store",
        "ModalitiesInStudy": "store",
        "SOPClassesInStudy": "store",
        "StudyDescription": "store",
        "StudyID": "store",
        "PatientName": "store",
        "PatientID": "store",
        "IssuerOfPatientID": "store",
        "OtherPatientIDs": "store",
        "OtherPatientIDsSequence": "store",
        "PatientBirthDate": "store",
        "PatientSex": "store",
        "NumberOfStudyRelatedSeries": "store",
        "NumberOfStudyRelatedInstances": "store",
        "ReferringPhysicianName": "archive",
        "RequestingPhysician": "archive",
        "RequestedProcedureDescription": "archive",
        "InstitutionName": "archive",
    },
    "series": {
        "SeriesInstanceUID": "archive",
        "Modality": "archive",
        "SeriesNumber": "archive",
        "SeriesDescription": "archive",
        "SeriesDate": "archive",
        "SeriesTime": "archive",
        "BodyPartExamined": "archive",
        "ProtocolName": "archive",
        "StationName": "archive",
        "Manufacturer": "archive",
        "OperatorsName": "archive",
        "PerformedProcedureStepDescription": "archive",
        "NumberOfSeriesRelatedInstances": "archive",
        "RequestAttributesSequence": "store",
    },
    "instance": {
        "SOPInstanceUID": "archive",
        "SOPClassUID": "archive",
        "InstanceNumber": "archive",
        "NumberOfFrames": "archive",
        "AcquisitionNumber": "archive",
        "InstanceCreationDate": "archive",
        "InstanceCreationTime": "archive",
    },
}
"""What can be asked for at each level, and whose knowledge answers."""
ABOVE: Mapping[Level, tuple[Level, ...]] = {
    "study": ("study",),
    "series": ("study", "series"),
    "instance": ("study", "series", "instance"),
}
"""A search takes the keys of its level and of those above."""


def known(level: Level) -> frozenset[str]:
    """The keywords that a search of this level takes."""
    return frozenset(keyword for one in ABOVE[level] for keyword in KEYS[one])


# --- one key --------------------------------------------------------------------------------------------------------


vr_of = lru_cache(maxsize=1024)(dictionary_VR)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One key: an attribute, with the sequences it stands in, and the values of which it must have one.

    Without a value the attribute must be empty.
    """

    path: tuple[str, ...]
    values: tuple[str, ...]

    @property
    def keyword(self) -> str:
        """The attribute, without its sequences."""
        return self.path[-1]

    def plain(self) -> tuple[str, ...]:
        """The values, if each is one value as it may stand in an image: without wildcards."""
        return () if any(set(value) & {"*", "?"} for value in self.values) else self.values


def is_universal(keyword: str, text: str) -> bool:
    """Whether the value matches everything (PS3.4 C.2.2.2.3)."""
    # Consoles also write "all names" as `*^*`.
    return set(text) <= ({"*", "^", "="} if vr_of(keyword) == "PN" else {"*"})


def check(keyword: str, text: str) -> None:
    """BadRequest for a date or time that is neither a value nor a range."""
    reader = READERS.get(vr_of(keyword))
    if reader is not None:
        interval(keyword, text, reader)


_interval = lru_cache(maxsize=256)(interval)


def _equal(_keyword: str, wanted: str, stored: str) -> bool:
    return wanted == stored


def _in_range(keyword: str, wanted: str, stored: str) -> bool:
    reader = READERS[vr_of(keyword)]
    return is_within(moment(stored, reader), _interval(keyword, wanted, reader))


def _same_number(_keyword: str, wanted: str, stored: str) -> bool:
    try:
        return float(wanted) == float(stored)
    except ValueError:
        return False


Fits = Callable[[str, str, str], bool]
FITS: Mapping[str, Fits] = {
    **dict.fromkeys(WILDCARD_VRS, lambda _, wanted, stored: wildcard(wanted, stored)),
    "PN": lambda _, wanted, stored: name_matches(wanted, stored),
    **dict.fromkeys(READERS, _in_range),
    **dict.fromkeys(("IS", "DS", "US", "UL", "SS", "SL", "FL", "FD"), _same_number),
}
"""How each VR matches; all others must be equal."""


def texts(keyword: str, value: Any) -> list[str]:
    """The values of an attribute that are not empty."""
    vr = vr_of(keyword)
    if isinstance(value, str) and "\\" in value and vr not in SINGLE:
        value = value.split("\\")
    every: list[Any] = value if isinstance(value, list) else [value]
    found = ("" if one is None else str(one).strip(" \0") for one in every)
    return [one for one in found if one]


def _has(wanted: Wanted, value: Any) -> bool:
    keyword = wanted.keyword
    stored = texts(keyword, value)
    if not wanted.values:
        return not stored
    fits = FITS.get(vr_of(keyword), _equal)
    return any(fits(keyword, one, each) for one in wanted.values for each in stored)


# --- all keys of a row ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Demand:
    """All keys together: plain ones, those that are only met together, and those of one item of a sequence."""

    own: tuple[Wanted, ...]
    identity: tuple[Wanted, ...]
    spans: tuple[tuple[Wanted, Wanted], ...]
    within: tuple[tuple[str, Demand], ...]

    def meets(self, row: Mapping[str, Any]) -> bool:
        """Whether attributes meet every key."""
        return (
            all(_has(one, row.get(one.keyword)) for one in self.own)
            and all(_in_span(row, *pair) for pair in self.spans)
            and self._is_identified(row)
            and all(any(map(inner.meets, row.get(sequence) or [{}])) for sequence, inner in self.within)
        )

    def _is_identified(self, row: Mapping[str, Any]) -> bool:
        if not self.identity:
            return True
        numbers = [row, *(row.get(OTHERS) or [])]
        return any(all(_has(one, number.get(one.keyword)) for one in self.identity) for number in numbers)


@lru_cache(maxsize=256)
def demand(wanted: tuple[Wanted, ...]) -> Demand:
    """What these keys demand of a row."""
    own = {one.keyword: one for one in wanted if len(one.path) == 1}
    spans = tuple((own.pop(days), own.pop(times)) for days, times in SPANS if _is_span(own.get(days), own.get(times)))
    identity = tuple(own.pop(keyword) for keyword in sorted(IDENTITY & set(own)))
    deeper: dict[str, list[Wanted]] = {}
    for one in wanted:
        if len(one.path) > 1:
            deeper.setdefault(one.path[0], []).append(Wanted(one.path[1:], one.values))
    within = tuple((sequence, demand(tuple(keys))) for sequence, keys in deeper.items())
    return Demand(tuple(own.values()), identity, spans, within)


def _is_span(days: Wanted | None, times: Wanted | None) -> bool:
    return bool(days and times and days.values and any("-" in value for value in times.values))


def _in_span(row: Mapping[str, Any], days: Wanted, times: Wanted) -> bool:
    day, time = _moment(row, days.keyword), _moment(row, times.keyword)
    return day is not None and time is not None and is_within(day + (time - DAY_ZERO), span_of(days, times))


def _moment(row: Mapping[str, Any], keyword: str) -> datetime | None:
    return moment(next(iter(texts(keyword, row.get(keyword))), ""), READERS[vr_of(keyword)])


def span_of(days: Wanted, times: Wanted | None = None) -> Interval:
    """What these days span, or these days and times together."""
    first = _interval(days.keyword, days.values[0], READERS["DA"])
    return combined(first, _interval(times.keyword, times.values[0], READERS["TM"])) if times else first
