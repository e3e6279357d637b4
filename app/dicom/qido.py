"""QIDO-RS answered from our own rows and the archive's main tags; no query is ever forwarded (PS3.18 section 10.6)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from app.dicom.holdings import Holding, Instance, Series
from app.dicom.orthanc import Orthanc
from app.dicom.paths import Level
from app.errors import BadRequest
from app.store.studies import HeldStudy

Json = dict[str, Any]
Row = dict[str, Any]

MAX_RESULTS = 1000
CHUNK = 200
LIST = re.compile(r"[\\,]")
HEX_TAG = re.compile(r"[0-9A-Fa-f]{8}")
DATE_RANGE = re.compile(r"(\d{8})?(-)?(\d{8})?")
TIME_RANGE = re.compile(r"(\d{2,6}(?:\.\d{1,6})?)?(-)?(\d{2,6}(?:\.\d{1,6})?)?")

STUDY_FIELDS = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "InstanceAvailability",
    "ModalitiesInStudy",
    "ReferringPhysicianName",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
)
SERIES_FIELDS = (
    "Modality",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDate",
    "SeriesTime",
    "BodyPartExamined",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "NumberOfSeriesRelatedInstances",
    "StudyInstanceUID",
)
INSTANCE_FIELDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "InstanceAvailability",
    "InstanceNumber",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "StudyInstanceUID",
    "SeriesInstanceUID",
)
FIELDS: Mapping[Level, tuple[str, ...]] = {
    "study": STUDY_FIELDS,
    "series": SERIES_FIELDS,
    "instance": INSTANCE_FIELDS,
}
IMAGE_FIELDS = ("Rows", "Columns", "BitsAllocated")
"""Not among the archive's main tags: read per series, for instances that are returned."""

