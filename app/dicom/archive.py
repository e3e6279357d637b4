"""One study as the archive holds it now: outline first, headers only when something changed (Orthanc REST API)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag

from app.dicom import charsets
from app.dicom.orthanc import Orthanc
from app.errors import NotFound

Json = dict[str, Any]

MAP_VERSION = 2
"""Raised when the same images make another ImagingStudy than before: each digest differs then, and a look renews it."""
SMALL = 200
"""A study with more instances is outlined alone: what is read for many is older when the last of them is looked at."""
SHORT = 64
"""Elements with values of this length are made once for many headers."""
VOLATILE = frozenset({"LastUpdate", "IsStable", "Status", "ReceptionDate", "FileSize"})
"""What Orthanc says of its own housekeeping; it changes while the study does not."""


@dataclass(frozen=True, slots=True)
class HeldInstance:
    """One instance: its ids, SOP class, transfer syntax, and the name of its file in the archive.

    Instance Number and Number of Frames are as written.
    """

    orthanc_id: str
    sop_uid: str
    sop_class: str
    number: str
    file: str = ""
    frames: str = ""
    syntax: str = ""


@dataclass(frozen=True, slots=True)
class HeldSeries:
    """One series; the header of `first` speaks for it, that of `last` may contradict."""

    orthanc_id: str
    uid: str
    modality: str
    instances: tuple[HeldInstance, ...]

    @property
    def first(self) -> HeldInstance:
        """The instance with the smallest SOP UID: the same one whatever order they arrived in."""
        return min(self.instances, key=lambda instance: instance.sop_uid)

    @property
    def last(self) -> HeldInstance:
        """The instance with the largest SOP UID."""
        return max(self.instances, key=lambda instance: instance.sop_uid)


@dataclass(frozen=True, slots=True)
class HeldStudy:
    """The outline of a study. Equal digests mean that nothing of it changed."""

    orthanc_id: str
    uid: str
    patient_id: str
    copied: bool
    """Whether Orthanc made it from another study (anonymised or modified)."""
    series: tuple[HeldSeries, ...]
    digest: str
    last_update: str = ""
    """When Orthanc last changed it; empty where that cannot be told for sure. Not part of the digest."""

    @property
    def count(self) -> int:
        """How many instances the study has."""
        return sum(len(series.instances) for series in self.series)


def outline(orthanc: Orthanc, orthanc_id: str) -> HeldStudy | None:
    """What the archive holds of a study, in two requests; None when it holds nothing (any more)."""
    try:
        rows = orthanc.series_of(orthanc_id)
    except NotFound:
        return None
    # Without a level each resource is told as what it is.
    told = orthanc.bulk_content(None, [orthanc_id, *_instances(rows)])
    return _outlined(orthanc_id, rows, {row["ID"]: row for row in told})


def outlines(orthanc: Orthanc, orthanc_ids: Sequence[str]) -> dict[str, HeldStudy]:
    """What the archive holds of several studies, in two requests for all; large ones and those not there are left out.

    An outline is the same whether it was read alone or with others.
    """
    series: dict[str, list[Json]] = {}
    for row in orthanc.bulk_content("Series", orthanc_ids, metadata=False):
        series.setdefault(row["ParentStudy"], []).append(row)
    small = {one: rows for one, rows in series.items() if len(_instances(rows)) <= SMALL}
    wanted = [one for study, rows in small.items() for one in (study, *_instances(rows))]
    told = {row["ID"]: row for row in orthanc.bulk_content(None, wanted)}
    found = ((study, _outlined(study, rows, _own(study, rows, told))) for study, rows in small.items())
    return {study: held for study, held in found if held is not None}


def _own(study: str, rows: list[Json], told: Mapping[str, Json]) -> dict[str, Json]:
    return {one: told[one] for one in (study, *_instances(rows)) if one in told}


def _instances(rows: list[Json]) -> list[str]:
    return [instance for row in rows for instance in row["Instances"]]


def _outlined(orthanc_id: str, rows: list[Json], contents: dict[str, Json]) -> HeldStudy | None:
    """A study of its series and of what is told of it and of its instances."""
    study = contents.pop(orthanc_id, None)
    series = tuple(
        held for row in sorted(rows, key=lambda row: row["ID"]) if (held := _series(row, contents)) is not None
    )
    if study is None or not series:
        return None
    return HeldStudy(
        orthanc_id=orthanc_id,
        uid=_text(study["MainDicomTags"], "StudyInstanceUID"),
        patient_id=_text(study.get("PatientMainDicomTags", {}), "PatientID"),
        copied="AnonymizedFrom" in study or "ModifiedFrom" in study,
        series=series,
        digest=_digest([study, *rows, *contents.values()]),
        last_update=_last_update(study, rows),
    )


def header(orthanc: Orthanc, instance_id: str) -> Header:
    """The attributes of one instance but its pixels, decoded; what cannot be a value stays the text it is."""
    try:
        return _read(orthanc, instance_id, orthanc.tags(instance_id))
    except RecursionError:
        # Sequences nested so deep are no information; what the archive has indexed is.
        return _indexed(orthanc, instance_id)


def headers(orthanc: Orthanc, study_id: str) -> dict[str, Header]:
    """The headers of every instance of a study in one request, by the archive's ids; none when they are nested deep."""
    try:
        return {one: _read(orthanc, one, tags) for one, tags in orthanc.tags_of_study(study_id).items()}
    except RecursionError:
        return {}


def _read(orthanc: Orthanc, instance_id: str, tags: Mapping[str, Any]) -> Header:
    found = dataset(tags)
    if not charsets.is_safe(found):
        charsets.reread(found, orthanc.file(instance_id))
    return found


