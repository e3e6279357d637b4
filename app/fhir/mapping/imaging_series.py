"""One series of an ImagingStudy and its instances (https://hl7.org/fhir/R4/imagingstudy-mappings.html#dicom)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import TYPE_CHECKING, Any, Protocol

from app.fhir.mapping import codes, named, quality, rows, terms, values
from app.fhir.mapping.codes import Json
from app.fhir.mapping.rows import Row, plain

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

LEFT = {"system": terms.SNOMED, "code": "7771000", "display": "Left"}
RIGHT = {"system": terms.SNOMED, "code": "24028007", "display": "Right"}
BOTH = {"system": terms.SNOMED, "code": "51440002", "display": "Right and left"}
LATERALITY = {"L": LEFT, "R": RIGHT}
OF_ONE_IMAGE = {**LATERALITY, "B": BOTH}
NO_MODALITY = "OT"
"""R4 demands a modality for each series; DICOM's own word for what is none of the others."""
TITLES = ("DocumentTitle", "ContentLabel", "StructureSetLabel", "RTPlanLabel", "ConceptNameCodeSequence")
"""Where documents, presentation states, segmentations, plans and reports say what they are."""
TITLE_LENGTH = 1024


class Instance(Protocol):
    """One instance as the archive lists it."""

    # fmt: off
    @property
    def sop_uid(self) -> str: ...
    @property
    def sop_class(self) -> str: ...
    @property
    def number(self) -> str: ...
    @property
    def frames(self) -> str: ...
    @property
    def syntax(self) -> str: ...
    # fmt: on


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """One series: its UID, the header that speaks for it, its instances.

    `last` is a second opinion, `titled` holds the headers of instances that say what they are, by SOP Instance UID.
    """

    uid: str
    header: Dataset
    instances: Sequence[Instance]
    last: Dataset | None = None
    titled: Mapping[str, Dataset] = field(default_factory=dict[str, Any])
    image: bool = True
    """Whether a modality acquired it: what was made of images later does not speak for the study."""
    zone: tzinfo | None = None
    """The zone of the machine's clock, where it is known."""


# --- the tables ------------------------------------------------------------------------------------------------


def _modality(header: Dataset) -> Json:
    return {"system": terms.DCM, "code": values.text(header.get("Modality")) or NO_MODALITY}


def _body_site(header: Dataset) -> Json | None:
    """The body part by PS3.16 Annex L; else the region as it is coded; else the words."""
    written = values.text(header.get("BodyPartExamined"))
    known = codes.table("body_sites").get((written or "").upper())
    if known:
        return {"system": terms.SNOMED, "code": known[0], "display": known[1]}
    regions = values.coded(header, "AnatomicRegionSequence")
    if regions and not written:
        return codes.coding(regions[0])
    return {"display": written} if written else None


def _region(header: Dataset) -> list[Json]:
    """The regions as coded, which may be finer than the body part, each with its modifiers."""
    found: list[Json] = []
    for item in values.items(header, "AnatomicRegionSequence"):
        region, modifiers = values.code(item), values.coded(item, "AnatomicRegionModifierSequence")
        if region is not None:
            words = ", ".join(codes.line(one.meaning) for one in (region, *modifiers) if one.meaning)
            concept = codes.concept([region, *modifiers], text=words or None)
            found.append({"url": terms.ANATOMIC_REGION, "valueCodeableConcept": concept})
    return found


def _started(header: Dataset, zone: tzinfo) -> str | None:
    own = values.offset(header.get("TimezoneOffsetFromUTC")) or zone
    pairs = (("SeriesDate", "SeriesTime"), ("AcquisitionDate", "AcquisitionTime"))
    times = (values.date_time(header.get(day), header.get(clock), own) for day, clock in pairs)
    return next((found for found in times if found), values.instant(header.get("AcquisitionDateTime"), own))


def _performers(header: Dataset) -> list[Json]:
    """Who performed the series, who operated the machine, and the machine."""
    performing = named.people(header, "PerformingPhysicianName", "PerformingPhysicianIdentificationSequence")
    operators = named.people(header, "OperatorsName", "OperatorIdentificationSequence")
    machine = named.device(header)
    return [
        *({"function": _function("PRF", "performer"), "actor": one} for one in performing),
        *({"function": _function("SPRF", "secondary performer"), "actor": one} for one in operators),
        *([{"actor": machine}] if machine else []),
    ]


def _function(code: str, display: str) -> Json:
    return {"coding": [{"system": terms.PARTICIPATION, "code": code, "display": display}]}


