"""Reports as R4 Observations, judged by our validator and by fhir.resources (app.fhir.mapping.observation)."""

import json
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from fhir.resources.R4B.observation import Observation
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

from app.dicom import sr
from app.dicom.content import Code
from app.fhir import validation
from app.fhir.mapping import codes, observation, terms

Json = dict[str, Any]

DATA = Path(__file__).parents[3] / "data" / "dicom"
EXPECTED: dict[str, Json] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
REPORTS = sorted(name for name, entry in EXPECTED.items() if entry["kind"] == "TID1500")
ALL_TOOLS = "ohif-3.13/ohif31313_AllTools.dcm"
VERIFIED = "generated/tid1500_1410_verified.dcm"
CONTEXT = observation.Context(
    subject={"reference": "Patient/p"},
    imaging_study={"reference": "ImagingStudy/s"},
    zone=ZoneInfo("Europe/Berlin"),
    based_on=({"reference": "ServiceRequest/o"},),
    performer=({"reference": "Practitioner/r"},),
    device={"reference": "Device/d"},
    effective="2004-01-19T07:27:30+01:00",
)


@cache
def ct_image() -> Dataset:
    return dcmread(str(get_testdata_file("CT_small.dcm")), stop_before_pixels=True)


@cache
def evidence(name: str, *, with_images: bool = True) -> sr.Evidence:
    def image(sop_uid: str) -> Dataset | None:
        return ct_image() if with_images and sop_uid == ct_image().SOPInstanceUID else None

    return sr.read(dcmread(DATA / name), image)


def observations(name: str, context: observation.Context = CONTEXT) -> list[Json]:
    return observation.observations(evidence(name), context)


def values(resource: Json, url: str) -> list[Json]:
    return [extension for extension in resource.get("extension", []) if extension["url"] == url]


def identifier(resource: Json, system: str) -> str:
    return next(entry["value"] for entry in resource["identifier"] if entry["system"] == system)


def as_text(resource: Json) -> str:
    def number(value: object) -> float:
        assert isinstance(value, Decimal)
        return float(value)

    return json.dumps(resource, default=number)


@pytest.mark.parametrize("name", REPORTS)
def test_a_sample_becomes_its_observations_and_two_judges_accept_each(name: str) -> None:
    resources = observations(name)

    assert len(resources) == EXPECTED[name]["observations"]
    assert len({resource["id"] for resource in resources}) == len(resources)
    for resource in resources:
        assert validation.validate(resource, "Observation") == []
        Observation.model_validate_json(as_text(resource))


@pytest.mark.parametrize("name", REPORTS)
def test_every_number_is_published_once_and_its_digits_survive(name: str) -> None:
    numbers = [resource["valueQuantity"]["value"] for resource in observations(name) if "valueQuantity" in resource]

    assert [float(number) for number in numbers] == [value for *_, value, _unit in EXPECTED[name]["measurements"]]
    assert all(isinstance(number, Decimal) for number in numbers)


def test_a_group_lists_its_members_and_says_what_was_found() -> None:
    whole, area = observations(VERIFIED)

    assert whole["hasMember"] == [{"reference": f"Observation/{area['id']}"}]
    assert whole["code"]["coding"][0]["code"] == "125007"
    assert whole["valueCodeableConcept"]["coding"][0]["code"] == "27925004"
    assert [category["coding"][0]["code"] for category in whole["category"]] == ["imaging", "125007"]
    assert whole["bodySite"]["text"] == "Lung, Left"
    assert whole["contained"][0]["locationQualifier"][0]["coding"][0]["code"] == "7771000"
    assert values(whole, terms.BODY_STRUCTURE)[0]["valueReference"] == {"reference": "#site1"}
    assert area["valueQuantity"] == {
        "value": Decimal("100.5"),
        "unit": "square millimeter",
        "system": "http://unitsofmeasure.org",
        "code": "mm2",
    }


def test_an_observation_belongs_to_patient_study_order_and_people() -> None:
    for resource in observations(VERIFIED):
        assert resource["subject"] == {"reference": "Patient/p"}
        assert resource["partOf"] == [{"reference": "ImagingStudy/s"}]
        assert resource["basedOn"] == [{"reference": "ServiceRequest/o"}]
        assert resource["performer"] == [{"reference": "Practitioner/r"}]
        assert resource["device"] == {"reference": "Device/d"}
        assert resource["effectiveDateTime"] == "2004-01-19T07:27:30+01:00"
        assert resource["issued"] == "2026-11-22T13:34:33.636184+01:00"
        assert resource["derivedFrom"][0]["reference"] == "ImagingStudy/s"


