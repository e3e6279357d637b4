"""What FHIR says of a study, in DICOM's words."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest

from app.fhir.mapping import catalogue
from app.fhir.mapping.task import Step, scheduled
from app.fhir.mapping.worklist import Site
from app.workflow import site

MRN = "http://hospital.example.org/mrn"
HERE = Site(UTC, {MRN: "HOSP", "http://clinic.example.org/mrn": "CLINIC"}, {})


def told(study: dict[str, Any] | None = None, patient: dict[str, Any] | None = None) -> dict[str, Any]:
    return catalogue.study(catalogue.view(study or {}, {"id": "p", **(patient or {})}, HERE))


@pytest.mark.parametrize(
    ("started", "day", "time", "offset"),
    [
        ("2026-03-01T10:15:00+01:00", "20260301", "101500", "+0100"),
        ("2026-03-01T23:15:00.250-05:30", "20260301", "231500.250", "-0530"),
        ("2026-03-01T10:15:00Z", "20260301", "101500", "+0000"),
        ("2026-03-01", "20260301", None, None),
        ("2026-03", None, None, None),
    ],
)
def test_a_study_began_when_its_own_clock_said(started: str, day: str, time: str, offset: str) -> None:
    found = told({"started": started})
    assert [found.get(one) for one in ("StudyDate", "StudyTime", "TimezoneOffsetFromUTC")] == [day, time, offset]


def test_nothing_known_is_nothing_told() -> None:
    assert told() == {}
    assert told(patient={"birthDate": "1970", "gender": "unknown", "name": [{"use": "official"}]}) == {}


def test_a_patient_has_the_number_that_modalities_get_and_others_with_their_issuers() -> None:
    numbers = [
        {"system": "http://hl7.org/fhir/sid/us-ssn", "value": "123"},
        {"system": MRN, "value": "7"},
        {"system": "http://clinic.example.org/mrn", "value": "C-7"},
        {"system": f"{site.UNKNOWN_ISSUER}Elsewhere%20A", "value": "7"},
    ]
    found = told(patient={"identifier": numbers})
    assert (found["PatientID"], found["IssuerOfPatientID"], found["OtherPatientIDs"]) == ("7", "HOSP", ["C-7", "7"])
    assert [one["IssuerOfPatientID"] for one in found["OtherPatientIDsSequence"]] == ["CLINIC", "Elsewhere A"]


def test_what_was_requested_is_told_for_each_step() -> None:
    order = {
        "code": {"text": "CT Thorax"},
        "identifier": [{"type": {"coding": [{"code": "ACSN"}]}, "value": "A1"}],
    }
    step = Step("o", "p", 1, "CT", "AE", "Thorax nativ", "SPS-1", None, "2026-03-01T10:00:00Z")
    assert catalogue.requests(order, [scheduled(step)]) == [
        {
            "AccessionNumber": "A1",
            "RequestedProcedureID": "A1",
            "RequestedProcedureDescription": "CT Thorax",
            "ScheduledProcedureStepID": "SPS-1",
            "ScheduledProcedureStepDescription": "Thorax nativ",
            "Modality": "CT",
        }
    ]
    based_on = [{"reference": "ServiceRequest/o"}, {"reference": "CarePlan/c"}, {"display": "by phone"}]
    assert catalogue.orders_of({"basedOn": based_on}) == ["o"]
