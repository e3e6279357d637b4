"""A report is guarded, signed, printed and archived beside its images (app.workflow.reports)."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from msgspec.structs import replace

from app.access import SYSTEM
from app.dicom import encapsulated
from app.errors import Conflict, Forbidden, Unprocessable
from app.store import outbox, timeline
from app.store.outbox import Claimed
from app.workflow import reports
from tests.orthanc import phantoms
from tests.orthanc import test_evidence as samples
from tests.orthanc.hospital import CT_CHEST, RADIOLOGIST, Hospital, both, lite, uid

__all__ = ["both", "lite"]

pytestmark = pytest.mark.orthanc

Json = dict[str, Any]
RIS = replace(RADIOLOGIST, client_id="ris", user_id=None, fhir_user=None)


def report(at: Hospital, order: Json, **elements: Any) -> Json:
    return {
        "resourceType": "DiagnosticReport",
        "status": "final",
        "code": CT_CHEST,
        "subject": {"reference": f"Patient/{at.patient_id}"},
        "basedOn": [{"reference": f"ServiceRequest/{order['id']}"}],
        "conclusion": "No fracture.",
    } | elements


def imaged(at: Hospital) -> Json:
    order = at.order()
    at.send(at.image(order))
    at.look()
    return order


def documents(at: Hospital, order: Json) -> list[str]:
    """The archive's ids of the Encapsulated PDFs of an order's study."""
    instances = at.pacs.get(f"/studies/{at.orthanc_id(uid(order))}/instances").raise_for_status().json()
    kinds = {one["ID"]: at.pacs.get(f"/instances/{one['ID']}/metadata/SopClassUid").text for one in instances}
    return [orthanc_id for orthanc_id, kind in kinds.items() if kind == "1.2.840.10008.5.1.4.1.1.104.1"]


# --- the guard ---------------------------------------------------------------------------------------------------


def test_signing_needs_the_right(lite: Hospital) -> None:
    order = lite.order()
    with pytest.raises(Forbidden):
        lite.write(report(lite, order), SYSTEM)
    with pytest.raises(Unprocessable):
        lite.write(report(lite, order), RIS)
    signed = lite.write(report(lite, order, resultsInterpreter=[{"reference": "Practitioner/r"}]), RIS)
    with pytest.raises(Conflict):
        lite.write(signed | {"status": "preliminary"}, RADIOLOGIST)
    with pytest.raises(Forbidden):
        lite.write(signed | {"conclusion": "Something else."}, SYSTEM)
    assert lite.write(report(lite, order, status="preliminary"), SYSTEM)["status"] == "preliminary"


# --- signing -----------------------------------------------------------------------------------------------------


def test_a_signature_ends_the_orders_life(both: Hospital) -> None:
    order = imaged(both)
    signed = both.write(report(both, order), RADIOLOGIST)
    [step] = both.find("Task")
    [provenance] = both.find("Provenance")
    assert step["status"] == "completed"
    assert both.read("ServiceRequest", order["id"])["status"] == "completed"
    assert provenance["agent"][0]["who"] == {"reference": "Practitioner/r"}
    assert provenance["target"][0]["reference"].startswith(f"DiagnosticReport/{signed['id']}/_history/")
    with both.store.read() as connection:
        kinds = [row["kind"] for row in timeline.of_order(connection, order["id"])]
    assert {"report-final", "order-completed"} <= set(kinds)


@pytest.mark.case(21)
def test_a_step_without_images_keeps_the_order_active(lite: Hospital) -> None:
    order = lite.order()
    lite.write(report(lite, order), RADIOLOGIST)
    [step] = lite.find("Task")
    assert step["status"] == "accepted"
    assert lite.read("ServiceRequest", order["id"])["status"] == "active"
    lite.send(lite.image(order))
    lite.settle()
    assert lite.read("ServiceRequest", order["id"])["status"] == "completed"
    assert lite.reviews() == ["late-images"]


def test_signing_makes_the_cited_measurements_final(lite: Hospital) -> None:
    order = samples.ordered(lite)
    lite.send(samples.ct(), samples.content(samples.V1))
    lite.settle()
    [draft] = samples.drafts(lite)
    lite.write(draft | {"status": "final", "conclusion": "Two lengths."}, RADIOLOGIST)
    assert {one["status"] for one in lite.find("Observation")} == {"final"}
    assert lite.read("ServiceRequest", order["id"])["status"] == "completed"
    lite.send(samples.content(samples.V2))
    lite.settle()
    assert lite.reviews() == ["late-evidence"]


def test_a_report_from_outside_adopts_the_draft(lite: Hospital) -> None:
    order = samples.ordered(lite)
    first = lite.write(report(lite, order, status="preliminary", conclusion="First look."))
    lite.send(samples.ct(), samples.content(samples.V1))
    lite.settle()
    [draft] = [one for one in lite.find("DiagnosticReport") if one["id"] != first["id"]]
    again = lite.write(first | {"conclusion": "Second look."})
    assert again["result"] == draft["result"]
    assert lite.read("DiagnosticReport", draft["id"])["status"] == "entered-in-error"
    # The mark of the draft stays although the client does not know it, so that later results find the report.
    bare = {key: value for key, value in again.items() if key != "identifier"}
    lite.write(bare | {"conclusion": "Third look."})
    lite.send(samples.content(samples.V2))
    lite.settle()
    now = lite.read("DiagnosticReport", first["id"])
    assert len(now["result"]) > len(draft["result"])
    assert [one["status"] for one in lite.find("DiagnosticReport") if one["id"] != first["id"]] == ["entered-in-error"]


# --- the archive -------------------------------------------------------------------------------------------------


def test_the_signed_report_is_in_the_archive_and_in_the_resource_once(both: Hospital) -> None:
    order = imaged(both)
    signed = both.write(report(both, order), RADIOLOGIST)
    both.settle()
    both.settle()
    [document] = documents(both, order)
    pdf = encapsulated.content(both.archive.orthanc.dataset(document, stop_before_pixels=False))
    [form] = both.read("DiagnosticReport", signed["id"])["presentedForm"]
    assert pdf.startswith(b"%PDF")
    assert base64.b64decode(form["data"]) == pdf
    assert form["size"] == len(pdf)
    assert base64.b64decode(form["hash"]) == hashlib.sha1(pdf, usedforsecurity=False).digest()
    study = both.study(uid(order))
    assert [series["modality"]["code"] for series in study["series"]] == ["CT", "DOC"]
    assert both.reviews() == []


def test_an_archiving_that_is_repeated_or_was_killed_stores_once(
    lite: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = imaged(lite)
    signed = lite.write(report(lite, order), RADIOLOGIST)
    effect = lite.store.transact(lambda tx: outbox.claim(tx, ("archive-report",)))
    assert effect is not None

    def killed(*_arguments: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(reports, "_archived", killed)
        with pytest.raises(SystemExit):
            reports.archive_one(lite.archive, effect)
    # What it was printed from changes before the next attempt.
    lite.write(lite.read("Patient", lite.patient_id) | {"name": [{"family": "Anders"}]})
    for _ in range(2):
        reports.archive_one(lite.archive, effect)
    [document] = documents(lite, order)
    pdf = encapsulated.content(lite.archive.orthanc.dataset(document, stop_before_pixels=False))
    [form] = lite.read("DiagnosticReport", signed["id"])["presentedForm"]
    assert base64.b64decode(form["data"]) == pdf


def test_an_amendment_is_a_second_document_of_the_same_series(lite: Hospital) -> None:
    order = imaged(lite)
    foreign = {"contentType": "application/pdf", "title": "From the RIS", "url": "http://ris.example.org/1"}
    signed = lite.write(report(lite, order, presentedForm=[foreign]), RADIOLOGIST)
    lite.settle()
    printed = lite.read("DiagnosticReport", signed["id"])
    amended = lite.write(printed | {"status": "amended", "conclusion": "A fracture."}, RADIOLOGIST)
    assert amended["presentedForm"] == [foreign]
    assert amended["issued"] != printed["issued"]
    lite.settle()
    held = [lite.archive.orthanc.dataset(one) for one in documents(lite, order)]
    forms = lite.read("DiagnosticReport", signed["id"])["presentedForm"]
    assert len(held) == 2
    assert len({one.SeriesInstanceUID for one in held}) == 1
    assert len({one.SOPInstanceUID for one in held}) == 2
    assert forms[0] == foreign
    assert len(forms) == 2


def test_sending_the_signed_report_again_is_no_second_signature(lite: Hospital) -> None:
    order = imaged(lite)
    signed = lite.write(report(lite, order), RADIOLOGIST)
    lite.settle()
    printed = lite.read("DiagnosticReport", signed["id"])
    bare = {key: value for key, value in printed.items() if key not in {"issued", "presentedForm"}}
    again = lite.write(bare, RADIOLOGIST)
    assert (again["issued"], again["presentedForm"]) == (printed["issued"], printed["presentedForm"])
    assert len(lite.find("Provenance")) == 1
    assert lite.effects() == []


def test_a_print_that_comes_after_an_amendment_does_not_stand_in_it(lite: Hospital) -> None:
    order = imaged(lite)
    signed = lite.write(report(lite, order), RADIOLOGIST)
    effect = lite.store.transact(lambda tx: outbox.claim(tx, ("archive-report",)))
    assert effect is not None
    lite.write(lite.read("DiagnosticReport", signed["id"]) | {"status": "corrected", "conclusion": "New."}, RADIOLOGIST)
    reports.archive_one(lite.archive, effect)
    assert "presentedForm" not in lite.read("DiagnosticReport", signed["id"])
    assert len(documents(lite, order)) == 1


def test_a_report_without_images_is_printed_and_not_filed(lite: Hospital) -> None:
    signed = lite.write(report(lite, lite.order()), RADIOLOGIST)
    assert lite.effects() == ["archive-report"]
    [form] = lite.read("DiagnosticReport", signed["id"])["presentedForm"]
    assert base64.b64decode(form["data"]).startswith(b"%PDF")
    assert list(lite.archive.orthanc.study_ids()) == []


def test_invalid_values_of_the_images_do_not_keep_the_report_out(lite: Hospital) -> None:
    order = lite.order()
    marked = phantoms.part10(lite.image(order, StudyDate="20250102", PatientName="X" * 64))
    lite.send(marked.replace(b"20250102", b"2025O102"))
    lite.look()
    lite.write(report(lite, order), RADIOLOGIST)
    lite.settle()
    assert len(documents(lite, order)) == 1


def test_an_effect_of_a_report_that_is_gone_is_only_noted(lite: Hospital) -> None:
    reports.archive_one(lite.archive, Claimed(1, "archive-report", "k", {"report": "none", "version": 1}, 1))
    assert list(lite.archive.orthanc.study_ids()) == []