def test_the_region_rides_on_the_reference_to_the_study() -> None:
    whole, *_ = observations("ohif-3.13/ohif31313_Length.dcm")

    (region,) = whole["derivedFrom"][0]["extension"]
    inner = {part["url"]: part for part in region["extension"]}
    assert region["url"] == terms.REGION
    assert inner["sopUid"]["valueId"] == ct_image().SOPInstanceUID
    assert inner["seriesUid"]["valueId"] == ct_image().SeriesInstanceUID
    assert inner["regionType"]["valueCode"] == "polyline"
    assert inner["coordinates"]["valueString"] == "20.5000019 30.5 60.5 30.5"
    assert "extension" not in CONTEXT.imaging_study


def test_a_region_on_another_study_names_that_study() -> None:
    found = evidence(VERIFIED)
    group = found.groups[0]
    elsewhere = replace(group, regions=(replace(group.regions[0], study_uid="1.2.3"),))

    whole, *_ = observation.observations(replace(found, groups=(elsewhere,)), CONTEXT)
    known = replace(CONTEXT, studies={"1.2.3": {"reference": "ImagingStudy/other"}})
    again, *_ = observation.observations(replace(found, groups=(elsewhere,)), known)

    assert whole["derivedFrom"][0]["identifier"] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}
    assert again["derivedFrom"][0]["reference"] == "ImagingStudy/other"
    assert validation.validate(whole, "Observation") == []


def test_a_corrected_unit_is_published_with_what_was_written() -> None:
    _, length = observations("ohif-3.13/ohif31313_Length_px.dcm")

    assert (length["valueQuantity"]["code"], length["valueQuantity"]["unit"]) == ("{pixels}", "px")
    assert values(length, terms.VERDICT)[0]["valueCode"] == "corrected"
    written = {part["url"]: part for part in values(length, terms.WRITTEN)[0]["extension"]}
    assert (written["value"]["valueString"], written["unit"]["valueString"]) == ("40", "mm")
    assert "corrected from mm" in length["note"][0]["text"]


def test_what_is_no_number_has_a_reason_and_no_value() -> None:
    _, angle = observations("ohif-3.13/ohif31313_Angle_incomplete.dcm")

    assert angle["dataAbsentReason"]["coding"][0]["code"] == "error"
    assert not [name for name in angle if name.startswith("value")]
    assert angle["code"]["coding"] == [{"system": "http://snomed.info/sct", "code": "1483009", "display": "Angle"}]
    written = {part["url"]: part for part in values(angle, terms.WRITTEN)[0]["extension"]}
    assert written["value"]["valueString"] == "Incomplete Angle"
    assert written["code"]["valueCoding"]["code"] == "285285000"


def test_a_withheld_number_is_tagged_and_stays_readable() -> None:
    found = evidence("ohif-3.13/ohif31313_Length.dcm")
    group = found.groups[0]
    withheld = replace(group.measurements[0], value=None, absent="unverified", verdict="unverified")
    final = replace(found, verification="VERIFIED", groups=(replace(group, measurements=(withheld,)),))

    whole, length = observation.observations(final, CONTEXT)

    assert (whole["status"], length["status"]) == ("final", "preliminary")
    assert "unit-not-verified" in {tag["code"] for tag in length["meta"]["tag"]}
    assert values(length, terms.WRITTEN)
    assert validation.validate(length, "Observation") == []


def test_an_unchecked_length_of_a_viewer_stays_preliminary() -> None:
    found = replace(evidence("ohif-3.13/ohif31313_Length.dcm", with_images=False), verification="VERIFIED")

    _, length = observation.observations(found, CONTEXT)
    _, withdrawn = observation.observations(found, replace(CONTEXT, status="entered-in-error"))

    assert (length["status"], withdrawn["status"]) == ("preliminary", "entered-in-error")


@pytest.mark.parametrize(
    ("completion", "verification", "preliminary", "expected"),
    [
        ("COMPLETE", "VERIFIED", False, "final"),
        ("COMPLETE", "VERIFIED", True, "preliminary"),
        ("COMPLETE", "UNVERIFIED", False, "preliminary"),
        ("PARTIAL", "VERIFIED", False, "preliminary"),
        ("", "", False, "preliminary"),
    ],
)
def test_only_a_complete_and_verified_document_is_final(
    completion: str, verification: str, preliminary: bool, expected: str
) -> None:
    found = replace(evidence(VERIFIED), completion=completion, verification=verification, preliminary=preliminary)

    assert observation.status(found) == expected
    assert {resource["status"] for resource in observation.observations(found, CONTEXT)} == {expected}


def test_research_is_a_label_and_no_filter() -> None:
    assert all(
        {"system": terms.QUALIFICATION, "code": "RESEARCH"} in resource["meta"]["tag"]
        for resource in observations(ALL_TOOLS)
    )
    assert all("meta" not in resource for resource in observations(VERIFIED))


