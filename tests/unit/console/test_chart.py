from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.console import chart
from app.console.chart import Chart

BERLIN = ZoneInfo("Europe/Berlin")
ORDER = {"resourceType": "ServiceRequest", "id": "o1", "status": "active", "subject": {"reference": "Patient/p1"}}
BASED_ON = [{"reference": "ServiceRequest/o1"}]
STUDY = {"resourceType": "ImagingStudy", "id": "i1", "status": "available", "basedOn": BASED_ON}
STEP = {"resourceType": "Task", "id": "t1", "intent": "order", "focus": {"reference": "ServiceRequest/o1"}}
DRAFT = {"resourceType": "DiagnosticReport", "id": "r1", "status": "preliminary", "basedOn": BASED_ON}


@pytest.mark.parametrize(
    ("about", "state"),
    [
        ({}, "Ordered"),
        ({"tasks": [STEP | {"status": "accepted"}]}, "Ordered"),
        ({"tasks": [STEP | {"status": "in-progress"}]}, "In progress"),
        ({"tasks": [STEP | {"status": "requested", "intent": "proposal"}]}, "Ordered"),
        ({"studies": [STUDY | {"status": "registered"}]}, "Ordered"),
        ({"studies": [STUDY]}, "Images available"),
        ({"studies": [STUDY], "reports": [DRAFT]}, "Draft report"),
        ({"reports": [DRAFT | {"status": "entered-in-error"}]}, "Ordered"),
        ({"reports": [DRAFT, DRAFT | {"id": "r2", "status": "amended"}]}, "Signed"),
        ({"order": ORDER | {"status": "revoked"}, "studies": [STUDY]}, "Cancelled"),
        ({"order": ORDER | {"status": "on-hold"}}, "On hold"),
    ],
)
def test_the_state_follows_the_furthest_step(about: dict[str, Any], state: str) -> None:
    assert Chart(about.pop("order", ORDER), {}, **about).state == state


def test_the_newest_report_of_the_strongest_kind_is_the_orders_report() -> None:
    older = {"id": "old", "status": "final", "meta": {"lastUpdated": "2026-03-01T10:00:00Z", "versionId": "4"}}
    newer = {"id": "new", "status": "corrected", "meta": {"lastUpdated": "2026-03-02T10:00:00Z", "versionId": "2"}}
    draft = {"id": "draft", "status": "preliminary", "meta": {"lastUpdated": "2026-03-03T10:00:00Z", "versionId": "1"}}

    found = Chart(ORDER, {}, reports=(older, draft, newer))

    assert found.report == newer
    assert found.version == "2"


def test_a_search_with_what_belongs_to_it_becomes_one_chart_per_order() -> None:
    other = ORDER | {"id": "o2"}
    patient = {"resourceType": "Patient", "id": "p1"}
    alien = {"resourceType": "Observation", "id": "x", "basedOn": [{"reference": "ServiceRequest/o9"}]}

    first, second = chart.charts([ORDER, other, patient, STEP, STUDY, DRAFT, alien])

    assert (first.patient, first.tasks, first.studies, first.reports) == (patient, (STEP,), (STUDY,), (DRAFT,))
    assert (second.patient, second.tasks, second.studies, second.reports) == (patient, (), (), ())
    assert first.observations == ()


def test_only_a_request_with_an_accession_number_is_an_imaging_order() -> None:
    number = {"type": {"coding": [{"code": "ACSN"}]}, "value": "IC1"}
    numbered = ORDER | {"id": "o2", "identifier": [{"value": "urn:oid:1"}, number]}

    assert [one.accession for one in chart.imaging([ORDER, numbered])] == ["IC1"]


def test_two_studies_with_images_leave_open_which_is_meant() -> None:
    assert Chart(ORDER, {}, studies=(STUDY,)).can_open
    assert not Chart(ORDER, {}, studies=(STUDY, STUDY | {"id": "i2"})).can_open


def test_nothing_more_is_expected_of_a_completed_order_with_its_pdf_or_a_cancelled_one() -> None:
    pdf = {"presentedForm": [{"contentType": "application/pdf", "data": "JVBERi0="}]}
    final = DRAFT | {"status": "final"}
    completed = ORDER | {"status": "completed"}

    assert not Chart(completed, {}, reports=(final,)).is_settled
    assert not Chart(ORDER, {}, reports=(final | pdf,)).is_settled
    assert Chart(completed, {}, reports=(final | pdf,)).is_settled
    assert Chart(ORDER | {"status": "revoked"}, {}).is_settled


