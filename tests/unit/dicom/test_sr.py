"""Measurement reports of several makers, whole and broken (app.dicom.sr)."""

import copy
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence

from app.dicom import content, sr

DATA = Path(__file__).parents[2] / "data" / "dicom"
EXPECTED: dict[str, dict[str, Any]] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
REPORTS = sorted(name for name, entry in EXPECTED.items() if entry["kind"] == "TID1500")
ALL_TOOLS = "ohif-3.13/ohif31313_AllTools.dcm"
LENGTH = "ohif-3.13/ohif31313_Length.dcm"
ELLIPSE = "ohif-3.13/ohif31313_EllipticalROI.dcm"

# What the image says where the file says something else.
UNITS = {("ohif-3.13/ohif31313_Length_px.dcm", "1.5.1.3"): "{pixels}"}
CODES = {(ALL_TOOLS, "1.5.10.3"): "1483009"}


@cache
def ct_image() -> Dataset:
    return dcmread(str(get_testdata_file("CT_small.dcm")), stop_before_pixels=True)


def images(sop_uid: str) -> Dataset | None:
    return ct_image() if sop_uid == ct_image().SOPInstanceUID else None


def no_images(_sop_uid: str) -> Dataset | None:
    return None


def showing(**attributes: object) -> Callable[[str], Dataset | None]:
    """The CT image with other attributes; None deletes one."""
    dataset = copy.deepcopy(ct_image())
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return lambda _sop_uid: dataset


def document(name: str) -> Dataset:
    return dcmread(DATA / name)


def at(dataset: Dataset, path: str) -> Dataset:
    """The content item at a path such as 1.5.1.3."""
    for step in path.split(".")[1:]:
        dataset = dataset.ContentSequence[int(step) - 1]
    return dataset


def only(evidence: sr.Evidence) -> sr.Measurement:
    (group,) = evidence.groups
    (measurement,) = group.measurements
    return measurement


def coded(value: str, scheme: str, meaning: str = "x") -> Sequence:
    code = Dataset()
    setattr(code, "CodeValue" if len(value) <= 16 else "LongCodeValue", value)
    code.CodingSchemeDesignator, code.CodeMeaning = scheme, meaning
    return Sequence([code])


def length_with(value: str | None = None, unit: str | None = None) -> Dataset:
    """The report of one length with another number or unit."""
    report = document(LENGTH)
    measured = at(report, "1.5.1.3").MeasuredValueSequence[0]
    if value is not None:
        element = copy.deepcopy(measured.get_item("NumericValue"))
        measured._dict[element.tag] = element._replace(value=value.encode(), length=len(value))
    if unit is not None:
        measured.MeasurementUnitsCodeSequence = coded(unit, "UCUM", unit)
    return report


# --- the samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTS)
def test_a_sample_gives_its_groups_notes_regions_and_observations(name: str) -> None:
    evidence, expected = sr.read(document(name), images), EXPECTED[name]

    groups = evidence.groups
    assert len(groups) == expected["groups"]
    assert [note for group in groups for note in group.notes] == expected["notes"]
    assert sum(len(group.regions) for group in groups) == expected["regions"]
    parts = sum(1 + len(group.measurements) + len(group.qualitative) for group in groups)
    assert parts == expected["observations"]
    annotations = sorted(group.tracking_id or "" for group in groups if group.tool and not group.measurements)
    assert annotations == expected["annotationsOnly"]


@pytest.mark.parametrize("name", REPORTS)
def test_a_sample_gives_its_numbers_in_the_units_that_its_image_proves(name: str) -> None:
    evidence, expected = sr.read(document(name), images), EXPECTED[name]

    found = [
        [part.path, part.codes[0].value, float(part.value), part.unit.value]
        for group in evidence.groups
        for part in group.measurements
        if part.value is not None and part.unit
    ]

    assert found == [
        [path, CODES.get((name, path), code), value, UNITS.get((name, path), unit)]
        for path, code, _scheme, _meaning, value, unit in expected["measurements"]
    ]


@pytest.mark.parametrize("name", REPORTS)
def test_a_sample_has_no_number_where_none_can_be_read(name: str) -> None:
    parts = [part for group in sr.read(document(name), images).groups for part in group.measurements]

    absent = [part.path for part in parts if part.value is None]

    assert absent == [path for path, *_ in EXPECTED[name]["absent"]]