def test_reading_the_same_document_twice_gives_the_same_bytes() -> None:
    assert as_text({"all": observations(ALL_TOOLS)}) == as_text({"all": observations(ALL_TOOLS)})


def test_an_observation_keeps_the_id_under_which_it_was_first_seen() -> None:
    first = observations("ohif-3.13/ohif31313_chain_v1.dcm")
    origins = {identifier(resource, terms.LINEAGE): identifier(resource, terms.CONTENT_ITEM) for resource in first}

    second = observations("ohif-3.13/ohif31313_chain_v2.dcm", replace(CONTEXT, origins=origins))

    assert [resource["id"] for resource in second[:2]] == [resource["id"] for resource in first[:2]]
    assert not {resource["id"] for resource in second[2:]} & {resource["id"] for resource in first}
    assert observation.resource_id(identifier(first[0], terms.CONTENT_ITEM)) == first[0]["id"]


def test_two_equal_annotations_are_still_two_observations() -> None:
    found = evidence("ohif-3.13/ohif31313_Length.dcm")
    twin = replace(
        found.groups[0], path="1.5.2", measurements=(replace(found.groups[0].measurements[0], path="1.5.2.3"),)
    )
    twice = replace(found, groups=(*found.groups, twin))
    once = observation.observations(twice, CONTEXT)
    origins = {identifier(resource, terms.LINEAGE): identifier(resource, terms.CONTENT_ITEM) for resource in once}

    again = observation.observations(twice, replace(CONTEXT, origins=origins))

    assert len({resource["id"] for resource in once}) == 4
    assert [resource["id"] for resource in again] == [resource["id"] for resource in once]


def test_the_observer_of_the_document_is_named_where_no_performer_is_known() -> None:
    alone = replace(CONTEXT, performer=())

    assert observations(VERIFIED, alone)[0]["performer"] == [{"display": "Jane Doe"}]
    assert "performer" not in observations(ALL_TOOLS, alone)[0]


def test_normal_is_an_interpretation_of_fhir_too() -> None:
    _, area = observations("highdicom/sr_document.dcm")

    assert area["interpretation"][0]["coding"][0]["code"] == "N"
    assert area["interpretation"][0]["coding"][1]["system"] == "http://snomed.info/sct"
    assert identifier(area, "urn:dicom:uid").startswith("urn:oid:1.2.826")


def test_evaluations_derivations_and_algorithms_find_their_elements() -> None:
    found = evidence(VERIFIED)
    group = found.groups[0]
    evaluation = sr.Qualitative("1.5.1.7", (Code("1", "99X", "Margin"),), "CODE", Code("2", "99X", "Sharp"))
    words = sr.Qualitative("1.5.1.8", (Code("3", "99X", "Remark"),), "TEXT", "as\x07 before")
    day = sr.Qualitative("1.5.1.9", (Code("4", "99X", "Seen"),), "DATETIME", "20240229101500")
    mean = replace(group.measurements[0], derivation=Code("373098007", "SCT", "Mean"), modifiers=(words,))
    full = replace(
        group,
        measurements=(mean, replace(mean, path="1.5.1.6")),
        qualitative=(evaluation, words, day),
        algorithm=sr.Algorithm("Segmenter", "2.1", ("threshold 3",)),
        modifiers=(words,),
    )

    whole, area, twin, margin, remark, seen = observation.observations(replace(found, groups=(full,)), CONTEXT)

    assert len(whole["hasMember"]) == 5
    assert area["code"]["text"] == "Area (Mean)"
    assert identifier(area, terms.LINEAGE) != identifier(twin, terms.LINEAGE)
    assert margin["valueCodeableConcept"]["coding"][0]["system"] == f"{terms.LOCAL_SCHEME}/TestFacade/99X"
    assert margin["category"][1]["coding"][0]["code"] == "C0034375"
    assert (remark["valueString"], seen["valueDateTime"]) == ("as before", "2024-02-29")
    assert whole["device"] == {"reference": "#algorithm"}
    assert whole["contained"][-1]["parent"] == {"reference": "Device/d"}
    for resource in (whole, area, twin, margin, remark, seen):
        assert validation.validate(resource, "Observation") == []
        Observation.model_validate_json(as_text(resource))


def spoilt(dataset: Dataset, keyword: str, junk: str) -> int:
    """Put junk into an attribute wherever it occurs below a dataset; how often it did."""
    count = 0
    for element in dataset:
        if element.VR == "SQ":
            count += sum(spoilt(item, keyword, junk) for item in element.value)
        elif element.keyword == keyword:
            element._value = junk
            count += 1
    return count


