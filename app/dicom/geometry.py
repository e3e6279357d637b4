"""What drawn points measure on their image, in every unit the image allows (PS3.3 C.18.6, C.18.9, 10.7.1.3, C.8.5.5).

A number and its unit are believed when the points say the same; viewers are known to write the wrong unit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

from pydicom import Dataset

from app.dicom import content

Point = tuple[float, ...]
Kind = Literal["length", "perimeter", "radius", "diameter", "long axis", "short axis", "area", "angle", "cobb"]
Verdict = Literal["verified", "corrected", "unverified", "not-checked"]

# How far a number may lie from the points: in its own unit when they are drawn sparsely, and to name another unit.
CLOSE = 0.02
NEAR = 0.05

CENTIMETRE = 3  # Physical Units X/Y Direction (PS3.3 C.8.5.5.1.15)
MILLIMETRES = {"um": 0.001, "mm": 1.0, "cm": 10.0, "dm": 100.0, "m": 1000.0, "[in_i]": 25.4}
PIXEL = "{pixels}"


class Scale(NamedTuple):
    """Millimetres per column step and per row step."""

    across: float
    down: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """Points with their graphic type, in pixels of an image or (`spatial`) in millimetres of the patient."""

    graphic: str
    points: tuple[Point, ...]
    spatial: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the points say about a number: the verdict, the unit that fits, and how they differ."""

    verdict: Verdict
    unit: str | None = None
    note: str | None = None


NOT_CHECKED = Judgement("not-checked")


def scales(image: Dataset, frame: int, points: Sequence[Point]) -> tuple[Scale, ...]:
    """The scales an image offers at these points, the most trusted first; none when it is not calibrated."""
    regions = content.sequence(image, "SequenceOfUltrasoundRegions")
    if regions:
        return tuple(_ultrasound(regions, points))
    found = [_pair(holder, "PixelSpacing") for holder in _measures(image, frame)]
    detector = _pair(image, "ImagerPixelSpacing")
    if detector:
        factor = _number(image, "EstimatedRadiographicMagnificationFactor")
        if factor:
            found.append(Scale(detector.across / factor, detector.down / factor))
        found.append(detector)
    return tuple(dict.fromkeys(scale for scale in found if scale))


def _measures(image: Dataset, frame: int) -> Iterator[Dataset]:
    yield image
    shared = content.sequence(image, "SharedFunctionalGroupsSequence")[:1]
    own = content.sequence(image, "PerFrameFunctionalGroupsSequence")[max(frame - 1, 0) : max(frame, 1)]
    for group in (*own, *shared):
        yield from content.sequence(group, "PixelMeasuresSequence")[:1]


def _pair(holder: Dataset, keyword: str) -> Scale | None:
    # Both attributes give the distance between rows first (PS3.3 10.7.1.3).
    found = content.value(holder, keyword)
    try:
        down, across = (float(step) for step in found)
    except (TypeError, ValueError):
        return None
    return Scale(across, down) if _positive(across) and _positive(down) else None


def _number(holder: Dataset, keyword: str) -> float | None:
    try:
        number = float(content.value(holder, keyword))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number else None


def _positive(number: float) -> bool:
    return math.isfinite(number) and number > 0


def _ultrasound(regions: Iterable[Dataset], points: Sequence[Point]) -> Iterator[Scale]:
    for region in regions:
        units = {content.value(region, f"PhysicalUnits{axis}Direction") for axis in "XY"}
        deltas = [_number(region, f"PhysicalDelta{axis}") for axis in "XY"]
        if units == {CENTIMETRE} and all(deltas) and _inside(region, points):
            yield Scale(*(abs(delta or 0) * MILLIMETRES["cm"] for delta in deltas))


