"""Orders: numbers, steps, the registered study, and the worklist as a view of them."""

from __future__ import annotations

import pytest

from app.dicom.worklist import WorklistKeys
from app.errors import Conflict, Unprocessable
from app.fhir.mapping import imaging_study, worklist
from app.workflow import orders
from tests.unit.workflow.conftest import Clinic

IMAGING = [{"coding": [{"system": "http://snomed.info/sct", "code": "363679005"}]}]


def items(clinic: Clinic, **keys: object) -> list[object]:
    return list(orders.worklist_of(clinic.store, clinic.site)(WorklistKeys("TEST", **keys)))  # type: ignore[arg-type]


def test_an_order_gets_its_numbers_its_step_and_a_registered_study(clinic: Clinic) -> None:
    order = clinic.order()
    uid = imaging_study.uid_of(order)
    [step] = clinic.find("Task", ("focus", f"ServiceRequest/{order['id']}"))
    [study] = clinic.find("ImagingStudy", ("basedon", f"ServiceRequest/{order['id']}"))
    assert worklist.accession(order)
    assert uid is not None
    assert uid.startswith("2.25.")
    assert (step["status"], step["for"]["reference"]) == ("accepted", f"Patient/{clinic.patient_id}")
    assert (study["status"], imaging_study.uid_of(study)) == ("registered", uid)


def test_a_client_that_leaves_the_numbers_out_does_not_take_them_away(clinic: Clinic) -> None:
    order = clinic.order()
    sent = {key: value for key, value in order.items() if key not in {"identifier", "meta"}} | {"priority": "stat"}
    again = clinic.write(sent)
    assert again["identifier"] == order["identifier"]
    assert len(clinic.find("Task")) == 1


def test_numbers_that_the_order_brings_are_kept(clinic: Clinic) -> None:
    given = [
        imaging_study.accession_identifier("urn:isocenter:accession", "RIS-77"),
        imaging_study.uid_identifier("1.2.3.4"),
    ]
    order = clinic.order(identifier=given)
    assert order["identifier"] == given


@pytest.mark.parametrize("number", ["", "12345678901234567", "a\\b", "a\tb", " a"])
def test_an_accession_number_that_dicom_cannot_carry_is_refused(clinic: Clinic, number: str) -> None:
    with pytest.raises(Unprocessable):
        clinic.order(identifier=[imaging_study.accession_identifier("urn:isocenter:accession", number)])
    assert clinic.find("ServiceRequest") == []


def test_a_second_order_cannot_reserve_the_study_of_the_first(clinic: Clinic) -> None:
    uid = [imaging_study.uid_identifier("1.2.3.4")]
    clinic.order(identifier=uid)
    with pytest.raises(Conflict):
        clinic.order(identifier=uid)


def test_what_is_no_imaging_order_is_only_stored(clinic: Clinic) -> None:
    clinic.order(code={"text": "Physiotherapy"})
    clinic.order(intent="plan")
    clinic.order(status="draft")
    assert clinic.find("Task") == []


def test_imaging_outside_the_catalogue_is_scheduled_and_put_before_a_person(clinic: Clinic) -> None:
    clinic.order(code={"text": "Something new"}, category=IMAGING)
    reasons = [task["code"]["coding"][0]["code"] for task in clinic.find("Task")]
    assert sorted(reasons) == ["fulfill", "unknown-procedure"]


def test_an_order_for_an_unknown_patient_is_refused_whole(clinic: Clinic) -> None:
    with pytest.raises(Unprocessable):
        clinic.order(subject={"reference": "Patient/nobody"})
    assert clinic.find("ServiceRequest") == []


def test_the_worklist_shows_the_step_in_the_sites_own_time(clinic: Clinic) -> None:
    order = clinic.order(priority="urgent")
    [item] = items(clinic)
    step = item.ScheduledProcedureStepSequence[0]
    assert item.AccessionNumber == worklist.accession(order)
    assert item.StudyInstanceUID == imaging_study.uid_of(order)
    assert str(item.PatientName) == "Beispiel^Ada"
    assert (item.PatientID, item.PatientSex, item.PatientBirthDate) == ("P-1", "F", "19700102")
    assert item.RequestedProcedurePriority == "HIGH"
    assert (step.Modality, step.ScheduledStationAETitle) == ("CT", "CT1")
    assert (step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime) == ("20260302", "093000")


