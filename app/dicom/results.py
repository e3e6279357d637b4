"""What the results of a page show beyond what found them (PS3.18 tables 10.6.3-3 to 10.6.3-5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from app.dicom import archive
from app.dicom.criteria import ABOVE, KEYS
from app.dicom.dicomjson import Json, item
from app.dicom.kinds import NOT_IMAGES
from app.dicom.paths import Level, Target
from app.dicom.qido import Query
from app.dicom.shelf import Hit, Shelf, add_study_tags
from app.errors import ArchiveUnavailable, NotFound
from app.store import studies

HEADERS = 16
"""Of so many results of a page the header of an image is read, where an attribute is asked for that no index has."""

FEW = 4
"""Of so many images of a series each is asked for by itself."""

# What every result has, with or without a value; and what it has if it is known.
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

FEW_HEADERS = f"Attributes outside of the archive's index are told of the first {HEADERS} results only"


def complete(shelf: Shelf, query: Query, shown: Sequence[Hit]) -> list[str]:
    """Read what the results of a page lack; what has to be said of it."""
    if query.level == "study" and not query.needs("study", "archive"):
        _complete_studies(shelf, query, shown)
    if query.level == "instance":
        _complete_images(shelf, shown)
    unknown = {one for one in query.include if _told_by_header(query.level, one)}
    lacking = [hit for hit in shown if not unknown <= set(hit.row)]
    for hit in lacking[:HEADERS]:
        _add_header(shelf, hit, unknown - set(hit.row))
    return [FEW_HEADERS] if len(lacking) > HEADERS else []


def _complete_studies(shelf: Shelf, query: Query, shown: Sequence[Hit]) -> None:
    try:
        add_study_tags(shelf, shown)
    except ArchiveUnavailable:
        # The store alone gives a study list, but for attributes that somebody asks for.
        if any(KEYS["study"].get(one) == "archive" or _told_by_header("study", one) for one in query.include):
            raise


def _complete_images(shelf: Shelf, shown: Sequence[Hit]) -> None:
    by_series: dict[str, list[Hit]] = {}
    for hit in shown:
        by_series.setdefault(hit.series_id, []).append(hit)
    requests = 0
    for series_id, hits in by_series.items():
        requests += len(hits) if len(hits) <= FEW else 1
        if requests > HEADERS:
            # They are told "if known", and a page costs no more than this.
            return
        for hit, image in zip(hits, _images(shelf, series_id, hits), strict=True):
            hit.row |= {keyword: value for keyword, value in image.items() if value not in (None, "")}


def _images(shelf: Shelf, series_id: str, hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """What the headers of some images of a series say: of few each is asked for, of more all in one request."""
    if len(hits) <= FEW:
        headers = [_header(shelf, hit.instances[0]) for hit in hits]
    else:
        tags = _tags(shelf, series_id)
        headers = [tags.get(hit.instances[0], {}) for hit in hits]
    return [{keyword: header.get(keyword) for keyword in IMAGE_FIELDS} for header in headers]


def _tags(shelf: Shelf, series_id: str) -> Json:
    try:
        return shelf.orthanc.series_tags(series_id)
    except NotFound:
        return {}


def _told_by_header(level: Level, keyword: str) -> bool:
    if keyword in NEVER or any(keyword in KEYS[one] for one in KEYS):
        return level != "study" and keyword in OF_SERIES and keyword not in NEVER
    return level == "instance" or keyword in (OF_PATIENT_AND_STUDY if level == "study" else OF_SERIES)


def _add_header(shelf: Shelf, hit: Hit, lacking: Iterable[str]) -> None:
    if hit.instances:
        instance_id: str | None = hit.instances[0]
    else:
        with shelf.store.read() as connection:
            instance_id = studies.any_image(connection, hit.study.orthanc_id, NOT_IMAGES)
    if instance_id is not None:
        header = _header(shelf, instance_id)
        hit.row |= {keyword: header[keyword].to_json_dict(None, 0) for keyword in lacking if _is_shown(header, keyword)}


def _header(shelf: Shelf, instance_id: str) -> Dataset:
    try:
        return archive.header(shelf.orthanc, instance_id)
    except NotFound:
        return Dataset()


def _is_shown(header: Dataset, keyword: str) -> bool:
    return keyword in header and header[keyword].VR not in BINARY


def result(shelf: Shelf, query: Query, target: Target, hit: Hit) -> Json:
    levels = _told_levels(query.level, target)
    keywords = {one for level in levels for one in ALWAYS[level]} | query.asks_for(hit.row)
    known = {keyword for keyword, value in hit.row.items() if value not in (None, "", [])}
    keywords |= {one for level in levels for one in IF_KNOWN[level] if one in known}
    # The archive may name attributes of its own.
    told = {one: hit.row.get(one) for one in keywords - NEVER if tag_for_keyword(one) is not None}
    return item({**told, "SpecificCharacterSet": "ISO_IR 192", "RetrieveURL": shelf.base + hit.path})


def _told_levels(level: Level, target: Target) -> list[Level]:
    """The level itself, and those above it that the address leaves open."""
    given: dict[Level, Any] = {"study": target.study, "series": target.series}
    return [one for one in ABOVE[level] if one == level or not given.get(one)]