def _inside(region: Dataset, points: Sequence[Point]) -> bool:
    edges = [content.value(region, f"RegionLocation{edge}") for edge in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
    if not all(isinstance(edge, int) for edge in edges):
        return False
    left, top, right, bottom = edges
    # SCOORD counts from the corner of the first pixel; the last pixel of a region ends one later.
    return all(left <= point[0] <= right + 1 and top <= point[1] <= bottom + 1 for point in points)


def measure(kind: Kind, drawing: Drawing, scale: Scale) -> float | None:
    """The length, area or angle of the drawing under a scale; None when the drawing does not define it."""
    points = drawing.points
    if not drawing.spatial:
        points = tuple((point[0] * scale.across, point[1] * scale.down) for point in points)
    rows = _MEASURES.get(drawing.graphic, {})
    formula = rows.get(kind)
    result = formula(points) if formula else None
    return result if result is not None and math.isfinite(result) else None


def is_open(drawing: Drawing) -> bool:
    """Whether a line does not come back to where it began."""
    return drawing.graphic == "POLYLINE" and len(drawing.points) > 1 and drawing.points[0] != drawing.points[-1]


def _path(points: Sequence[Point]) -> float | None:
    if len(points) < 2:
        return None
    return math.fsum(math.dist(a, b) for a, b in itertools.pairwise(points))


def _segment(points: Sequence[Point]) -> float | None:
    return math.dist(*points) if len(points) == 2 else None


def _enclosed(points: Sequence[Point]) -> float | None:
    """Half the length of the summed cross products: the area of a flat polygon in two or three dimensions."""
    if len(points) < 3:
        return None
    origin, total = _deep(points[0]), [0.0, 0.0, 0.0]
    spokes = [[a - b for a, b in zip(_deep(point), origin, strict=True)] for point in points[1:]]
    for u, v in itertools.pairwise(spokes):
        total[0] += u[1] * v[2] - u[2] * v[1]
        total[1] += u[2] * v[0] - u[0] * v[2]
        total[2] += u[0] * v[1] - u[1] * v[0]
    return math.hypot(*total) / 2


def _deep(point: Point) -> Point:
    return (*point, 0.0, 0.0)[:3]


def _angle(points: Sequence[Point]) -> float | None:
    # Three points, or four with the vertex written twice.
    match len(points):
        case 3:
            return _between(points[1], points[0], points[1], points[2])
        case 4:
            return _between(points[1], points[0], points[2], points[3])
        case _:
            return None


def _lines(points: Sequence[Point]) -> float | None:
    return _between(*points) if len(points) == 4 else None


def _between(a: Point, b: Point, c: Point, d: Point) -> float | None:
    """The angle in degrees between the directions a→b and c→d."""
    lengths = math.dist(a, b) * math.dist(c, d)
    if not lengths:
        return None
    product = math.fsum((q - p) * (s - r) for p, q, r, s in zip(a, b, c, d, strict=True))
    return math.degrees(math.acos(max(-1.0, min(1.0, product / lengths))))


def _axes(points: Sequence[Point]) -> tuple[float, float] | None:
    if len(points) != 4:
        return None
    one, other = math.dist(points[0], points[1]), math.dist(points[2], points[3])
    return max(one, other), min(one, other)


def _ellipse(formula: Callable[[float, float], float]) -> Callable[[Sequence[Point]], float | None]:
    def apply(points: Sequence[Point]) -> float | None:
        axes = _axes(points)
        return formula(*axes) if axes else None

    return apply


def _ramanujan(long: float, short: float) -> float:
    a, b = long / 2, short / 2
    return math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))


def _circle(formula: Callable[[float], float]) -> Callable[[Sequence[Point]], float | None]:
    def apply(points: Sequence[Point]) -> float | None:
        radius = _segment(points)
        return formula(radius) if radius is not None else None

    return apply


_Formulas = dict[Kind, Callable[[Sequence[Point]], float | None]]

