"""Which order a study fulfils and whose it is: proved by numbers, never guessed (IHE PIR, unidentified patient cases).

Trust falls from the reserved Study Instance UID to the accession number with its issuer; any mismatch of the patient
ends the search without a link.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from sqlalchemy.engine import Connection

from app.dicom.archive import HeldStudy
from app.fhir import resources
from app.fhir.mapping import patient, terms, values, worklist
from app.fhir.mapping.codes import Json
from app.fhir.resources import Own
from app.workflow.orders import patient_of
from app.workflow.site import Site

PATIENT_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, terms.BASE + "/Patient")


@dataclass(frozen=True, slots=True)
class Match:
    """The order of a study, or the reason why a person must look."""

    order: Json | None = None
    reason: str | None = None


def order_for(connection: Connection, site: Site, held: HeldStudy, headers: Sequence[Dataset]) -> Match:
    """The one order that these images fulfil."""
    if held.copied or any(header.get("PatientIdentityRemoved") == "YES" for header in headers):
        return Match(reason="anonymised-copy")
    by_uid = (terms.DICOM_UID, values.oid(held.uid))
    for identifier in (by_uid, *accessions(site, headers)):
        known = resources.identified_by(connection, "ServiceRequest", *identifier)
        found = [order for order in known if _fulfillable(order)]
        if found:
            return _decided(connection, site, found, headers[0])
    return Match(reason="no-order")


def patient_for(
    connection: Connection, site: Site, held: HeldStudy, header: Dataset, match: Match
) -> tuple[str, Own | None]:
    """The id of the Patient these images belong to, and a placeholder to be stored for somebody unknown."""
    if match.order is not None:
        return patient_of(match.order) or "", None
    number = values.verbatim(header.get("PatientID"))
    if match.reason == "anonymised-copy" or not number:
        return _placeholder(connection, header, f"study:{held.orthanc_id}", None)
    system = site.system("mrn", values.verbatim(header.get("IssuerOfPatientID")))
    known = resources.identified_by(connection, "Patient", system, number)
    # A Patient that was registered outweighs what earlier images alone made known.
    registered = [one for one in known if not patient.is_placeholder(one)] or known
    if len(registered) == 1:
        return registered[0]["id"], None
    return _placeholder(connection, header, f"mrn:{system}|{number}", {"system": system, "value": number})


def accessions(site: Site, headers: Sequence[Dataset]) -> Iterator[tuple[str, str]]:
    """The (system, accession number) pairs that the images carry, each once."""
    seen: set[tuple[str, str]] = set()
    for header in headers:
        for source in (header, *(header.get("RequestAttributesSequence") or [])):
            number = values.verbatim(source.get("AccessionNumber"))
            pair = (site.system("accession", _issuer(source)), number or "")
            if number and pair not in seen:
                seen.add(pair)
                yield pair


def _issuer(source: Dataset) -> str | None:
    for item in source.get("IssuerOfAccessionNumberSequence") or []:
        return values.verbatim(item.get("LocalNamespaceEntityID")) or values.verbatim(item.get("UniversalEntityID"))
    return None


def _decided(connection: Connection, site: Site, found: list[Json], header: Dataset) -> Match:
    fitting = [order for order in found if _same_patient(connection, site, order, header)]
    if len(fitting) == 1:
        return Match(order=fitting[0])
    return Match(reason="ambiguous-order" if fitting else "patient-mismatch")


def _fulfillable(order: Json) -> bool:
    return order["status"] not in {"draft", "entered-in-error"} and worklist.accession(order) is not None


def _same_patient(connection: Connection, site: Site, order: Json, header: Dataset) -> bool:
    ordered = resources.read(connection, "Patient", patient_of(order) or "")
    number, issuer = values.verbatim(header.get("PatientID")), values.verbatim(header.get("IssuerOfPatientID"))
    if ordered is None or not number:
        return False
    wanted = (site.system("mrn", issuer), number)
    if any((one.get("system"), one.get("value")) == wanted for one in ordered.get("identifier", [])):
        return True
    # The very pair that our worklist gave for this patient, of an authority that has no DICOM issuer.
    system, given = worklist.mrn(ordered, site.worklist)
    return given == number and (issuer or "") == site.worklist.mrn_issuers.get(system, "")


def _placeholder(connection: Connection, header: Dataset, key: str, identifier: Json | None) -> tuple[str, Own | None]:
    made = patient.from_images(header, identifier) | {"id": str(uuid.uuid5(PATIENT_NAMESPACE, key))}
    # Of two workers that meet here the second waits, and then writes what the first did: same id, same key.
    cause = "images of an unknown patient"
    return made["id"], resources.own_unless_there(connection, made, cause=cause, natural_key=f"patient:{key}")
