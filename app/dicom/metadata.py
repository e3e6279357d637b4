"""WADO-RS metadata: the archive's DICOM JSON, proved the study's own, with our addresses (PS3.18 Annex F)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.dicom.holdings import Holding, Instance
from app.dicom.orthanc import Json, Orthanc
from app.dicom.paths import Target

RETRIEVE_URL = "00081190"
SPECIFIC_CHARACTER_SET = "00080005"
STUDY, SERIES, SOP, PATIENT_ID = "0020000D", "0020000E", "00080018", "00100020"
ROWS, PIXEL_DATA = "00280010", "7FE00010"
PACKED = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")
"""Transfer syntaxes, by the start of their UID, whose pixel data is compressed."""
INLINE = 1024
"""Larger binary values are referred to, smaller ones stand in the text."""


def read(orthanc: Orthanc, holding: Holding, target: Target, base: str) -> list[Json]:
    """The metadata of every instance of the target, in the order of the holding."""
    wanted = [one] if (one := holding.instance(target.series, target.instance)) else holding.instances(target.series)
    found = {
        (first(content, SERIES), first(content, SOP)): content
        for content in orthanc.metadata(target.path())
        if _belongs(content, holding)
    }
    contents = [found.get((one.series_uid, one.sop_uid)) or _from_file(orthanc, one) for one in wanted]
    return [_addressed(content, holding, one, base) for content, one in zip(contents, wanted, strict=True)]


def first(content: Json, tag: str) -> str:
    """The first value of an attribute, as text."""
    values = content.get(tag, {}).get("Value") or [""]
    return str(values[0]).strip()


def referred(content: Json) -> Iterator[str]:
    """The address of every value that is referred to, in the order of the dataset."""
    for element in content.values():
        if "BulkDataURI" in element:
            yield element["BulkDataURI"]
        elif element.get("vr") == "SQ":
            for item in element.get("Value", []):
                yield from referred(item)


def _belongs(content: Json, holding: Holding) -> bool:
    # The archive was asked by UID, and a UID can be another patient's: believe what the content says.
    same_patient = first(content, PATIENT_ID) == holding.tags.get("PatientID", "").strip()
    return same_patient and first(content, STUDY) == holding.study_uid


def _from_file(orthanc: Orthanc, instance: Instance) -> Json:
    dataset = orthanc.dataset(instance.orthanc_id, stop_before_pixels=False)
    return dataset.to_json_dict(bulk_data_threshold=INLINE, bulk_data_element_handler=lambda _: "elsewhere")


def _addressed(content: Json, holding: Holding, instance: Instance, base: str) -> Json:
    path = f"{base}/studies/{holding.study_uid}/series/{instance.series_uid}/instances/{instance.sop_uid}"
    rewritten = _rewritten(content, f"{path}/bulkdata", ())
    if ROWS in rewritten and PIXEL_DATA not in rewritten and instance.transfer_syntax.startswith(PACKED):
        # The archive leaves it out where it is compressed.
        rewritten[PIXEL_DATA] = {"vr": "OB", "BulkDataURI": f"{path}/bulkdata/{PIXEL_DATA}"}
    if SPECIFIC_CHARACTER_SET in rewritten:
        rewritten[SPECIFIC_CHARACTER_SET] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return rewritten | {RETRIEVE_URL: {"vr": "UR", "Value": [path]}}


def _rewritten(content: Json, bulk: str, path: tuple[str, ...]) -> Json:
    rewritten: Json = {}
    for tag, element in content.items():
        # Where a value came from is of no use to the reader: our address is built from the place alone.
        if "BulkDataURI" in element:
            rewritten[tag] = {"vr": element.get("vr", "UN"), "BulkDataURI": "/".join((bulk, *path, tag))}
        elif element.get("vr") == "SQ":
            rewritten[tag] = {**element, "Value": _items(element.get("Value", []), bulk, (*path, tag))}
        elif tag != RETRIEVE_URL:
            rewritten[tag] = element
    return rewritten


def _items(items: list[Any], bulk: str, path: tuple[str, ...]) -> list[Json]:
    return [_rewritten(item, bulk, (*path, str(number))) for number, item in enumerate(items, 1)]
