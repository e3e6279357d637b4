"""The answers to searches: our own store finds, the archive only adds what a page shows (PS3.18 section 10.6).

Which ImagingStudies a grant and a query leave, the store tells; each study is decided once more, and each row is
matched exactly. No query is ever forwarded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import orjson
from pydicom.dataset import Dataset
from sqlalchemy.engine import Connection

from app.access import Access
from app.dicom import archive
from app.dicom.criteria import ABOVE, KEYS, Row
from app.dicom.dicomjson import Json, item
from app.dicom.holdings import Holding, Instance
from app.dicom.kinds import NOT_IMAGES
from app.dicom.orthanc import Orthanc
from app.dicom.paths import Level, Target
from app.dicom.qido import Query
from app.errors import ArchiveUnavailable, NotFound
from app.store import candidates, studies
from app.store import query as store_query
from app.store.database import Store
from app.store.studies import HeldStudy

BATCH = 200
"""So many studies are looked at together."""
INSTANCES = 1000
"""So many instances are read together."""
HEADERS = 16
"""Of so many results of a page the header of an image is read, where an attribute is asked for that no index has."""

# What every result has, with or without a value; and what it has if it is known (PS3.18 tables 10.6.3-3 to 10.6.3-5).
ALWAYS: Mapping[Level, tuple[str, ...]] = {
    "study": (
        "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName",
        "StudyDescription", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
        "StudyID", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
    ),
    "series": (
        "Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "NumberOfSeriesRelatedInstances",
        "StudyInstanceUID",
    ),
    "instance": ("SOPClassUID", "SOPInstanceUID", "InstanceNumber", "StudyInstanceUID", "SeriesInstanceUID"),
}  # fmt: skip
IF_KNOWN: Mapping[Level, tuple[str, ...]] = {
    "study": (
        "InstanceAvailability", "TimezoneOffsetFromUTC", "IssuerOfPatientID", "IssuerOfAccessionNumberSequence",
    ),
    "series": (
        "SeriesDate", "SeriesTime", "BodyPartExamined", "TimezoneOffsetFromUTC", "RequestAttributesSequence",
        "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime",
    ),
    "instance": (
        "InstanceAvailability", "TimezoneOffsetFromUTC", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    ),
}  # fmt: skip
NEVER = frozenset({"NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances"})
"""They reach beyond any grant."""
BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
"""Bulk data is retrieved, not searched for."""
IMAGE_FIELDS = ("Rows", "Columns", "BitsAllocated")
"""Not in the archive's index: read per series, for instances that are returned."""
OF_PATIENT_AND_STUDY = frozenset({
    "AdditionalPatientHistory", "AdmissionID", "AdmittingDiagnosesDescription", "ConsultingPhysicianName",
    "EthnicGroup", "InstitutionalDepartmentName", "InstitutionAddress", "MedicalAlerts", "Allergies",
    "NameOfPhysiciansReadingStudy", "Occupation", "OtherPatientNames", "PatientAge", "PatientBirthTime",
    "PatientComments", "PatientSize", "PatientSpeciesDescription", "PatientWeight", "PhysiciansOfRecord",
    "PregnancyStatus", "ProcedureCodeSequence", "ReasonForTheRequestedProcedure", "ReferencedStudySequence",
    "ReferringPhysicianIdentificationSequence", "RequestedProcedureCodeSequence", "RequestingService",
    "ResponsiblePerson",
})  # fmt: skip
"""Of the patient and study modules: what a header tells of a whole study."""
OF_SERIES = OF_PATIENT_AND_STUDY | frozenset({
    "AnatomicRegionSequence", "CommentsOnThePerformedProcedureStep", "DeviceSerialNumber", "FrameOfReferenceUID",
    "InstitutionName", "Laterality", "ManufacturerModelName", "PatientPosition", "PerformedProcedureStepDescription",
    "PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime", "PerformedProcedureStepID",
    "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "PerformingPhysicianName",
    "RequestAttributesSequence", "SoftwareVersions",
})  # fmt: skip
"""Of these and the series and equipment modules: what a header tells of a whole series."""

NOT_FUZZY = "The fuzzymatching parameter is not supported. Only literal matching has been performed."
MORE = "There are additional results that can be requested"
FEW_HEADERS = f"Attributes outside of the archive's index are told of the first {HEADERS} results only"


