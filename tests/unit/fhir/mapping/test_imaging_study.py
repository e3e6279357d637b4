"""Images as ImagingStudy: nothing an image says makes it raise or invalid (app.fhir.mapping.imaging_study)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from fhir.resources.R4B.imagingstudy import ImagingStudy
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dicom.archive import dataset
from app.fhir import resources, validation
from app.fhir.mapping import imaging_study, terms
from app.fhir.mapping.imaging_study import Links, SeriesFacts

ZONE = ZoneInfo("Europe/Berlin")
CT = "1.2.840.10008.5.1.4.1.1.2"
LINKS = Links(
    resource_id="s", subject={"reference": "Patient/p"}, endpoint={"reference": "Endpoint/dicomweb"},
    accession=imaging_study.accession_identifier("urn:isocenter:accession", "A1"),
)  # fmt: skip
TAGS = {
    "0008,0020": "20260301", "0008,0030": "101500", "0008,0060": "CT", "0020,0011": "2", "0020,0010": "S1",
    "0008,1030": "Chest", "0008,103e": "axial", "0018,0015": "CHEST", "0020,0060": "L", "0008,0201": "+0200",
}  # fmt: skip


@dataclass(frozen=True)
class One:
    sop_uid: str
    sop_class: str = CT
    number: str = "1"
    frames: str = ""
    syntax: str = ""


def tags(**changes: str | None) -> dict[str, Any]:
    return {name: {"Type": "String", "Value": value} for name, value in (TAGS | changes).items()}


def facts(uid: str = "1.2.1", *instances: One, **changes: str | None) -> SeriesFacts:
    return SeriesFacts(uid, dataset(tags(**changes)), instances or (One("1.2.1.1"),))


def valid(study: dict[str, Any]) -> bool:
    body = resources.dumps(study)
    ImagingStudy.model_validate(orjson.loads(body))
    return validation.validate(validation.parse(body), "ImagingStudy") == []


def test_what_the_images_say_stands_in_the_study() -> None:
    study = imaging_study.available("1.2", [facts()], LINKS, ZONE)
    [series] = study["series"]
    assert valid(study)
    assert study["started"] == "2026-03-01T10:15:00+02:00"
    assert study["description"] == "Chest"
    assert study["identifier"][0]["value"] == "urn:oid:1.2"
    chest = {"system": "http://snomed.info/sct", "code": "816094009", "display": "Chest"}
    assert (series["number"], series["description"], series["bodySite"]) == (2, "axial", chest)
    assert series["laterality"]["code"] == "7771000"
    assert series["instance"] == [{"uid": "1.2.1.1", "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{CT}"}, "number": 1}]  # fmt: skip # noqa: E501


def test_series_and_instances_stand_in_the_order_of_their_numbers() -> None:
    second = facts("1.2.2", One("1.2.2.3", number="10"), One("1.2.2.2", number="9"), **{"0020,0011": "10"})
    study = imaging_study.available("1.2", [second, facts("1.2.1", **{"0020,0011": "9"})], LINKS, ZONE)
    assert [one["uid"] for one in study["series"]] == ["1.2.1", "1.2.2"]
    assert [one["uid"] for one in study["series"][1]["instance"]] == ["1.2.2.2", "1.2.2.3"]
    assert (study["numberOfSeries"], study["numberOfInstances"]) == (2, 3)


def test_a_missing_modality_is_said_to_be_another() -> None:
    study = imaging_study.available("1.2", [facts(**{"0008,0060": None})], LINKS, ZONE)
    assert study["series"][0]["modality"]["code"] == "OT"


def test_a_uid_that_fhir_cannot_say_is_counted_and_not_listed() -> None:
    odd = facts("1.2.1", One("1.2 x"), One("1.2.1.2", sop_class=""))
    study = imaging_study.available("1.2", [odd, facts("not_a_uid")], LINKS, ZONE)
    assert valid(study)
    assert (study["numberOfSeries"], study["numberOfInstances"], len(study["series"])) == (2, 3, 1)
    assert [one["uid"] for one in study["series"][0]["instance"]] == ["1.2.1.2"]


def test_a_withdrawn_study_keeps_who_and_what_and_loses_where() -> None:
    study = imaging_study.available("1.2", [facts()], LINKS, ZONE)
    gone = imaging_study.withdrawn(study, "2026-03-02T10:00:00+00:00")
    again = imaging_study.withdrawn(gone, "2026-03-03T10:00:00+00:00")
    assert valid(gone)
    assert gone["status"] == "unknown"
    assert not {"endpoint", "series"} & gone.keys()
    assert gone["identifier"] == study["identifier"]
    assert [one["url"] for one in again["extension"]].count(terms.WITHDRAWN) == 1


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(sorted(TAGS)), st.one_of(st.none(), st.text(max_size=70)), max_size=10),
    st.text(max_size=70), st.text(max_size=70), st.text(max_size=12),
)  # fmt: skip
def test_no_value_of_an_image_makes_the_study_raise_or_invalid(
    changes: dict[str, str | None], sop_uid: str, sop_class: str, number: str
) -> None:
    one = facts("1.2.1", One(sop_uid, sop_class, number), **changes)
    assert valid(imaging_study.available("1.2", [one], LINKS, ZONE))
