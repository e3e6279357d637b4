"""A structured report as a text that a browser shows: its content tree, in order (PS3.3 C.17.3, PS3.18 8.7.4)."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, Final

from pydicom.dataset import Dataset

from app.dicom.pixels import honestly

MAX_DEPTH: Final = 32
MAX_ITEMS: Final = 20_000
SIMPLE: Final = {
    "TEXT": "TextValue",
    "DATE": "Date",
    "TIME": "Time",
    "DATETIME": "DateTime",
    "PNAME": "PersonName",
    "UIDREF": "UID",
}
Line = tuple[int, str, str]
"""Depth, name and value."""


def render(header: Dataset, media_type: str) -> bytes:
    """`text/html` or `text/plain`, in UTF-8."""
    with honestly():
        header.decode()
        lines = [(0, _meaning(header.get("ConceptNameCodeSequence")) or "Report", "")]
        for line in _content(header, 1):
            lines.append(line)
            if len(lines) > MAX_ITEMS:
                break
    return (_html(lines) if media_type == "text/html" else _plain(lines)).encode()


def _content(item: Dataset, depth: int) -> Iterator[Line]:
    for child in item.get("ContentSequence") or []:
        yield depth, _meaning(child.get("ConceptNameCodeSequence")), _value(child)
        if depth < MAX_DEPTH:
            yield from _content(child, depth + 1)


def _value(item: Dataset) -> str:
    kind = str(item.get("ValueType", ""))
    if kind in SIMPLE:
        return str(item.get(SIMPLE[kind], ""))
    match kind:
        case "CODE":
            return _meaning(item.get("ConceptCodeSequence"))
        case "NUM":
            measured: Dataset = next(iter(item.get("MeasuredValueSequence") or []), Dataset())
            unit = _meaning(measured.get("MeasurementUnitsCodeSequence"), "CodeValue")
            return f"{measured.get('NumericValue', '')} {unit}".strip()
        case "IMAGE" | "COMPOSITE" | "WAVEFORM":
            referred: Dataset = next(iter(item.get("ReferencedSOPSequence") or []), Dataset())
            return str(referred.get("ReferencedSOPInstanceUID", ""))
        case _:
            return str(item.get("GraphicType", ""))


def _meaning(codes: Any, keyword: str = "CodeMeaning") -> str:
    code: Dataset = next(iter(codes or []), Dataset())
    return str(code.get(keyword, ""))


def _plain(lines: list[Line]) -> str:
    return "".join(f"{'  ' * depth}{_joined(name, value)}\n" for depth, name, value in lines)


def _joined(name: str, value: str) -> str:
    return f"{name}: {value}" if name and value else name or value


def _html(lines: list[Line]) -> str:
    title = escape(lines[0][1])
    rows = (
        f'<p style="margin:0 0 .3em {depth * 1.5 - 1.5}em"><b>{escape(name)}</b> {escape(value)}</p>\n'
        for depth, name, value in lines[1:]
    )
    head = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
    return f"{head}<body><h1>{title}</h1>\n{''.join(rows)}</body></html>\n"