@pytest.mark.parametrize(
    ("patient", "expected"),
    [
        (
            {"name": [{"family": "Beispiel", "given": ["Ada", "Eva"]}], "birthDate": "1990-03-03", "gender": "female"},
            chart.Person("p", "BEISPIEL, Ada Eva", "", "1990-03-03", "35 y", "female"),
        ),
        ({"name": [{"text": "Only Text"}], "birthDate": "1990"}, chart.Person("p", "Only Text", "", "1990", "", "")),
        ({"birthDate": "2024-12-31"}, chart.Person("p", "(no name)", "", "2024-12-31", "14 mo", "")),
        ({"birthDate": "2027-01-01"}, chart.Person("p", "(no name)", "", "2027-01-01", "", "")),
        (
            {"identifier": [{"system": "other", "value": "1"}, {"system": "mrn", "value": "2"}]},
            chart.Person("p", "(no name)", "2", "", "", ""),
        ),
        ({"identifier": [{"system": "other", "value": "1"}]}, chart.Person("p", "(no name)", "1", "", "", "")),
    ],
)
def test_a_banner_shows_what_is_known_and_no_guess(patient: dict[str, Any], expected: chart.Person) -> None:
    assert chart.person({"id": "p"} | patient, "mrn", date(2026, 3, 2)) == expected


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        ("2026-03", "2026-03"),
        ("2026-03-02T09:30:00Z", "2026-03-02 10:30 CET"),
        ("2026-07-02T09:30:05.250+00:00", "2026-07-02 11:30:05 CEST"),
        (1_772_443_805_000, "2026-03-02 10:30:05 CET"),
        (datetime(2026, 3, 2, 9, 30, tzinfo=UTC), "2026-03-02 10:30 CET"),
    ],
)
def test_times_are_shown_in_the_sites_zone_with_its_name(value: Any, shown: str) -> None:
    assert chart.moment(value, BERLIN) == shown


def observation(name: str, **elements: Any) -> dict[str, Any]:
    return {"id": name, "status": "final", "code": {"text": name}} | elements


def test_measurements_stand_in_their_groups_with_value_unit_and_doubt() -> None:
    doubtful = {"tag": [{"code": "unit-not-verified"}]}
    observations = [
        observation("length", valueQuantity={"value": 12.3456, "unit": "mm"}, meta=doubtful, status="preliminary"),
        observation("shape", valueCodeableConcept={"coding": [{"code": "R", "display": "Round"}]}),
        observation("absent", dataAbsentReason={"coding": [{"code": "unknown", "display": "Unknown"}]}),
        observation("gone", status="entered-in-error"),
        observation(
            "group",
            valueCodeableConcept={"text": "Nodule"},
            bodySite={"text": "Lung"},
            hasMember=[{"reference": f"Observation/{name}"} for name in ("length", "shape", "gone", "missing")],
        ),
    ]

    assert chart.groups(observations) == [
        chart.Group(
            "Nodule",
            "Lung",
            "final",
            (
                chart.Measurement("length", "12.35 mm", "preliminary", "unit not verified"),
                chart.Measurement("shape", "Round", "final"),
            ),
        ),
        chart.Group("Other values", "", "", (chart.Measurement("absent", "Unknown", "final"),)),
    ]


def test_groups_stand_in_the_order_of_the_reports_results() -> None:
    groups = [observation(name, hasMember=[]) for name in ("a", "b", "c")]

    shown = chart.groups(groups, ["Observation/c", "Observation/b"])

    assert [one.name for one in shown] == ["c", "b", "a"]


def test_a_draft_is_signed_with_everything_it_held() -> None:
    draft = DRAFT | {"result": [{"reference": "Observation/1"}], "identifier": [{"value": "kept"}]}
    interpreter = {"reference": "Practitioner/7", "display": "R"}

    report = chart.signed(Chart(ORDER, {}, reports=(draft,)), "Normal.", interpreter)

    final = {
        "status": "final",
        "conclusion": "Normal.",
        "resultsInterpreter": [interpreter],
        "performer": [interpreter],
    }
    assert report == draft | final


def test_a_report_without_draft_names_order_patient_and_study() -> None:
    order = ORDER | {"code": {"text": "CT"}}
    study = STUDY | {"started": "2026-03-02T09:41:00Z"}

    report = chart.signed(Chart(order, {}, studies=(study,)), "Normal.", {"reference": "Practitioner/7"})

    assert report["basedOn"] == BASED_ON
    assert report["subject"] == {"reference": "Patient/p1"}
    assert report["imagingStudy"] == [{"reference": "ImagingStudy/i1"}]
    assert (report["code"], report["effectiveDateTime"]) == ({"text": "CT"}, "2026-03-02T09:41:00Z")
    assert "id" not in report


def test_a_report_holds_a_document_only_when_it_can_be_read() -> None:
    assert chart.document({"presentedForm": [{"contentType": "application/pdf", "data": "JVBERi0="}]}) == b"%PDF-"
    assert chart.document({"presentedForm": [{"contentType": "text/plain", "data": "JVBERi0="}]}) is None
    assert chart.document({"presentedForm": [{"contentType": "application/pdf", "data": "?"}]}) is None
    assert chart.document(None) is None


def test_the_timeline_shows_the_newest_first_and_unknown_events_by_name() -> None:
    events = [
        {"at": 1_772_443_800_000, "kind": "order-accepted", "cause": "ServiceRequest/o1 by demo-ehr"},
        {"at": 1_772_443_805_000, "kind": "something-new", "cause": "x"},
    ]

    assert chart.timeline(events, UTC) == [
        {"at": "2026-03-02 09:30:05 UTC", "what": "Something new", "cause": "x"},
        {"at": "2026-03-02 09:30 UTC", "what": "Order accepted, step scheduled", "cause": events[0]["cause"]},
    ]