@dataclass(frozen=True, slots=True)
class Narrowed:
    """The ImagingStudies to look at: all that can match, and with `exact` no others."""

    query: store_query.Query
    exact: bool


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What the store knows of studies, in DICOM's words.

    `narrow` confines a search to a grant and to what the index tells of its keys; `tell` gives the attributes of
    studies, by the id of the ImagingStudy.
    """

    narrow: Callable[[Connection, Access, Query], Narrowed]
    tell: Callable[[Connection, Sequence[HeldStudy], Level], Mapping[str, Row]]


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where a search looks, and for whom: `covers` has the last word on every study."""

    store: Store
    orthanc: Orthanc
    catalogue: Catalogue
    access: Access
    covers: Callable[[HeldStudy], bool]
    base: str


@dataclass(slots=True)
class Hit:
    """One match: its attributes, its address, and where the archive has it."""

    study: HeldStudy
    row: Row
    path: str
    series_id: str = ""
    instances: Sequence[str] = ()
    """The archive's ids of its instances, as far as they were read."""
    held: Sequence[Instance] | None = None
    """The instances themselves, where they were read already."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The one study that a search is about, and what the archive holds of it now."""

    study: HeldStudy
    holding: Holding


@dataclass(frozen=True, slots=True)
class Page:
    """The results of a search, and what the caller should know of them."""

    results: list[Json]
    warnings: list[str] = field(default_factory=list[str])

    def body(self) -> bytes:
        """As DICOM JSON."""
        return orjson.dumps(self.results)

    def headers(self) -> dict[str, str]:
        """What has to be said, as RFC 7234 says it (PS3.18 sections 8.3.4.2 and 8.3.4.4.1)."""
        return {"Warning": ", ".join(self.warnings)} if self.warnings else {}


def find(shelf: Shelf, query: Query, target: Target, tree: Tree | None) -> Page:
    """The page of what matches: below one study, whose tree is read as it is now, or at the root."""
    hits = _hits(shelf, query, target, tree)
    found = list(islice(hits, query.limit + 1))
    shown = found[: query.limit]
    warnings = [NOT_FUZZY] if query.fuzzy else []
    warnings += [MORE] if len(found) > len(shown) else []
    warnings += _complete(shelf, query, shown)
    results = [_result(shelf, query, target, hit) for hit in shown]
    return Page(results, [f"299 {shelf.base}: {one}" for one in warnings])


def _hits(shelf: Shelf, query: Query, target: Target, tree: Tree | None) -> Iterator[Hit]:
    if query.level == "study":
        return _studies(shelf, query, query.offset)
    if tree is None:
        batches = _batched(_studies(shelf, query, None), min(query.offset + query.limit + 1, BATCH))
        series = (hit for batch in batches for hit in _series_of(shelf, batch))
    else:
        series = _series_in(shelf, query, tree, target.series)
    series = (hit for hit in series if query.meets(hit.row, "series"))
    hits = series if query.level == "series" else _instances(shelf, query, series)
    return islice(hits, query.offset, None)


# --- studies --------------------------------------------------------------------------------------------------------


def _studies(shelf: Shelf, query: Query, offset: int | None) -> Iterator[Hit]:
    """The studies that match; those before the offset are passed over as cheaply as can be."""
    with shelf.store.read() as connection:
        narrowed = shelf.catalogue.narrow(connection, shelf.access, query)
    skip = offset or 0
    if not narrowed.exact:
        yield from islice(_matching(shelf, query, _candidates(shelf, narrowed, BATCH, 0)), skip, None)
        return
    size = BATCH if offset is None else min(query.limit + 1, BATCH)
    yield from _matching(shelf, query, _candidates(shelf, narrowed, size, skip))


def _candidates(shelf: Shelf, narrowed: Narrowed, size: int, skip: int) -> Iterator[list[HeldStudy]]:
    after: store_query.Place | None = None
    more = True
    while more:
        # What is only passed over is read in longer runs.
        limit = min(skip + size, INSTANCES)
        with shelf.store.read() as connection:
            held, after = candidates.page(connection, narrowed.query, limit=limit, after=after)
        more = after is not None
        covered = [study for study in held if shelf.covers(study)]
        passed = min(skip, len(covered))
        skip -= passed
        if covered[passed:]:
            yield covered[passed:]


def _matching(shelf: Shelf, query: Query, batches: Iterable[list[HeldStudy]]) -> Iterator[Hit]:
    for batch in batches:
        hits = _told(shelf, query, batch)
        if query.needs("study", "archive"):
            _add_study_tags(shelf, hits)
        yield from (hit for hit in hits if query.meets(hit.row, "study"))


def _told(shelf: Shelf, query: Query, held: Sequence[HeldStudy]) -> list[Hit]:
    with shelf.store.read() as connection:
        told = shelf.catalogue.tell(connection, held, query.level)
    return [Hit(one, {**told.get(one.imaging_study_id, {})}, f"/studies/{one.study_uid}") for one in held]


