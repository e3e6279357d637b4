"""pydicom's packaged files, as the archive would tell them, and why some of them are no study."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pydicom.valuerep import IS, DSdecimal, DSfloat

FOLDER = Path(pydicom.__file__).parent / "data"
OTHER = frozenset({".gz", ".icc", ".json", ".md", ".py", ".pyc", ".txt", ".dump"})

NO_IMAGE = "a directory of media, or a palette: it belongs to no study"
NO_UID = "it lacks the UIDs by which it would belong to a study"
BROKEN = "it is cut off, or not written as it says"
NO_DICOM = "it is a text"
REASONS = {
    **{f"palettes/{name}.dcm": NO_IMAGE for name in (
        "fall", "hotiron", "hotmetalblue", "pet", "pet20step", "spring", "summer", "winter",
    )},
    **{f"test_files/dicomdirtests/{name}": NO_IMAGE for name in (
        "DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-empty.dcm", "DICOMDIR-implicit", "DICOMDIR-nooffset",
        "DICOMDIR-nopatient", "DICOMDIR-reordered", "TINY_ALPHA/DICOMDIR",
    )},
    **{f"test_files/{name}.dcm": NO_UID for name in (
        "JPEGLSNearLossless_08", "JPEGLSNearLossless_16", "SC_rgb_jls_lossy_line", "SC_rgb_jls_lossy_sample",
        "UN_sequence", "empty_charset_LEI", "meta_missing_tsyntax", "nested_priv_SQ", "no_meta_group_length", "priv_SQ",
    )},
    **{f"charset_files/{name}.dcm": NO_UID for name in ("chrSQEncoding", "chrSQEncoding1")},
    **{f"test_files/{name}.dcm": BROKEN for name in ("MR_truncated", "SC_rgb_jpeg", "no_meta", "rtplan_truncated")},
    "test_files/dicomdirtests/TINY_ALPHA/README": NO_DICOM,
}  # fmt: skip
"""Files that a real archive refuses."""


def paths() -> list[Path]:
    """Every file that may be DICOM."""
    found = (path for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in OTHER)
    return sorted(found)


def name(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def read(path: Path) -> Dataset:
    """The file as pydicom reads it, whatever is wrong with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        found.decode()
        for element in found:
            str(element)
        return found


def tags(dataset: Dataset) -> dict[str, Any]:
    """The attributes as Orthanc's JSON."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(_tags(dataset))


def _tags(dataset: Dataset) -> Iterator[tuple[str, Any]]:
    for element in dataset:
        key = f"{element.tag.group:04x},{element.tag.element:04x}"
        if element.VR == "SQ":
            yield key, {"Type": "Sequence", "Value": [tags(item) for item in element.value]}
        elif not isinstance(element.value, bytes) and not element.tag.is_private:
            many = element.value if element.VM > 1 else [element.value]
            yield key, {"Type": "String", "Value": "\\".join(map(_written, many))}


def _written(value: Any) -> str:
    # pydicom keeps numbers as they were spelled.
    spelled = value.original_string if isinstance(value, DSfloat | DSdecimal | IS) else value
    return "" if spelled is None else str(spelled)


def syntax(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None)
    return str(meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)) if meta is not None else ""