def test_pixels_labelled_millimetres_are_published_as_pixels_and_say_so() -> None:
    part = only(sr.read(document("ohif-3.13/ohif31313_Length_px.dcm"), images))

    assert (part.value, part.unit and part.unit.value, part.verdict) == (Decimal(40), "{pixels}", "corrected")
    assert "from mm to {pixels}" in part.notes[0]


def test_the_digits_of_a_number_are_kept() -> None:
    assert str(only(sr.read(document(LENGTH), images)).value) == "26.4587200000000"


def test_every_length_and_area_of_ohif_is_confirmed_by_its_image() -> None:
    evidence = sr.read(document(ALL_TOOLS), images)

    sizes = [part for group in evidence.groups for part in group.measurements if part.quantity in ("length", "area")]

    assert len(sizes) == 13
    assert {part.verdict for part in sizes} == {"verified"}


def test_the_angle_tool_measures_an_angle_and_not_cobbs() -> None:
    groups = {group.tool: group for group in sr.read(document(ALL_TOOLS), images).groups}

    (angle,) = groups["Angle"].measurements
    assert [code.value for code in angle.codes] == ["1483009"]
    assert angle.written_code.value == "285285000"
    assert angle.verdict == "verified"
    assert groups["CobbAngle"].measurements[0].codes[0].value == "285285000"


def test_an_angle_that_its_lines_do_not_make_is_kept_and_flagged() -> None:
    groups = {group.tool: group for group in sr.read(document(ALL_TOOLS), images).groups}

    (cobb,) = groups["CobbAngle"].measurements
    assert (cobb.value, cobb.verdict) == (Decimal("12.5"), "unverified")
    assert "0 deg" in cobb.notes[0]


def test_the_document_says_who_when_and_in_which_state() -> None:
    verified = sr.read(document("generated/tid1500_1410_verified.dcm"), images)
    assert (verified.completion, verified.verification, verified.preliminary) == ("COMPLETE", "VERIFIED", False)
    assert (verified.observer, verified.language) == ("Doe^Jane", "en-US")
    assert verified.equipment.manufacturer == "TestFacade"
    assert verified.content_datetime == datetime.fromisoformat("2026-11-22T13:34:33.636184")

    ohif = sr.read(document(LENGTH), images)
    assert (ohif.observer, ohif.equipment.manufacturer, ohif.qualification) == (None, None, "RESEARCH")
    assert sr.read(document("highdicom/sr_document.dcm"), images).preliminary


def test_a_group_carries_finding_site_and_modifiers_with_current_codes() -> None:
    (group,) = sr.read(document("highdicom/sr_document.dcm"), images).groups

    assert group.sites[0].codes[0].key == ("297171002", "SCT")
    assert [code.meaning for code in group.sites[0].modifiers] == ["Vertebral foramen"]
    (area,) = group.measurements
    assert [code.scheme for code in area.codes] == ["SCT", "SRT"]
    assert [code.meaning for code in area.interpretations] == ["Normal", "Not significant"]
    assert area.tracking_uid
    assert area.region == group.regions[0]
    assert (area.region.series_uid or "").startswith("1.3.6.1.4.1.5962.1.3")

    (group,) = sr.read(document("generated/tid1500_1410_verified.dcm"), images).groups
    assert group.finding
    assert group.finding.meaning == "Nodule"
    assert group.sites[0].laterality
    assert group.sites[0].laterality.meaning == "Left"


@pytest.mark.parametrize("name", ["generated/kos_of_interest.dcm", "generated/encapsulated_pdf.dcm"])
def test_another_document_has_no_groups(name: str) -> None:
    evidence = sr.read(document(name), images)

    assert evidence.groups == ()
    assert evidence.sop_uid == document(name).SOPInstanceUID


def test_an_image_is_asked_for_once() -> None:
    asked: list[str] = []

    def image(sop_uid: str) -> Dataset | None:
        asked.append(sop_uid)
        return ct_image()

    sr.read(document(ALL_TOOLS), image)

    assert asked == [ct_image().SOPInstanceUID]


# --- numbers and units ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("NaN", "not-a-number"),
        ("Infinity", "positive-infinity"),
        ("-Infinity", "negative-infinity"),
        ("12,5", "error"),
        ("0x10", "error"),
        ("Incomplete Angle", "error"),
        ("1e99999", "error"),
        ("", "unknown"),
        ("-26.4", "error"),
    ],
)
def test_what_is_no_number_is_absent_with_a_reason(written: str, reason: str) -> None:
    part = only(sr.read(length_with(written), images))

    assert (part.value, part.absent, part.written) == (None, reason, written)


