"""What is wrong with a study's attributes, told beside the data, which is shown as far as it is usable (PS3.5 6.2).

Each flag names an issue, the attribute by its keyword and, when it is about one, the series. No value is repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from app.fhir.mapping import terms, values
from app.fhir.mapping.codes import Json

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CONFLICT, INVALID, MISSING = "conflict", "invalid", "missing"
UNDECODABLE, UNDECLARED, UNLISTED, ANONYMISED = "undecodable", "undeclared-charset", "unlisted", "anonymised"
ISSUES: Mapping[str, str] = {
    CONFLICT: "Images of one study or series say different things; the value of the one that comes first is shown",
    INVALID: "The value is none that DICOM allows here; it is left out",
    MISSING: "An attribute that every image must have is empty or absent",
    UNDECODABLE: "Bytes that the declared character set does not have; replacement characters stand for them",
    UNDECLARED: "Text beyond ASCII without a declared character set, or with one that DICOM does not define",
    UNLISTED: "A UID that cannot be written in FHIR: the series or instance is counted and not listed",
    ANONYMISED: "The images say that the patient's identity was removed: they are nobody's and fulfil no order",
}
MOST = 50
"""Flags of one study: more of them tell nobody more."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CHARSETS = re.compile(
    r"|ISO_IR (6|13|100|101|109|110|126|127|138|144|148|149|166|192|203)"
    r"|ISO 2022 IR (6|13|58|87|100|101|109|110|126|127|138|144|148|149|159|166|203)|GB18030|GBK"
)
LONG = NAME = 64

Issue = tuple[str, str, str]
"""Issue, keyword, series UID or nothing."""


class Series(Protocol):
    """A series with the headers that were read of it."""

    # fmt: off
    @property
    def uid(self) -> str: ...
    @property
    def header(self) -> Dataset: ...
    @property
    def last(self) -> Dataset | None: ...
    # fmt: on


def _name(value: Any) -> str | None:
    """A person's name without what tells no two people apart, or None when a part is longer than DICOM allows."""
    found = values.text(value) or ""
    groups = [group.rstrip("^ ") for group in found.split("=")]
    return "=".join(groups).rstrip("=").casefold() if all(len(group) <= NAME for group in groups) else None


def _number(value: Any) -> str | None:
    found = values.verbatim(value)
    return found if found and len(found) <= LONG else None


STUDY: Mapping[str, Callable[[Any], Any]] = {
    "PatientID": _number,
    "IssuerOfPatientID": values.text,
    "PatientName": _name,
    "PatientBirthDate": values.day,
    "PatientSex": values.text,
    "AccessionNumber": _number,
    "StudyDate": values.day,
    "StudyTime": values.clock,
    "StudyID": values.text,
    "StudyDescription": values.text,
    "ReferringPhysicianName": _name,
}
"""What is the same in all images of a study, and what makes two values the same."""
SERIES: Mapping[str, Callable[[Any], Any]] = {
    "Modality": values.text,
    "SeriesNumber": values.unsigned,
    "SeriesDescription": values.text,
    "SeriesDate": values.day,
    "SeriesTime": values.clock,
    "BodyPartExamined": values.text,
    "Laterality": values.text,
}
"""What is the same in all images of a series."""
CHECKED: Mapping[str, Callable[[Any], Any]] = {
    **STUDY,
    **SERIES,
    "AcquisitionDate": values.day,
    "AcquisitionTime": values.clock,
    "TimezoneOffsetFromUTC": values.offset,
    "Laterality": lambda value: values.text(value) if values.text(value) in {"L", "R"} else None,
}
TEXTS = (
    "PatientName", "ReferringPhysicianName", "StudyDescription", "SeriesDescription", "PerformingPhysicianName",
    "OperatorsName", "NameOfPhysiciansReadingStudy", "InstitutionName", "InstitutionalDepartmentName", "StationName",
)  # fmt: skip
DEMANDED = ("PatientID", "Modality")


def flags(series: Sequence[Series], others: Iterable[Issue] = ()) -> list[Json]:
    """The flags of a study whose series come in the order in which they speak for it."""
    found = chain(others, _conflicts(series), *(_of_series(one) for one in series))
    return [_extension(issue) for issue in sorted(set(found))[:MOST]]


def _conflicts(series: Sequence[Series]) -> Iterator[Issue]:
    headers = [header for one in series for header in _headers(one)]
    for keyword, same in STUDY.items():
        if _differ(headers, keyword, same):
            yield CONFLICT, keyword, ""
    for one in series:
        for keyword, same in SERIES.items():
            if _differ(_headers(one), keyword, same):
                yield CONFLICT, keyword, one.uid


def _of_series(one: Series) -> Iterator[Issue]:
    for header in _headers(one):
        for keyword in DEMANDED:
            if not values.text(header.get(keyword)):
                yield _placed(MISSING, keyword, one)
        for keyword, convert in CHECKED.items():
            value = header.get(keyword)
            if value is not None and convert(value) is None and values.text(value):
                yield _placed(INVALID, keyword, one)
        if values.text(header.get("PatientIdentityRemoved")) == "YES":
            yield ANONYMISED, "PatientIdentityRemoved", ""
        yield from _characters(header, one)


def _characters(header: Dataset, one: Series) -> Iterator[Issue]:
    found = {keyword: value for keyword in TEXTS if (value := header.get(keyword)) is not None}
    written = {keyword: " ".join(values.texts(value)) for keyword, value in found.items()}
    for keyword, text in written.items():
        if REPLACEMENT in text:
            yield _placed(UNDECODABLE, keyword, one)
    declared = values.texts(header.get("SpecificCharacterSet"))
    odd = [name for name in declared if not CHARSETS.fullmatch(name)]
    if odd or (not declared and any(not text.isascii() for text in written.values())):
        yield UNDECLARED, "SpecificCharacterSet", one.uid


def _placed(issue: str, keyword: str, one: Series) -> Issue:
    return issue, keyword, "" if keyword in STUDY else one.uid


def _headers(one: Series) -> list[Dataset]:
    return [one.header] if one.last is None else [one.header, one.last]


def _differ(headers: Iterable[Dataset], keyword: str, same: Callable[[Any], Any]) -> bool:
    written = [value for header in headers if (value := header.get(keyword)) is not None]
    # What is written alike means the same, whatever it means.
    if len(written) < 2 or all(value == written[0] for value in written):
        return False
    return len({same(value) for value in written} - {None, ""}) > 1


def _extension(issue: Issue) -> Json:
    code, keyword, series_uid = issue
    parts = [{"url": "issue", "valueCode": code}, {"url": "attribute", "valueString": keyword}]
    if values.identity(series_uid):
        parts.append({"url": "series", "valueId": series_uid})
    return {"url": terms.QUALITY, "extension": parts}
