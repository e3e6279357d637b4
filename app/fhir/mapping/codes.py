"""DICOM codes and units as FHIR Coding, CodeableConcept and Quantity (PS3.16 section 8, https://hl7.org/fhir/R4/datatypes.html).

The tables are the csv files of capability/codes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from app.fhir.mapping import terms
from app.fhir.mapping.shapes import Code

Json = dict[str, Any]

# Cornerstone's designators and values for a label somebody typed: words, not codes.
FREE_TEXT = frozenset({"CORNERSTONEFREETEXT", "CORNERSTONEJS", "CST4", "CS3DTEXT"})
OID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")
URN = re.compile(r"urn:[A-Za-z0-9][A-Za-z0-9-]{1,31}:\S+")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{1,8})*")

_PACKAGED = Path(__file__).parents[2] / "_capability"
FOLDER = (_PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "capability") / "codes"


@cache
def table(name: str) -> dict[str, tuple[str, ...]]:
    """A csv file of capability/codes: its first column to the others."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(line for line in lines if not line.startswith("#")))[1:]
    return {row[0]: tuple(row[1:]) for row in rows}


def system(code: Code, maker: str | None = None) -> str:
    """The code system of a DICOM code; private schemes are told apart by their maker."""
    designator = code.scheme.strip()
    uri, oid = table("systems").get(designator.upper(), ("", ""))
    if uri or oid:
        return uri or f"urn:oid:{oid}"
    for uid in (code.scheme_uid or "", designator):
        if OID.fullmatch(uid):
            return f"urn:oid:{uid}"
    if URN.fullmatch(code.value):
        return "urn:ietf:rfc:3986"
    return "/".join((terms.LOCAL_SCHEME, *([_slug(maker)] if maker else []), _slug(designator) or "none"))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def coding(code: Code, maker: str | None = None) -> Json:
    """One Coding."""
    found = {
        "system": system(code, maker),
        "version": line(code.version or ""),
        "code": line(code.value),
        "display": line(code.meaning),
    }
    return {name: value for name, value in found.items() if value}


def concept(codes: Sequence[Code], maker: str | None = None, text: str | None = None) -> Json:
    """A CodeableConcept; codes that are only words become its text."""
    real = [code for code in codes if not _is_words(code)]
    words = text or next((line(code.meaning) for code in codes if line(code.meaning)), "")
    found: Json = {"coding": [coding(code, maker) for code in real], "text": words}
    return {name: value for name, value in found.items() if value}


def _is_words(code: Code) -> bool:
    return not line(code.value) or not FREE_TEXT.isdisjoint({code.value.upper(), code.scheme.upper()})


def line(text: str) -> str:
    """One line without doubled spaces and control characters, as a FHIR code and string must be."""
    shown = text if text.isprintable() else "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(shown.split())


def language(code: str | None) -> str | None:
    """A BCP 47 tag, None when the code is none."""
    text = (code or "").strip()
    text = table("languages").get(text.lower(), (text,))[0]
    return text if LANGUAGE.fullmatch(text) else None


def absent(reason: str) -> Json:
    """The dataAbsentReason for a reason."""
    code, display = table("absent_reasons")[reason]
    return {"coding": [{"system": terms.DATA_ABSENT_REASON, "code": code, "display": display}]}


def quantity(number: Decimal, unit: Code | None) -> Json:
    """A Quantity; a unit that is not UCUM stays readable text without a code."""
    if unit is None:
        return {"value": number}
    written = line(unit.value)
    code = ucum(written)
    shown = line(unit.meaning) or written
    if code is None:
        return {"value": number, "unit": shown} if shown else {"value": number}
    return {"value": number, "unit": shown, "system": terms.UCUM, "code": code}


def ucum(written: str) -> str | None:
    """The valid UCUM code that is meant; None when there is none."""
    code = table("ucum_repairs").get(written, (written,))[0]
    arbitrary = re.fullmatch(r"\[arb'U\]\{(\S+)(?: .*)?\}", code)
    if arbitrary and " " in code:
        code = arbitrary[1]
    return code if is_ucum(code) else None


def is_ucum(code: str) -> bool:
    """Whether a text is a unit by UCUM's grammar, over the atoms that imaging uses."""
    if not 0 < len(code) <= 64 or not code.isascii() or " " in code:
        return False
    return _grammar().fullmatch(_flat(code)) is not None


def _flat(code: str) -> str:
    """Brackets of terms replaced from the inside by the number one, so that one pattern can read the rest."""
    inner = re.compile(r"\(([^()]*)\)")
    while match := inner.search(code):
        if not _grammar().fullmatch(match[1]):
            return ""
        code = f"{code[: match.start()]}1{code[match.end() :]}"
    return code


@cache
def _grammar() -> re.Pattern[str]:
    atoms = sorted(table("ucum_atoms").items(), key=lambda row: -len(row[0]))
    metric = "|".join(re.escape(atom) for atom, (takes,) in atoms if takes == "yes")
    fixed = "|".join(re.escape(atom) for atom, (takes,) in atoms if takes != "yes")
    prefix = "da|[YZEPTGMkhdcmunpfazy]"
    unit = rf"(?:(?:{fixed})|(?:{prefix})?(?:{metric}))(?:[+-]?\d+)?"
    note = r"\{[!-z|~]*\}"
    part = rf"(?:{unit}(?:{note})?|\d+(?:{note})?|{note})"
    return re.compile(rf"/?{part}(?:[./]{part})*")