def test_a_number_that_fits_no_unit_is_withheld_and_stays_readable() -> None:
    part = only(sr.read(length_with("3.2"), images))

    assert (part.value, part.absent, part.verdict) == (None, "unverified", "unverified")
    assert part.notes[0].startswith("withheld: 3.2 mm was written")


def test_the_same_number_of_another_maker_is_kept_and_flagged() -> None:
    part = only(sr.read(document("generated/tid1500_1410_verified.dcm"), images))

    assert (part.value, part.verdict) == (Decimal("100.5"), "unverified")
    assert "262.524 mm2" in part.notes[0]


def test_centimetres_of_an_ultrasound_region_lose_their_false_label() -> None:
    region = Dataset()
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1 = region.RegionLocationMaxY1 = 127
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.08

    ultrasound = showing(SequenceOfUltrasoundRegions=Sequence([region]), Modality="US", PixelSpacing=None)

    part = only(sr.read(length_with("3.2"), ultrasound))
    assert (part.value, part.unit and part.unit.value, part.verdict) == (Decimal("3.2"), "cm", "corrected")
    hidden = only(sr.read(length_with("3.2", "[arb'U]{cm US Region}"), ultrasound))
    assert hidden.unit
    assert hidden.unit.value == "cm"


def test_pixels_that_are_millimetres_are_called_millimetres() -> None:
    part = only(sr.read(length_with("26.45872", "1"), images))

    assert (part.unit and part.unit.value, part.verdict) == ("mm", "corrected")


def test_without_its_image_a_length_is_not_checked() -> None:
    part = only(sr.read(document(LENGTH), no_images))

    assert (part.value, part.verdict, part.quantity) == (Decimal("26.4587200000000"), "not-checked", "length")


def statistics_in(unit: str, image: Callable[[str], Dataset | None]) -> set[tuple[str, str]]:
    report = document(ELLIPSE)
    for number in range(4, 8):
        measured = at(report, f"1.5.1.{number}").MeasuredValueSequence[0]
        measured.MeasurementUnitsCodeSequence = coded(unit, "UCUM", unit)
    (group,) = sr.read(report, image).groups
    return {
        (part.unit.value, part.verdict) for part in group.measurements if part.unit and part.quantity == "intensity"
    }


def test_statistics_in_millimetres_get_the_unit_of_their_pixel_values() -> None:
    assert statistics_in("mm", images) == {("[hnsf'U]", "corrected")}
    assert statistics_in("mm", no_images) == {("[hnsf'U]", "corrected")}
    assert statistics_in("mm", showing(Modality="MR")) == {("1", "corrected")}
    assert statistics_in("g/ml{SUVbw}", showing(Modality="PT")) == {("g/ml{SUVbw}", "not-checked")}


def test_a_statistic_that_fills_its_sixteen_characters_is_withheld_where_an_exponent_may_be_lost() -> None:
    report = document(ELLIPSE)
    at(report, "1.5.1.6").MeasuredValueSequence[0].NumericValue = "1.23456789012345"

    def mean(image: Callable[[str], Dataset | None]) -> Decimal | None:
        (group,) = sr.read(report, image).groups
        return next(part.value for part in group.measurements if part.path == "1.5.1.6")

    assert mean(images) == Decimal("1.23456789012345")
    assert mean(showing(Modality="PT")) is None


def test_a_floating_point_value_gives_the_missing_digits_only_when_it_agrees() -> None:
    report = document("generated/tid1500_1410_verified.dcm")
    measured = at(report, "1.5.1.5").MeasuredValueSequence[0]

    measured.FloatingPointValue = 100.50390625
    assert only(sr.read(report, images)).value == Decimal("100.50390625")
    measured.FloatingPointValue = 200.0
    assert only(sr.read(report, images)).value == Decimal("100.5")


def test_an_empty_number_beside_others_is_left_out() -> None:
    report = document(ELLIPSE)
    at(report, "1.5.1.5").MeasuredValueSequence[0].NumericValue = None

    evidence = sr.read(report, images)

    assert [part.path for part in evidence.groups[0].measurements] == ["1.5.1.3", "1.5.1.4", "1.5.1.6", "1.5.1.7"]
    assert [problem.path for problem in evidence.problems] == ["1.5.1.5"]


