"""What a client may not write: a report that mixes patients, a study under another name, a changed record."""

from __future__ import annotations

from typing import Any

import pytest

from app.access import Access
from app.errors import Conflict, Forbidden, Unprocessable
from app.fhir.mapping.codes import Json
from app.workflow import guards, reports
from tests.unit.workflow.conftest import Clinic

SIGNER = Access("ris", user_id="radiologist", rights=frozenset({"isocenter/sign"}))
PLAIN = Access("ris")


def another_patient(clinic: Clinic) -> str:
    return clinic.write({"resourceType": "Patient", "name": [{"family": "Muster"}]})["id"]


def report(clinic: Clinic, **elements: Any) -> Json:
    subject = {"reference": f"Patient/{clinic.patient_id}"}
    return {
        "resourceType": "DiagnosticReport",
        "status": "final",
        "code": {"text": "CT"},
        "subject": subject,
    } | elements


def guard_report(clinic: Clinic, now: Json, before: Json | None = None, caller: Access = SIGNER) -> None:
    with clinic.store.read() as connection:
        reports.guard(connection, caller, now, before)


@pytest.mark.parametrize("status", ["preliminary", "final"])
def test_a_report_for_another_patients_order_is_refused(clinic: Clinic, status: str) -> None:
    order, other = clinic.order(), another_patient(clinic)
    based_on = [{"reference": f"ServiceRequest/{order['id']}"}]
    guard_report(clinic, report(clinic, status=status, basedOn=based_on))
    with pytest.raises(Unprocessable):
        guard_report(clinic, report(clinic, status=status, basedOn=based_on, subject={"reference": f"Patient/{other}"}))


def test_a_report_that_cites_another_patients_study_or_observation_is_refused(clinic: Clinic) -> None:
    clinic.order()
    [study] = clinic.find("ImagingStudy")
    other = another_patient(clinic)
    seen = clinic.write(
        {
            "resourceType": "Observation",
            "status": "preliminary",
            "code": {"text": "Length"},
            "subject": {"reference": f"Patient/{other}"},
        }
    )
    with pytest.raises(Unprocessable):
        guard_report(clinic, report(clinic, result=[{"reference": f"Observation/{seen['id']}"}]))
    with pytest.raises(Unprocessable):
        guard_report(
            clinic,
            report(
                clinic,
                subject={"reference": f"Patient/{other}"},
                imagingStudy=[{"reference": f"ImagingStudy/{study['id']}"}],
            ),
        )


def test_a_signed_report_names_its_patient_and_keeps_it(clinic: Clinic) -> None:
    signed, other = report(clinic), another_patient(clinic)
    nobody = {name: value for name, value in signed.items() if name != "subject"}
    with pytest.raises(Unprocessable):
        guard_report(clinic, nobody)
    with pytest.raises(Conflict):
        guard_report(
            clinic, report(clinic, status="corrected", subject={"reference": f"Patient/{other}"}), before=signed
        )


@pytest.mark.parametrize("caller", [PLAIN, SIGNER])
def test_a_withdrawn_report_is_not_brought_back(clinic: Clinic, caller: Access) -> None:
    with pytest.raises(Conflict):
        guard_report(
            clinic,
            report(clinic, status="preliminary"),
            before=report(clinic, status="entered-in-error"),
            caller=caller,
        )


def guard_study(clinic: Clinic, now: Json, before: Json | None, caller: Access = PLAIN) -> None:
    with clinic.store.read() as connection:
        guards.imaging_study(connection, caller, now, before)


def test_a_viewer_that_may_store_images_may_not_write_their_study(clinic: Clinic) -> None:
    clinic.order()
    [study] = clinic.find("ImagingStudy")
    with pytest.raises(Forbidden):
        guard_study(clinic, study | {"description": "CT"}, study, Access("viewer", studies=frozenset({"1.2.3"})))


def test_a_study_cannot_be_given_another_patient_or_another_study_instance_uid(clinic: Clinic) -> None:
    clinic.order()
    [study] = clinic.find("ImagingStudy")
    guard_study(clinic, study | {"note": [{"text": "seen"}]}, study)
    with pytest.raises(Conflict):
        guard_study(clinic, study | {"subject": {"reference": f"Patient/{another_patient(clinic)}"}}, study)
    uid = {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}
    with pytest.raises(Conflict):
        guard_study(clinic, study | {"identifier": [uid]}, study)


def test_a_study_that_is_known_is_not_created_again(clinic: Clinic) -> None:
    clinic.order()
    [study] = clinic.find("ImagingStudy")
    with pytest.raises(Conflict):
        guard_study(clinic, study | {"id": "another"}, None)
    guard_study(clinic, study | {"subject": {"reference": f"Patient/{another_patient(clinic)}"}}, None)


def test_a_provenance_is_written_once(clinic: Clinic) -> None:
    record = {"resourceType": "Provenance", "recorded": "2026-01-01T00:00:00Z"}
    with clinic.store.read() as connection:
        guards.provenance(connection, PLAIN, record, None)
        with pytest.raises(Conflict):
            guards.provenance(connection, PLAIN, record, record)
