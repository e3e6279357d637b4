"""Queries are understood whole or refused, and match as DICOM says."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dicom.qido import KEYS, element, parse
from app.errors import BadRequest


def matches(row: dict[str, object], **query: str) -> bool:
    return parse("instance", urlencode(query)).matches(row, KEYS["instance"])


@pytest.mark.parametrize(
    ("keyword", "value", "wanted", "result"),
    [
        ("PatientName", "Buc^Jérôme", "buc^JÉR*", True),
        ("PatientName", "Yamada^Tarou=山田^太郎", "山田*", True),
        ("PatientName", "Yamada^Tarou=山田^太郎", "yamada^tarou", True),
        ("PatientName", "Doe^John", "Doe", False),
        ("PatientName", "Doe^John", "Doe^J?hn", True),
        ("PatientName", "Doe.John", "Doe^John", False),
        ("PatientID", "A1", "a1", False),
        ("PatientID", "A1", "A*", True),
        ("PatientID", "A+1", "A+1", True),
        ("PatientID", "[A]", "[A]", True),
        ("PatientID", "A", "[A]", False),
        ("PatientID", "a" * 64, "*a" * 32 + "b", False),
        ("StudyDate", "20260301", "20260301", True),
        ("StudyDate", "20260301", "20260301-", True),
        ("StudyDate", "20260301", "-20260228", False),
        ("StudyDate", "", "20260301-", False),
        ("StudyDate", "", "*", True),
        ("StudyTime", "101500.25", "1015", True),
        ("StudyTime", "101500.25", "1000-1015", True),
        ("StudyTime", "101600", "1000-1015", False),
        ("StudyInstanceUID", "1.2.34", "1.2.3", False),
        ("StudyInstanceUID", "1.2.3", "1.2.4,1.2.3", True),
        ("StudyInstanceUID", "1.2.3", "1.2.4\\1.2.3", True),
        ("StudyInstanceUID", "1.2.3", "1.2.*", False),
        ("SeriesNumber", "10", "1", False),
        ("ModalitiesInStudy", ["CT", "SR"], "SR", True),
        ("ModalitiesInStudy", ["CT", "SR"], "MR,SR", True),
        ("ModalitiesInStudy", [], "SR", False),
        ("AccessionNumber", None, "", True),
        ("AccessionNumber", None, "1", False),
    ],
)
def test_an_attribute_matches_as_dicom_says(keyword: str, value: object, wanted: str, result: bool) -> None:
    assert matches({keyword: value}, **{keyword: wanted}) is result


def test_keywords_and_tags_are_one() -> None:
    assert parse("study", "0020000d=1.2").match == parse("study", "StudyInstanceUID=1.2").match
    assert parse("study", "StudyInstanceUID=1.2&0020000D=1.3").match == {"StudyInstanceUID": "1.2,1.3"}


@pytest.mark.parametrize("query", ["Modality=CT", "SOPInstanceUID=1", "PixelData=x", "PatientBirthDate=19-", "=1", "a"])
def test_what_a_study_search_does_not_know_is_refused(query: str) -> None:
    with pytest.raises(BadRequest):
        parse("study", query)


@given(st.text(max_size=60))
def test_no_query_breaks_the_parser(text: str) -> None:
    try:
        parse("instance", text)
    except BadRequest:
        return


@pytest.mark.parametrize(
    ("keyword", "value", "result"),
    [
        ("PatientName", "A^B=山", {"vr": "PN", "Value": [{"Alphabetic": "A^B", "Ideographic": "山"}]}),
        ("SeriesNumber", "3 ", {"vr": "IS", "Value": [3]}),
        ("ModalitiesInStudy", ["CT", "SR"], {"vr": "CS", "Value": ["CT", "SR"]}),
        ("Rows", 4, {"vr": "US", "Value": [4]}),
        ("StudyDate", None, {"vr": "DA"}),
        ("StudyDescription", "", {"vr": "LO"}),
    ],
)
def test_an_attribute_is_written_as_dicom_json(keyword: str, value: object, result: dict[str, object]) -> None:
    assert element(keyword, value) == result
