"""Measurement groups of a structured report as R4 Observations (https://hl7.org/fhir/R4/observation.html, TID 1500).

One Observation per group, one per measurement, one per evaluation; the group lists the others as members.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo

from app.fhir.mapping import codes, shapes, terms
from app.fhir.mapping.codes import Json

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, f"{terms.BASE}/Observation")

# The container of a group → the category of what is in it.
CATEGORIES: Mapping[str, Json] = {
    "125007": {"system": terms.DCM, "code": "125007", "display": "Measurement Group"},
    "126011": {"system": terms.DCM, "code": "126011", "display": "Derived Imaging Measurements"},
    "C0034375": {"system": terms.UMLS, "code": "C0034375", "display": "Qualitative Evaluations"},
}
EVALUATIONS = "C0034375"
IMAGING: Json = {"system": terms.OBSERVATION_CATEGORY, "code": "imaging", "display": "Imaging"}

# Normality of a measurement → the FHIR interpretation that says the same.
INTERPRETATIONS = {"17621005": ("N", "Normal"), "263654008": ("A", "Abnormal")}

# Quantities whose unit is false when a viewer writes it wrongly, and can only be told from the image.
MEASURED_ON_IMAGE = frozenset({"length", "area"})


@dataclass(frozen=True, slots=True)
class Context:
    """What surrounds a report: References to the resources it belongs to, and what only the server knows.

    `studies` holds the ImagingStudy of other studies by UID, `origins` the content item (`<SOP UID>#<path>`) in which
    a lineage was first seen; `status` replaces the one that the document's flags give.
    """

    subject: Json
    imaging_study: Json
    zone: tzinfo
    based_on: tuple[Json, ...] = ()
    performer: tuple[Json, ...] = ()
    device: Json | None = None
    effective: str | None = None
    status: str | None = None
    studies: Mapping[str, Json] = field(default_factory=dict[str, Json])
    origins: Mapping[str, str] = field(default_factory=dict[str, str])


def resource_id(content_item: str) -> str:
    """The id of the Observation that was first seen as this content item, `<SOP UID>#<path>`."""
    return str(uuid.uuid5(NAMESPACE, content_item))


def status(evidence: shapes.Evidence) -> str:
    """A verified and complete document is final, everything else preliminary."""
    is_final = (evidence.completion, evidence.verification) == ("COMPLETE", "VERIFIED")
    return "final" if is_final and not evidence.preliminary else "preliminary"


def observations(evidence: shapes.Evidence, context: Context) -> list[Json]:
    """The Observations of a report, each group before its members."""
    lineages = _numbered(group.lineage for group in evidence.groups)
    return [
        resource
        for group, lineage in zip(evidence.groups, lineages, strict=True)
        for resource in _Writer(evidence, context, group, lineage).resources()
    ]


def _numbered(keys: Iterable[str]) -> list[str]:
    """The keys, with a number behind each that came before: two equal things are still two."""
    seen: Counter[str] = Counter()
    result: list[str] = []
    for key in keys:
        seen[key] += 1
        result.append(key if seen[key] == 1 else f"{key}.{seen[key]}")
    return result


@dataclass(frozen=True, slots=True)
class _Writer:
    """One group on its way to Observations."""

    evidence: shapes.Evidence
    context: Context
    group: shapes.Group
    lineage: str

    def resources(self) -> list[Json]:
        measurements, evaluations = self.group.measurements, self.group.qualitative
        names = [_member_name(part) for part in measurements] + [_codes_name(part.codes) for part in evaluations]
        lineages = _numbered(f"{self.lineage}:{name}" for name in names)
        members = [
            *map(self.measurement, measurements, lineages[: len(measurements)]),
            *map(self.evaluation, evaluations, lineages[len(measurements) :]),
        ]
        # Evaluations stand alone in their container (TID 1500): it is no group.
        return members if self.group.concept.value == EVALUATIONS else [self.whole(members), *members]

    def whole(self, members: Sequence[Json]) -> Json:
        group = self.group
        resource: Json = self.common(group.path, self.lineage, group.observed) | {
            "code": self.concept(group.finding_category or group.concept),
            "note": _notes(group.notes),
            "derivedFrom": self.derived_from(group.regions),
            "hasMember": [{"reference": f"Observation/{member['id']}"} for member in members],
        }
        if group.finding:
            resource["valueCodeableConcept"] = self.concept(group.finding)
        resource["identifier"] += list(self.tracking(group.tracking_uid, group.tracking_id))
        resource["extension"] = [self.modifier(part) for part in group.modifiers]
        return _finished(self.placed(resource, group.sites, group.method, group.algorithm))

    def measurement(self, part: shapes.Measurement, lineage: str) -> Json:
        text = codes.line(part.codes[0].meaning) if part.codes else ""
        if part.derivation and text:
            text = f"{text} ({codes.line(part.derivation.meaning or part.derivation.value)})"
        resource: Json = self.common(part.path, lineage, part.observed or self.group.observed) | {
            "code": codes.concept(part.codes, self.maker, text),
            "note": _notes(part.notes),
            "derivedFrom": self.derived_from([part.region] if part.region else []),
            "interpretation": [self.interpretation(code) for code in part.interpretations],
        }
        if part.value is None:
            resource["dataAbsentReason"] = codes.absent(part.absent or "unknown")
        else:
            resource["valueQuantity"] = codes.quantity(part.value, part.unit)
        if self.is_doubtful(part):
            resource["status"] = self.context.status or "preliminary"
            resource["meta"]["tag"].append({"system": terms.CHECK, "code": "unit-not-verified"})
        resource["identifier"] += list(self.tracking(part.tracking_uid, None))
        resource["extension"] = list(self.told(part))
        sites, method = part.sites or self.group.sites, part.method or self.group.method
        return _finished(self.placed(resource, sites, method, part.algorithm or self.group.algorithm))

    def evaluation(self, part: shapes.Qualitative, lineage: str) -> Json:
        resource: Json = self.common(part.path, lineage, part.observed or self.group.observed) | {
            "code": codes.concept(part.codes, self.maker),
            "derivedFrom": self.derived_from(self.group.regions),
            "category": _categories(EVALUATIONS),
        }
        resource |= self.value(part)
        return _finished(self.placed(resource, self.group.sites, self.group.method, self.group.algorithm))

    @property
    def maker(self) -> str | None:
        return self.evidence.equipment.manufacturer

    def concept(self, code: shapes.Code) -> Json:
        return codes.concept(code.spellings, self.maker)

    def common(self, path: str, lineage: str, observed: datetime | None) -> Json:
        """What all Observations of a report share."""
        context, content_item = self.context, f"{codes.line(self.evidence.sop_uid)}#{path}"
        qualification = codes.line(self.evidence.qualification or "")
        performer = list(context.performer)
        if not performer and self.evidence.observer:
            performer = [{"display": _person(self.evidence.observer)}]
        return {
            "resourceType": "Observation",
            "id": resource_id(context.origins.get(lineage, content_item)),
            "meta": {"tag": [{"system": terms.QUALIFICATION, "code": qualification}] if qualification else []},
            "language": codes.language(self.evidence.language),
            "identifier": [
                {"system": terms.CONTENT_ITEM, "value": content_item},
                {"system": terms.LINEAGE, "value": lineage},
            ],
            "status": context.status or status(self.evidence),
            "category": _categories(self.group.concept.value),
            "subject": context.subject,
            "basedOn": list(context.based_on),
            "partOf": [context.imaging_study],
            "performer": performer,
            "device": context.device,
            "effectiveDateTime": context.effective,
            "issued": self.instant(observed or self.evidence.content_datetime),
        }

    def instant(self, moment: datetime | None) -> str | None:
        """FHIR's instant needs a zone: the document's own, else the site's."""
        if moment is None:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=self.context.zone)).isoformat()

    def tracking(self, uid: str | None, text: str | None) -> Iterator[Json]:
        if codes.line(uid or ""):
            kind = {"system": terms.DCM, "code": "112040", "display": "Tracking Unique Identifier"}
            yield {"type": {"coding": [kind]}, "system": terms.DICOM_UID, "value": _urn(uid or "")}
        if codes.line(text or ""):
            kind = {"system": terms.DCM, "code": "112039", "display": "Tracking Identifier"}
            yield {"type": {"coding": [kind]}, "system": terms.TRACKING_ID, "value": codes.line(text or "")}

    def is_doubtful(self, part: shapes.Measurement) -> bool:
        """A length or area of a viewer known for false units, which no image has confirmed."""
        unproved = part.verdict in ("unverified", "not-checked")
        return unproved and self.group.tool is not None and part.quantity in MEASURED_ON_IMAGE

    def told(self, part: shapes.Measurement) -> Iterator[Json]:
        """The verdict, what was written where something else is published, and all that is said beside the number."""
        yield {"url": terms.VERDICT, "valueCode": part.verdict}
        unit, written_unit = (code.value if code else "" for code in (part.unit, part.written_unit))
        recoded = part.written_code not in part.codes
        if part.value is None or recoded or unit != written_unit:
            inner: list[Json] = []
            if codes.line(part.written):
                inner.append({"url": "value", "valueString": codes.line(part.written)})
            if codes.line(written_unit):
                inner.append({"url": "unit", "valueString": codes.line(written_unit)})
            inner.append({"url": "code", "valueCoding": codes.coding(part.written_code, self.maker)})
            yield {"url": terms.WRITTEN, "extension": inner}
        if part.derivation:
            yield {"url": terms.DERIVATION, "valueCodeableConcept": self.concept(part.derivation)}
        yield from map(self.modifier, part.modifiers)

    def modifier(self, part: shapes.Qualitative) -> Json:
        """A content item that no element of Observation has a place for."""
        value = (
            {"valueString": _words(part.value)}
            if isinstance(part.value, str)
            else {"valueCodeableConcept": self.concept(part.value)}
        )
        name: Json = {"url": "name", "valueCodeableConcept": codes.concept(part.codes, self.maker)}
        return {"url": terms.MODIFIER, "extension": [name, {"url": "value", **value}]}

    def value(self, part: shapes.Qualitative) -> Json:
        if not isinstance(part.value, str):
            return {"valueCodeableConcept": self.concept(part.value)}
        day = _day(part.value) if part.value_type in ("DATE", "DATETIME") else None
        # A time of day without a zone is no FHIR dateTime; the day is.
        return {"valueDateTime": day} if day else {"valueString": _words(part.value)}

    def interpretation(self, code: shapes.Code) -> Json:
        found = self.concept(code)
        meant = INTERPRETATIONS.get(code.spellings[0].value)
        if meant:
            coding = {"system": terms.INTERPRETATION, "code": meant[0], "display": meant[1]}
            found["coding"] = [coding, *found.get("coding", [])]
        return found

    # --- where ------------------------------------------------------------------------------------------------

    def placed(
        self,
        resource: Json,
        sites: Sequence[shapes.Site],
        method: shapes.Code | None,
        algorithm: shapes.Algorithm | None,
    ) -> Json:
        """The resource with its body site, method and algorithm."""
        contained: list[Json] = []
        if sites:
            resource["bodySite"] = self.site(sites[0])
        structures = [site for site in sites if site is not sites[0] or site.laterality or site.modifiers]
        for number, site in enumerate(structures, 1):
            contained.append(self.structure(site, f"site{number}"))
            reference: Json = {"url": terms.BODY_STRUCTURE, "valueReference": {"reference": f"#site{number}"}}
            resource.setdefault("extension", []).append(reference)
        if algorithm:
            contained.append(self.algorithm(algorithm))
            resource["device"] = {"reference": "#algorithm"}
        return resource | {"contained": contained, "method": self.concept(method) if method else None}

    def site(self, site: shapes.Site) -> Json:
        parts = [site.codes[0], *([site.laterality] if site.laterality else []), *site.modifiers]
        return codes.concept(site.codes, self.maker, ", ".join(codes.line(part.meaning) for part in parts))

    def structure(self, site: shapes.Site, name: str) -> Json:
        """Laterality and modifiers have no place in a bodySite of R4; a BodyStructure holds them."""
        qualifiers = [*([site.laterality] if site.laterality else []), *site.modifiers]
        return _finished(
            {
                "resourceType": "BodyStructure",
                "id": name,
                "patient": self.context.subject,
                "location": codes.concept(site.codes, self.maker),
                "locationQualifier": [self.concept(code) for code in qualifiers],
            }
        )

    def algorithm(self, algorithm: shapes.Algorithm) -> Json:
        return _finished(
            {
                "resourceType": "Device",
                "id": "algorithm",
                "deviceName": [{"name": codes.line(algorithm.name), "type": "model-name"}],
                "version": [{"value": codes.line(algorithm.version)}] if algorithm.version else [],
                "parent": self.context.device,
                "note": _notes(algorithm.parameters),
            }
        )

    def derived_from(self, regions: Sequence[shapes.Region]) -> list[Json]:
        """One Reference per ImagingStudy, with the regions on it: R4's stand-in for ImagingSelection."""
        by_study: dict[str, list[Json]] = {self.evidence.study_uid: []} if not regions else {}
        for region in regions:
            by_study.setdefault(codes.line(region.study_uid or "") or self.evidence.study_uid, []).append(
                self.region(region)
            )
        return [
            self.study(uid) | ({"extension": extensions} if extensions else {}) for uid, extensions in by_study.items()
        ]

    def study(self, uid: str) -> Json:
        if uid == self.evidence.study_uid:
            return self.context.imaging_study
        logical = {"type": "ImagingStudy", "identifier": {"system": terms.DICOM_UID, "value": _urn(uid)}}
        return self.context.studies.get(uid, logical)

    def region(self, region: shapes.Region) -> Json:
        inner: list[Json] = [
            {"url": url, "valueId": uid}
            for url, uid in (
                ("seriesUid", region.series_uid),
                ("sopClass", region.sop_class),
                ("sopUid", region.sop_uid),
                ("frameOfReferenceUid", region.frame_of_reference_uid),
            )
            if uid and codes.OID.fullmatch(uid) and len(uid) <= 64
        ]
        inner += [{"url": "frame", "valuePositiveInt": frame} for frame in region.frames if frame > 0]
        inner += [{"url": "segment", "valueUnsignedInt": segment} for segment in region.segments if segment >= 0]
        if region.graphic:
            inner.append({"url": "regionType", "valueCode": region.graphic.lower()})
            numbers = (f"{step:.9g}" for point in region.points for step in point)
            inner.append({"url": "coordinates", "valueString": " ".join(numbers)})
        if region.purpose:
            inner.append({"url": "purpose", "valueCoding": codes.coding(region.purpose.spellings[0], self.maker)})
        return {"url": terms.REGION, "extension": inner}