@pytest.mark.parametrize("junk", ["\x07", "a\x00\x1bb  c\n", "<script>", "\u2028", ""])
@pytest.mark.parametrize(
    "keyword",
    ["CodeValue", "CodeMeaning", "CodingSchemeDesignator", "TextValue", "UID", "ReferencedSOPInstanceUID",
     "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "ContentQualification", "NumericValue"],
)  # fmt: skip
def test_junk_in_a_document_never_becomes_an_illegal_resource(keyword: str, junk: str) -> None:
    report = dcmread(DATA / ALL_TOOLS)
    assert spoilt(report, keyword, junk)
    report.ConceptNameCodeSequence = dcmread(DATA / ALL_TOOLS).ConceptNameCodeSequence

    found = sr.read(report, lambda _sop_uid: ct_image())

    for resource in observation.observations(found, CONTEXT):
        assert validation.validate(resource, "Observation") == []


# --- codes and units ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "maker", "system"),
    [
        (Code("121071", "DCM"), None, "http://dicom.nema.org/resources/ontology/DCM"),
        (Code("RID1", "RadLex"), None, "http://radlex.org"),
        (Code("C1", "NCIt"), None, "http://ncicb.nci.nih.gov/xml/owl/EVS/Thesaurus.owl"),
        (Code("1", "IBSI"), None, "urn:oid:1.2.840.10008.2.16.13"),
        (Code("1", "1.2.3"), None, "urn:oid:1.2.3"),
        (Code("1", "99ABC", scheme_uid="1.2.3.4"), "GE", "urn:oid:1.2.3.4"),
        (Code("1", "99ABC"), "GE MEDICAL", f"{terms.LOCAL_SCHEME}/GE-MEDICAL/99ABC"),
        (Code("1", "99ABC"), None, f"{terms.LOCAL_SCHEME}/99ABC"),
        (Code("urn:lex:eu:1", ""), None, "urn:ietf:rfc:3986"),
        (Code("1", ""), None, f"{terms.LOCAL_SCHEME}/none"),
    ],
)
def test_a_designator_names_its_code_system(code: Code, maker: str | None, system: str) -> None:
    assert codes.system(code, maker) == system


def test_a_retired_code_stands_behind_its_current_form() -> None:
    found = codes.concept(Code("T-D00F7", "SRT", "Cervico-thoracic spine").spellings)

    assert [entry["system"] for entry in found["coding"]] == ["http://snomed.info/sct", "http://snomed.info/srt"]


def test_a_typed_label_is_words_and_no_code() -> None:
    assert codes.concept([Code("CORNERSTONEFREETEXT", "CORNERSTONEJS", "my lesion")]) == {"text": "my lesion"}


VALID = ["mm", "mm2", "mm3", "deg", "1", "%", "s", "kV", "mGy.cm", "g/ml{SUVbw}", "[hnsf'U]", "{counts}/s",
         "{H.B.}/min", "[arb'U]{cm}", "{pixels}", "cm/s", "/min", "(mm.s)/(g.m)", "10*6/l", "mm[Hg]"]  # fmt: skip
INVALID = ["mGycm", "Gym2", "{SUVbw}g/ml", "uAs", "X-ray sources", "{X-Ray sources}", "[arb'U]{cm US Region}",
           "mm²", "HU", "px", "no units", "bpm", "", "%tile", "()", "(", ")(", "m" * 65]  # fmt: skip


def test_only_ucum_is_ucum() -> None:
    assert [unit for unit in VALID if not codes.is_ucum(unit)] == []
    assert [unit for unit in INVALID if codes.is_ucum(unit)] == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("mGycm", "mGy.cm"),
        ("{SUVbw}g/ml", "g/ml{SUVbw}"),
        ("[arb'U]{cm US Region}", "cm"),
        ("HU", "[hnsf'U]"),
        ("furlong", None),
    ],
)
def test_a_wrong_unit_is_repaired_or_left_without_a_code(written: str, meant: str | None) -> None:
    assert codes.ucum(written) == meant


def test_every_repair_is_a_unit() -> None:
    assert [unit for (unit,) in codes.table("ucum_repairs").values() if not codes.is_ucum(unit)] == []


def test_a_unit_outside_ucum_stays_readable() -> None:
    assert codes.quantity(Decimal("1.50"), Code("furlong", "99X", "Furlongs")) == {
        "value": Decimal("1.50"),
        "unit": "Furlongs",
    }


@pytest.mark.parametrize(
    ("written", "tag"), [("eng", "en"), ("en-US", "en-US"), ("de", "de"), ("English!", None), (None, None)]
)
def test_a_language_is_a_bcp_47_tag(written: str | None, tag: str | None) -> None:
    assert codes.language(written) == tag


def test_every_table_tells_its_source_and_date() -> None:
    for path in sorted(codes.FOLDER.glob("*.csv")):
        assert "Source:" in path.read_text(encoding="utf-8").splitlines()[0], path.name
        assert "Date:" in path.read_text(encoding="utf-8").splitlines()[0], path.name