def _indexed(orthanc: Orthanc, instance_id: str) -> Header:
    found: dict[str, Any] = {}
    for row in (orthanc.parent("instances", instance_id, "study"), orthanc.parent("instances", instance_id, "series")):
        for keyword, value in (row.get("PatientMainDicomTags", {}) | row["MainDicomTags"]).items():
            if known := _known(keyword):
                found[known[1]] = _entry(value)
    return dataset(found)


def _entry(value: str) -> Json:
    return {"Type": "String", "Value": value}


class Header(Dataset):
    """A Dataset that is asked for some of its keywords, and for many that it has not.

    An element is made when it is asked for, and all of them when somebody wants more than a keyword's value. Threads
    may ask at the same time: they make the same.
    """

    def __init__(self, tags: Mapping[str, Any] | None = None) -> None:
        """Orthanc's tag JSON."""
        super().__init__()
        self._tags: dict[str, Any] = {name.lower(): entry for name, entry in (tags or {}).items()}
        self._made: dict[str, DataElement | None] = {}
        self._whole: MutableMapping[BaseTag, Any] | None = None

    def _every(self) -> MutableMapping[BaseTag, Any]:
        if self._whole is None:
            made = (self._element(name) for name in self._tags)
            self._whole = {element.tag: element for element in made if element is not None}
        return self._whole

    def _replace(self, elements: MutableMapping[BaseTag, Any]) -> None:
        self._whole = elements

    _dict: Any = property(_every, _replace)
    """Where pydicom looks for elements."""

    def _element(self, name: str) -> DataElement | None:
        try:
            return self._made[name]
        except KeyError:
            entry = self._tags.get(name)
            return self._made.setdefault(name, None if entry is None else _element(name, entry))

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a keyword, as in any Dataset."""
        found = _known(key) if type(key) is str else None
        if found is None:
            return super().get(key, default)
        tag, name = found
        if self._whole is not None:
            element = self._whole.get(tag)
        elif name in self._tags:
            element = self._element(name)
        else:
            return default
        return default if element is None else element.value

    @property
    def size(self) -> int:
        """How many elements there are, those of sequences too."""
        count, rest = 0, [self._tags]
        while rest:
            tags = rest.pop()
            count += len(tags)
            rest += [item for one in tags.values() if one.get("Type") == "Sequence" for item in one["Value"]]
        return count


@lru_cache(maxsize=4096)
def _known(keyword: str) -> tuple[BaseTag, str] | None:
    """The tag of a keyword, and how Orthanc writes it."""
    tag = tag_for_keyword(keyword)
    return None if tag is None else (Tag(tag), f"{tag >> 16:04x},{tag & 0xFFFF:04x}")


def dataset(tags: Mapping[str, Any]) -> Header:
    """Orthanc's tag JSON as a Dataset. An invalid value stays as text, one that is none is dropped, never the whole."""
    return Header(tags)


def _element(name: str, entry: Mapping[str, Any]) -> DataElement | None:
    tag = _tag(name)
    try:
        if entry["Type"] == "Sequence":
            return DataElement(tag, "SQ", Items([dataset(item) for item in entry["Value"]]))
        if entry["Type"] not in {"String", "Null"}:
            return None
        value: str | None = entry["Value"]
        # The images of a study say most things alike.
        return _alike(tag, value) if value is None or len(value) <= SHORT else _valued(tag, _trimmed(value))
    except (KeyError, ValueError, TypeError, ArithmeticError):
        return None


@lru_cache(maxsize=4096)
def _tag(name: str) -> BaseTag:
    return Tag(*(int(part, 16) for part in name.split(",")))


@lru_cache(maxsize=4096)
def _alike(tag: BaseTag, value: str | None) -> DataElement:
    """The element of a short value; nobody may change it."""
    return _valued(tag, _trimmed(value))


def _valued(tag: BaseTag, value: str | None) -> DataElement:
    vr = dictionary_VR(tag)
    try:
        return DataElement(tag, vr, value, validation_mode=config.IGNORE)
    except (ValueError, TypeError, ArithmeticError):
        # A number that is none: whoever wants the number finds text and can say so.
        return DataElement(tag, "LO", value, validation_mode=config.IGNORE)


def _trimmed(value: str | None) -> str | None:
    return value.strip(" \0") if value else None


def _series(row: Json, contents: Mapping[str, Json]) -> HeldSeries | None:
    instances = tuple(_instance(contents[key]) for key in sorted(row["Instances"]) if key in contents)
    if not instances:
        return None
    main = row["MainDicomTags"]
    return HeldSeries(row["ID"], _text(main, "SeriesInstanceUID"), _text(main, "Modality"), instances)


def _instance(row: Json) -> HeldInstance:
    main = row["MainDicomTags"]
    sop_class = str(row.get("Metadata", {}).get("SopClassUid", ""))
    number, frames = _text(main, "InstanceNumber"), _text(main, "NumberOfFrames")
    file, syntax = str(row.get("FileUuid", "")), str(row.get("Metadata", {}).get("TransferSyntax", ""))
    return HeldInstance(row["ID"], _text(main, "SOPInstanceUID"), sop_class, number, file, frames, syntax)


def _last_update(study: Json, rows: list[Json]) -> str:
    # The study was read after its series: a younger change may be one of an instance that was not seen.
    seen = max((str(row.get("LastUpdate", "")) for row in rows), default="")
    return seen if seen == study.get("LastUpdate") else ""


def _text(tags: Mapping[str, Any], keyword: str) -> str:
    return str(tags.get(keyword) or "").strip(" \0")


def _digest(rows: list[Json]) -> str:
    kept = sorted(json.dumps(_stable(row), sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join([str(MAP_VERSION), *kept]).encode()).hexdigest()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(inner) for key, inner in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return sorted((_stable(inner) for inner in value), key=str)
    return value
