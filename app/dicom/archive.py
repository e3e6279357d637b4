"""One study as the archive holds it now: outline first, headers only when something changed (Orthanc REST API)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from app.dicom.orthanc import Orthanc
from app.errors import NotFound

Json = dict[str, Any]

VOLATILE = frozenset({"LastUpdate", "IsStable", "Status", "ReceptionDate", "FileSize"})
"""What Orthanc says of its own housekeeping; it changes while the study does not."""


@dataclass(frozen=True, slots=True)
class HeldInstance:
    """One instance: its ids, SOP class, Instance Number as written, and the name of its file in the archive."""

    orthanc_id: str
    sop_uid: str
    sop_class: str
    number: str
    file: str = ""


@dataclass(frozen=True, slots=True)
class HeldSeries:
    """One series; `first` is the instance whose header speaks for it."""

    orthanc_id: str
    uid: str
    modality: str
    instances: tuple[HeldInstance, ...]

    @property
    def first(self) -> HeldInstance:
        """The instance with the smallest SOP UID: the same one whatever order they arrived in."""
        return min(self.instances, key=lambda instance: instance.sop_uid)


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

    @property
    def count(self) -> int:
        """How many instances the study has."""
        return sum(len(series.instances) for series in self.series)


def outline(orthanc: Orthanc, orthanc_id: str) -> HeldStudy | None:
    """What the archive holds of a study; None when it holds nothing (any more)."""
    try:
        study = orthanc.study(orthanc_id)
        rows = orthanc.series_of(orthanc_id)
    except NotFound:
        return None
    ids = [instance for row in rows for instance in row["Instances"]]
    contents = {row["ID"]: row for row in orthanc.bulk_content("Instance", ids)}
    series = tuple(held for row in rows if (held := _series(row, contents)) is not None)
    if not series:
        return None
    return HeldStudy(
        orthanc_id=orthanc_id,
        uid=_text(study["MainDicomTags"], "StudyInstanceUID"),
        patient_id=_text(study.get("PatientMainDicomTags", {}), "PatientID"),
        copied="AnonymizedFrom" in study or "ModifiedFrom" in study,
        series=series,
        digest=_digest([study, *rows, *contents.values()]),
    )


def header(orthanc: Orthanc, instance_id: str) -> Dataset:
    """The attributes of one instance but its pixels, as Orthanc decodes them; what cannot be a value is left out."""
    try:
        return dataset(orthanc.tags(instance_id))
    except RecursionError:
        # Sequences nested so deep are no information; what the archive has indexed is.
        return _indexed(orthanc, instance_id)


def _indexed(orthanc: Orthanc, instance_id: str) -> Dataset:
    result = Dataset()
    for row in (orthanc.parent("instances", instance_id, "study"), orthanc.parent("instances", instance_id, "series")):
        for keyword, value in (row.get("PatientMainDicomTags", {}) | row["MainDicomTags"]).items():
            tag = tag_for_keyword(keyword)
            element = _element(f"{Tag(tag).group:04x},{Tag(tag).element:04x}", _entry(value)) if tag else None
            if element is not None:
                result.add(element)
    return result


def _entry(value: str) -> Json:
    return {"Type": "String", "Value": value}


def dataset(tags: Mapping[str, Any]) -> Dataset:
    """Orthanc's tag JSON as a Dataset. Invalid values are dropped one by one, never the whole."""
    result = Dataset()
    for name, entry in tags.items():
        element = _element(name, entry)
        if element is not None:
            result.add(element)
    return result


def _element(name: str, entry: Mapping[str, Any]) -> DataElement | None:
    tag = Tag(*(int(part, 16) for part in name.split(",")))
    try:
        if entry["Type"] == "Sequence":
            return DataElement(tag, "SQ", Sequence([dataset(item) for item in entry["Value"]]))
        if entry["Type"] not in {"String", "Null"}:
            return None
        value = _trimmed(entry["Value"])
        return DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE)
    except (KeyError, ValueError, TypeError, ArithmeticError):
        return None


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
    number, file = _text(main, "InstanceNumber"), str(row.get("FileUuid", ""))
    return HeldInstance(row["ID"], _text(main, "SOPInstanceUID"), sop_class, number, file)


def _text(tags: Mapping[str, Any], keyword: str) -> str:
    return str(tags.get(keyword) or "").strip(" \0")


def _digest(rows: list[Json]) -> str:
    kept = sorted(json.dumps(_stable(row), sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(inner) for key, inner in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return sorted((_stable(inner) for inner in value), key=str)
    return value
