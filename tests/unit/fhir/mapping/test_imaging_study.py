"""Images as ImagingStudy: nothing an image says makes it raise or invalid (app.fhir.mapping.imaging_study)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from fhir.resources.R4B.imagingstudy import ImagingStudy
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dicom.archive import dataset
from app.fhir import resources, validation
from app.fhir.mapping import imaging_series, imaging_study, terms
from app.fhir.mapping.imaging_study import Links, SeriesFacts
from tests import pydicom_files

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


# --- every element of a series and of the study ------------------------------------------------------------------


def sequence(*items: dict[str, Any]) -> dict[str, Any]:
    return {"Type": "Sequence", "Value": [{name: text(value) for name, value in item.items()} for item in items]}


def text(value: Any) -> Any:
    return value if isinstance(value, dict) else {"Type": "String", "Value": value}


def coded(value: str, meaning: str, scheme: str = "SCT") -> dict[str, Any]:
    return {"0008,0100": value, "0008,0102": scheme, "0008,0104": meaning}


def described(links: Links = LINKS, *others: SeriesFacts, **changes: Any) -> dict[str, Any]:
    header = dataset({name: text(value) for name, value in (TAGS | {"0010,0020": "P1"} | changes).items()})
    one = SeriesFacts("1.2.1", header, [One("1.2.1.1")], titled={"1.2.1.1": header})
    made = imaging_study.available("1.2", [one, *others], links, ZONE)
    assert valid(made)
    return made


def flags(study: dict[str, Any]) -> list[tuple[str, ...]]:
    """Issue and attribute of every flag."""
    found = [one["extension"] for one in study.get("extension", []) if one["url"] == terms.QUALITY]
    return [(issue["valueCode"], attribute["valueString"]) for issue, attribute, *_ in found]


def test_people_are_named_and_only_an_identifier_of_the_images_identifies_them() -> None:
    study = described(**{
        "0008,0090": "Refer^Rita^^Dr.", "0008,1060": "Reader^Ron\\Second^Sue",
        "0008,0096": sequence({"0040,1101": sequence(coded("D7", "Rita", "99HOSP"))}),
        "0008,1050": "Perform^Paul", "0008,1070": "Operate^Olga",
    })  # fmt: skip
    system = "https://isocenter.dev/fhir/dicom-scheme/99HOSP"
    identifier = {"system": system, "value": "D7"}
    assert study["referrer"] == {"type": "Practitioner", "identifier": identifier, "display": "Dr. Rita Refer"}
    assert [one["display"] for one in study["interpreter"]] == ["Ron Reader", "Sue Second"]
    performers = study["series"][0]["performer"]
    assert [(one["function"]["coding"][0]["code"], one["actor"]["display"]) for one in performers] == [
        ("PRF", "Paul Perform"),
        ("SPRF", "Olga Operate"),
    ]


def test_the_machine_and_the_place_are_shown() -> None:
    study = described(**{
        "0008,0070": "Maker", "0008,1090": "Model 7", "0008,1010": "CT1", "0018,1000": "4711",
        "0008,1040": "Radiology", "0008,0080": "Example Clinic",
    })  # fmt: skip
    machine = {"type": "Device", "identifier": {"value": "4711"}, "display": "Maker Model 7, CT1"}
    assert study["series"][0]["performer"] == [{"actor": machine}]
    assert study["location"]["display"] == "Radiology, Example Clinic"


def test_the_order_outweighs_the_images() -> None:
    requester = {"reference": "Practitioner/r"}
    ordered = Links(
        "s", {"reference": "Patient/p"}, {"reference": "Endpoint/dicomweb"},
        based_on=({"reference": "ServiceRequest/o"},), accession=LINKS.accession, referrer=requester,
        reason=({"text": "cough"},), procedure=({"text": "CT chest"},), encounter={"reference": "Encounter/e"},
    )  # fmt: skip
    images = {
        "0008,0090": "Refer^Rita", "0040,1002": "pain", "0008,1032": sequence(coded("1", "CT", "99X")),
    }  # fmt: skip
    study = described(ordered, **images)
    assert (study["referrer"], study["reasonCode"], study["procedureCode"]) == (
        requester, [{"text": "cough"}], [{"text": "CT chest"}],
    )  # fmt: skip
    assert study["encounter"]["reference"] == "Encounter/e"
    assert study["basedOn"] == [{"reference": "ServiceRequest/o", "identifier": LINKS.accession}]
    alone = described(**images)
    assert alone["reasonCode"] == [{"text": "pain"}]
    assert alone["procedureCode"][0]["coding"][0]["code"] == "1"
    assert alone["referrer"]["display"] == "Rita Refer"


def test_the_reason_may_stand_in_the_request_that_the_images_answer() -> None:
    request = {"0040,1002": "fall", "0040,100a": sequence(coded("1912002", "Fall"))}
    [reason] = described(**{"0040,0275": sequence(request)})["reasonCode"]
    assert reason["text"] == "fall"
    assert reason["coding"] == [{"system": "http://snomed.info/sct", "code": "1912002", "display": "Fall"}]


@pytest.mark.parametrize(
    ("images", "site"),
    [
        ({"0018,0015": "knee "}, {"system": terms.SNOMED, "code": "72696002", "display": "Knee"}),
        ({"0018,0015": "ELBOW^LAT"}, {"display": "ELBOW^LAT"}),
        ({"0018,0015": None, "0008,2218": sequence(coded("T-15750", "Hip", "SRT"))},
         {"system": "http://snomed.info/srt", "code": "T-15750", "display": "Hip"}),
        ({"0018,0015": None}, None),
    ],
)  # fmt: skip
def test_a_body_part_is_a_code_where_the_standard_gives_one(images: dict[str, Any], site: Any) -> None:
    assert described(**images)["series"][0].get("bodySite") == site


def test_the_region_as_coded_stands_beside_the_body_part() -> None:
    region = coded("76752008", "Breast") | {"0008,2220": sequence(coded("261103008", "Upper outer quadrant"))}
    [found] = [
        one["valueCodeableConcept"]
        for one in described(**{"0008,2218": sequence(region)})["series"][0]["extension"]
        if one["url"] == terms.ANATOMIC_REGION
    ]
    assert found["text"] == "Breast, Upper outer quadrant"
    assert [one["code"] for one in found["coding"]] == ["76752008", "261103008"]


def test_the_side_of_an_image_is_that_of_a_series_of_one_image_only() -> None:
    side = dataset({"0020,0062": text("B"), "0008,0060": text("MG")})
    alone = imaging_series.series(SeriesFacts("1.2.1", side, [One("1.2.1.1")]), ZONE)
    many = imaging_series.series(SeriesFacts("1.2.1", side, [One("1.2.1.1"), One("1.2.1.2")]), ZONE)
    assert alone["laterality"]["code"] == "51440002"
    assert "laterality" not in many


def test_specimens_are_named_by_their_numbers() -> None:
    issuer = sequence({"0040,0032": "1.2.3.4", "0040,0033": "ISO"})
    items = sequence(
        {"0040,0551": "S-1", "0040,0562": issuer, "0040,0600": "Left lung"}, {"0040,0554": "1.2.9"}, {"0040,0600": ""}
    )
    assert described(**{"0040,0560": items})["series"][0]["specimen"] == [
        {"type": "Specimen", "identifier": {"system": "urn:oid:1.2.3.4", "value": "S-1"}, "display": "Left lung"},
        {"type": "Specimen", "identifier": {"system": "urn:ietf:rfc:3986", "value": "urn:oid:1.2.9"}},
    ]


@pytest.mark.parametrize(
    ("images", "started"),
    [
        ({"0008,0021": "20260302", "0008,0031": "101500.5"}, "2026-03-02T10:15:00.500+02:00"),
        ({"0008,0022": "20260302", "0008,0032": "101500"}, "2026-03-02T10:15:00+02:00"),
        ({"0008,002a": "20260302101500-0100"}, "2026-03-02T10:15:00-01:00"),
        ({"0008,0021": "20260302"}, "2026-03-02"),
        ({"0008,0201": None, "0008,0021": "20260329", "0008,0031": "023000"}, "2026-03-29T02:30:00+01:00"),
        ({"0008,0201": None, "0008,0021": "20261025", "0008,0031": "023000"}, "2026-10-25T02:30:00+02:00"),
    ],
)
def test_a_series_starts_when_its_images_say(images: dict[str, Any], started: str) -> None:
    # The hour that spring leaves out is read as winter time, the hour that autumn repeats as the first of the two.
    assert described(**images)["series"][0]["started"] == started


@pytest.mark.parametrize(
    ("sop_class", "says"),
    [
        ("a document", {"0042,0010": "Discharge letter"}),
        ("a presentation state or segmentation", {"0070,0080": "LESIONS"}),
        ("a structure set", {"3006,0002": "Plan A"}),
        ("a report", {"0040,a043": sequence(coded("113701", "X-Ray Radiation Dose Report", "DCM"))}),
    ],
)
def test_what_is_no_image_has_its_title(sop_class: str, says: dict[str, Any]) -> None:
    [instance] = described(**says)["series"][0]["instance"]
    found = next(iter(says.values()))
    assert instance["title"] == (found if isinstance(found, str) else "X-Ray Radiation Dose Report"), sop_class


def test_frames_and_transfer_syntaxes_stand_where_they_differ() -> None:
    one = SeriesFacts(
        "1.2.1", dataset(tags()), [One("1.2.1.1", frames="12", syntax="1.2.3"), One("1.2.1.2", syntax="1.2.3")]
    )
    two = SeriesFacts("1.2.2", dataset(tags()), [One("1.2.2.1", syntax="1.2.3"), One("1.2.2.2", syntax="1.2.4")])
    alike, mixed = imaging_study.available("1.2", [one, two], LINKS, ZONE)["series"]
    assert alike["extension"] == [{"url": terms.TRANSFER_SYNTAX, "valueUri": "urn:oid:1.2.3"}]
    assert alike["instance"][0]["extension"] == [{"url": terms.NUMBER_OF_FRAMES, "valuePositiveInt": 12}]
    assert "extension" not in alike["instance"][1]
    assert [one["extension"][0]["valueUri"] for one in mixed["instance"]] == ["urn:oid:1.2.3", "urn:oid:1.2.4"]


# --- what is wrong with the images ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "flag"),
    [
        ({"0008,0020": "20260231"}, ("invalid", "StudyDate")),
        ({"0008,0030": "24:00"}, ("invalid", "StudyTime")),
        ({"0008,0201": "+0260"}, ("invalid", "TimezoneOffsetFromUTC")),
        ({"0020,0011": "two"}, ("invalid", "SeriesNumber")),
        ({"0020,0060": "B"}, ("invalid", "Laterality")),
        ({"0010,0010": "x" * 65}, ("invalid", "PatientName")),
        ({"0008,0060": ""}, ("missing", "Modality")),
        ({"0010,0020": None}, ("missing", "PatientID")),
        ({"0008,0005": "ISO_IR 192", "0008,1030": "M\ufffdller"}, ("undecodable", "StudyDescription")),
        ({"0008,1030": "Müller"}, ("undeclared-charset", "SpecificCharacterSet")),
        ({"0008,0005": "ISO_IR 999"}, ("undeclared-charset", "SpecificCharacterSet")),
        ({"0012,0062": "YES"}, ("anonymised", "PatientIdentityRemoved")),
    ],
)
def test_what_is_wrong_is_flagged_and_never_repeated(images: dict[str, Any], flag: tuple[str, str]) -> None:
    study = described(**images)
    assert flags(study) == [flag]
    assert "M\ufffd" not in resources.dumps({"extension": study["extension"]}).decode()


def test_a_sound_study_has_no_flag() -> None:
    assert flags(described(**{"0008,0005": "ISO_IR 192", "0008,1030": "Müller"})) == []


@pytest.mark.parametrize("turned", [False, True])
def test_a_contradiction_is_flagged_and_the_first_series_is_believed(turned: bool) -> None:
    made = [
        SeriesFacts(
            f"1.2.{number}",
            dataset(tags(**{"0010,0020": "P1", "0020,0011": str(number), **changes})),
            [One(f"1.2.{number}.1")],
        )
        for number, changes in enumerate(
            ({"0008,1030": "Chest"}, {"0008,1030": "Abdomen", "0008,0030": "101500.000", "0010,0010": "DOE^JANE^^"}), 1
        )
    ]
    study = imaging_study.available("1.2", made[::-1] if turned else made, LINKS, ZONE)
    assert study["description"] == "Chest"
    assert flags(study) == [("conflict", "StudyDescription")]


def test_a_second_header_of_a_series_shows_what_its_images_do_not_agree_on() -> None:
    first, last = dataset(tags(**{"0010,0020": "P1"})), dataset(tags(**{"0010,0020": "P1", "0018,0015": "KNEE"}))
    study = imaging_study.available("1.2", [SeriesFacts("1.2.1", first, [One("1.2.1.1")], last=last)], LINKS, ZONE)
    [flag] = study["extension"]
    assert {part["url"]: next(iter(value for name, value in part.items() if name != "url")) for part in flag["extension"]} == {  # noqa: E501
        "issue": "conflict", "attribute": "BodyPartExamined", "series": "1.2.1",
    }  # fmt: skip
    assert study["series"][0]["bodySite"]["code"] == "816094009"


def test_what_was_made_of_images_does_not_speak_for_the_study() -> None:
    report = dataset(tags(**{"0008,1030": "Report", "0020,0011": "1", "0008,0060": "SR"}))
    study = imaging_study.available(
        "1.2", [SeriesFacts("1.2.0", report, [One("1.2.0.1")], image=False), facts()], LINKS, ZONE
    )
    assert study["description"] == "Chest"
    assert [one["code"] for one in study["modality"]] == ["SR", "CT"]


def test_flags_end_somewhere() -> None:
    odd = [facts(f"1.2.{number}", **{"0008,0060": ""}) for number in range(80)]
    assert len(imaging_study.available("1.2", odd, LINKS, ZONE)["extension"]) == 50


# --- files of every kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", pydicom_files.paths(), ids=pydicom_files.name)
def test_every_file_that_pydicom_ships_is_a_valid_study_or_has_a_reason(path: Path) -> None:
    file = pydicom_files.read(path)
    study_uid, series_uid, sop_uid = (
        str(file.get(keyword, "")) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    if not (study_uid and series_uid and sop_uid):
        assert pydicom_files.name(path) in pydicom_files.REASONS
        return
    header = dataset(pydicom_files.tags(file))
    one = One(
        sop_uid, str(file.get("SOPClassUID", "")), str(file.get("InstanceNumber") or ""),
        str(file.get("NumberOfFrames") or ""), pydicom_files.syntax(file),
    )  # fmt: skip
    series = SeriesFacts(series_uid, header, [one], titled={sop_uid: header})
    study = imaging_study.available(study_uid, [series], LINKS, ZONE)
    assert valid(study)
    assert study["series"][0]["modality"]["code"] == file.get("Modality", "OT")
    assert study.get("description") == (str(file.get("StudyDescription") or "").strip() or None)
