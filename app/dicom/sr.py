"""Reads the measurements of an Imaging Measurement Report and checks them on their images (PS3.16 TID 1500).

Viewers write wrong units, wrong codes and placeholders. Each is repaired here in the open, with a note on the
measurement; the document itself is never changed. A bad item costs that item only and is told as a problem.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Literal

from pydicom import Dataset

from app.dicom import content, geometry
from app.dicom.content import Code, Item, Problem, Tree

Images = Callable[[str], Dataset | None]
Quantity = Literal["length", "area", "angle", "intensity"]


@dataclass(frozen=True, slots=True)
class Region:
    """What was measured on: points on an image or in space, a segment, or a whole image."""

    graphic: str | None
    points: tuple[geometry.Point, ...]
    sop_class: str | None = None
    sop_uid: str | None = None
    series_uid: str | None = None
    study_uid: str | None = None
    frames: tuple[int, ...] = ()
    segments: tuple[int, ...] = ()
    frame_of_reference_uid: str | None = None
    purpose: Code | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """Where in the body, with laterality and other modifiers."""

    codes: tuple[Code, ...]
    laterality: Code | None = None
    modifiers: tuple[Code, ...] = ()


@dataclass(frozen=True, slots=True)
class Algorithm:
    """The algorithm that found or measured (TID 4019)."""

    name: str
    version: str | None = None
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Qualitative:
    """A named value that is no number: an evaluation, or a modifier of a measurement."""

    path: str
    codes: tuple[Code, ...]
    value_type: str
    value: Code | str
    observed: datetime | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number; `value` is None with the reason in `absent`, `written` is what the document says."""

    path: str
    codes: tuple[Code, ...]
    value: Decimal | None
    absent: str | None
    unit: Code | None
    written: str
    written_code: Code
    written_unit: Code | None
    quantity: Quantity | None = None
    verdict: geometry.Verdict = "not-checked"
    notes: tuple[str, ...] = ()
    derivation: Code | None = None
    interpretations: tuple[Code, ...] = ()
    modifiers: tuple[Qualitative, ...] = ()
    method: Code | None = None
    sites: tuple[Site, ...] = ()
    algorithm: Algorithm | None = None
    tracking_uid: str | None = None
    region: Region | None = None
    observed: datetime | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """One measurement group; `tool` is the annotation tool of a Cornerstone viewer, whose habits are known."""

    path: str
    concept: Code
    tracking_uid: str | None = None
    tracking_id: str | None = None
    tool: str | None = None
    finding: Code | None = None
    finding_category: Code | None = None
    sites: tuple[Site, ...] = ()
    method: Code | None = None
    notes: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    qualitative: tuple[Qualitative, ...] = ()
    modifiers: tuple[Qualitative, ...] = ()
    algorithm: Algorithm | None = None
    observed: datetime | None = None
    lineage: str = ""


