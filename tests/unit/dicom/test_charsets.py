"""Text where the archive's own reading would lose signs (app.dicom.charsets)."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset

from app.dicom import archive, charsets

MARK = "\N{REPLACEMENT CHARACTER}"


def declared(term: str | None, name: str = "?") -> Dataset:
    """A header as the archive gives it: the term as written, the name already spoiled."""
    tags: dict[str, Any] = {"0010,0010": {"Type": "String", "Value": name}}
    return archive.dataset(tags | ({"0008,0005": {"Type": "String", "Value": term}} if term is not None else {}))


def file(name: bytes) -> bytes:
    """A file with these bytes for a name, before anybody decoded them."""
    padded = name + b" " * (len(name) % 2)
    element = b"\x10\x00\x10\x00PN" + len(padded).to_bytes(2, "little") + padded
    meta = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    return b"\0" * 128 + b"DICM" + meta + element


@pytest.mark.parametrize(
    "term",
    [None, "", "ISO_IR 100", "ISO_IR 192", "GB18030", "ISO 2022 IR 100", "\\ISO 2022 IR 87", "\\ISO 2022 IR 149"],
)
def test_the_usual_character_sets_are_left_to_the_archive(term: str | None) -> None:
    assert charsets.is_safe(declared(term))


@pytest.mark.parametrize(
    ("term", "written", "read"),
    [
        ("ISO-IR 100", "Müller".encode("latin-1"), "Müller"),
        ("ISO_IR100", "Müller".encode("latin-1"), "Müller"),
        ("UTF-8", "Müller".encode(), "Müller"),
        ("ISO_IR 6", "Müller".encode("latin-1"), f"M{MARK}ller"),
        ("ISO_IR 999", "Müller".encode("latin-1"), f"M{MARK}ller"),
        ("ISO_IR 999", b"Mueller", "Mueller"),
        ("ISO 2022 IR 100\\ISO 2022 IR 126", b"M\xfcller^\x1b\x2d\x46\xe1\xe2", "Müller^αβ"),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde=\x1b$B;3ED\x1b(J", "ﾔﾏﾀﾞ=山田"),
        ("ISO_IR 192\\ISO_IR 100", "Müller".encode(), "Müller"),
    ],
)
def test_other_and_misspelt_character_sets_are_read_from_the_file(term: str, written: bytes, read: str) -> None:
    header = declared(term)
    assert not charsets.is_safe(header)
    assert str(charsets.reread(header, file(written)).PatientName) == read


def test_text_in_sequences_is_read_anew_as_well() -> None:
    item = {"0008,0104": {"Type": "String", "Value": "?"}}
    header = archive.dataset({
        "0008,0005": {"Type": "String", "Value": "ISO-IR 100"}, "0008,1032": {"Type": "Sequence", "Value": [item]},
    })  # fmt: skip
    meaning = "Schädel".encode("latin-1") + b" "
    entry = b"\x08\x00\x04\x01LO" + len(meaning).to_bytes(2, "little") + meaning
    items = b"\xfe\xff\x00\xe0" + len(entry).to_bytes(4, "little") + entry
    coded = b"\x08\x00\x32\x10SQ\0\0" + len(items).to_bytes(4, "little") + items
    meta = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    written = b"\0" * 128 + b"DICM" + meta + coded
    assert charsets.reread(header, written).ProcedureCodeSequence[0].CodeMeaning == "Schädel"