def _categories(concept: str) -> list[Json]:
    return [{"coding": [IMAGING]}, {"coding": [CATEGORIES.get(concept, CATEGORIES["125007"])]}]


def _member_name(part: shapes.Measurement) -> str:
    name = _codes_name(part.codes)
    return f"{name}-{part.derivation.value}" if part.derivation else name


def _codes_name(spellings: Sequence[shapes.Code]) -> str:
    return codes.line(spellings[0].value or spellings[0].meaning) if spellings else ""


def _person(name: str) -> str:
    """A DICOM person name as it is spoken: prefix, given, middle, family, suffix."""
    family, given, middle, prefix, suffix = (name.split("=")[0].split("^") + [""] * 5)[:5]
    return " ".join(part for part in map(str.strip, (prefix, given, middle, family, suffix)) if part)


def _notes(texts: Iterable[str]) -> list[Json]:
    return [{"text": words} for text in texts if (words := _words(text))]


def _words(text: str) -> str:
    """Text as FHIR takes it: no control characters but line breaks and tabs."""
    return "".join(sign for sign in text if sign in "\r\n\t" or ord(sign) >= 32).strip()


def _day(text: str) -> str | None:
    """The day of a DICOM date or datetime."""
    try:
        return datetime.strptime(text[:8], "%Y%m%d").date().isoformat()  # noqa: DTZ007  a day has no zone
    except ValueError:
        return None


def _urn(uid: str) -> str:
    return f"urn:oid:{uid}" if codes.OID.fullmatch(uid) else codes.line(uid)


def _finished(resource: Json) -> Json:
    """Absent is left out: FHIR has no empty elements."""
    if not resource.get("meta", {}).get("tag"):
        resource = {name: value for name, value in resource.items() if name != "meta"}
    return {name: value for name, value in resource.items() if value not in (None, "", [], {})}
