"""Orthanc's tag JSON as a Dataset: an invalid value costs itself, never the whole (app.dicom.archive)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import DicomDictionary

from app.dicom import archive

TAGS = st.sampled_from([f"{tag >> 16:04x},{tag & 0xFFFF:04x}" for tag in DicomDictionary])
ENTRY = st.one_of(
    st.fixed_dictionaries({"Type": st.just("String"), "Value": st.text(max_size=70)}),
    st.fixed_dictionaries({"Type": st.sampled_from(["Null", "TooLong"]), "Value": st.none()}),
)


@given(st.dictionaries(TAGS, ENTRY, max_size=20))
def test_no_tag_and_no_value_makes_the_header_raise(tags: dict[str, Any]) -> None:
    assert len(archive.dataset(tags)) <= len(tags)


@pytest.mark.parametrize("value", ["abc", "1.5.2", "9" * 400, "NaN", "1\\x"])
def test_a_number_that_is_none_leaves_the_others(value: str) -> None:
    tags = {
        "0020,0011": {"Type": "String", "Value": value},
        "0018,0050": {"Type": "String", "Value": value},
        "0008,0060": {"Type": "String", "Value": "CT \0"},
    }
    assert archive.dataset(tags).Modality == "CT"


def test_items_of_sequences_are_datasets() -> None:
    inner = {"0008,0050": {"Type": "String", "Value": "A1"}}
    made = archive.dataset({"0040,0275": {"Type": "Sequence", "Value": [inner]}})
    assert made.RequestAttributesSequence[0].AccessionNumber == "A1"


@pytest.mark.case(39)
def test_private_tags_stay_in_the_archive() -> None:
    assert len(archive.dataset({"0011,1001": {"Type": "String", "Value": "secret"}})) == 0