# --- codes of older viewers -----------------------------------------------------------------------------------------


def test_an_area_that_was_coded_length_is_an_area() -> None:
    report = document(ELLIPSE)
    at(report, "1.5.1.1").TextValue = "cornerstoneTools@^4.0.0:EllipticalRoi"
    area = at(report, "1.5.1.3")
    area.ConceptNameCodeSequence = coded("G-D7FE", "SRT", "AREA")
    area.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = coded("1", "UCUM", "px")

    part = sr.read(report, images).groups[0].measurements[0]

    assert (part.codes[0].value, part.unit and part.unit.value, part.verdict) == ("42798000", "mm2", "corrected")


def test_the_perimeter_of_an_open_contour_is_a_length() -> None:
    report = length_with()
    at(report, "1.5.1.1").TextValue = "Cornerstone3DTools@^0.1.0:PlanarFreehandROI"
    at(report, "1.5.1.3").ConceptNameCodeSequence = coded("131191004", "SCT", "Perimeter")

    part = only(sr.read(report, images))

    assert ([code.value for code in part.codes], part.verdict) == (["410668003"], "verified")


def test_free_text_findings_of_old_viewers_are_read() -> None:
    report = document(LENGTH)
    finding = Dataset()
    finding.RelationshipType, finding.ValueType = "CONTAINS", "CODE"
    finding.ConceptNameCodeSequence = coded("121071", "DCM", "Finding")
    finding.ConceptCodeSequence = coded("CORNERSTONEFREETEXT", "CORNERSTONEJS", "my lesion")
    at(report, "1.5.1").ContentSequence.append(finding)

    found = sr.read(report, images).groups[0].finding

    assert found
    assert found.meaning == "my lesion"


# --- broken documents -----------------------------------------------------------------------------------------------


def test_a_number_without_a_measured_value_costs_that_number_only() -> None:
    report = document(ALL_TOOLS)
    del at(report, "1.5.1.3").MeasuredValueSequence

    evidence = sr.read(report, images)

    assert len(evidence.groups) == 13
    assert evidence.groups[0].measurements[0].absent == "unknown"


def test_a_region_without_a_graphic_type_costs_that_region_only() -> None:
    report = document(ALL_TOOLS)
    del at(report, "1.5.1.3.1").GraphicType

    evidence = sr.read(report, images)

    assert [problem.path for problem in evidence.problems] == ["1.5.1.3.1"]
    assert (evidence.groups[0].regions, evidence.groups[0].measurements[0].verdict) == ((), "not-checked")
    assert len(evidence.groups[1].regions) == 2


def test_a_number_without_a_name_is_left_out() -> None:
    report = document(ELLIPSE)
    del at(report, "1.5.1.4").ConceptNameCodeSequence

    evidence = sr.read(report, images)

    assert [problem.path for problem in evidence.problems] == ["1.5.1.4"]


def test_an_empty_group_is_told_and_left_out() -> None:
    report = document(LENGTH)
    group = at(report, "1.5.1")
    group.ContentSequence = Sequence(list(group.ContentSequence)[:2])

    evidence = sr.read(report, images)

    assert (evidence.groups, [problem.path for problem in evidence.problems]) == ((), ["1.5.1"])


def test_nesting_without_end_is_cut_off() -> None:
    report = document(LENGTH)
    lowest = at(report, "1.5")
    for _ in range(300):
        container = Dataset()
        container.ValueType = "CONTAINER"
        lowest.ContentSequence = Sequence([*(lowest.get("ContentSequence") or []), container])
        lowest = container

    evidence = sr.read(report, images)

    assert len(evidence.groups) == 1
    assert "deeper than 64 levels" in evidence.problems[0].text


def test_too_many_items_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_ITEMS", 40)

    evidence = sr.read(document(ALL_TOOLS), images)

    assert 0 < len(evidence.groups) < 13
    assert any("more than 40 content items" in problem.text for problem in evidence.problems)


def referring(report: Dataset, steps: list[int]) -> Dataset:
    child = Dataset()
    child.RelationshipType = "INFERRED FROM"
    child.ReferencedContentItemIdentifier = steps
    at(report, "1.5.1.3").ContentSequence = Sequence([child])
    return report


def test_a_region_by_reference_is_followed() -> None:
    report = document(ALL_TOOLS)

    evidence = sr.read(referring(report, [1, 5, 2, 5, 1]), images)

    assert evidence.groups[0].measurements[0].verdict == "verified"
    assert evidence.problems == ()


