"""The body parts of DICOM as SNOMED CT: no code is mistyped (capability/codes/body_sites.csv)."""

from __future__ import annotations

import pytest

from app.fhir.mapping import codes


@pytest.mark.parametrize("row", codes.table("body_sites").items(), ids=lambda row: row[0])
def test_every_code_of_a_body_site_has_its_check_digit(row: tuple[str, tuple[str, ...]]) -> None:
    term, (code, display) = row
    assert term == term.upper()
    assert len(term) <= 16
    assert display
    assert verhoeff(code) == 0


def verhoeff(number: str) -> int:
    """The check of SNOMED CT's identifiers: 0 for a sound one (SNOMED CT Release File Specification, 5.5)."""
    turned = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    for _ in range(6):
        turned.append([turned[-1][turned[1][digit]] for digit in range(10)])
    check = 0
    for place, sign in enumerate(reversed(number)):
        check = _dihedral(check, turned[place % 8][int(sign)])
    return check


def _dihedral(left: int, right: int) -> int:
    if left < 5:
        return (left + right) % 5 if right < 5 else (left + right - 5) % 5 + 5
    return (left - 5 - right) % 5 + 5 if right < 5 else (left - right) % 5