def _add_study_tags(shelf: Shelf, hits: Sequence[Hit]) -> dict[str, Json]:
    """What the archive's index adds; a study that it does not hold (any more) is told of as unavailable."""
    contents = shelf.orthanc.bulk_content("Study", [hit.study.orthanc_id for hit in hits], metadata=False)
    known = {content["ID"]: content for content in contents if _is_of(content, hits)}
    for hit in hits:
        content = known.get(hit.study.orthanc_id)
        hit.row = _joined(hit.row, study_tags(content) if content else {})
        hit.row["InstanceAvailability"] = "ONLINE" if content else "UNAVAILABLE"
    return known


def _joined(told: Row, tags: Mapping[str, str]) -> Row:
    """What the store knows outweighs the image that happened to come first, but for what only images say in full."""
    known = {keyword: value for keyword, value in told.items() if KEYS["study"].get(keyword) != "archive"}
    return {**told, **tags, **known}


def _is_of(content: Json, hits: Sequence[Hit]) -> bool:
    uids = {hit.study.orthanc_id: hit.study.study_uid for hit in hits}
    return content["MainDicomTags"].get("StudyInstanceUID") == uids.get(content["ID"])


def study_tags(content: Json) -> Row:
    """What the archive's index tells of a study and its patient."""
    return content["PatientMainDicomTags"] | content["MainDicomTags"]


# --- series ---------------------------------------------------------------------------------------------------------


def _series_of(shelf: Shelf, hits: Sequence[Hit]) -> Iterator[Hit]:
    """The series of several studies, in two requests."""
    contents = _add_study_tags(shelf, hits)
    by_study: dict[str, list[Json]] = {}
    for content in shelf.orthanc.bulk_content("Series", list(contents), metadata=False):
        by_study.setdefault(content["ParentStudy"], []).append(content)
    for hit in hits:
        for content in sorted(by_study.get(hit.study.orthanc_id, []), key=_number_and_uid):
            yield _series(hit, content["ID"], content["MainDicomTags"], content["Instances"])


def _number_and_uid(content: Json) -> tuple[int, str]:
    tags = content["MainDicomTags"]
    return _number(tags.get("SeriesNumber", "")), tags["SeriesInstanceUID"]


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.lstrip("-").isdecimal() else 1 << 31


def _series_in(shelf: Shelf, query: Query, tree: Tree, series_uid: str | None) -> Iterator[Hit]:
    """The series of one study, or one of them."""
    holding = tree.holding
    if series_uid is not None and series_uid not in holding.series:
        raise NotFound("the study has no such series")
    [hit] = _told(shelf, query, [tree.study])
    hit.row = _joined(hit.row, holding.tags) | {"InstanceAvailability": "ONLINE"} | _counts(holding)
    if not query.meets(hit.row, "study"):
        return
    for one in holding.series.values():
        if series_uid in {None, one.uid}:
            held = list(one.instances.values())
            found = _series(hit, one.orthanc_id, one.tags, [each.orthanc_id for each in held])
            yield replace(found, held=held)


def _counts(holding: Holding) -> Row:
    return {
        "ModalitiesInStudy": sorted({one.tags.get("Modality", "") for one in holding.series.values()} - {""}),
        "NumberOfStudyRelatedSeries": len(holding.series),
        "NumberOfStudyRelatedInstances": len(holding.instances()),
    }


def _series(above: Hit, orthanc_id: str, tags: Mapping[str, str], instances: Sequence[str]) -> Hit:
    asked = above.row.get("RequestAttributesSequence", [])
    requests = [_without_modality(one) for one in asked if one.get("Modality") == tags.get("Modality")]
    row = {
        **above.row,
        **tags,
        "NumberOfSeriesRelatedInstances": len(instances),
    }
    row.pop("RequestAttributesSequence", None)
    if requests:
        row["RequestAttributesSequence"] = requests
    return Hit(above.study, row, f"{above.path}/series/{tags['SeriesInstanceUID']}", orthanc_id, instances)


def _without_modality(request: Row) -> Row:
    return {keyword: value for keyword, value in request.items() if keyword != "Modality"}


# --- instances ------------------------------------------------------------------------------------------------------


def _instances(shelf: Shelf, query: Query, series: Iterable[Hit]) -> Iterator[Hit]:
    waiting: list[Hit] = []
    for hit in series:
        waiting.append(hit)
        if sum(len(one.instances) for one in waiting) >= INSTANCES:
            yield from _matching_instances(shelf, query, waiting)
            waiting = []
    yield from _matching_instances(shelf, query, waiting)