def test_the_worklist_narrows_by_each_key(clinic: Clinic) -> None:
    accession = worklist.accession(clinic.order())
    assert len(items(clinic, patient_id="P-1")) == 1
    assert len(items(clinic, accession=accession)) == 1
    assert items(clinic, patient_id="P-2") == []
    assert items(clinic, accession="other") == []
    assert items(clinic, modality="MR") == []
    assert items(clinic, station_ae="MR1") == []


@pytest.mark.parametrize(("status", "rows"), [("on-hold", 0), ("revoked", 0), ("active", 1)])
def test_the_worklist_follows_the_orders_status(clinic: Clinic, status: str, rows: int) -> None:
    order = clinic.order()
    clinic.write(order | {"status": status})
    assert len(items(clinic)) == rows


def test_a_released_order_is_back_on_the_worklist(clinic: Clinic) -> None:
    order = clinic.order()
    clinic.write(order | {"status": "on-hold"})
    clinic.write(order | {"status": "active"})
    assert len(items(clinic)) == 1


def test_a_revoked_order_cancels_its_step_and_its_study(clinic: Clinic) -> None:
    order = clinic.order()
    clinic.write(order | {"status": "revoked"})
    [step], [study] = clinic.find("Task"), clinic.find("ImagingStudy")
    assert (step["status"], study["status"]) == ("cancelled", "cancelled")


def test_a_revoked_order_stays_revoked_for_its_steps_are_gone(clinic: Clinic) -> None:
    order = clinic.order()
    clinic.write(order | {"status": "revoked"})
    with pytest.raises(Conflict):
        clinic.write(order | {"status": "active"})


def _other_patient(clinic: Clinic, **elements: object) -> dict[str, str]:
    made = clinic.write({"resourceType": "Patient", "name": [{"family": "Muster"}]} | elements)
    return {"reference": f"Patient/{made['id']}"}


def test_an_order_that_moves_to_another_patient_leaves_no_study_behind(clinic: Clinic) -> None:
    order, other = clinic.order(), _other_patient(clinic)
    clinic.write(order | {"subject": other})
    [step] = clinic.find("Task")
    states = {study["subject"]["reference"]: study["status"] for study in clinic.find("ImagingStudy")}
    assert states == {f"Patient/{clinic.patient_id}": "cancelled", other["reference"]: "registered"}
    assert step["for"] == other
    clinic.write(order)
    states = {study["subject"]["reference"]: study["status"] for study in clinic.find("ImagingStudy")}
    assert states == {f"Patient/{clinic.patient_id}": "registered", other["reference"]: "cancelled"}


def test_an_order_with_images_keeps_its_patient_and_its_study(clinic: Clinic) -> None:
    order, other = clinic.order(), _other_patient(clinic)
    [study] = clinic.find("ImagingStudy")
    clinic.write(study | {"status": "available"})
    with pytest.raises(Conflict):
        clinic.write(order | {"subject": other})
    with pytest.raises(Conflict):
        clinic.write(order | {"identifier": [imaging_study.uid_identifier("1.2.3.4")]})
    clinic.write(order | {"priority": "urgent"})


def test_a_second_order_cannot_take_a_study_whose_images_are_there(clinic: Clinic) -> None:
    uid = [imaging_study.uid_identifier("1.2.3.4")]
    clinic.order(identifier=uid)
    [study] = clinic.find("ImagingStudy")
    clinic.write(study | {"status": "available"})
    with pytest.raises(Conflict):
        clinic.order(identifier=uid)


def test_an_order_may_take_the_uid_of_a_cancelled_one(clinic: Clinic) -> None:
    uid = [imaging_study.uid_identifier("1.2.3.4")]
    first = clinic.order(identifier=uid)
    clinic.write(first | {"status": "revoked"})
    second = clinic.order(identifier=uid)
    [study] = clinic.find("ImagingStudy")
    references = [one["reference"] for one in study["basedOn"]]
    assert (study["status"], references) == ("registered", [f"ServiceRequest/{second['id']}"])
