"""Studies, patients and orders of a large hospital, as resources: the same ones for the same numbers."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from app.fhir import resources, validation
from app.fhir.resources import Draft
from app.store import resources as rows
from app.store.database import Store

Json = dict[str, Any]
MODALITIES = ("CT", "MR", "US", "CR", "DX", "MG", "PT", "NM", "XA", "RF")
DCM = "http://dicom.nema.org/resources/ontology/DCM"
CT = "1.2.840.10008.5.1.4.1.1.2"
BORN = datetime(2016, 1, 1, tzinfo=UTC)
CHUNK = 2000


def patient(number: int) -> Json:
    chance = random.Random(number)
    return {
        "resourceType": "Patient",
        "id": f"patient-{number}",
        "identifier": [{"system": "urn:isocenter:mrn", "value": f"MRN{number:07d}"}],
        "name": [{"family": f"Family{chance.randrange(2000)}", "given": [f"Given{chance.randrange(500)}"]}],
        "gender": chance.choice(("female", "male")),
        "birthDate": f"{chance.randrange(1930, 2020)}-{chance.randrange(1, 13):02d}-{chance.randrange(1, 29):02d}",
    }


def study(number: int, patients: int, *, series: int = 2, instances: int = 3) -> Json:
    """2.5 kB with two series of three instances; 144 kB with five of two hundred."""
    chance = random.Random(1_000_000 + number)
    uid = f"2.25.{int(hashlib.sha256(str(number).encode()).hexdigest()[:30], 16)}"
    started = BORN + timedelta(seconds=chance.randrange(10 * 365 * 86400))
    modality = {"system": DCM, "code": chance.choice(MODALITIES)}
    listed = [_series(f"{uid}.{one + 1}", one + 1, modality, instances) for one in range(series)]
    return {
        "resourceType": "ImagingStudy",
        "id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        "identifier": [
            {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"},
            {
                "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]},
                "system": "urn:isocenter:accession",
                "value": f"AC{number:09d}",
            },
        ],
        "status": "available",
        "modality": [modality],
        "subject": {"reference": f"Patient/patient-{number % patients}"},
        "started": started.isoformat(),
        "basedOn": [{"reference": f"ServiceRequest/order-{number}"}],
        "numberOfSeries": series,
        "numberOfInstances": series * instances,
        "description": f"{modality['code']} protocol {chance.randrange(40)}",
        "series": listed,
    }


def _series(uid: str, number: int, modality: Json, instances: int) -> Json:
    return {
        "uid": uid,
        "number": number,
        "modality": modality,
        "description": f"Series {number}",
        "numberOfInstances": instances,
        "bodySite": {"system": "http://snomed.info/sct", "code": "51185008", "display": "Thorax"},
        "instance": [
            {
                "uid": f"{uid}.{one + 1}",
                "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{CT}"},
                "number": one + 1,
            }
            for one in range(instances)
        ],
    }


def fill(store: Store, first: int, last: int, patients: int) -> None:
    """Patients (with the first studies) and studies by number, written as the server would have, and as valid."""
    for chunk in _chunks(_all(first, last, patients)):
        changes = [
            resources.created(one["resourceType"], Draft(one, orjson.dumps(one)), cause="bench", resource_id=one["id"])
            for one in chunk
        ]
        store.transact(lambda connection, changes=changes: rows.write(connection, changes))


def _all(first: int, last: int, patients: int) -> Iterator[Json]:
    if first == 0:
        yield from map(patient, range(patients))
    for number in range(first, last):
        made = study(number, patients)
        if number == first and (issues := validation.validate(made, "ImagingStudy")):
            raise SystemExit(f"the bench's own study is not valid: {issues}")
        yield made


def _chunks(found: Iterator[Json]) -> Iterator[list[Json]]:
    chunk: list[Json] = []
    for one in found:
        chunk.append(one)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
