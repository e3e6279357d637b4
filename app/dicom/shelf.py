"""Where searches look, and what they have found so far (PS3.18 section 10.6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from app.access import Access
from app.dicom.criteria import KEYS, Row
from app.dicom.dicomjson import Json
from app.dicom.holdings import Instance
from app.dicom.orthanc import Orthanc
from app.dicom.paths import Level
from app.dicom.qido import Query
from app.store import query as store_query
from app.store.database import Store
from app.store.studies import HeldStudy


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


def add_study_tags(shelf: Shelf, hits: Sequence[Hit]) -> dict[str, Json]:
    """What the archive's index adds; a study that it does not hold (any more) is told of as unavailable."""
    contents = shelf.orthanc.bulk_content("Study", [hit.study.orthanc_id for hit in hits], metadata=False)
    known = {content["ID"]: content for content in contents if _is_of(content, hits)}
    for hit in hits:
        content = known.get(hit.study.orthanc_id)
        hit.row = joined(hit.row, study_tags(content) if content else {})
        hit.row["InstanceAvailability"] = "ONLINE" if content else "UNAVAILABLE"
    return known


def joined(told: Row, tags: Mapping[str, str]) -> Row:
    """What the store knows outweighs the image that happened to come first, but for what only images say in full."""
    known = {keyword: value for keyword, value in told.items() if KEYS["study"].get(keyword) != "archive"}
    return {**told, **tags, **known}


def _is_of(content: Json, hits: Sequence[Hit]) -> bool:
    uids = {hit.study.orthanc_id: hit.study.study_uid for hit in hits}
    return content["MainDicomTags"].get("StudyInstanceUID") == uids.get(content["ID"])


def study_tags(content: Json) -> Row:
    """What the archive's index tells of a study and its patient."""
    return content["PatientMainDicomTags"] | content["MainDicomTags"]
