"""Which worklist items a C-FIND identifier matches, and what the answers say (PS3.4 Annex K, C.2.2.2, C.2.2.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final, TypeAlias

from pydicom import charset
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from app import errors
from app.dicom.matching import (
    DAY_ZERO,
    READERS,
    WILDCARD_VRS,
    Interval,
    Reader,
    combined,
    interval,
    is_within,
    moment,
    name_matches,
    wildcard,
)

STEPS: Final = "ScheduledProcedureStepSequence"
START_DATE: Final = "ScheduledProcedureStepStartDate"
START_TIME: Final = "ScheduledProcedureStepStartTime"

CODE_KEYS: Final = frozenset({"CodeValue", "CodingSchemeDesignator", "LongCodeValue", "URNCodeValue"})
ENTITY_KEYS: Final = frozenset({"LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType"})

# The keys we match on: sequence ("" is the identifier itself) -> keywords. All else is returned, never matched.
REQUIRED_KEYS: Final = {
    "": frozenset({"PatientName", "PatientID", STEPS}),
    STEPS: frozenset({
        "ScheduledStationAETitle", START_DATE, START_TIME, "Modality", "ScheduledPerformingPhysicianName",
    }),
}  # fmt: skip
OPTIONAL_KEYS: Final = {
    "": frozenset({
        "AccessionNumber", "AdmissionID", "CurrentPatientLocation", "FillerOrderNumberImagingServiceRequest",
        "IssuerOfAccessionNumberSequence", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
        "PlacerOrderNumberImagingServiceRequest", "ReferringPhysicianName", "RequestedProcedureCodeSequence",
        "RequestedProcedureDescription", "RequestedProcedureID", "RequestedProcedurePriority",
        "RequestingPhysician", "RequestingService", "StudyInstanceUID",
    }),
    STEPS: frozenset({
        "ScheduledProcedureStepDescription", "ScheduledProcedureStepID", "ScheduledProcedureStepLocation",
        "ScheduledProcedureStepStatus", "ScheduledProtocolCodeSequence", "ScheduledStationName",
    }),
    "RequestedProcedureCodeSequence": CODE_KEYS,
    "ScheduledProtocolCodeSequence": CODE_KEYS,
    "IssuerOfAccessionNumberSequence": ENTITY_KEYS,
}  # fmt: skip

# Never matched and never echoed: they describe the identifier, not the patient (PS3.4 K.4.1.1.3).
UNMATCHED: Final = frozenset({"SpecificCharacterSet", "TimezoneOffsetFromUTC"})
TEXT_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
UTF_8: Final = "ISO_IR 192"
DEFAULT_REPERTOIRE: Final = frozenset({"", "ISO_IR 6", "ISO 2022 IR 6"})


@dataclass(frozen=True, slots=True)
class WorklistKeys:
    """What a source of items may use to read fewer of them; it may ignore any, the exact matching follows."""

    calling_ae: str
    patient_id: str | None = None
    accession: str | None = None
    modality: str | None = None
    station_ae: str | None = None
    first_day: date | None = None
    last_day: date | None = None


Worklist: TypeAlias = Callable[[WorklistKeys], Iterable[Dataset]]


def worklist_keys(query: Dataset, calling_ae: str) -> WorklistKeys:
    """The keys of an identifier that hold one plain value, and the days it spans."""
    steps = _only_item(query, STEPS)
    days = _interval(_element(steps, START_DATE), READERS["DA"])
    return WorklistKeys(
        calling_ae=calling_ae,
        patient_id=_plain(query, "PatientID"),
        accession=_plain(query, "AccessionNumber"),
        modality=_plain(steps, "Modality"),
        station_ae=_plain(steps, "ScheduledStationAETitle"),
        first_day=days[0].date() if days and days[0] else None,
        last_day=(days[1] - timedelta(microseconds=1)).date() if days and days[1] else None,
    )


def check(query: Dataset) -> None:
    """Refuse an identifier that cannot be understood, before any item is read."""
    for element in query:
        if element.VR != "SQ":
            continue
        if len(element.value) > 1:
            raise errors.BadRequest(f"{element.keyword} has more than one item")
        for item in element.value:
            check(item)
    for element in query:
        reader = READERS.get(element.VR)
        if reader and element.keyword in _matched_keywords():
            _interval(element, reader)


def unsupported(query: Dataset, parent: str = "") -> list[str]:
    """Keywords (or tags) of keys with a value that we return but do not match; they earn status FF01."""
    found: list[str] = []
    for element in query:
        if _is_universal(element) or element.keyword in UNMATCHED or element.tag.element == 0:
            continue
        if not _is_matched(element.keyword, parent):
            found.append(element.keyword or str(element.tag))
        elif element.VR == "SQ":
            found += unsupported(element.value[0], element.keyword)
    return found


def answers(query: Dataset, items: Iterable[Dataset]) -> Iterator[Dataset]:
    """One answer per matching Scheduled Procedure Step."""
    for item in items:
        for step in _one_step_each(item):
            if matches(query, step):
                yield answer(query, step)


def matches(query: Dataset, item: Dataset) -> bool:
    """Whether the item (with one Scheduled Procedure Step) fits every supported key of the identifier."""
    return _matches(query, item, "")


def _matches(query: Dataset, item: Dataset, parent: str) -> bool:
    combined = parent == STEPS and _is_combined_range(query)
    if combined and not _in_combined_range(query, item):
        return False
    return all(
        _matches_element(element, item)
        for element in query
        if _is_matched(element.keyword, parent) and not (combined and element.keyword in {START_DATE, START_TIME})
    )


def _matches_element(key: DataElement, item: Dataset) -> bool:
    if _is_universal(key):
        return True
    if key.tag not in item or item[key.tag].is_empty:
        return False
    return _value_matches(key, item[key.tag])


def _value_matches(key: DataElement, stored: DataElement) -> bool:
    match key.VR:
        case "SQ":
            return any(_matches(key.value[0], content, key.keyword) for content in stored.value)
        case "DA" | "TM":
            reader = READERS[key.VR]
            return _in_interval(_read(stored, reader), _interval(key, reader))
        case "PN":
            fits = name_matches
        case vr if vr in WILDCARD_VRS:
            fits = wildcard
        case _:
            fits = str.__eq__
    return any(fits(_text(wanted), _text(value)) for wanted in _values(key) for value in _values(stored))


# --- keys -----------------------------------------------------------------------------------------------------------


def _is_matched(keyword: str, parent: str) -> bool:
    return keyword in REQUIRED_KEYS.get(parent, ()) or keyword in OPTIONAL_KEYS.get(parent, ())


def _matched_keywords() -> frozenset[str]:
    return frozenset().union(*REQUIRED_KEYS.values(), *OPTIONAL_KEYS.values())


def _is_universal(key: DataElement) -> bool:
    if key.VR == "SQ":
        return not key.value or all(_is_universal(element) for element in key.value[0])
    if key.VR == "PN":
        # Consoles also write "all names" as `*^*`.
        return key.is_empty or set(_text(key.value)) <= {"*", "^", "="}
    return key.is_empty or (key.VR in WILDCARD_VRS and set(_text(key.value)) <= {"*"})


def _values(element: DataElement) -> list[Any]:
    return list(element.value) if element.VM > 1 else [element.value]


def _text(value: Any) -> str:
    return str(value).strip(" \0")


def _element(dataset: Dataset, keyword: str) -> DataElement | None:
    return dataset[keyword] if keyword in dataset else None  # noqa: SIM401  get() gives the value, not the element


def _only_item(query: Dataset, keyword: str) -> Dataset:
    sequence = query.get(keyword)
    return sequence[0] if sequence else Dataset()


def _plain(query: Dataset, keyword: str) -> str | None:
    element = _element(query, keyword)
    if element is None or element.is_empty or element.VM > 1:
        return None
    text = _text(element.value)
    return None if not text or set(text) & {"*", "?"} else text


# --- date and time --------------------------------------------------------------------------------------------------


def _interval(key: DataElement | None, reader: Reader) -> Interval | None:
    """None when the key matches everything."""
    if key is None or key.is_empty:
        return None
    return interval(key.keyword, _text(key.value), reader)


def _read(stored: DataElement, reader: Reader) -> datetime | None:
    return moment(_text(stored.value), reader)


def _in_interval(stored: datetime | None, wanted: Interval | None) -> bool:
    return is_within(stored, wanted or (None, None))


def _is_range(query: Dataset, keyword: str) -> bool:
    return keyword in query and "-" in str(query[keyword].value or "")


def _is_combined_range(query: Dataset) -> bool:
    """A time range beside a date: both together are one span (PS3.4 K.6.1.2.2), unlike in Query/Retrieve."""
    return _is_range(query, START_TIME) and START_DATE in query and not query[START_DATE].is_empty


def _in_combined_range(query: Dataset, item: Dataset) -> bool:
    stored_day, stored_time = _element(item, START_DATE), _element(item, START_TIME)
    if stored_day is None or stored_time is None:
        return False
    day, time = _read(stored_day, READERS["DA"]), _read(stored_time, READERS["TM"])
    if day is None or time is None:
        return False
    return _in_interval(day + (time - DAY_ZERO), _combined(query))


def _combined(query: Dataset) -> Interval:
    days = _interval(query[START_DATE], READERS["DA"]) or (None, None)
    return combined(days, _interval(query[START_TIME], READERS["TM"]) or (None, None))


# --- answers --------------------------------------------------------------------------------------------------------


def answer(query: Dataset, item: Dataset) -> Dataset:
    """The requested attributes of one item, empty where unknown, in a character set the caller can read."""
    result = _requested(query, item)
    if STEPS in result and len(result[STEPS].value) > 1:
        raise errors.Unprocessable("a worklist item has more than one Scheduled Procedure Step")
    terms = _character_set(query, result)
    if terms:
        result.SpecificCharacterSet = terms
    return result


def _requested(query: Dataset, item: Dataset) -> Dataset:
    result = Dataset()
    for key in query:
        if key.keyword == "SpecificCharacterSet" or key.tag.element == 0 or key.tag.is_private:
            continue
        if key.VR == "SQ":
            result[key.tag] = DataElement(key.tag, "SQ", _requested_items(key, item))
        else:
            result[key.tag] = _copy(item, key.tag, key.VR)
    return result


def _requested_items(key: DataElement, item: Dataset) -> Sequence:
    stored = item[key.tag].value if key.tag in item else ()
    if not key.value or not len(key.value[0]):
        return Sequence([deepcopy(content) for content in stored])
    return Sequence([_requested(key.value[0], content) for content in stored])


def _copy(item: Dataset, tag: BaseTag, vr: str) -> DataElement:
    if tag not in item:
        return DataElement(tag, vr, None)
    stored = item[tag]
    # A PersonName remembers the bytes it was read from; its text alone can be written in any character set.
    value = [str(name) for name in _values(stored)] if stored.VR == "PN" and not stored.is_empty else stored.value
    return DataElement(tag, stored.VR, deepcopy(value))


def _character_set(query: Dataset, result: Dataset) -> str | list[str] | None:
    texts = [text for text in _texts(result) if not text.isascii()]
    if not texts:
        return None
    key = _element(query, "SpecificCharacterSet")
    asked = [str(term or "") for term in _values(key)] if key is not None else []
    if any(asked) and all(_encodable(text, asked) for text in texts):
        return asked if len(asked) > 1 else asked[0]
    return UTF_8


def _encodable(text: str, terms: list[str]) -> bool:
    if not all(term in charset.python_encoding for term in terms):
        return False
    encodings = charset.convert_encodings(list(terms))
    # pydicom writes Latin 1 where no set is named, but that is ASCII (PS3.5 6.1.2.1).
    strict = ["ascii" if term in DEFAULT_REPERTOIRE else codec for term, codec in zip(terms, encodings, strict=True)]
    if not all(any(_encodes(letter, codec) for codec in strict) for letter in text):
        return False
    return charset.decode_bytes(charset.encode_string(text, encodings), encodings, set()) == text


def _encodes(letter: str, encoding: str) -> bool:
    try:
        letter.encode(encoding)
    except UnicodeError:
        return False
    return True


def _texts(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _texts(item)
        elif element.VR in TEXT_VRS and not element.is_empty:
            for value in _values(element):
                # Each group and component is encoded by itself (PS3.5 6.1.2.5.3).
                yield from str(value).replace("=", "^").split("^") if element.VR == "PN" else [str(value)]


def _one_step_each(item: Dataset) -> Iterator[Dataset]:
    """The item once per step; the source normally gives one already."""
    steps = item.get(STEPS) or []
    if len(steps) < 2:
        yield item
        return
    for step in steps:
        single = Dataset()
        single.update(item)
        single[Tag(STEPS)] = DataElement(Tag(STEPS), "SQ", Sequence([step]))
        yield single