_LINE: _Formulas = {
    "length": _path,
    "perimeter": _path,
    "diameter": _segment,
    "long axis": _segment,
    "short axis": _segment,
    "area": _enclosed,
    "angle": _angle,
    "cobb": _lines,
}
_ELLIPSE: _Formulas = {
    "area": _ellipse(lambda long, short: math.pi * long * short / 4),
    "perimeter": _ellipse(_ramanujan),
    "long axis": _ellipse(lambda long, _: long),
    "short axis": _ellipse(lambda _, short: short),
}
_CIRCLE: _Formulas = {
    "radius": _segment,
    "diameter": _circle(lambda radius: 2 * radius),
    "perimeter": _circle(lambda radius: math.tau * radius),
    "area": _circle(lambda radius: math.pi * radius * radius),
}
_MEASURES: dict[str, _Formulas] = {
    "POLYLINE": _LINE,
    "POLYGON": _LINE,
    "ELLIPSE": _ELLIPSE,
    "CIRCLE": _CIRCLE,
}


def judge(kind: Kind, number: Decimal, unit: str, drawing: Drawing, offered: Sequence[Scale]) -> Judgement:
    """Compare a number with its drawing; `offered` are the scales of the image, `unit` is UCUM as written."""
    if kind in ("angle", "cobb"):
        return _judge_angle(kind, number, drawing, offered)
    candidates = list(_candidates(kind, drawing, offered))
    if not candidates:
        return NOT_CHECKED
    own = [size for name, size in candidates if name == unit] or _own(kind, unit, candidates)
    if unit != PIXEL and any(_agrees(number, size, CLOSE) for size in own):
        return Judgement("verified", unit)
    # "1" and "px" are written where a unit was lost: when millimetres fit as well, millimetres are meant.
    fitting = next((name for name, size in candidates if _agrees(number, size, CLOSE)), None)
    said = ", ".join(f"{size:.6g} {name}" for name, size in candidates)
    if fitting:
        return Judgement("verified" if fitting == unit else "corrected", fitting, f"the drawn points measure {said}")
    slack = max(_coarseness(number), NEAR if kind in ("area", "perimeter") else 0)
    near = any(_agrees(number, size, slack) for size in own)
    return Judgement("verified" if near else "unverified", unit if near else None, f"the drawn points measure {said}")


def _candidates(kind: Kind, drawing: Drawing, offered: Sequence[Scale]) -> Iterator[tuple[str, float]]:
    power = 2 if kind == "area" else 1
    suffix = "2" if kind == "area" else ""
    physical = [Scale(1, 1)] if drawing.spatial else offered
    for scale in physical:
        size = measure(kind, drawing, scale)
        if size is not None:
            yield f"mm{suffix}", size
            yield f"cm{suffix}", size / MILLIMETRES["cm"] ** power
    size = None if drawing.spatial else measure(kind, drawing, Scale(1, 1))
    if size is not None:
        yield PIXEL, size


def _own(kind: Kind, unit: str, candidates: Sequence[tuple[str, float]]) -> list[float]:
    """The size in a unit of length that is not among the usual ones."""
    power = 2 if kind == "area" else 1
    factor = MILLIMETRES.get(unit.removesuffix("2") if power == 2 else unit)
    return [size / factor**power for name, size in candidates if factor and name.startswith("mm")]


def _judge_angle(kind: Kind, number: Decimal, drawing: Drawing, offered: Sequence[Scale]) -> Judgement:
    # Unequal spacing bends angles; without a scale the pixels are taken as square.
    sizes = [measure(kind, drawing, scale) for scale in (*offered, Scale(1, 1))]
    angles = [size for size in sizes if size is not None]
    if kind == "cobb":
        angles += [180 - angle for angle in angles]
    if not angles:
        return NOT_CHECKED
    if any(abs(float(number) - angle) <= 1 or _agrees(number, angle, CLOSE) for angle in angles):
        return Judgement("verified", "deg")
    return Judgement("unverified", "deg", f"the drawn lines make {angles[0]:.4g} deg")


def _agrees(number: Decimal, size: float, tolerance: float) -> bool:
    return abs(float(number) - size) <= tolerance * size


def _coarseness(number: Decimal) -> float:
    """Half a unit of the last written digit, relative; never more than NEAR."""
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or not number:
        return 0
    return min(NEAR, float(Decimal((0, (5,), exponent - 1)) / abs(number)))