def _matching_instances(shelf: Shelf, query: Query, series: Sequence[Hit]) -> Iterator[Hit]:
    unread = [hit.series_id for hit in series if hit.held is None]
    read: dict[str, list[Json]] = {}
    for content in shelf.orthanc.bulk_content("Instance", unread):
        read.setdefault(content["ParentSeries"], []).append(content)
    for hit in series:
        if hit.held is None:
            rows = [(one["ID"], _of_content(one)) for one in read.get(hit.series_id, [])]
        else:
            rows = [(one.orthanc_id, {**one.tags, "SOPClassUID": one.sop_class}) for one in hit.held]
        for orthanc_id, row in sorted(rows, key=lambda one: _place(one[1])):
            found = _instance(hit, orthanc_id, row)
            if query.meets(found.row, "instance"):
                yield found


def _of_content(content: Json) -> Row:
    return {**content["MainDicomTags"], "SOPClassUID": content["Metadata"].get("SopClassUid", "")}


def _place(row: Row) -> tuple[int, str]:
    return _number(row.get("InstanceNumber", "")), row["SOPInstanceUID"]


def _instance(above: Hit, orthanc_id: str, own: Row) -> Hit:
    row = {**above.row, **own, "InstanceAvailability": "ONLINE"}
    return Hit(above.study, row, f"{above.path}/instances/{own['SOPInstanceUID']}", above.series_id, [orthanc_id])


# --- what a page shows ----------------------------------------------------------------------------------------------


def _complete(shelf: Shelf, query: Query, shown: Sequence[Hit]) -> list[str]:
    """Read what the results of a page lack; what has to be said of it."""
    if query.level == "study" and not query.needs("study", "archive"):
        _complete_studies(shelf, query, shown)
    if query.level == "instance":
        _complete_images(shelf, shown)
    lacking = {one for one in query.include if _told_by_header(query.level, one)} - {
        one for hit in shown for one in hit.row
    }
    if not lacking:
        return []
    for hit in shown[:HEADERS]:
        _add_header(shelf, hit, lacking)
    return [FEW_HEADERS] if len(shown) > HEADERS else []


def _complete_studies(shelf: Shelf, query: Query, shown: Sequence[Hit]) -> None:
    try:
        _add_study_tags(shelf, shown)
    except ArchiveUnavailable:
        # The store alone gives a study list, but for attributes that somebody asks for.
        if any(KEYS["study"].get(one) == "archive" or _told_by_header("study", one) for one in query.include):
            raise


def _complete_images(shelf: Shelf, shown: Sequence[Hit]) -> None:
    tags = {
        series_id: shelf.orthanc.series_tags(series_id) for series_id in dict.fromkeys(hit.series_id for hit in shown)
    }
    for hit in shown:
        image = tags[hit.series_id].get(hit.instances[0], {})
        hit.row |= {keyword: image[keyword] for keyword in IMAGE_FIELDS if keyword in image}


def _told_by_header(level: Level, keyword: str) -> bool:
    if keyword in NEVER or any(keyword in KEYS[one] for one in KEYS):
        return level == "series" and keyword in OF_SERIES
    return level == "instance" or keyword in (OF_PATIENT_AND_STUDY if level == "study" else OF_SERIES)


def _add_header(shelf: Shelf, hit: Hit, lacking: Iterable[str]) -> None:
    if hit.instances:
        instance_id: str | None = hit.instances[0]
    else:
        with shelf.store.read() as connection:
            instance_id = studies.any_image(connection, hit.study.orthanc_id, NOT_IMAGES)
    if instance_id is None:
        return
    try:
        header = archive.header(shelf.orthanc, instance_id)
    except NotFound:
        return
    hit.row |= {keyword: header[keyword].to_json_dict(None, 0) for keyword in lacking if _is_shown(header, keyword)}


def _is_shown(header: Dataset, keyword: str) -> bool:
    return keyword in header and header[keyword].VR not in BINARY


def _result(shelf: Shelf, query: Query, target: Target, hit: Hit) -> Json:
    levels = _told_levels(query.level, target)
    keywords = {one for level in levels for one in ALWAYS[level]} | query.asks_for(hit.row)
    known = {keyword for keyword, value in hit.row.items() if value not in (None, "", [])}
    keywords |= {one for level in levels for one in IF_KNOWN[level] if one in known}
    told = {keyword: hit.row.get(keyword) for keyword in keywords - NEVER}
    return item({**told, "SpecificCharacterSet": "ISO_IR 192", "RetrieveURL": shelf.base + hit.path})


def _told_levels(level: Level, target: Target) -> list[Level]:
    """The level itself, and those above it that the address leaves open."""
    given: dict[Level, Any] = {"study": target.study, "series": target.series}
    return [one for one in ABOVE[level] if one == level or not given.get(one)]


def _batched(hits: Iterator[Hit], size: int) -> Iterator[list[Hit]]:
    while batch := list(islice(hits, size)):
        yield batch
