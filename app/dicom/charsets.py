"""Text in the character set that a file declares, where the archive's own reading loses signs (PS3.3 C.12.1.1.2).

Orthanc reads single character sets and the usual East Asian ones. With others it leaves out bytes without a word: then
the file itself is read, misspelt names of character sets are understood, and what stays unreadable is marked.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Sequence as Many
from io import BytesIO
from typing import Final

import pydicom
from pydicom import charset, config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import TEXT_VR_DELIMS

TERM: Final = re.compile(r"ISO[ _-]?(?P<extended>2022[ _-]?)?IR[ _-]?(?P<number>\d{1,3})", re.IGNORECASE)
UNICODE: Final = frozenset({"UTF-8", "UTF8", "UTF_8", "UNICODE"})
SINGLE: Final = frozenset({13, 100, 101, 109, 110, 126, 127, 138, 144, 148, 166, 192})
"""Character sets that Orthanc 1.10 reads when they stand alone."""
SECOND: Final = frozenset({58, 87, 149})
"""… and after an empty first value."""
TEXT_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
MARK: Final = "\N{REPLACEMENT CHARACTER}"
_quiet = threading.Lock()


def is_safe(header: Dataset) -> bool:
    """Whether the archive's reading of this header has lost nothing."""
    declared = _declared(header)
    if len(declared) > 1:
        return not declared[0] and _numbers(declared[1:]) <= SECOND
    # Without a declaration Orthanc takes Latin-1, in which each byte is a sign.
    return (
        not declared
        or declared[0].upper() in {"", "GB18030", "GBK"}
        or (_number(declared[0]) in SINGLE and bool(re.match("ISO_IR |ISO 2022 IR ", declared[0])))
    )


def reread(header: Dataset, content: bytes) -> Dataset:
    """The header with its texts read anew from the file's content, at the top level and in sequences."""
    with _quiet, warnings.catch_warnings():
        # What cannot be decoded is marked in the text; pydicom's warnings say no more.
        warnings.simplefilter("ignore")
        file = pydicom.dcmread(BytesIO(content), force=True, stop_before_pixels=True)
        declared = _declared(header)
        header.SpecificCharacterSet = declared
        _decode(header, file, _encodings(declared))
    return header


def decoded(raw: bytes, declared: Many[str]) -> str:
    """One value in the declared character sets; what they do not tell is marked."""
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = charset.decode_bytes(raw, _encodings([one.strip() for one in declared]), set(TEXT_VR_DELIMS))
    return text.replace("\x1b", MARK)


def _declared(header: Dataset) -> list[str]:
    value = header.get("SpecificCharacterSet")
    found = list(value) if isinstance(value, MultiValue) else [value]
    # In the Japanese set the backslash between values is a yen sign, and Orthanc shows it as one.
    written = [one for part in found for one in str(part).split("¥")]
    return [one.strip(" \0") for one in written] if value not in (None, "") else []


def _number(term: str) -> int:
    """The registration number of a character set, 0 of the default one, -1 of what is none."""
    if not term:
        return 0
    if term.upper() in UNICODE:
        return 192
    match = TERM.fullmatch(term)
    return int(match["number"]) if match else -1


def _numbers(terms: Many[str]) -> set[int]:
    return {_number(term) for term in terms}


def _encodings(declared: Many[str]) -> list[str]:
    """Python's names of what is declared; ASCII for what nobody knows, so that its other signs are marked."""
    several = len(declared) > 1
    found: list[str] = []
    for term in declared or [""]:
        number = _number(term)
        spelled = f"ISO 2022 IR {number}" if several and number != 192 else f"ISO_IR {number}"
        name = term.upper() if term.upper() in {"GB18030", "GBK"} else spelled
        known = charset.python_encoding.get(name, "ascii")
        found.append("ascii" if number in {0, 6} else known)
    return found


def _decode(header: Dataset, file: Dataset, encodings: list[str]) -> None:
    for element in list(header):
        raw = file.get_item(element.tag) if element.tag in file else None
        if element.VR == "SQ":
            items = file[element.tag].value if raw is not None else []
            for item, written in zip(element.value, items, strict=False):
                _decode(item, written, encodings)
        elif isinstance(raw, RawDataElement) and dictionary_VR(element.tag) in TEXT_VRS and raw.value:
            header[element.tag] = _read(element, raw.value, encodings)


def _read(element: DataElement, raw: bytes, encodings: list[str]) -> DataElement:
    text = charset.decode_bytes(raw.rstrip(b" \0"), encodings, set(TEXT_VR_DELIMS))
    # An escape sequence that leads nowhere marks what follows it.
    return DataElement(element.tag, element.VR, text.replace("\x1b", MARK), validation_mode=config.IGNORE)
