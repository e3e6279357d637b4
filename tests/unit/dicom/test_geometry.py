"""Drawn points against the scale of their image (app.dicom.geometry)."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sequence import Sequence

from app.dicom import geometry
from app.dicom.geometry import Drawing, Scale, judge, measure, scales

LINE = Drawing("POLYLINE", ((20.5, 30.5), (60.5, 30.5)))
SQUARE = Drawing("POLYLINE", ((0, 0), (10, 0), (10, 10), (0, 10), (0, 0)))
CIRCLE = Drawing("CIRCLE", ((10, 10), (20, 10)))
ELLIPSE = Drawing("ELLIPSE", ((0, 10), (40, 10), (20, 0), (20, 20)))
HALF = Scale(0.5, 0.5)


def image(**attributes: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def ultrasound_region(units: int = 3, delta: float = 0.05, right: int = 200) -> Dataset:
    return image(
        RegionLocationMinX0=0,
        RegionLocationMinY0=0,
        RegionLocationMaxX1=right,
        RegionLocationMaxY1=200,
        PhysicalUnitsXDirection=units,
        PhysicalUnitsYDirection=3,
        PhysicalDeltaX=delta,
        PhysicalDeltaY=-0.05,
    )


@pytest.mark.parametrize(
    ("kind", "drawing", "expected"),
    [
        ("length", LINE, 20.0),
        ("perimeter", SQUARE, 20.0),
        ("area", SQUARE, 25.0),
        ("radius", CIRCLE, 5.0),
        ("diameter", CIRCLE, 10.0),
        ("perimeter", CIRCLE, 10 * math.pi),
        ("area", CIRCLE, 25 * math.pi),
        ("area", ELLIPSE, 50 * math.pi),
        ("long axis", ELLIPSE, 20.0),
        ("short axis", ELLIPSE, 10.0),
        ("angle", Drawing("POLYLINE", ((1, 0), (0, 0), (0, 1))), 90.0),
        ("angle", Drawing("POLYLINE", ((1, 0), (0, 0), (0, 0), (0, 1))), 90.0),
        ("cobb", Drawing("POLYLINE", ((0, 0), (1, 0), (0, 5), (1, 6))), 45.0),
    ],
)
def test_a_drawing_measures_what_its_formula_says(kind: geometry.Kind, drawing: Drawing, expected: float) -> None:
    assert measure(kind, drawing, HALF) == pytest.approx(expected)


def test_rows_and_columns_may_be_spaced_differently() -> None:
    down = Drawing("POLYLINE", ((0, 0), (0, 10)))

    assert scales(image(PixelSpacing=[2.0, 0.5]), 1, down.points) == (Scale(0.5, 2.0),)
    assert measure("length", down, Scale(0.5, 2.0)) == 20


def test_a_point_has_no_length_and_two_points_no_area() -> None:
    assert measure("length", Drawing("POINT", ((1, 1),)), HALF) is None
    assert measure("area", LINE, HALF) is None
    assert measure("angle", LINE, HALF) is None
    assert measure("angle", Drawing("POLYLINE", ((1, 1), (1, 1), (1, 1))), HALF) is None


@pytest.mark.parametrize(
    ("written", "unit", "verdict", "right"),
    [
        ("20", "mm", "verified", "mm"),
        ("2.0", "cm", "verified", "cm"),
        ("0.02", "m", "verified", "m"),
        ("2", "mm", "corrected", "cm"),
        ("40", "mm", "corrected", geometry.PIXEL),
        ("20", geometry.PIXEL, "corrected", "mm"),
        ("40", geometry.PIXEL, "verified", geometry.PIXEL),
        ("33", "mm", "unverified", None),
        ("20.39", "mm", "verified", "mm"),
        ("20.41", "mm", "unverified", None),
    ],
)
def test_the_unit_that_fits_the_points_is_named(written: str, unit: str, verdict: str, right: str | None) -> None:
    judgement = judge("length", Decimal(written), unit, LINE, [HALF])

    assert (judgement.verdict, judgement.unit) == (verdict, right)


def test_an_area_is_compared_in_square_units() -> None:
    assert judge("area", Decimal(25), "mm2", SQUARE, [HALF]).verdict == "verified"
    assert judge("area", Decimal("0.25"), "mm2", SQUARE, [HALF]).unit == "cm2"
    assert judge("area", Decimal(100), "mm2", SQUARE, [HALF]).unit == geometry.PIXEL


def test_a_number_with_few_digits_is_compared_as_coarsely_as_it_was_written() -> None:
    drawing = Drawing("POLYLINE", ((0, 0), (3.3268, 0)))

    assert judge("length", Decimal("1.7"), "mm", drawing, [HALF]).verdict == "verified"
    assert judge("length", Decimal("1.700"), "mm", drawing, [HALF]).verdict == "unverified"


def test_pixels_that_are_millimetres_wide_are_called_millimetres() -> None:
    assert judge("length", Decimal(40), geometry.PIXEL, LINE, [Scale(1, 1)]).unit == "mm"


def test_an_image_without_a_scale_knows_pixels_only() -> None:
    assert judge("length", Decimal(40), "mm", LINE, []).unit == geometry.PIXEL
    assert judge("length", Decimal("26.5"), "mm", LINE, []).verdict == "unverified"


def test_points_in_space_are_millimetres_already() -> None:
    drawing = Drawing("POLYLINE", ((0, 0, 0), (0, 3, 4)), spatial=True)

    assert judge("length", Decimal(5), "mm", drawing, []).verdict == "verified"
    assert judge("length", Decimal("0.5"), "mm", drawing, []).unit == "cm"
    triangle = Drawing("POLYGON", ((0, 0, 0), (0, 3, 0), (0, 3, 4)), spatial=True)
    assert judge("area", Decimal(6), "mm2", triangle, []).verdict == "verified"


def test_an_angle_of_cobb_may_be_given_either_way_round() -> None:
    lines = Drawing("POLYLINE", ((0, 0), (1, 0), (0, 5), (1, 6)))

    assert judge("cobb", Decimal(45), "deg", lines, [HALF]).verdict == "verified"
    assert judge("cobb", Decimal(135), "deg", lines, [HALF]).verdict == "verified"
    assert judge("cobb", Decimal(60), "deg", lines, [HALF]).verdict == "unverified"
    assert judge("angle", Decimal(90), "deg", LINE, [HALF]).verdict == "not-checked"


def test_an_ultrasound_region_gives_the_scale_of_the_points_inside_it() -> None:
    dataset = image(SequenceOfUltrasoundRegions=Sequence([ultrasound_region()]), PixelSpacing=[9, 9])

    assert scales(dataset, 1, LINE.points) == (Scale(0.5, 0.5),)
    assert judge("length", Decimal("2.0"), "mm", LINE, scales(dataset, 1, LINE.points)).unit == "cm"


def test_a_region_elsewhere_or_in_seconds_gives_no_scale() -> None:
    elsewhere = image(SequenceOfUltrasoundRegions=Sequence([ultrasound_region(right=50)]))
    doppler = image(SequenceOfUltrasoundRegions=Sequence([ultrasound_region(units=4)]))
    flat = image(SequenceOfUltrasoundRegions=Sequence([ultrasound_region(delta=0.0)]))

    assert [scales(dataset, 1, LINE.points) for dataset in (elsewhere, doppler, flat)] == [(), (), ()]


def test_the_detector_spacing_counts_with_and_without_magnification() -> None:
    dataset = image(ImagerPixelSpacing=[0.2, 0.2], EstimatedRadiographicMagnificationFactor=2)

    assert scales(dataset, 1, LINE.points) == (Scale(0.1, 0.1), Scale(0.2, 0.2))


def test_a_frame_of_an_enhanced_image_has_its_own_spacing() -> None:
    def group(spacing: float) -> Dataset:
        return image(PixelMeasuresSequence=Sequence([image(PixelSpacing=[spacing, spacing])]))

    dataset = image(
        PerFrameFunctionalGroupsSequence=Sequence([group(1), group(2)]),
        SharedFunctionalGroupsSequence=Sequence([group(3)]),
    )

    assert scales(dataset, 2, LINE.points)[0] == Scale(2, 2)


def test_a_spacing_of_zero_or_one_number_is_none() -> None:
    assert scales(image(PixelSpacing=[0, 0]), 1, LINE.points) == ()
    assert scales(image(PixelSpacing=[1.0]), 1, LINE.points) == ()
    assert scales(Dataset(), 1, LINE.points) == ()


points = st.tuples(st.floats(0, 4096), st.floats(0, 4096))


@given(st.lists(points, max_size=8), st.sampled_from(["POLYLINE", "CIRCLE", "ELLIPSE", "POINT", "?"]), st.data())
def test_no_points_break_the_judge(drawn: list[geometry.Point], graphic: str, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["length", "perimeter", "radius", "area", "angle", "cobb", "long axis"]))
    number = data.draw(st.decimals(allow_nan=False, allow_infinity=False))

    judgement = judge(kind, number, "mm", Drawing(graphic, tuple(drawn)), [HALF])

    assert judgement.verdict in ("verified", "corrected", "unverified", "not-checked")


@given(st.floats(0.05, 0.9), st.floats(5, 500))
def test_a_length_in_pixels_is_never_taken_for_millimetres(spacing: float, steps: float) -> None:
    line = Drawing("POLYLINE", ((0.0, 0.0), (steps, 0.0)))

    judgement = judge("length", Decimal(repr(steps)), "mm", line, [Scale(spacing, spacing)])

    # A spacing of a tenth makes pixels and centimetres trade places only by a factor of a hundred, never millimetres.
    assert judgement.unit != "mm"
