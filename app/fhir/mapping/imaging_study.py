"""What an archive holds of a study as ImagingStudy R4 (https://hl7.org/fhir/R4/imagingstudy-mappings.html#dicom).

Rows name the FHIR element, the DICOM keyword and the conversion; an absent or unusable value leaves the element out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, Protocol

from pydicom.dataset import Dataset

from app.fhir.mapping import terms, values
from app.fhir.mapping.codes import Json

Row = tuple[str, str, Callable[[Any], Any]]

SERIES: tuple[Row, ...] = (
    ("number", "SeriesNumber", values.unsigned),
    ("description", "SeriesDescription", values.text),
)
STUDY: tuple[Row, ...] = (("description", "StudyDescription", values.text),)
LATERALITY = {
    "L": {"system": "http://snomed.info/sct", "code": "7771000", "display": "Left"},
    "R": {"system": "http://snomed.info/sct", "code": "24028007", "display": "Right"},
}
NO_MODALITY = "OT"
"""R4 demands a modality for each series; DICOM's own word for what is none of the others."""
IDENTIFIER_TYPES = "http://terminology.hl7.org/CodeSystem/v2-0203"


class Instance(Protocol):
    """One instance as the archive lists it."""

    # fmt: off
    @property
    def sop_uid(self) -> str: ...
    @property
    def sop_class(self) -> str: ...
    @property
    def number(self) -> str: ...
    # fmt: on


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """One series: its UID, the header that speaks for it, its instances."""

    uid: str
    header: Dataset
    instances: Sequence[Instance]


@dataclass(frozen=True, slots=True)
class Links:
    """What only the rest of the server knows: resource id, references, and the accession's identifier."""

    resource_id: str
    subject: Json
    endpoint: Json
    based_on: tuple[Json, ...] = ()
    accession: Json | None = None
    referrer: Json | None = None
    reason: tuple[Json, ...] = ()
    procedure: tuple[Json, ...] = ()


def available(uid: str, series: Sequence[SeriesFacts], links: Links, zone: tzinfo) -> Json:
    """The ImagingStudy of images that exist; `zone` reads times without an offset of their own."""
    mapped = [_series(one, zone) for one in sorted(series, key=_order)]
    # A UID that no FHIR id can be is counted and not listed: one series must not hide the others.
    listed = [entry for entry in mapped if values.identity(entry["uid"])]
    headers = [one.header for one in sorted(series, key=_order)]
    study: Json = {
        "resourceType": "ImagingStudy",
        "id": links.resource_id,
        "identifier": _identifiers(uid, links, headers),
        "status": "available",
        "modality": _distinct(entry["modality"] for entry in mapped),
        "subject": links.subject,
        "started": _started(headers, zone),
        "basedOn": list(links.based_on),
        "referrer": links.referrer,
        "endpoint": [links.endpoint],
        "numberOfSeries": len(mapped),
        "numberOfInstances": sum(len(one.instances) for one in series),
        "procedureCode": list(links.procedure),
        "reasonCode": list(links.reason),
        **_rows(STUDY, headers[0]),
        "series": listed,
    }
    return _filled(study)


def registered(uid: str, links: Links, modalities: Iterable[str]) -> Json:
    """The ImagingStudy of an order before its first image."""
    study: Json = {
        "resourceType": "ImagingStudy",
        "id": links.resource_id,
        "identifier": _identifiers(uid, links, []),
        "status": "registered",
        "modality": _distinct({"system": terms.DCM, "code": modality} for modality in modalities),
        "subject": links.subject,
        "basedOn": list(links.based_on),
        "referrer": links.referrer,
        "procedureCode": list(links.procedure),
        "reasonCode": list(links.reason),
    }
    return _filled(study)


