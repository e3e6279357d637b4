"""What a DICOM file says of itself, read in one pass that builds nothing (PS3.10 section 7.1, PS3.5 section 7).

A file that comes from outside is walked element by element in a few kilobytes of memory. What one reader takes one way
and another reader otherwise is refused: elements out of order or twice, lengths that lead out of what holds them,
bytes behind the end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol

from pydicom.datadict import dictionary_VR

from app.dicom import charsets

DEEPEST: Final = 24
"""Sequences within sequences: reports nest to ten or so, and some sixty end an Orthanc 1.10.1."""
MOST: Final = 1_000_000
"""Elements of one file: a report of 5,000 measurements has 65,000."""
LONGEST: Final = 1024
"""A value that is read; an identifier has at most 64 characters."""
WINDOW: Final = 1 << 16

IMPLICIT: Final = "1.2.840.10008.1.2"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Their size is known only when they are inflated."""
NATIVE: Final = frozenset({IMPLICIT, "1.2.840.10008.1.2.1", BIG_ENDIAN})

UNDEFINED: Final = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS: Final = (0x7FE00008, 0x7FE00009, 0x7FE00010)
SHORT: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

CHARSET, SOP_CLASS, SOP_UID = 0x00080005, 0x00080016, 0x00080018
STUDY_UID, SERIES_UID = 0x0020000D, 0x0020000E
PATIENT_ID, ISSUER = 0x00100020, 0x00100021
SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS, BITS = (
    0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100,
)  # fmt: skip
WANTED: Final = frozenset(
    {CHARSET, SOP_CLASS, SOP_UID, STUDY_UID, SERIES_UID, PATIENT_ID, ISSUER}
    | {SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS, BITS}
)
META_CLASS, META_UID, META_SYNTAX = 0x00020002, 0x00020003, 0x00020010


class Bytes(Protocol):
    """What can be read from any place."""

    @property
    def size(self) -> int:
        """How many bytes there are."""
        ...

    def piece(self, at: int, size: int) -> bytes:
        """Some of them; fewer at the end."""
        ...


class Unreadable(Exception):
    """The bytes are not a DICOM file, or one that is broken or made to break readers."""


@dataclass(frozen=True, slots=True)
class Meta:
    """The file meta information, and where the dataset begins."""

    sop_class: str
    sop_uid: str
    transfer_syntax: str
    end: int


@dataclass(frozen=True, slots=True)
class Outline:
    """What stands at the top of a dataset: raw values by tag, and how long its pixel data are."""

    values: dict[int, bytes]
    pixels: int | None
    """Length of native pixel data."""
    big_endian: bool

    def uid(self, tag: int) -> str:
        """A UID, without what fills it up."""
        return _ascii(self.values.get(tag, b""))

    def text(self, tag: int) -> str:
        """A text in the character set of the dataset."""
        raw = self.values.get(tag, b"").strip(b" \0")
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode()
        return charsets.decoded(raw, _ascii(self.values.get(CHARSET, b"")).split("\\")).strip()

    def number(self, tag: int, absent: int) -> int:
        """A whole number (US or IS)."""
        raw = self.values.get(tag, b"")
        if tag == FRAMES:
            text = raw.strip(b" \0")
            return int(text) if text.isdigit() else absent
        return struct.unpack(">H" if self.big_endian else "<H", raw)[0] if len(raw) == 2 else absent


def meta(file: Bytes) -> Meta:
    """The file meta information of a file."""
    source = _Source(file)
    if file.size < 132 or source.take(128, 4) != b"DICM":
        raise Unreadable("no DICOM file")
    found: dict[int, bytes] = {}
    at, last, announced = 132, 0, None
    while at < file.size and (tag := source.tag(at)) >> 16 == 2:
        element = source.element(at, _LITTLE)
        at = element.at + element.length
        if tag <= last or element.length == UNDEFINED or at > file.size:
            raise Unreadable("the file meta information is broken")
        if tag == 0x00020000:
            announced = at + int.from_bytes(source.value(element), "little")
        elif tag in {META_CLASS, META_UID, META_SYNTAX}:
            found[tag] = source.value(element)
        last = tag
    if announced not in {None, at}:
        raise Unreadable("the file meta information has another length than it tells")
    sop_class, sop_uid, syntax = (_ascii(found.get(tag, b"")) for tag in (META_CLASS, META_UID, META_SYNTAX))
    if not syntax:
        raise Unreadable("no transfer syntax")
    return Meta(sop_class, sop_uid, syntax, at)


