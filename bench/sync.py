"""How long after the last C-STORE an image is there: as an available ImagingStudy, and in Orthanc's own REST index."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
from _installation import count, started, told
from pydicom.dataset import Dataset

from app.dicom import modality, uids
from app.dicom.phantom import Phantom, Series, images
from app.main import processes

PAUSE = 0.005


def main() -> None:
    studies, slices = count("STUDIES", 20), count("SLICES", 4)
    with started() as site:
        places, settings = site.places, site.settings
        address, user, password = processes.reach(settings)
        bare = httpx.Client(base_url=address, auth=(user, password), trust_env=False)
        fhir = httpx.Client(base_url=places.base, headers={"Authorization": f"Bearer {places.token}"}, trust_env=False)
        with bare, fhir:
            in_orthanc, available = [], []
            for number in range(studies):
                held = list(
                    images("CT", Phantom(slices=slices), Series(_common(number), uids.new(), datetime.now(UTC)))
                )
                modality.store(places.archive, held)
                stored, uid = time.perf_counter(), str(held[0].StudyInstanceUID)
                in_orthanc.append(_until(stored, lambda uid=uid: bare.post("/tools/lookup", content=uid).json()))
                available.append(_until(stored, lambda uid=uid: _complete(fhir, uid, slices)))
        told(f"Orthanc /tools/lookup, {slices} slices", in_orthanc)
        told(f"ImagingStudy available, {slices} slices", available)


def _common(number: int) -> Dataset:
    common = Dataset()
    common.PatientName, common.PatientID = "Bench^Phantom", f"BENCH-{number}"
    common.PatientBirthDate = common.PatientSex = common.AccessionNumber = common.StudyID = ""
    common.ReferringPhysicianName = ""
    common.StudyInstanceUID, common.StudyDate, common.StudyTime = uids.new(), "20260101", "120000"
    return common


def _complete(fhir: httpx.Client, uid: str, slices: int) -> bool:
    query = {"identifier": f"urn:dicom:uid|urn:oid:{uid}"}
    entries = fhir.get("/fhir/ImagingStudy", params=query).json().get("entry", [])
    return any(
        one["resource"]["status"] == "available" and one["resource"]["numberOfInstances"] == slices for one in entries
    )


def _until(since: float, look: Callable[[], object]) -> float:
    while not look():
        if time.perf_counter() - since > 60:
            raise SystemExit("a study did not arrive within a minute")
        time.sleep(PAUSE)
    return (time.perf_counter() - since) * 1000


if __name__ == "__main__":
    main()