SERIES: tuple[Row, ...] = (
    plain("number", "SeriesNumber", values.unsigned),
    Row("modality", ("Modality",), lambda header, _: _modality(header)),
    plain("description", "SeriesDescription", values.text),
    Row("bodySite", ("BodyPartExamined", "AnatomicRegionSequence"), lambda header, _: _body_site(header)),
    plain("laterality", "Laterality", lambda value: LATERALITY.get(values.text(value) or "")),
    Row("specimen", ("SpecimenDescriptionSequence",), lambda header, _: named.specimens(header)),
    Row(
        "started",
        ("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "TimezoneOffsetFromUTC"),  # noqa: E501
        _started,
    ),
    Row(
        "performer",
        (
            "PerformingPhysicianName", "PerformingPhysicianIdentificationSequence", "OperatorsName",
            "OperatorIdentificationSequence", "Manufacturer", "ManufacturerModelName",
            "StationName", "DeviceSerialNumber",
        ),
        lambda header, _: _performers(header),
    ),
    Row("extension", ("AnatomicRegionSequence", "AnatomicRegionModifierSequence"), lambda header, _: _region(header)),
)  # fmt: skip


# --- series and instances --------------------------------------------------------------------------------------


def series(facts: SeriesFacts, zone: tzinfo) -> Json:
    """The series as FHIR lists it."""
    found = rows.fill(SERIES, [(facts.header, facts.zone or zone)])
    if len(facts.instances) == 1:
        # An image's own laterality is that of the series only when the image is the whole of it.
        found.setdefault("laterality", OF_ONE_IMAGE.get(values.text(facts.header.get("ImageLaterality")) or ""))
    syntaxes = sorted({uid for one in {each.syntax for each in facts.instances} if (uid := values.identity(one))})
    apart = len(syntaxes) > 1
    instances = sorted(facts.instances, key=instance_order)
    made: Json = {
        "extension": [*found.pop("extension", []), *(_syntax(one) for one in syntaxes)],
        "uid": facts.uid,
        **found,
        "numberOfInstances": len(facts.instances),
        "instance": [_instance(one, facts, apart=apart) for one in instances if values.identity(one.sop_uid)],
    }
    return rows.filled(made)


def issues(facts: SeriesFacts) -> Iterator[quality.Issue]:
    """What is wrong with the instances, each once for the series."""
    if not values.identity(facts.uid):
        yield quality.UNLISTED, "SeriesInstanceUID", ""
    for one in facts.instances:
        if not values.identity(one.sop_uid):
            yield quality.UNLISTED, "SOPInstanceUID", facts.uid
        if not values.identity(one.sop_class):
            yield quality.MISSING, "SOPClassUID", facts.uid
        if one.number and values.unsigned(one.number) is None and values.text(one.number):
            yield quality.INVALID, "InstanceNumber", facts.uid
        if one.frames and values.positive(one.frames) is None and values.text(one.frames):
            yield quality.INVALID, "NumberOfFrames", facts.uid


def order(facts: SeriesFacts) -> tuple[int, str]:
    """By number, then by UID; series without a number stand last."""
    number = values.integer(facts.header.get("SeriesNumber"))
    return (number if number is not None else 2**31, facts.uid)


def instance_order(instance: Instance) -> tuple[int, str]:
    """By number, then by UID; instances without a number stand last."""
    number = values.integer(instance.number)
    return (number if number is not None else 2**31, instance.sop_uid)


def _instance(instance: Instance, facts: SeriesFacts, *, apart: bool) -> Json:
    sop_class, syntax = values.identity(instance.sop_class), values.identity(instance.syntax) if apart else None
    frames = values.positive(instance.frames) if instance.frames else None
    header = facts.titled.get(instance.sop_uid)
    made: Json = {
        "extension": [
            *([{"url": terms.NUMBER_OF_FRAMES, "valuePositiveInt": frames}] if frames else []),
            *([_syntax(syntax)] if syntax else []),
        ],
        "uid": values.identity(instance.sop_uid),
        "sopClass": {"system": "urn:ietf:rfc:3986", **({"code": values.oid(sop_class)} if sop_class else {})},
        "number": values.unsigned(instance.number),
        "title": title(header) if header is not None else None,
    }
    return rows.filled(made)


def title(header: Dataset) -> str | None:
    """What a report, a document, a segmentation or a presentation state calls itself."""
    for keyword in TITLES:
        named_by = values.coded(header, keyword)
        if named_by:
            return codes.line(named_by[0].meaning or named_by[0].value)[:TITLE_LENGTH]
        if not values.items(header, keyword) and (found := values.text(header.get(keyword))):
            return found[:TITLE_LENGTH]
    return None


def _syntax(uid: str) -> Json:
    return {"url": terms.TRANSFER_SYNTAX, "valueUri": values.oid(uid)}
