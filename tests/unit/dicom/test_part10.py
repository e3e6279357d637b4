"""Files walked without building them: what is well-formed is told as pydicom tells it, the rest is refused."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from time import perf_counter

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from app.dicom import part10
from app.dicom.part10 import Meta, Outline, Unreadable
from tests.orthanc.phantoms import image, report
from tests.orthanc.phantoms import part10 as written

FUZZ = int(os.environ.get("ISOCENTER_FUZZ", "80"))
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


@dataclass(frozen=True, slots=True)
class Memory:
    octets: bytes

    @property
    def size(self) -> int:
        return len(self.octets)

    def piece(self, at: int, size: int) -> bytes:
        return self.octets[at : at + size]


def walk(octets: bytes) -> tuple[Meta, Outline]:
    file = Memory(octets)
    meta = part10.meta(file)
    return meta, part10.outline(file, meta)


def document(**changed: object) -> Dataset:
    dataset = report(mrn="A", study="1.2.3", series="1.2.3.4", instance="1.2.3.4.5")
    for keyword, value in changed.items():
        setattr(dataset, keyword, value)
    return dataset


def nested(depth: int) -> Dataset:
    dataset, level = document(), Dataset()
    dataset.ContentSequence = [level]
    for _ in range(depth - 1):
        level.ContentSequence = [Dataset()]
        level = level.ContentSequence[0]
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_identifiers_are_those_of_the_file_in_every_native_syntax(syntax: UID) -> None:
    dataset = nested(3)
    dataset.PatientID, dataset.IssuerOfPatientID, dataset.SpecificCharacterSet = "Ä-1", "HÖSP", "ISO_IR 192"
    meta, outline = walk(written(dataset, syntax))
    assert (meta.sop_class, meta.sop_uid, meta.transfer_syntax) == (dataset.SOPClassUID, "1.2.3.4.5", syntax)
    assert [outline.uid(tag) for tag in (part10.STUDY_UID, part10.SERIES_UID, part10.SOP_UID)] == [
        "1.2.3", "1.2.3.4", "1.2.3.4.5"
    ]  # fmt: skip
    assert (outline.text(part10.PATIENT_ID), outline.text(part10.ISSUER)) == ("Ä-1", "HÖSP")


@pytest.mark.parametrize("declared", ["ISO_IR 100", "ISO_IR 144", ["", "ISO 2022 IR 87"], "GB18030"])
def test_a_patient_id_is_read_in_the_declared_character_set(declared: object) -> None:
    text = {"ISO_IR 100": "Ä1", "ISO_IR 144": "Ж1", "GB18030": "王1"}.get(str(declared), "山1")
    dataset = document(SpecificCharacterSet=declared)
    dataset.PatientID = text
    assert walk(written(dataset))[1].text(part10.PATIENT_ID) == text


def test_compressed_frames_are_walked_and_a_cut_fragment_is_noticed() -> None:
    dataset = image(mrn="A", study="1.2.3", series="1.2.3.4", instance="1.2.3.4.5")
    dataset.PixelData = encapsulate([b"one.", b"two."])
    dataset["PixelData"].is_undefined_length = True
    octets = written(dataset, JPEGBaseline8Bit)
    meta, outline = walk(octets)
    assert (outline.pixels, part10.short_of_pixels(meta, outline)) == (None, False)
    for cut in range(len(octets) - 40, len(octets)):
        with pytest.raises(Unreadable):
            walk(octets[:cut])


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_that_ends_anywhere_before_its_end_is_refused_or_a_file_that_ends_between_elements(syntax: UID) -> None:
    octets = written(nested(2), syntax)
    whole = 0
    for cut in range(len(octets)):
        try:
            walk(octets[:cut])
        except Unreadable:
            continue
        whole += 1
    assert whole <= len(document()) + 8


@pytest.mark.parametrize("garbage", [b"\0", b"\r\n", b"\0" * 8, b"\0" * 512, b"garbage!" * 4])
def test_bytes_behind_the_end_are_refused(garbage: bytes) -> None:
    with pytest.raises(Unreadable):
        walk(written(document()) + garbage)


def test_padding_that_the_standard_has_is_no_garbage() -> None:
    walk(written(document(DataSetTrailingPadding=b"\0" * 100)))


def test_short_native_pixels_are_noticed() -> None:
    dataset = image(mrn="A", study="1.2.3", series="1.2.3.4", instance="1.2.3.4.5", frames=3)
    assert not part10.short_of_pixels(*walk(written(dataset)))
    assert not part10.short_of_pixels(*walk(written(dataset, ExplicitVRBigEndian)))
    dataset.PixelData = dataset.PixelData[:-2]
    for syntax in SYNTAXES:
        assert part10.short_of_pixels(*walk(written(dataset, syntax)))


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


HEAD = written(document())
END = HEAD.index(b"\x08\x00\x05\x00CS")


@pytest.mark.parametrize(
    "dataset",
    [
        element(0x00080018, b"UI", b"1.2\0") + element(0x00080016, b"UI", b"1.3\0"),
        element(0x00080018, b"UI", b"1.2\0") * 2,
        element(0x00020010, b"UI", b"1.2\0"),
        element(0x00000002, b"UI", b"1.2\0"),
        element(0x00080018, b"zz", b"1.2\0"),
        element(0x00080018, b"UI", b"1" * 2000),
        b"\x08\x00\x18\x00UI\xff\x7f1.2",
        b"\x08\x00\x18\x00OB\0\0\xff\xff\xff\xff",
        b"\x08\x00\x18\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x0d\xe0\0\0\0\0",
        b"\x08\x00\x18\x00SQ\0\0\x08\0\0\0\xfe\xff\x00\xe0\x10\0\0\0",
        b"\x08\x00\x18\x00SQ\0\0\x08\0\0\0\xfe\xff\xdd\xe0\0\0\0\0",
        b"\xfe\xff\x0d\xe0\0\0\0\0",
        b"\xfe\xff\x00\xe0\0\0\0\0",
    ],
)  # fmt: skip
def test_what_readers_would_take_differently_is_refused(dataset: bytes) -> None:
    with pytest.raises(Unreadable):
        walk(HEAD[:END] + dataset)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda octets: octets[:128] + b"DICN" + octets[132:],
        lambda octets: octets.replace(b"1.2.840.10008.1.2.1\0", b"\0" * 20),
        lambda octets: octets[:140] + b"\xff" + octets[141:],
        lambda octets: octets[:131],
        lambda _octets: b"",
        lambda octets: octets.replace(b"1.2.3.4.5", b"1.2.3.4.\xe9"),
    ],
)
def test_a_broken_head_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(Unreadable):
        walk(spoil(HEAD))


def test_nesting_ends_somewhere() -> None:
    walk(written(nested(part10.DEEPEST)))
    with pytest.raises(Unreadable):
        walk(written(nested(part10.DEEPEST + 1)))
    deep = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 100_000
    with pytest.raises(Unreadable):
        walk(HEAD[:END] + deep)


def test_an_endless_number_of_elements_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 60_000
    crowd = HEAD[:END] + b"\x40\x00\x30\xa7SQ\0\0" + struct.pack("<I", len(items)) + items
    began = perf_counter()
    walk(crowd)
    assert perf_counter() - began < 30
    monkeypatch.setattr(part10, "MOST", 50_000)
    with pytest.raises(Unreadable):
        walk(crowd)


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\"), max_size=20)


@st.composite
def datasets(draw: st.DrawFn, depth: int = 3) -> Dataset:
    dataset = Dataset()
    for keyword in draw(st.sets(st.sampled_from(["PatientComments", "StudyDescription", "Manufacturer"]))):
        setattr(dataset, keyword, draw(TEXT))
    if draw(st.booleans()):
        dataset.add_new(0x00091001, "UN", draw(st.binary(max_size=9)) + b"\0")
    if depth and draw(st.booleans()):
        dataset.ContentSequence = draw(st.lists(datasets(depth - 1), max_size=3))
        dataset["ContentSequence"].is_undefined_length = draw(st.booleans())
    return dataset


@settings(max_examples=FUZZ, deadline=None)
@given(datasets(), TEXT, st.sampled_from(SYNTAXES))
def test_it_agrees_with_pydicom(inner: Dataset, mrn: str, syntax: UID) -> None:
    dataset = document(PatientID=mrn)
    dataset.update(inner)
    octets = written(dataset, syntax)
    _, outline = walk(octets)
    other = pydicom.dcmread(BytesIO(octets))
    assert outline.text(part10.PATIENT_ID) == str(other.PatientID).strip()
    assert outline.uid(part10.SOP_UID) == other.SOPInstanceUID


@settings(max_examples=FUZZ, deadline=None)
@given(st.data())
def test_no_bytes_break_it_and_what_it_takes_pydicom_takes_alike(data: st.DataObject) -> None:
    octets = bytearray(written(nested(2), data.draw(st.sampled_from(SYNTAXES))))
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(132, len(octets) - 1))] = data.draw(st.integers(0, 255))
    try:
        meta, outline = walk(bytes(octets))
        told = [outline.uid(tag) for tag in (part10.SOP_CLASS, part10.SOP_UID, part10.STUDY_UID, part10.SERIES_UID)]
    except Unreadable:
        return
    if meta.transfer_syntax in SYNTAXES:
        other = pydicom.dcmread(BytesIO(octets), stop_before_pixels=True)
        names = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        raw = [other.get_item(name) for name in names]
        assert told == [
            bytes(one.value).rstrip(b" \0").decode() if one is not None and one.value else "" for one in raw
        ]


@given(st.binary(max_size=200))
def test_no_noise_breaks_it(noise: bytes) -> None:
    for start in (b"", HEAD[:132], HEAD[:END]):
        try:
            walk(start + noise)
        except Unreadable:
            continue