@dataclass(frozen=True, slots=True)
class Equipment:
    """The maker of the document (PS3.3 C.7.5.1); `Unspecified` counts as nothing."""

    manufacturer: str | None = None
    model: str | None = None
    versions: tuple[str, ...] = ()
    serial: str | None = None
    implementation: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one structured report says; only an Imaging Measurement Report has groups."""

    sop_uid: str
    sop_class: str
    study_uid: str
    root: Code | None
    completion: str
    verification: str
    preliminary: bool
    content_datetime: datetime | None
    observer: str | None
    login: str | None
    equipment: Equipment
    language: str | None
    qualification: str | None
    predecessors: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    problems: tuple[Problem, ...] = ()


# --- the concepts a reader must know ------------------------------------------------------------------------------

REPORT = ("126000", "DCM")
GROUP = ("125007", "DCM")
DERIVED = ("126011", "DCM")
EVALUATIONS = ("C0034375", "UMLS")
IMAGE_LIBRARY = ("111028", "DCM")
TRACKING_ID = ("112039", "DCM")
TRACKING_UID = ("112040", "DCM")
FINDING = ("121071", "DCM")
FINDING_CATEGORY = ("276214006", "SCT")
FINDING_SITE = ("363698007", "SCT")
LATERALITY = ("272741003", "SCT")
METHOD = ("370129005", "SCT")
COMMENT = ("121106", "DCM")
DERIVATION = ("121401", "DCM")
INTERPRETATIONS = (("121402", "DCM"), ("121403", "DCM"))
PERSON_NAME = ("121008", "DCM")
LOGIN = ("128774", "DCM")
LANGUAGE = ("121049", "DCM")
ALGORITHM_NAME = (("111001", "DCM"), ("111000", "DCM"))
ALGORITHM_PARAMETERS = ("111002", "DCM")
ALGORITHM_VERSION = ("111003", "DCM")
TIME_POINT = (("126070", "DCM"), ("126071", "DCM"), ("126072", "DCM"), ("126073", "DCM"), ("C2348792", "UMLS"))
CENTER = ("111010", "DCM")

# Items that describe the group and are therefore no evaluation of their own.
NOT_EVALUATIONS = frozenset(
    {
        TRACKING_ID,
        TRACKING_UID,
        FINDING_CATEGORY,
        FINDING_SITE,
        METHOD,
        COMMENT,
        LANGUAGE,
        ALGORITHM_PARAMETERS,
        ALGORITHM_VERSION,
        *ALGORITHM_NAME,
        *TIME_POINT,
        ("121050", "DCM"),
        ("130400", "DCM"),
        ("C67447", "NCIT"),
    }
)
VIEWER_SCHEME = "99CS3D"  # Cornerstone's drawing state: text box, control points, spline type
CONTEXT_RELATIONSHIPS = frozenset({"HAS OBS CONTEXT", "HAS CONCEPT MOD", "HAS ACQ CONTEXT"})
NOBODY = frozenset({"", "unknown", "unknown unknown", "anonymized", "anonymous"})

LENGTH_CODE = Code("410668003", "SCT", "Length")
AREA_CODE = Code("42798000", "SCT", "Area")
ANGLE_CODE = Code("1483009", "SCT", "Angle")

# Concept → what the drawing has to measure. The kinds belong to a length, an area or an angle.
KINDS: dict[tuple[str, str], geometry.Kind] = {
    ("410668003", "SCT"): "length",
    ("103339001", "SCT"): "long axis",
    ("103340004", "SCT"): "short axis",
    ("131188007", "SCT"): "long axis",
    ("131187009", "SCT"): "long axis",
    ("131189004", "SCT"): "short axis",
    ("81827009", "SCT"): "diameter",
    ("131191004", "SCT"): "perimeter",
    ("131190003", "SCT"): "radius",
    ("42798000", "SCT"): "area",
    ("131184002", "SCT"): "area",
    ("1483009", "SCT"): "angle",
    ("285285000", "SCT"): "cobb",
}
QUANTITIES: dict[geometry.Kind, Quantity] = {"area": "area", "angle": "angle", "cobb": "angle"}
STATISTICS = frozenset(
    (value, "SCT") for value in ("56851009", "255605001", "373098007", "386136009", "709099001", "876824003")
)

# Numeric Value Qualifier (CID 42) → why there is no number.
QUALIFIERS = {
    "114000": "not-a-number",
    "114001": "negative-infinity",
    "114002": "positive-infinity",
    "114007": "not-performed",
    "114010": "unknown",
    "114011": "unknown",
}
TEXTS = {
    "nan": "not-a-number",
    "infinity": "positive-infinity",
    "+infinity": "positive-infinity",
    "inf": "positive-infinity",
    "-infinity": "negative-infinity",
    "-inf": "negative-infinity",
}
DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
DS_LENGTH = 16

CORNERSTONE = re.compile(r"(?i)cornerstone(?:3D)?Tools@[^:]*:(?P<tool>.+)")
PLACEHOLDERS = ("Probe", "ArrowAnnotate")
REGION_TOOLS = frozenset({"ellipticalroi", "circleroi", "rectangleroi"})
CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2",)

HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
UNITLESS = Code("1", "UCUM", "no units")
UNIT_TEXTS = {geometry.PIXEL: "px", "deg": "°"}
CENTIMETRES_IN_REGION = re.compile(r"\{\s*(mm|cm|m)(2?)\b[^}]*\}")
PIXEL_UNITS = frozenset({"1", "px", "[px]", "{pixels}", "{pixel}", "px2", "{pixels}2"})
# Units that a statistic over pixel values cannot have when a Cornerstone viewer wrote it.
LOST_UNITS = frozenset({"", "1", "px", "mm", "mm2", "cm", "cm2", "[hnsf'U]", "HU", geometry.PIXEL})


# --- the document -------------------------------------------------------------------------------------------------


def read(document: Dataset, image: Images) -> Evidence:
    """Read a report; `image` gives the header of a referenced image by SOP Instance UID, or None."""
    tree = content.read(document)
    root = tree.root
    evidence = Evidence(
        sop_uid=content.text(document, "SOPInstanceUID"),
        sop_class=content.text(document, "SOPClassUID"),
        study_uid=content.text(document, "StudyInstanceUID"),
        root=root.name,
        completion=content.text(document, "CompletionFlag"),
        verification=content.text(document, "VerificationFlag"),
        preliminary=content.text(document, "PreliminaryFlag") == "PRELIMINARY",
        content_datetime=_content_datetime(document),
        observer=_observer(document, tree),
        login=_text_of(_child(tree, root, LOGIN)),
        equipment=_equipment(document),
        language=_language(tree),
        qualification=content.text(document, "ContentQualification") or None,
        predecessors=tuple(_referenced(document, "PredecessorDocumentsSequence")),
    )
    if root.named(REPORT):
        evidence = replace(evidence, groups=tuple(_groups(tree, _Places(document, image))))
    return replace(evidence, problems=tuple(tree.problems))


def _content_datetime(document: Dataset) -> datetime | None:
    offset = content.text(document, "TimezoneOffsetFromUTC")
    return moment(content.text(document, "ContentDate") + content.text(document, "ContentTime"), offset)


def moment(text: str, offset: str = "") -> datetime | None:
    """A DICOM date and time (PS3.5 DT); without an offset the result has no zone. None when it is no moment."""
    match = re.fullmatch(r"(\d{8})(\d{2})?(\d{2})?(\d{2})?(\.\d{1,6})?([+-]\d{4})?", text.strip())
    if not match:
        return None
    day, hour, minute, second, fraction, own = match.groups()
    try:
        found = datetime.strptime(f"{day}{hour or '00'}{minute or '00'}{second or '00'}", "%Y%m%d%H%M%S")  # noqa: DTZ007
    except ValueError:
        return None
    found += timedelta(seconds=float(fraction or 0))
    return found.replace(tzinfo=_zone(own or offset.strip()))


def _zone(offset: str) -> timezone | None:
    match = re.fullmatch(r"([+-])(\d{2})(\d{2})", offset)
    if not match or int(match[2]) > 14:
        return None
    shift = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(-shift if match[1] == "-" else shift)


def _observer(document: Dataset, tree: Tree) -> str | None:
    said = _text_of(_child(tree, tree.root, PERSON_NAME))
    authors = (content.text(entry, "PersonName") for entry in content.sequence(document, "AuthorObserverSequence"))
    verifiers = (
        content.text(entry, "VerifyingObserverName")
        for entry in content.sequence(document, "VerifyingObserverSequence")
    )
    return next((name for name in (said, *authors, *verifiers) if name and _somebody(name)), None)


def _somebody(name: str) -> bool:
    return " ".join(re.split(r"[\^=\s]+", name)).strip().casefold() not in NOBODY


def _equipment(document: Dataset) -> Equipment:
    def known(keyword: str) -> str | None:
        found = content.text(document, keyword)
        return found if found and found.casefold() != "unspecified" else None

    versions = content.value(document, "SoftwareVersions")
    several = [versions] if isinstance(versions, str) else list(versions or ())
    meta = getattr(document, "file_meta", None) or Dataset()
    return Equipment(
        manufacturer=known("Manufacturer"),
        model=known("ManufacturerModelName"),
        versions=tuple(str(version) for version in several if version),
        serial=known("DeviceSerialNumber"),
        implementation=content.text(meta, "ImplementationVersionName") or None,
    )


def _language(tree: Tree) -> str | None:
    item = _child(tree, tree.root, LANGUAGE)
    code = tree.code(item.dataset, "ConceptCodeSequence") if item else None
    return code.value if code else None


def _referenced(document: Dataset, keyword: str) -> Iterator[str]:
    for study in content.sequence(document, keyword):
        for series in content.sequence(study, "ReferencedSeriesSequence"):
            for reference in content.sequence(series, "ReferencedSOPSequence"):
                yield content.text(reference, "ReferencedSOPInstanceUID")


@dataclass(slots=True)
class _Places:
    """Where the referenced images are: their series and study by the evidence lists, their headers when asked."""

    document: Dataset
    image: Images
    series: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    headers: dict[str, Dataset | None] = field(default_factory=dict[str, Dataset | None])

    def __post_init__(self) -> None:
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
            for study in content.sequence(self.document, keyword):
                study_uid = content.text(study, "StudyInstanceUID")
                for series in content.sequence(study, "ReferencedSeriesSequence"):
                    series_uid = content.text(series, "SeriesInstanceUID")
                    for reference in content.sequence(series, "ReferencedSOPSequence"):
                        self.series[content.text(reference, "ReferencedSOPInstanceUID")] = series_uid, study_uid

    def header(self, sop_uid: str | None) -> Dataset | None:
        """The header of an image, asked for once."""
        if not sop_uid:
            return None
        if sop_uid not in self.headers:
            self.headers[sop_uid] = self.image(sop_uid)
        return self.headers[sop_uid]


# --- groups -------------------------------------------------------------------------------------------------------


def _groups(tree: Tree, places: _Places) -> Iterator[Group]:
    waiting: list[tuple[Item, datetime | None]] = [(tree.root, None)]
    while waiting:
        item, observed = waiting.pop()
        observed = _observed(item) or observed
        if item.named(IMAGE_LIBRARY):
            continue
        if item.value_type == "CONTAINER" and item.named(GROUP, DERIVED, EVALUATIONS):
            group = _group(tree, places, item, observed)
            if _says_something(group):
                yield replace(group, lineage=lineage(group))
            else:
                tree.problems.append(Problem(item.path, "the group holds nothing that can be used"))
        containers = (child for child in tree.children(item) if child.value_type == "CONTAINER")
        # A container by reference is read where it stands.
        waiting.extend((child, observed) for child in reversed([*containers]) if _below(child, item))


def _below(child: Item, item: Item) -> bool:
    return child.path.startswith(f"{item.path}.")


def _says_something(group: Group) -> bool:
    return any((group.finding, group.notes, group.regions, group.measurements, group.qualitative, group.sites))


def _group(tree: Tree, places: _Places, item: Item, observed: datetime | None) -> Group:
    children = list(tree.children(item))
    tracking_id = _text_of(_named(children, TRACKING_ID))
    tracking_uid = _text_of(_named(children, TRACKING_UID))
    tool = CORNERSTONE.fullmatch(tracking_id or "")
    findings = [child for child in children if child.named(FINDING)]
    group = Group(
        path=item.path,
        concept=item.name or Code(*GROUP),
        tracking_uid=tracking_uid,
        tracking_id=tracking_id,
        tool=tool["tool"] if tool else None,
        finding=_code_of(tree, findings[0]) if findings else None,
        finding_category=_code_of(tree, _named(children, FINDING_CATEGORY)),
        sites=tuple(_sites(tree, children)),
        method=_code_of(tree, _named(children, METHOD)),
        notes=tuple(note for child in children if child.named(COMMENT) and (note := _text_of(child))),
        qualitative=tuple(_evaluations(tree, children, findings[:1], observed)),
        modifiers=tuple(_valued(tree, child, observed) for child in children if child.named(*TIME_POINT)),
        algorithm=_algorithm(children),
        observed=observed,
    )
    reader = _Numbers(tree, places, group, tuple(dict.fromkeys(_group_regions(tree, places, children))))
    return reader.fill([child for child in children if child.value_type == "NUM"])


def _observed(item: Item) -> datetime | None:
    return moment(content.text(item.dataset, "ObservationDateTime")) if item.path != "1" else None


def _named(children: Iterable[Item], *keys: tuple[str, str]) -> Item | None:
    return next((child for child in children if child.named(*keys)), None)


def _child(tree: Tree, item: Item, key: tuple[str, str]) -> Item | None:
    return _named(tree.children(item), key)


TEXT_KEYWORDS = {
    "TEXT": "TextValue",
    "UIDREF": "UID",
    "PNAME": "PersonName",
    "DATE": "Date",
    "TIME": "Time",
    "DATETIME": "DateTime",
}


def _text_of(item: Item | None) -> str | None:
    keyword = TEXT_KEYWORDS.get(item.value_type) if item else None
    return (content.text(item.dataset, keyword) or None) if item and keyword else None


def _code_of(tree: Tree, item: Item | None) -> Code | None:
    return tree.code(item.dataset, "ConceptCodeSequence") if item and item.value_type == "CODE" else None


def _sites(tree: Tree, children: Iterable[Item]) -> Iterator[Site]:
    for child in children:
        code = _code_of(tree, child) if child.named(FINDING_SITE) else None
        if not code:
            continue
        below = [(part, _code_of(tree, part)) for part in tree.children(child)]
        laterality = next((found for part, found in below if found and part.named(LATERALITY)), None)
        others = tuple(found for part, found in below if found and not part.named(LATERALITY))
        yield Site(code.spellings, laterality, others)


def _algorithm(children: list[Item]) -> Algorithm | None:
    name = _text_of(_named(children, *ALGORITHM_NAME))
    if not name:
        return None
    parameters = (_text_of(child) for child in children if child.named(ALGORITHM_PARAMETERS))
    version = _text_of(_named(children, ALGORITHM_VERSION))
    return Algorithm(name, version, tuple(parameter for parameter in parameters if parameter))


def _evaluations(
    tree: Tree, children: Iterable[Item], findings: list[Item], observed: datetime | None
) -> Iterator[Qualitative]:
    for child in children:
        if child in findings or child.value_type not in (*TEXT_KEYWORDS, "CODE"):
            continue
        if child.relationship in CONTEXT_RELATIONSHIPS or child.name is None or child.named(*NOT_EVALUATIONS):
            continue
        if child.name.scheme.upper() == VIEWER_SCHEME:
            continue
        evaluation = _valued(tree, child, observed)
        if evaluation.value:
            yield evaluation
        else:
            tree.problems.append(Problem(child.path, "the evaluation has no value"))


def _valued(tree: Tree, item: Item, observed: datetime | None) -> Qualitative:
    named = item.name.spellings if item.name else ()
    value = _code_of(tree, item) or _text_of(item) or ""
    if item.value_type == "NUM":
        value = content.written(_measured(item) or Dataset(), "NumericValue")
    return Qualitative(item.path, named, item.value_type, value, _observed(item) or observed)


# --- regions ------------------------------------------------------------------------------------------------------


def _group_regions(tree: Tree, places: _Places, children: Iterable[Item]) -> Iterator[Region]:
    for child in children:
        if child.value_type in ("SCOORD", "SCOORD3D", "IMAGE"):
            region = _region(tree, places, child)
            if region:
                yield region


def _region(tree: Tree, places: _Places, item: Item) -> Region | None:
    if item.name and item.name.scheme.upper() == VIEWER_SCHEME:
        return None
    if item.value_type == "IMAGE":
        return _reference(tree, places, item, Region(None, (), purpose=item.name))
    points = _points(item)
    graphic = content.text(item.dataset, "GraphicType")
    if not graphic or not points:
        tree.problems.append(Problem(item.path, "the region has no graphic type or no usable points"))
        return None
    if graphic == "POINT" and len(points) > 1:
        graphic = "POLYLINE"
        tree.problems.append(Problem(item.path, "a point with several coordinates is read as a line"))
    space = content.text(item.dataset, "ReferencedFrameOfReferenceUID") or None
    region = Region(graphic, points, frame_of_reference_uid=space, purpose=item.name)
    image = next((child for child in tree.children(item) if child.value_type == "IMAGE"), None)
    return _reference(tree, places, image, region) if image else region


def _points(item: Item) -> tuple[geometry.Point, ...]:
    width = 3 if item.value_type == "SCOORD3D" else 2
    found = content.value(item.dataset, "GraphicData")
    try:
        numbers = [float(number) for number in ([found] if isinstance(found, float) else found or ())]
    except content.UNREADABLE:
        return ()
    if len(numbers) % width or not all(math.isfinite(number) for number in numbers):
        return ()
    return tuple(tuple(numbers[at : at + width]) for at in range(0, len(numbers), width))


def _reference(tree: Tree, places: _Places, item: Item, region: Region) -> Region | None:
    references = content.sequence(item.dataset, "ReferencedSOPSequence")
    sop_uid = content.text(references[0], "ReferencedSOPInstanceUID") if references else ""
    if not sop_uid:
        tree.problems.append(Problem(item.path, "the image reference names no image"))
        return region if region.graphic else None
    series_uid, study_uid = places.series.get(sop_uid, (None, None))
    return replace(
        region,
        sop_class=content.text(references[0], "ReferencedSOPClassUID") or None,
        sop_uid=sop_uid,
        series_uid=series_uid or None,
        study_uid=study_uid or None,
        frames=_integers(references[0], "ReferencedFrameNumber"),
        segments=_integers(references[0], "ReferencedSegmentNumber"),
    )


def _integers(dataset: Dataset, keyword: str) -> tuple[int, ...]:
    found = content.value(dataset, keyword)
    try:
        return tuple(int(number) for number in ([found] if isinstance(found, (int, str)) else found or ()))
    except content.UNREADABLE:
        return ()


# --- numbers ------------------------------------------------------------------------------------------------------


def _measured(item: Item) -> Dataset | None:
    return next(iter(content.sequence(item.dataset, "MeasuredValueSequence")), None)


@dataclass(slots=True)
class _Numbers:
    """Turns the NUM items of one group into measurements, in the order of repair."""

    tree: Tree
    places: _Places
    group: Group
    regions: tuple[Region, ...]

    def fill(self, items: list[Item]) -> Group:
        """The group with its regions and measurements."""
        own = {item.path: self.own_region(item) for item in items}
        shapes = tuple(region for region in own.values() if region)
        self.regions = tuple(dict.fromkeys((*self.regions, *shapes)))
        drawn = [region for region in self.regions if region.graphic]
        only = drawn[0] if len(drawn) == 1 else None
        measurements = [self.measurement(item, own[item.path] or only) for item in items if self.is_measurement(item)]
        return replace(self.group, regions=self.regions, measurements=tuple(self.without_empties(measurements)))

    def own_region(self, item: Item) -> Region | None:
        """The region a number is inferred from; of several the first that is no control point."""
        shapes = [child for child in self.tree.children(item) if child.value_type in ("SCOORD", "SCOORD3D")]
        found = [region for child in shapes if (region := _region(self.tree, self.places, child))]
        return found[0] if found else None

    def is_measurement(self, item: Item) -> bool:
        """Probe, arrow and key image carry a number only because a group had to have one."""
        if item.name is None:
            self.tree.problems.append(Problem(item.path, "the number has no name"))
            return False
        tool = self.group.tool or ""
        return not (item.named(CENTER) and tool.split(":")[0] in PLACEHOLDERS)

    def without_empties(self, measurements: list[Measurement]) -> Iterator[Measurement]:
        """Cornerstone writes statistics it does not have as empty numbers beside those it has."""
        filled = any(measurement.value is not None for measurement in measurements)
        for measurement in measurements:
            if self.group.tool and filled and not measurement.written and measurement.value is None:
                self.tree.problems.append(Problem(measurement.path, "an empty number is left out"))
                continue
            yield measurement

    def measurement(self, item: Item, region: Region | None) -> Measurement:
        """One NUM item, repaired and judged."""
        children = list(self.tree.children(item))
        written_code = item.name or Code("", "", "")
        values = _measured(item)
        unit = self.tree.code(values, "MeasurementUnitsCodeSequence") if values else None
        number, absent = self.number(item, values)
        start = Measurement(
            path=item.path,
            codes=written_code.spellings,
            value=number,
            absent=absent,
            unit=unit,
            written=content.written(values, "NumericValue") if values else "",
            written_code=written_code,
            written_unit=unit,
            derivation=_code_of(self.tree, _named(children, DERIVATION)),
            interpretations=tuple(
                code for child in children if child.named(*INTERPRETATIONS) and (code := _code_of(self.tree, child))
            ),
            method=_code_of(self.tree, _named(children, METHOD)),
            sites=tuple(_sites(self.tree, children)),
            algorithm=_algorithm(children),
            tracking_uid=_text_of(_named(children, TRACKING_UID)),
            modifiers=tuple(self.modifiers(children)),
            region=region,
            observed=_observed(item) or self.group.observed,
        )
        return self.judged(self.recoded(start))

    def modifiers(self, children: Iterable[Item]) -> Iterator[Qualitative]:
        """What else is said about a number, kept as it is."""
        known = (DERIVATION, *INTERPRETATIONS, METHOD, FINDING_SITE, TRACKING_UID, TRACKING_ID, ALGORITHM_VERSION)
        for child in children:
            if child.named(*known, *ALGORITHM_NAME, ALGORITHM_PARAMETERS) or not child.name:
                continue
            found = _valued(self.tree, child, self.group.observed)
            if found.value:
                yield found

    def number(self, item: Item, values: Dataset | None) -> tuple[Decimal | None, str | None]:
        """The number, or why there is none."""
        qualifier = self.tree.code(item.dataset, "NumericValueQualifierCodeSequence")
        written = content.written(values, "NumericValue") if values else ""
        if not written:
            return None, QUALIFIERS.get(qualifier.value, "error") if qualifier else "unknown"
        if written.casefold() in TEXTS:
            return None, TEXTS[written.casefold()]
        if not DECIMAL.fullmatch(written):
            self.tree.problems.append(Problem(item.path, "the number cannot be read"))
            return None, "error"
        return _precise(Decimal(written), values), None

    def recoded(self, measurement: Measurement) -> Measurement:
        """The concept that a viewer meant, where it is known to write another."""
        meant = self.meant(measurement)
        if meant is None:
            return measurement
        note = f"coded as {_shown(measurement.written_code)} by the viewer; it is {_shown(meant)}"
        return replace(measurement, codes=(meant,), notes=(*measurement.notes, note))

    def meant(self, measurement: Measurement) -> Code | None:
        """The right concept, None where the written one is right."""
        tool, key = self.group.tool, measurement.written_code.key
        if tool is None:
            return None
        match KINDS.get(key):
            case "cobb" if tool == "Angle":
                return ANGLE_CODE
            case "perimeter" if tool == "PlanarFreehandROI" and _is_open(measurement.region):
                return LENGTH_CODE
            case "length" if (
                tool.casefold() in REGION_TOOLS or measurement.written_code.meaning.strip().casefold() == "area"
            ):
                return AREA_CODE
            case _:
                return None

    def judged(self, measurement: Measurement) -> Measurement:
        """The measurement with its quantity, the unit that holds, and the verdict on both."""
        key = measurement.codes[0].key
        kind = KINDS.get(key)
        if kind:
            return self.on_geometry(replace(measurement, quantity=QUANTITIES.get(kind, "length")), kind)
        if key in STATISTICS and self.group.tool:
            return self.on_modality(replace(measurement, quantity="intensity"))
        return measurement

    def on_geometry(self, measurement: Measurement, kind: geometry.Kind) -> Measurement:
        """A length, area or angle against the points it was taken from."""
        number, region = measurement.value, measurement.region
        if number is None:
            return measurement
        if number < 0 and kind not in ("angle", "cobb"):
            return replace(_withheld(measurement, "a length or area below zero"), absent="error")
        unit = _ucum(measurement.written_unit)
        judgement = geometry.NOT_CHECKED
        if region and region.graphic:
            drawing = geometry.Drawing(region.graphic, region.points, spatial=len(region.points[0]) == 3)
            judgement = geometry.judge(kind, number, unit, drawing, self.scales(region))
            if not drawing.spatial and self.places.header(region.sop_uid) is None:
                judgement = geometry.NOT_CHECKED
        return _applied(measurement, judgement, unit, withhold=self.group.tool is not None)

    def scales(self, region: Region) -> tuple[geometry.Scale, ...]:
        """The scales of the image that the region is drawn on."""
        header = self.places.header(region.sop_uid)
        frame = region.frames[0] if region.frames else 1
        return geometry.scales(header, frame, region.points) if header is not None else ()

    def on_modality(self, measurement: Measurement) -> Measurement:
        """A statistic over pixel values has the unit of the pixel values."""
        unit = _ucum(measurement.written_unit)
        is_ct = self.is_ct(measurement.region)
        if is_ct is None or measurement.value is None:
            return measurement
        if len(measurement.written) >= DS_LENGTH and ("." not in measurement.written or not is_ct):
            # dcmjs cuts numbers at 16 characters and loses the exponent with them.
            cut = "the number fills its 16 characters; an exponent may be lost"
            return replace(_withheld(measurement, cut), absent="error")
        right = HOUNSFIELD if is_ct else UNITLESS
        if unit == right.value or unit not in LOST_UNITS:
            return measurement
        note = f"unit corrected from {unit or 'none'} to {right.value}, the unit of the image's pixel values"
        return replace(measurement, unit=right, verdict="corrected", notes=(*measurement.notes, note))

    def is_ct(self, region: Region | None) -> bool | None:
        """Whether the pixel values are Hounsfield units; None when the image is not known."""
        header = self.places.header(region.sop_uid) if region else None
        if header is not None:
            return content.text(header, "Modality") == "CT"
        return True if region and region.sop_class in CT_CLASSES else None


def _precise(number: Decimal, values: Dataset | None) -> Decimal:
    """The floating point form of a number, where it is the same number with more digits (PS3.3 C.18.1)."""
    exact = content.value(values, "FloatingPointValue") if values is not None else None
    exponent = number.as_tuple().exponent
    if not isinstance(exact, float) or not math.isfinite(exact) or not isinstance(exponent, int):
        return number
    precise = Decimal(repr(exact))
    return precise if abs(precise - number) <= Decimal((0, (1,), exponent)) else number


def _is_open(region: Region | None) -> bool:
    if region is None or region.graphic is None:
        return False
    return geometry.is_open(geometry.Drawing(region.graphic, region.points))


def _shown(code: Code) -> str:
    return f"{code.value} {code.scheme} {code.meaning}".strip()


def _ucum(unit: Code | None) -> str:
    """The unit as geometry names it: pixels by one name, a unit hidden in an annotation taken out."""
    if unit is None:
        return ""
    hidden = CENTIMETRES_IN_REGION.search(unit.value)
    if hidden:
        return hidden[1] + hidden[2]
    return geometry.PIXEL if unit.value in PIXEL_UNITS else unit.value.replace("²", "2")


def _applied(measurement: Measurement, judgement: geometry.Judgement, unit: str, *, withhold: bool) -> Measurement:
    """The judgement in words, and the number withheld when its unit may be false."""
    verdict, note = judgement.verdict, judgement.note
    if verdict == "unverified" and withhold and measurement.quantity != "angle":
        shown = f"{measurement.written} {unit}".strip()
        return _withheld(measurement, f"withheld: {shown} was written, {note}")
    fitting = judgement.unit
    if fitting and measurement.unit and fitting != measurement.unit.value:
        note = note or f"the unit is {fitting}"
        verdict = "corrected"
        changed = Code(fitting, "UCUM", UNIT_TEXTS.get(fitting, fitting))
        shown = measurement.unit.value or "none"
        measurement = replace(measurement, unit=changed)
        note = f"unit corrected from {shown} to {fitting}: {note}"
    elif fitting and not measurement.unit:
        measurement = replace(measurement, unit=Code(fitting, "UCUM", UNIT_TEXTS.get(fitting, fitting)))
    elif verdict == "unverified":
        note = f"written {measurement.written} {unit}, but {note}"
    return replace(measurement, verdict=verdict, notes=(*measurement.notes, *([note] if note else [])))


def _withheld(measurement: Measurement, note: str) -> Measurement:
    return replace(measurement, value=None, absent="unverified", verdict="unverified", notes=(*measurement.notes, note))


# --- lineage ------------------------------------------------------------------------------------------------------


def lineage(group: Group) -> str:
    """The same for one annotation in every report that repeats it.

    Cornerstone's tracking UIDs are fresh at every save, so there the place on the image is the identity;
    points are compared in quarters of a pixel.
    """
    if group.tracking_uid and group.tool is None:
        parts = ["tracking", group.tracking_uid]
    else:
        parts = ["place", group.tool or "", *group.notes, *map(_place, group.regions)]
        if not group.regions:
            parts += [f"{part.codes[0].value}={part.written}" for part in group.measurements]
            parts += [group.finding.value if group.finding else "", group.path]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def _place(region: Region) -> str:
    quarters = (str(round(step * 4)) for point in region.points for step in point)
    where = (region.sop_uid or region.frame_of_reference_uid or "", *map(str, region.frames))
    return "\x1e".join((*where, *map(str, region.segments), region.graphic or "", *quarters))
