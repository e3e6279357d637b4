"""People, machines and places that DICOM names, as references without a resource (https://hl7.org/fhir/R4/references.html#logical).

A name proves nobody's identity: it is shown, and only an identifier that the images carry is one.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from app.fhir.mapping import codes, patient, terms, values
from app.fhir.mapping.codes import Json
from app.fhir.mapping.rows import filled

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def taken(reference: Json, source: str) -> Json:
    """The same reference, saying where the server took it from: a client's own replaces it and stays."""
    others = [one for one in reference.get("extension", []) if one.get("url") != terms.TAKEN_FROM]
    return {**reference, "extension": [*others, {"url": terms.TAKEN_FROM, "valueString": source}]}


def people(header: Dataset, names: str, identifications: str) -> list[Json]:
    """Everybody an attribute names; the items of the sequence beside it say who they are, in the same order."""
    shown, known = _names(header.get(names)), values.items(header, identifications)
    return [found for name, item in zip_longest(shown, known) if (found := _practitioner(name, item))]


def device(header: Dataset) -> Json | None:
    """The machine that made a series: its maker, model and station name, and its serial number."""
    model = [found for name in ("Manufacturer", "ManufacturerModelName") if (found := values.text(header.get(name)))]
    station, serial = values.text(header.get("StationName")), values.text(header.get("DeviceSerialNumber"))
    shown = ", ".join(part for part in (" ".join(model), station) if part)
    if not shown and not serial:
        return None
    return filled({"type": "Device", "identifier": {"value": serial} if serial else None, "display": shown or None})


def location(header: Dataset) -> Json | None:
    """Department and institution, as they stand in the images."""
    names = ("InstitutionalDepartmentName", "InstitutionName")
    shown = ", ".join(found for name in names if (found := values.text(header.get(name))))
    return {"type": "Location", "display": shown} if shown else None


def specimens(header: Dataset) -> list[Json]:
    """The specimens that were imaged (PS3.3 C.7.6.22)."""
    return [found for item in values.items(header, "SpecimenDescriptionSequence") if (found := _specimen(item))]


def _specimen(item: Dataset) -> Json | None:
    number, uid = values.text(item.get("SpecimenIdentifier")), values.identity(item.get("SpecimenUID"))
    identifier: Json | None = None
    if number:
        issuers = values.items(item, "IssuerOfTheSpecimenIdentifierSequence")
        identifier = filled({"system": _issuer(issuers[0]) if issuers else None, "value": number})
    elif uid:
        identifier = {"system": "urn:ietf:rfc:3986", "value": values.oid(uid)}
    shown = values.text(item.get("SpecimenShortDescription"))
    made = filled({"identifier": identifier, "display": shown})
    return {"type": "Specimen", **made} if made else None


def _issuer(item: Dataset) -> str | None:
    """The system of an issuer that has a universal id (PS3.3 table 10-17)."""
    universal, kind = values.text(item.get("UniversalEntityID")), values.text(item.get("UniversalEntityIDType"))
    if kind == "ISO" and universal and codes.OID.fullmatch(universal):
        return values.oid(universal)
    return universal if kind == "URI" and universal and ":" in universal else None


def _practitioner(name: str | None, item: Dataset | None) -> Json | None:
    known = values.coded(item, "PersonIdentificationCodeSequence") if item is not None else []
    identifier = _identifier(known[0]) if known else None
    shown = name or (codes.line(known[0].meaning) if known else None)
    made = filled({"identifier": identifier, "display": shown})
    return {"type": "Practitioner", **made} if made else None


def _identifier(code: values.Code) -> Json | None:
    return {"system": codes.system(code), "value": codes.line(code.value)} if codes.line(code.value) else None


def _names(value: Any) -> list[str]:
    return [shown for one in values.texts(value) if (shown := _shown(one))]


def _shown(name: str) -> str:
    """A person name as people write it: the alphabetic form, else the one that is there."""
    found = patient.human_names(name)
    if not found:
        return ""
    parts = [*found[0].get("prefix", []), *found[0].get("given", []), found[0].get("family", "")]
    return " ".join(part for part in [*parts, *found[0].get("suffix", [])] if part)