def outline(file: Bytes, head: Meta) -> Outline:
    """Walk the whole dataset; what is broken raises."""
    form = {IMPLICIT: _IMPLICIT, BIG_ENDIAN: _BIG}.get(head.transfer_syntax, _LITTLE)
    walk = _Walk(_Source(file), file.size)
    walk.run(head.end, form)
    return Outline(walk.values, walk.pixels, head.transfer_syntax == BIG_ENDIAN)


def short_of_pixels(head: Meta, outline: Outline) -> bool:
    """Whether native pixel data are fewer than rows, columns and frames ask for."""
    if head.transfer_syntax not in NATIVE or outline.pixels is None:
        return False
    photometric = outline.values.get(PHOTOMETRIC, b"").strip(b" \0")
    if photometric.endswith((b"_422", b"_420")):
        return False
    names = ((ROWS, 0), (COLUMNS, 0), (SAMPLES, 1), (FRAMES, 1), (BITS, 0))
    bits = 1
    for tag, absent in names:
        bits *= outline.number(tag, absent)
    return outline.pixels < (bits + 7) // 8


def _ascii(raw: bytes) -> str:
    raw = raw.rstrip(b" \0")
    if not raw.isascii():
        raise Unreadable("an identifier has characters that no identifier has")
    return raw.decode()


@dataclass(frozen=True, slots=True)
class _Form:
    explicit: bool
    order: str


_LITTLE, _BIG, _IMPLICIT = _Form(True, "<"), _Form(True, ">"), _Form(False, "<")


@dataclass(frozen=True, slots=True)
class _Element:
    tag: int
    vr: bytes
    """Empty where the dataset does not tell it."""
    at: int
    """Where its value begins."""
    length: int


class _Source:
    """Bytes at any place, read through one window that moves with the walk."""

    def __init__(self, file: Bytes) -> None:
        self._file = file
        self._window, self._from = b"", 0

    def take(self, at: int, size: int) -> bytes:
        start = at - self._from
        if start < 0 or start + size > len(self._window):
            self._window, self._from, start = self._file.piece(at, max(WINDOW, size)), at, 0
        found = self._window[start : start + size]
        if len(found) < size:
            raise Unreadable("the file ends too early")
        return found

    def tag(self, at: int, order: str = "<") -> int:
        group, element = struct.unpack(order + "HH", self.take(at, 4))
        return group << 16 | element

    def length(self, at: int, order: str) -> int:
        return struct.unpack(order + "I", self.take(at, 4))[0]

    def element(self, at: int, form: _Form) -> _Element:
        tag = self.tag(at, form.order)
        if not form.explicit or tag >> 16 == 0xFFFE:
            return _Element(tag, b"", at + 8, self.length(at + 4, form.order))
        vr, short = struct.unpack(form.order + "2sH", self.take(at + 4, 4))
        if vr in SHORT:
            return _Element(tag, vr, at + 8, short)
        if vr not in LONG or short:
            raise Unreadable("an element has a value representation that does not exist")
        return _Element(tag, vr, at + 12, self.length(at + 8, form.order))

    def value(self, element: _Element) -> bytes:
        if element.length > LONGEST:
            raise Unreadable("an identifier is too long")
        return self.take(element.at, element.length)


class _Kind(Enum):
    DATASET = auto()
    SEQUENCE = auto()
    FRAGMENTS = auto()