def withdrawn(study: Json, when: str) -> Json:
    """The ImagingStudy of images the archive no longer holds; `when` is an instant."""
    kept = {key: value for key, value in study.items() if key not in {"endpoint", "series", "meta"}}
    tombstone = {"url": terms.WITHDRAWN, "valueDateTime": when}
    others = [entry for entry in study.get("extension", []) if entry.get("url") != terms.WITHDRAWN]
    counts = {"status": "unknown", "numberOfSeries": 0, "numberOfInstances": 0}
    return kept | counts | {"extension": [*others, tombstone]}


def uid_of(study: Json) -> str | None:
    """The Study Instance UID of an ImagingStudy or of an order that reserved one."""
    identifiers: list[Json] = study.get("identifier", [])
    found = (entry.get("value", "") for entry in identifiers if entry.get("system") == terms.DICOM_UID)
    return next((values.bare(value) for value in found), None)


def uid_identifier(uid: str) -> Json:
    """How FHIR writes a Study Instance UID."""
    return {"use": "official", "system": terms.DICOM_UID, "value": values.oid(uid)}


def accession_identifier(system: str, value: str) -> Json:
    """How FHIR writes an accession number."""
    return {"type": {"coding": [{"system": IDENTIFIER_TYPES, "code": "ACSN"}]}, "system": system, "value": value}


def _identifiers(uid: str, links: Links, headers: Sequence[Dataset]) -> list[Json]:
    study_id = next((found for header in headers if (found := values.text(header.get("StudyID")))), None)
    local = {"use": "usual", "value": study_id} if study_id else None
    return [entry for entry in (uid_identifier(uid), links.accession, local) if entry]


def _series(facts: SeriesFacts, zone: tzinfo) -> Json:
    header = facts.header
    instances = sorted(facts.instances, key=_instance_order)
    body_part = values.text(header.get("BodyPartExamined"))
    series: Json = {
        "uid": facts.uid,
        **_rows(SERIES, header),
        "modality": {"system": terms.DCM, "code": values.text(header.get("Modality")) or NO_MODALITY},
        "numberOfInstances": len(instances),
        "bodySite": {"display": body_part} if body_part else None,
        "laterality": LATERALITY.get(values.text(header.get("Laterality")) or ""),
        "started": _first_time(header, (("SeriesDate", "SeriesTime"), ("AcquisitionDate", "AcquisitionTime")), zone),
        "instance": [_instance(one) for one in instances if values.identity(one.sop_uid)],
    }
    return _filled(series)


def _instance(instance: Instance) -> Json:
    known = values.identity(instance.sop_class)
    sop_class = {"system": "urn:ietf:rfc:3986", **({"code": values.oid(known)} if known else {})}
    return _filled(
        {"uid": values.identity(instance.sop_uid), "sopClass": sop_class, "number": values.unsigned(instance.number)}
    )


def _started(headers: Sequence[Dataset], zone: tzinfo) -> str | None:
    times = (_first_time(header, (("StudyDate", "StudyTime"),), zone) for header in headers)
    return next((found for found in times if found), None)


def _first_time(header: Dataset, pairs: Iterable[tuple[str, str]], zone: tzinfo) -> str | None:
    own = values.offset(header.get("TimezoneOffsetFromUTC")) or zone
    times = (values.date_time(header.get(day), header.get(clock), own) for day, clock in pairs)
    return next((found for found in times if found), None)


def _rows(rows: Iterable[Row], header: Dataset) -> Json:
    converted = {element: convert(header.get(keyword)) for element, keyword, convert in rows}
    return {element: value for element, value in converted.items() if value is not None}


def _filled(element: Json) -> Json:
    return {key: value for key, value in element.items() if value not in (None, [], {})}


def _distinct(codings: Iterable[Json]) -> list[Json]:
    return list({coding["code"]: coding for coding in codings}.values())


def _order(series: SeriesFacts) -> tuple[int, str]:
    number = values.integer(series.header.get("SeriesNumber"))
    return (number if number is not None else 2**31, series.uid)


def _instance_order(instance: Instance) -> tuple[int, str]:
    number = values.integer(instance.number)
    return (number if number is not None else 2**31, instance.sop_uid)
