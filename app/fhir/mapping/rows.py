"""The mapping tables: an element of FHIR, the DICOM attributes it comes from, the conversion (https://hl7.org/fhir/R4/mapping-language.html).

A table is data: the mapping fills elements from it, and the documentation traces each element to its attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import TYPE_CHECKING, Any

from app.fhir.mapping.codes import Json

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Row:
    """One element. `convert` takes a header and the zone of times without an offset; None leaves the element out."""

    element: str
    keywords: tuple[str, ...]
    convert: Callable[[Dataset, tzinfo], Any]


def plain(element: str, keyword: str, convert: Callable[[Any], Any]) -> Row:
    """An element that comes from one attribute alone."""
    return Row(element, (keyword,), lambda header, _: convert(header.get(keyword)))


Voice = tuple["Dataset", tzinfo]
"""A header, and the zone of its times."""


def fill(rows: Iterable[Row], voices: Sequence[Voice]) -> Json:
    """The elements of a table, each from the first header that has it."""
    found = {row.element: _first(row, voices) for row in rows}
    return filled(found)


def filled(element: Json) -> Json:
    """Without what is absent."""
    return {name: value for name, value in element.items() if value not in (None, [], {}, ())}


def _first(row: Row, voices: Sequence[Voice]) -> Any:
    made = (row.convert(header, zone) for header, zone in voices)
    return next((value for value in made if value not in (None, [], {}, ())), None)