@pytest.mark.parametrize("steps", [[1, 5, 1], [1], [1, 9, 9], [1, 5, 1, 3]])
def test_a_reference_to_an_ancestor_or_to_nothing_is_told(steps: list[int]) -> None:
    evidence = sr.read(referring(document(LENGTH), steps), images)

    assert evidence.problems[0].path == "1.5.1.3.1"
    assert only(evidence).verdict == "not-checked"


def every_item(dataset: Dataset) -> list[Dataset]:
    found = [dataset]
    for element in dataset:
        if element.VR == "SQ":
            for entry in element.value:
                found += every_item(entry)
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [ALL_TOOLS, "highdicom/sr_document.dcm", "generated/tid1500_1410_verified.dcm"])
def test_no_mutilation_stops_the_reader(name: str) -> None:
    chance = random.Random(name)
    for _ in range(60):
        report = document(name)
        for holder in chance.sample(every_item(report), chance.randint(1, 5)):
            keywords = [element.keyword for element in holder if element.keyword]
            if not keywords:
                continue
            keyword = chance.choice(keywords)
            if chance.random() < 0.5:
                delattr(holder, keyword)
            else:
                element = holder[keyword]
                element._value = chance.choice(
                    [None, "", "x" * 70, "é\0\n", 7, -1.5, [], [b"\xff"], ["1", "2"], Dataset()]
                )

        evidence = sr.read(report, images)

        assert isinstance(evidence, sr.Evidence)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_flipped_bytes_stop_the_reader(tmp_path: Path) -> None:
    chance = random.Random(7)
    original = (DATA / ALL_TOOLS).read_bytes()
    read = 0
    for _ in range(60):
        broken = bytearray(original)
        for _ in range(chance.randint(1, 20)):
            broken[chance.randrange(400, len(broken))] = chance.randrange(256)
        path = tmp_path / "broken.dcm"
        path.write_bytes(broken)
        try:
            report = dcmread(path)
        except Exception:  # noqa: BLE001  a file that pydicom refuses never reaches the reader
            continue
        assert isinstance(sr.read(report, images), sr.Evidence)
        read += 1
    assert read > 10


# --- lineage --------------------------------------------------------------------------------------------------------


def test_an_annotation_keeps_its_lineage_from_save_to_save() -> None:
    first = sr.read(document("ohif-3.13/ohif31313_chain_v1.dcm"), images)
    second = sr.read(document("ohif-3.13/ohif31313_chain_v2.dcm"), images)

    (a, b), (again, c) = first.groups, second.groups
    assert a.tracking_uid != again.tracking_uid
    assert a.lineage == again.lineage
    assert len({a.lineage, b.lineage, c.lineage}) == 3
    assert second.predecessors == (first.sop_uid,)


def test_a_true_tracking_uid_is_the_lineage() -> None:
    report = document("generated/tid1500_1410_verified.dcm")
    before = sr.read(report, images).groups[0].lineage
    at(report, "1.5.1.6").GraphicData = [1.5, 1.5, 9.5, 1.5, 9.5, 9.5, 1.5, 1.5]

    assert sr.read(report, images).groups[0].lineage == before


def test_a_tenth_of_a_pixel_is_the_same_place_and_a_pixel_is_not() -> None:
    def moved(by: float) -> str:
        report = document(LENGTH)
        at(report, "1.5.1.3.1").GraphicData = [20.5 + by, 30.5, 60.5, 30.5]
        return sr.read(report, images).groups[0].lineage

    assert moved(0.1) == moved(0)
    assert moved(1) != moved(0)


@pytest.mark.parametrize(
    ("text", "offset", "expected"),
    [
        ("20261122130402", "", datetime.fromisoformat("2026-11-22T13:04:02")),
        ("20261122130402.5+0000", "", datetime(2026, 11, 22, 13, 4, 2, 500000, UTC)),
        ("20261122130402", "+0000", datetime(2026, 11, 22, 13, 4, 2, tzinfo=UTC)),
        ("20261122", "", datetime.fromisoformat("2026-11-22")),
        ("20261322", "", None),
        ("", "", None),
    ],
)
def test_a_moment_has_a_zone_only_when_the_document_says_so(text: str, offset: str, expected: datetime | None) -> None:
    assert sr.moment(text, offset) == expected