@dataclass(slots=True)
class _Level:
    kind: _Kind
    form: _Form
    limit: int
    """Nothing inside reaches beyond."""
    delimited: bool
    """Whether a delimiter ends it, rather than its length."""
    last: int = 0x0003FFFF
    """Command and file meta elements do not belong into a dataset."""


@dataclass(slots=True)
class _Walk:
    source: _Source
    size: int
    values: dict[int, bytes] = field(default_factory=dict[int, bytes])
    pixels: int | None = None
    levels: list[_Level] = field(default_factory=list[_Level])
    seen: int = 0

    def run(self, at: int, form: _Form) -> None:
        self.levels.append(_Level(_Kind.DATASET, form, self.size, delimited=False))
        while self.levels:
            level = self.levels[-1]
            if at == level.limit and not level.delimited:
                self.levels.pop()
                continue
            self.seen += 1
            if self.seen > MOST:
                raise Unreadable("the file has too many elements")
            at = self._in_dataset(level, at) if level.kind is _Kind.DATASET else self._among_items(level, at)

    def _in_dataset(self, level: _Level, at: int) -> int:
        element = self.source.element(at, level.form)
        if element.tag == ITEM_END and level.delimited:
            return self._ended(level, element)
        if element.tag <= level.last or element.tag >> 16 == 0xFFFE:
            raise Unreadable("elements are out of order or there twice")
        level.last = element.tag
        if element.length != UNDEFINED and element.at + element.length > level.limit:
            raise Unreadable("an element is longer than what holds it")
        if len(self.levels) == 1:
            self._note(element)
        if inner := _inside(element, level.form):
            return self._enter(level, element, *inner)
        if element.length == UNDEFINED:
            raise Unreadable("an element has no length")
        return element.at + element.length

    def _note(self, element: _Element) -> None:
        if element.tag in WANTED and element.length != UNDEFINED:
            self.values[element.tag] = self.source.value(element)
        elif element.tag in PIXELS and element.length != UNDEFINED:
            self.pixels = element.length

    def _enter(self, level: _Level, element: _Element, kind: _Kind, form: _Form) -> int:
        if sum(one.kind is _Kind.SEQUENCE for one in self.levels) >= DEEPEST:
            raise Unreadable("sequences are nested too deep")
        delimited = element.length == UNDEFINED
        limit = level.limit if delimited else element.at + element.length
        self.levels.append(_Level(kind, form, limit, delimited))
        return element.at

    def _among_items(self, level: _Level, at: int) -> int:
        element = self.source.element(at, level.form)
        if element.tag == SEQUENCE_END and level.delimited:
            return self._ended(level, element)
        delimited = element.length == UNDEFINED
        end = level.limit if delimited else element.at + element.length
        if element.tag != ITEM or max(element.at, end) > level.limit:
            raise Unreadable("a sequence holds something that is no item")
        if level.kind is _Kind.FRAGMENTS:
            if delimited:
                raise Unreadable("a fragment has no length")
            return end
        self.levels.append(_Level(_Kind.DATASET, level.form, end, delimited))
        return element.at

    def _ended(self, level: _Level, element: _Element) -> int:
        if element.length or element.at > level.limit:
            raise Unreadable("a delimiter has a length")
        self.levels.pop()
        return element.at


def _inside(element: _Element, form: _Form) -> tuple[_Kind, _Form] | None:
    """What an element holds, if it holds items."""
    undefined = element.length == UNDEFINED
    if undefined and element.tag in PIXELS:
        return _Kind.FRAGMENTS, form
    match element.vr:
        case b"SQ":
            return _Kind.SEQUENCE, form
        case b"UN" if undefined:
            # PS3.5 section 6.2.2: whoever did not know the sequence wrote it in the default transfer syntax.
            return _Kind.SEQUENCE, _IMPLICIT
        case b"" if undefined or _is_sequence(element.tag):
            return _Kind.SEQUENCE, form
        case b"OB" | b"OW" if undefined:
            return _Kind.FRAGMENTS, form
        case _:
            return None


def _is_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
