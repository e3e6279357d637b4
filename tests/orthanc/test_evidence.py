"""Measurements saved beside their images become Observations and a draft report (app.workflow.evidence)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

from app.dicom.orthanc import Orthanc as Client
from app.fhir.mapping import imaging_study
from app.store import evidence as readings
from app.store import outbox, studies
from app.store.outbox import Effect
from app.store.studies import Stowed
from app.workflow import evidence, sweep
from app.workflow.arrivals import Archive
from tests.orthanc import phantoms
from tests.orthanc.hospital import RADIOLOGIST, Hospital, both, ids, lite

__all__ = ["both", "lite"]

pytestmark = pytest.mark.orthanc

Json = dict[str, Any]
DATA = Path(__file__).parents[1] / "data" / "dicom" / "ohif-3.13"
V1, V2 = "ohif31313_chain_v1", "ohif31313_chain_v2"


def content(name: str) -> bytes:
    return (DATA / f"{name}.dcm").read_bytes()


@cache
def ct() -> bytes:
    return Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()


@cache
def ct_header() -> Dataset:
    return dcmread(str(get_testdata_file("CT_small.dcm")), stop_before_pixels=True)


def ordered(at: Hospital) -> Json:
    """An order whose reserved study is that of the sample image."""
    at.patient_id = at.patient(str(ct_header().PatientID))
    return at.order(identifier=[imaging_study.uid_identifier(str(ct_header().StudyInstanceUID))])


def living(at: Hospital) -> list[Json]:
    return [one for one in at.find("Observation") if one["status"] != "entered-in-error"]


def lengths(at: Hospital, status: str) -> list[float]:
    found = [one["valueQuantity"]["value"] for one in at.find("Observation") if "valueQuantity" in one
             and one["status"] == status]  # fmt: skip
    return sorted(round(float(value), 2) for value in found)


def by_length(at: Hospital) -> dict[float, str]:
    measured = (one for one in living(at) if "valueQuantity" in one)
    return {round(float(one["valueQuantity"]["value"]), 2): one["id"] for one in measured}


def remove(at: Hospital, name: str) -> None:
    uid = str(dcmread(DATA / f"{name}.dcm").SOPInstanceUID)
    at.delete("instances", at.archive.orthanc.instances_with_uid(uid)[0])


def drafts(at: Hospital) -> list[Json]:
    return [one for one in at.find("DiagnosticReport") if one["status"] == "preliminary"]


def stored_by(whom: str, octets: bytes) -> Stowed:
    said = dcmread(BytesIO(octets))
    digest = hashlib.sha256(octets).hexdigest()
    return Stowed(said.SOPInstanceUID, said.StudyInstanceUID, None, "viewer", whom, digest)


def test_whose_upload_failed_is_not_the_performer_of_what_came_instead(lite: Hospital) -> None:
    ordered(lite)
    octets = content("ohif31313_Length")
    lost = replace(stored_by("Practitioner/r", octets), sha256="00" * 32)
    lite.store.transact(lambda tx: studies.record_stow(tx, lost))
    lite.send(ct(), octets)
    lite.settle()
    [length] = [one for one in lite.find("Observation") if "valueQuantity" in one]
    assert {"reference": "Practitioner/r"} not in length.get("performer", [])


def test_a_saved_length_becomes_an_observation_in_the_draft_of_its_order(both: Hospital) -> None:
    order = ordered(both)
    stowed = stored_by("Practitioner/r", content("ohif31313_Length"))
    both.store.transact(lambda tx: studies.record_stow(tx, stowed))
    both.send(ct(), content("ohif31313_Length"))
    both.settle()
    [report] = both.find("DiagnosticReport")
    [length] = [one for one in both.find("Observation") if "valueQuantity" in one]
    assert length["valueQuantity"]["unit"] == "mm"
    assert length["valueQuantity"]["value"] > Decimal(1)
    assert length["performer"] == [{"reference": "Practitioner/r"}]
    assert [one["reference"] for one in length["basedOn"]] == [f"ServiceRequest/{order['id']}"]
    assert length["status"] == "preliminary"
    assert report["status"] == "preliminary"
    assert [one["reference"] for one in report["basedOn"]] == [f"ServiceRequest/{order['id']}"]
    tops = {one["reference"].removeprefix("Observation/") for one in report["result"]}
    assert tops < ids(both.find("Observation"))


def test_reading_the_same_report_again_changes_nothing(lite: Hospital) -> None:
    ordered(lite)
    lite.send(ct(), content(V1), content(V2))
    lite.settle()
    before = {one["id"]: one["meta"] for kind in ("Observation", "DiagnosticReport") for one in lite.find(kind)}
    for name in (V1, V2, V1):
        evidence.read_one(lite.archive, str(dcmread(DATA / f"{name}.dcm").SOPInstanceUID))
    after = {one["id"]: one["meta"] for kind in ("Observation", "DiagnosticReport") for one in lite.find(kind)}
    assert before == after


@pytest.mark.case(42)
def test_a_successor_keeps_withdraws_and_adds(both: Hospital) -> None:
    ordered(both)
    both.send(ct(), content(V1))
    both.settle()
    first = {
        round(float(one["valueQuantity"]["value"]), 2): one["id"] for one in living(both) if "valueQuantity" in one
    }
    both.send(content(V2))
    both.settle()
    second = {
        round(float(one["valueQuantity"]["value"]), 2): one["id"] for one in living(both) if "valueQuantity" in one
    }
    assert sorted(first) == [19.84, 26.46]
    assert sorted(second) == [6.61, 26.46]
    assert first[26.46] == second[26.46]
    assert both.read("Observation", first[19.84])["status"] == "entered-in-error"


@pytest.mark.case(42)
def test_a_successor_that_comes_first_ends_the_same(lite: Hospital) -> None:
    ordered(lite)
    lite.send(ct(), content(V2))
    lite.settle()
    lite.send(content(V1))
    lite.settle()
    assert lengths(lite, "preliminary") == [6.61, 26.46]
    assert lengths(lite, "entered-in-error") == [19.84]
    [report] = drafts(lite)
    cited = {one["reference"].removeprefix("Observation/") for one in report["result"]}
    assert cited <= ids(living(lite))


def test_a_deleted_report_takes_its_measurements_with_it_and_restores_what_it_replaced(lite: Hospital) -> None:
    ordered(lite)
    lite.send(ct(), content(V1), content(V2))
    lite.settle()
    lite.delete(
        "instances", lite.archive.orthanc.instances_with_uid(str(dcmread(DATA / f"{V2}.dcm").SOPInstanceUID))[0]
    )
    _swept(lite)
    assert lengths(lite, "preliminary") == [19.84, 26.46]
    assert lengths(lite, "entered-in-error") == [6.61]
    lite.delete(
        "instances", lite.archive.orthanc.instances_with_uid(str(dcmread(DATA / f"{V1}.dcm").SOPInstanceUID))[0]
    )
    _swept(lite)
    assert living(lite) == []
    lite.send(content(V1))
    lite.settle()
    assert lengths(lite, "preliminary") == [19.84, 26.46]


def _swept(at: Hospital) -> None:
    sweep.sweep(at.archive)
    at.settle()


def test_both_reports_deleted_at_once_leave_nothing(lite: Hospital) -> None:
    ordered(lite)
    lite.send(ct(), content(V1), content(V2))
    lite.settle()
    for name in (V1, V2):
        remove(lite, name)
    _swept(lite)
    assert living(lite) == []


@pytest.mark.case(41)
def test_a_report_that_came_before_its_images_is_read_again_with_them(lite: Hospital) -> None:
    ordered(lite)
    lite.send(content("ohif31313_Length"))
    lite.settle()
    doubtful = next(one for one in living(lite) if "valueQuantity" in one)
    lite.send(ct())
    lite.settle()
    [checked] = [one for one in living(lite) if "valueQuantity" in one]
    assert checked["id"] == doubtful["id"]
    assert _verdict(doubtful) != _verdict(checked)


def _verdict(resource: Json) -> list[Json]:
    return [one for one in resource.get("extension", []) if one["url"].endswith("measurement-verdict")]


def test_measurements_after_the_signature_leave_the_report_and_ask(lite: Hospital) -> None:
    ordered(lite)
    lite.send(ct(), content(V1))
    lite.settle()
    [draft] = drafts(lite)
    signed = lite.write(draft | {"status": "final"}, RADIOLOGIST)
    lite.settle()
    lite.send(content("ohif31313_Bidirectional"))
    lite.settle()
    now = lite.read("DiagnosticReport", signed["id"])
    assert (now["status"], now["result"]) == ("final", signed["result"])
    assert lite.reviews() == ["late-evidence"]


@contextmanager
def serving(content: bytes) -> Iterator[str]:
    """An archive that answers every request with these bytes: Orthanc 1.10.1 itself dies of sixty levels."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_report_nested_beyond_reading_is_remembered_and_not_tried_for_ever(lite: Hospital) -> None:
    report = phantoms.report(mrn="P-1", study="1.2.3.1", series="1.2.3.1.9", instance="1.2.3.1.9.1")
    lite.send(lite.image(), phantoms.part10(report))
    lite.look()
    # Written by hand: no library writes 400 sequences of undefined length inside each other.
    opened = b"\x40\x00\x30\xa7SQ\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\x00\x00\x00\x00" + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    with serving(phantoms.part10(report) + opened * 400 + closed * 400) as url, Client(url) as odd:
        evidence.read_one(Archive(lite.store, odd, lite.archive.site), "1.2.3.1.9.1")
    reading = lite.store.transact(lambda tx: readings.known(tx, "1.2.3.1.9.1"))
    assert reading is not None
    assert (reading.state, reading.problems) == ("failed", ("not readable (RecursionError)",))


def test_what_is_no_report_inside_is_remembered_as_a_problem(lite: Hospital) -> None:
    report = phantoms.report(mrn="P-1", study="1.2.3.1", series="1.2.3.1.9", instance="1.2.3.1.9.1")
    lite.send(lite.image(), phantoms.part10(report))
    lite.settle()
    assert lite.find("Observation") == []
    assert lite.store.transact(lambda tx: readings.known(tx, "1.2.3.1.9.1")) is not None
    gone = Effect("evidence", "study:x", "nowhere", {"sop_uid": "1.2.9"})
    lite.store.transact(lambda tx: outbox.add(tx, gone))
    assert lite.effects() == ["evidence"]
