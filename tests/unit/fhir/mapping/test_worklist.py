"""An order's step as a worklist item, whatever precision its times have (app.fhir.mapping.worklist)."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydicom.dataset import Dataset

from app.fhir.mapping import imaging_study, task, worklist

SITE = worklist.Site(ZoneInfo("Europe/Berlin"), {"urn:mrn": "HOSP"}, {"urn:acc": "RAD"})


def item(start: str | None = None, **order: Any) -> Dataset:
    step = task.scheduled(task.Step("o", "p", 1, "CT", "CT1", "CT chest", "A1-1", start, "2026-03-01T08:00:00Z"))
    identifiers = [imaging_study.accession_identifier("urn:acc", "A1"), imaging_study.uid_identifier("1.2.3")]
    patient = {"id": "p", "identifier": [{"system": "urn:mrn", "value": "P-1"}], "name": [{"text": "Ada Beispiel"}]}
    whole = {"id": "o", "identifier": identifiers, "code": {"text": "CT chest"}} | order
    return worklist.item(worklist.View(whole, step, patient, None, SITE))


@pytest.mark.parametrize(
    ("start", "day", "clock"),
    [
        ("2026-03-02T09:30:00+01:00", "20260302", "093000"),
        ("2026-03-02T23:30:00Z", "20260303", "003000"),
        ("2016-12-31T22:59:60Z", "20161231", "235959"),
        ("2026-03-02", "20260302", "000000"),
        ("2026-03", "20260301", "000000"),
        ("2026", "20260101", "000000"),
        (None, "20260301", "090000"),
    ],
)
def test_the_start_is_told_in_the_sites_time(start: str | None, day: str, clock: str) -> None:
    step = item(start).ScheduledProcedureStepSequence[0]
    assert (step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime) == (day, clock)


def test_numbers_carry_their_issuers() -> None:
    found = item()
    assert (found.PatientID, found.IssuerOfPatientID, found.AccessionNumber) == ("P-1", "HOSP", "A1")
    assert found.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "RAD"


def test_a_long_description_is_cut_between_words_and_a_long_reason_is_kept_in_the_comments() -> None:
    found = item(code={"text": "word " * 30}, reasonCode=[{"text": "because " * 20}])
    assert len(found.RequestedProcedureDescription) <= 64
    assert not found.RequestedProcedureDescription.endswith("wor")
    assert found.RequestedProcedureComments.startswith("because because")


def test_the_delimiters_of_a_name_do_not_reach_the_modality() -> None:
    patient = {"id": "p", "name": [{"family": "A^B=C", "given": ["D\\E"]}]}
    step = task.scheduled(task.Step("o", "p", 1, "CT", "CT1", "x", "A1-1", None, "2026-03-01"))
    order = {"id": "o", "identifier": [imaging_study.uid_identifier("1.2.3")]}
    assert str(worklist.item(worklist.View(order, step, patient, None, SITE)).PatientName) == "A B C^D E"


@pytest.mark.parametrize("value", ["A\\B", "L" * 65, "a\nb", " "])
def test_a_number_that_dicom_cannot_carry_gives_way_to_the_patients_own_id(value: str) -> None:
    patient = {"id": "p-1", "identifier": [{"system": "urn:mrn", "value": value}]}
    assert worklist.mrn(patient, SITE) == ("", "p-1")
    known = {"id": "p-1", "identifier": [{"system": "urn:mrn", "value": value}, {"system": "urn:x", "value": "X-1"}]}
    assert worklist.mrn(known, SITE) == ("urn:x", "X-1")


def test_lines_and_backslashes_of_a_description_do_not_reach_the_modality() -> None:
    found = item(code={"text": "CT\r\nchest\\abdomen"})
    assert found.RequestedProcedureDescription == "CT chest abdomen"