STUDY_KEYS = frozenset(
    {"StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName", "StudyDescription"}
    | {"PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"}
)
SERIES_KEYS = frozenset({"Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "BodyPartExamined"})
INSTANCE_KEYS = frozenset({"SOPClassUID", "SOPInstanceUID", "InstanceNumber"})
KEYS: Mapping[Level, frozenset[str]] = {
    "study": STUDY_KEYS,
    "series": STUDY_KEYS | SERIES_KEYS,
    "instance": STUDY_KEYS | SERIES_KEYS | INSTANCE_KEYS,
}
# Filled only once the series of a study are known.
LATE_KEYS = frozenset({"ModalitiesInStudy"})


@dataclass(frozen=True, slots=True)
class Query:
    """What to match, which attributes to add, and which page."""

    match: Mapping[str, str]
    include: frozenset[str]
    limit: int
    offset: int
    fuzzy: bool = False

    def matches(self, row: Row, keys: Iterable[str]) -> bool:
        """Whether the row meets every one of these keys that the query names."""
        return all(_matches(key, self.match[key], row.get(key)) for key in keys if key in self.match)


def parse(level: Level, query_string: str) -> Query:
    """The query of a request; anything it does not know is refused, since ignoring it would widen the answer."""
    match: dict[str, str] = {}
    include: set[str] = set()
    page = {"limit": MAX_RESULTS, "offset": 0}
    fuzzy = False
    try:
        pairs = parse_qsl(query_string, keep_blank_values=True, max_num_fields=100, errors="strict")
    except ValueError as error:
        raise BadRequest("the query cannot be read") from error
    for name, value in pairs:
        if name == "includefield":
            include |= _include(level, value)
        elif name in page:
            page[name] = _number(name, value)
        elif name == "fuzzymatching":
            fuzzy = _boolean(name, value)
        else:
            _add(match, _key(level, name), value)
    return Query(match, frozenset(include), min(page["limit"], MAX_RESULTS), page["offset"], fuzzy)


def _key(level: Level, name: str) -> str:
    keyword = _keyword(name)
    if keyword not in KEYS[level]:
        raise BadRequest(f"{level} searches do not know one of the query parameters")
    return keyword


def _keyword(name: str) -> str:
    return keyword_for_tag(int(name, 16)) if HEX_TAG.fullmatch(name) else name


def _add(match: dict[str, str], keyword: str, value: str) -> None:
    if not keyword.endswith("UID"):
        if keyword in match:
            raise BadRequest(f"{keyword} is given twice")
        _check(keyword, value)
        match[keyword] = value
    elif keyword in match:
        match[keyword] += f",{value}"
    else:
        match[keyword] = value


def _check(keyword: str, value: str) -> None:
    pattern = {"DA": DATE_RANGE, "TM": TIME_RANGE}.get(dictionary_VR(keyword))
    if pattern is not None and value not in {"", "*"} and not _range(pattern, value):
        raise BadRequest(f"{keyword} is not a value or range that can be read")


def _range(pattern: re.Pattern[str], value: str) -> tuple[str, str] | None:
    found = pattern.fullmatch(value)
    if found is None or not (found[1] or found[3]) or (found[1] and found[3] and not found[2]):
        return None
    low, dash, high = found[1] or "", found[2], found[3] or ""
    return (low, high) if dash else (low, low)


def _include(level: Level, value: str) -> set[str]:
    named = {_keyword(name) for name in value.split(",") if name}
    if "all" in named:
        return {"all"}
    if any(tag_for_keyword(keyword) is None for keyword in named):
        raise BadRequest("includefield names an attribute that DICOM does not have")
    return named - set(FIELDS[level])


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise BadRequest(f"{name} is not a number")
    return int(value)


def _boolean(name: str, value: str) -> bool:
    if value not in {"true", "false"}:
        raise BadRequest(f"{name} is true or false")
    return value == "true"


def _matches(keyword: str, wanted: str, value: Any) -> bool:
    if wanted in {"", "*"}:
        return True
    if keyword.endswith("UID"):
        return value in LIST.split(wanted)
    values = value if isinstance(value, list) else [value]
    if keyword in {"Modality", "ModalitiesInStudy"}:
        return not set(LIST.split(wanted)).isdisjoint(values)
    return any(_text_matches(keyword, wanted, "" if one is None else str(one).strip()) for one in values)


def _text_matches(keyword: str, wanted: str, text: str) -> bool:
    vr = dictionary_VR(keyword)
    if vr in {"DA", "TM"}:
        low, high = _range(DATE_RANGE if vr == "DA" else TIME_RANGE, wanted) or ("", "")
        return bool(text) and (not low or text >= low) and (not high or text[: len(high)] <= high)
    if vr == "IS":
        return text == wanted.strip()
    # This translation is atomic between stars, so that no pattern of a caller takes exponential time.
    pattern = fnmatch.translate(wanted.replace("[", "[[]"))
    groups = text.split("=") if vr == "PN" else []
    flags = re.IGNORECASE if vr == "PN" else 0
    return any(re.match(pattern, group.strip(), flags) for group in [text, *groups])


@dataclass(frozen=True, slots=True)
class Searcher:
    """What a search needs: the archive, the base of URLs, and the query."""

    orthanc: Orthanc
    base: str
    query: Query

    def page(self, rows: Iterator[Json]) -> list[Json]:
        """The part of the matches that was asked for."""
        return list(islice(rows, self.query.offset, self.query.offset + self.query.limit))

    def studies(self, held: Sequence[HeldStudy]) -> Iterator[Json]:
        """The studies that match, of those the caller may see."""
        for start in range(0, len(held), CHUNK):
            rows = self._study_rows(held[start : start + CHUNK])
            for row in rows:
                if self.query.matches(row, LATE_KEYS):
                    yield self._json("study", row, f"/studies/{row['StudyInstanceUID']}")

    def series(self, holding: Holding) -> Iterator[Json]:
        """The series that match, of one study."""
        study = study_row(holding)
        if not self.query.matches(study, STUDY_KEYS):
            return
        for series in holding.series.values():
            row = study | series_row(series)
            if self.query.matches(row, SERIES_KEYS):
                yield self._json("series", row, f"/studies/{holding.study_uid}/series/{series.uid}")

    def instances(self, holding: Holding, series_uid: str | None = None) -> Iterator[Json]:
        """The instances that match, of one study or one of its series."""
        study = study_row(holding)
        if not self.query.matches(study, STUDY_KEYS):
            return
        for series in holding.series.values():
            row = study | series_row(series)
            if series_uid in {None, series.uid} and self.query.matches(row, SERIES_KEYS):
                yield from self._instances(row, series)

    def _instances(self, above: Row, series: Series) -> Iterator[Json]:
        rows = [(instance, above | instance_row(instance)) for instance in series.instances.values()]
        rows = [(instance, row) for instance, row in rows if self.query.matches(row, INSTANCE_KEYS)]
        images = self.orthanc.series_tags(series.orthanc_id) if rows else {}
        for instance, row in rows:
            image = images.get(instance.orthanc_id, {})
            row |= {keyword: image[keyword] for keyword in IMAGE_FIELDS if keyword in image}
            path = f"/studies/{row['StudyInstanceUID']}/series/{series.uid}/instances/{instance.sop_uid}"
            yield self._json("instance", row, path)

    def _study_rows(self, held: Sequence[HeldStudy]) -> list[Row]:
        early = STUDY_KEYS - LATE_KEYS
        contents = self.orthanc.bulk_content("Study", [study.orthanc_id for study in held], metadata=False)
        by_id = {content["ID"]: content for content in contents}
        found: list[tuple[Row, list[str]]] = []
        for study in held:
            content = by_id.get(study.orthanc_id)
            if content is None:
                continue
            row = content["PatientMainDicomTags"] | content["MainDicomTags"]
            if row.get("StudyInstanceUID") == study.study_uid and self.query.matches(row, early):
                found.append((row, content["Series"]))
        series_ids = [series_id for _, ids in found for series_id in ids]
        series = {one["ID"]: one for one in self.orthanc.bulk_content("Series", series_ids, metadata=False)}
        for row, ids in found:
            own = [series[series_id] for series_id in ids if series_id in series]
            modalities = {one["MainDicomTags"].get("Modality", "") for one in own}
            row |= _counted(modalities, len(own), sum(len(one["Instances"]) for one in own))
        return [row for row, _ in found]

    def _json(self, level: Level, row: Row, path: str) -> Json:
        fields = set(FIELDS[level]) | (set(row) if "all" in self.query.include else self.query.include & set(row))
        answer = {tag(keyword): element(keyword, row.get(keyword)) for keyword in fields}
        answer[tag("RetrieveURL")] = element("RetrieveURL", self.base + path)
        return dict(sorted(answer.items()))


def study_row(holding: Holding) -> Row:
    """What a study tells of itself."""
    modalities = {series.tags.get("Modality", "") for series in holding.series.values()}
    counts = _counted(modalities, len(holding.series), len(holding.instances()))
    return {**holding.tags, **counts}


def _counted(modalities: set[str], series: int, instances: int) -> Row:
    return {
        "ModalitiesInStudy": sorted(modalities - {""}),
        "NumberOfStudyRelatedSeries": series,
        "NumberOfStudyRelatedInstances": instances,
        "InstanceAvailability": "ONLINE",
    }


def series_row(series: Series) -> Row:
    """What a series tells of itself."""
    return {**series.tags, "NumberOfSeriesRelatedInstances": len(series.instances)}


def instance_row(instance: Instance) -> Row:
    """What an instance tells of itself, but for its image attributes."""
    return {**instance.tags, "SOPClassUID": instance.sop_class, "InstanceAvailability": "ONLINE"}


def tag(keyword: str) -> str:
    """The tag as DICOM JSON writes it."""
    number = tag_for_keyword(keyword)
    if number is None:
        raise BadRequest("no such attribute")
    return f"{number:08X}"


def element(keyword: str, value: Any) -> Json:
    """One attribute of DICOM JSON; without a value it has only its VR (PS3.18 F.2.5)."""
    vr = dictionary_VR(keyword)
    vr = vr.split(" ", 1)[0]
    values = value if isinstance(value, list) else [] if value in {None, ""} else _split(vr, value)
    converted = [_value(vr, one) for one in values]
    return {"vr": vr, "Value": converted} if converted else {"vr": vr}


def _split(vr: str, value: Any) -> list[Any]:
    single = vr in {"LT", "ST", "UT", "UR"} or not isinstance(value, str)
    return [value] if single else value.split("\\")


def _value(vr: str, value: Any) -> Any:
    text = str(value).strip()
    if vr == "PN":
        names = ("Alphabetic", "Ideographic", "Phonetic")
        return {name: group for name, group in zip(names, text.split("="), strict=False) if group}
    if vr in {"IS", "US", "UL", "SS", "SL"} and text.lstrip("+-").isdecimal():
        return int(text)
    if vr in {"DS", "FD", "FL"}:
        return _decimal(text)
    return text


def _decimal(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
