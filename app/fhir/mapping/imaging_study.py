"""What an archive holds of a study as ImagingStudy R4 (https://hl7.org/fhir/R4/imagingstudy-mappings.html#dicom).

Rows name the FHIR element, the DICOM keywords and the conversion; an absent or unusable value leaves the element out,
and an unusable one is flagged. What two images say differently is said by the one that speaks first, whatever order
they arrived in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from itertools import chain
from typing import TYPE_CHECKING

from app.fhir.mapping import codes, imaging_series, named, quality, rows, terms, values
from app.fhir.mapping.codes import Json
from app.fhir.mapping.imaging_series import SeriesFacts
from app.fhir.mapping.rows import Row, plain

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

IDENTIFIER_TYPES = "http://terminology.hl7.org/CodeSystem/v2-0203"
ORDER = "order"
"""Where an element was taken from that no image told."""


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
    encounter: Json | None = None


# --- the table -------------------------------------------------------------------------------------------------


def _started(header: Dataset, zone: tzinfo) -> str | None:
    own = values.offset(header.get("TimezoneOffsetFromUTC")) or zone
    return values.date_time(header.get("StudyDate"), header.get("StudyTime"), own)


def _referrer(header: Dataset) -> Json | None:
    found = named.people(header, "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence")
    return found[0] if found else None


def _interpreters(header: Dataset) -> list[Json]:
    keyword = "NameOfPhysiciansReadingStudy"
    found = named.people(header, keyword, "PhysiciansReadingStudyIdentificationSequence")
    return [named.taken(one, keyword) for one in found]


def _location(header: Dataset) -> Json | None:
    found = named.location(header)
    return named.taken(found, "InstitutionalDepartmentName, InstitutionName") if found else None


def _procedures(header: Dataset) -> list[Json]:
    return [codes.concept([one]) for one in values.coded(header, "ProcedureCodeSequence")]


def _reasons(header: Dataset) -> list[Json]:
    """Why the procedure was requested, of the image itself or of the requests it answers."""
    requests = [header, *values.items(header, "RequestAttributesSequence")]
    found = [concept for request in requests for concept in _reason(request)]
    return [concept for number, concept in enumerate(found) if concept not in found[:number]]


def _reason(request: Dataset) -> list[Json]:
    written = values.text(request.get("ReasonForTheRequestedProcedure"))
    coded = values.coded(request, "ReasonForRequestedProcedureCodeSequence")
    if coded:
        return [codes.concept([one], text=written if len(coded) == 1 else None) for one in coded]
    return [{"text": written}] if written else []


STUDY: tuple[Row, ...] = (
    Row("started", ("StudyDate", "StudyTime", "TimezoneOffsetFromUTC"), _started),
    Row(
        "referrer",
        ("ReferringPhysicianName", "ReferringPhysicianIdentificationSequence"),
        lambda header, _: _referrer(header),
    ),
    Row(
        "interpreter",
        ("NameOfPhysiciansReadingStudy", "PhysiciansReadingStudyIdentificationSequence"),
        lambda header, _: _interpreters(header),
    ),
    Row("procedureCode", ("ProcedureCodeSequence",), lambda header, _: _procedures(header)),
    Row("location", ("InstitutionalDepartmentName", "InstitutionName"), lambda header, _: _location(header)),
    Row(
        "reasonCode",
        ("ReasonForTheRequestedProcedure", "ReasonForRequestedProcedureCodeSequence", "RequestAttributesSequence"),
        lambda header, _: _reasons(header),
    ),
    plain("description", "StudyDescription", values.text),
)


# --- studies ---------------------------------------------------------------------------------------------------


def speaking(series: Iterable[SeriesFacts]) -> list[SeriesFacts]:
    """The series in the order in which they speak for the study: what a modality acquired first, then by number."""
    return sorted(series, key=lambda one: (not one.image, *imaging_series.order(one)))


def available(uid: str, series: Sequence[SeriesFacts], links: Links, zone: tzinfo) -> Json:
    """The ImagingStudy of images that exist; `zone` reads times without an offset of their own."""
    voices = speaking(series)
    headers = [one.header for one in voices]
    mapped = [imaging_series.series(one, zone) for one in sorted(series, key=imaging_series.order)]
    # A UID that no FHIR id can be is counted and not listed: one series must not hide the others.
    listed = [entry for entry in mapped if values.identity(entry["uid"])]
    study: Json = {
        "resourceType": "ImagingStudy",
        "id": links.resource_id,
        "extension": quality.flags(voices, chain.from_iterable(imaging_series.issues(one) for one in series)),
        "identifier": _identifiers(uid, links, headers),
        "status": "available",
        "modality": _distinct(entry["modality"] for entry in mapped),
        "subject": links.subject,
        "endpoint": [links.endpoint],
        "numberOfSeries": len(mapped),
        "numberOfInstances": sum(len(one.instances) for one in series),
        **rows.fill(STUDY, [(one.header, one.zone or zone) for one in voices]),
        **_ordered(links),
        "series": listed,
    }
    return rows.filled(study)


def registered(uid: str, links: Links, modalities: Iterable[str]) -> Json:
    """The ImagingStudy of an order before its first image."""
    study: Json = {
        "resourceType": "ImagingStudy",
        "id": links.resource_id,
        "identifier": _identifiers(uid, links, []),
        "status": "registered",
        "modality": _distinct({"system": terms.DCM, "code": modality} for modality in modalities),
        "subject": links.subject,
        **_ordered(links),
    }
    return rows.filled(study)


def _ordered(links: Links) -> Json:
    """What the order says; it outweighs the images."""
    accession = {"identifier": links.accession} if links.accession else {}
    encounter = named.taken(links.encounter, ORDER) if links.encounter else None
    return rows.filled(
        {
            "encounter": encounter,
            "basedOn": [{**one, **accession} for one in links.based_on],
            "referrer": links.referrer,
            "procedureCode": list(links.procedure),
            "reasonCode": list(links.reason),
        }
    )


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


def _distinct(codings: Iterable[Json]) -> list[Json]:
    return list({coding["code"]: coding for coding in codings}.values())
