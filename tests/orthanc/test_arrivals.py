"""Images in a real archive become ImagingStudies, and stay true whatever happens to them (app.workflow.arrivals)."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from app.fhir import resources
from app.fhir.mapping import imaging_study, worklist
from app.store import sync
from app.workflow import arrivals, sweep
from app.workflow.arrivals import Archive
from tests.orthanc import phantoms
from tests.orthanc.hospital import Hospital, both, lite, uid
from tests.processes import wait_until

__all__ = ["both", "lite"]

pytestmark = pytest.mark.orthanc


def other_study(image: Dataset, study: str, series: str = "1") -> Dataset:
    image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study}.{series}"
    image.SOPInstanceUID = f"{study}.{series}.{image.InstanceNumber}"
    return image


# --- the way of an order -----------------------------------------------------------------------------------------


@pytest.mark.case(14, 31)
def test_the_first_image_makes_the_reserved_study_available(both: Hospital, capsys: pytest.CaptureFixture[str]) -> None:
    order = both.order()
    registered = both.study(uid(order))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            both.poll()
            if not arrivals.rebuild_one(both.archive):
                stop.wait(0.05)

    image = both.image(order)
    worker = threading.Thread(target=work)
    worker.start()
    try:
        both.send(image)
        sent = time.monotonic()
        study = wait_until(
            lambda: (found := both.study(uid(order)))["status"] == "available" and found, "the study to be available"
        )
        with capsys.disabled():
            print(f"\n  first image to ImagingStudy: {(time.monotonic() - sent) * 1000:.0f} ms")
    finally:
        stop.set()
        worker.join()
    [step] = both.find("Task")
    assert study["id"] == registered["id"]
    assert [one["reference"] for one in study["basedOn"]] == [f"ServiceRequest/{order['id']}"]
    assert study["subject"] == {"reference": f"Patient/{both.patient_id}"}
    assert (study["numberOfSeries"], study["numberOfInstances"]) == (1, 1)
    assert study["series"][0]["modality"]["code"] == "CT"
    assert step["status"] == "in-progress"


@pytest.mark.case(29, 31)
def test_a_quiet_study_completes_its_step_and_leaves_the_order_active(both: Hospital) -> None:
    order = both.order()
    both.send(both.image(order))
    both.settle()
    [step] = both.find("Task")
    assert step["status"] == "completed"
    assert both.read("ServiceRequest", order["id"])["status"] == "active"


@pytest.mark.case(14, 16)
def test_a_modality_that_ignores_our_uid_is_linked_by_accession_and_patient(lite: Hospital) -> None:
    order = lite.order()
    lite.send(other_study(lite.image(order), "1.9.8.1"))
    lite.look()
    study = lite.study("1.9.8.1")
    assert [one["reference"] for one in study["basedOn"]] == [f"ServiceRequest/{order['id']}"]
    assert lite.study(uid(order))["status"] == "entered-in-error"


@pytest.mark.case(14, 23)
def test_an_accession_of_another_patient_links_nothing(lite: Hospital) -> None:
    order = lite.order()
    lite.send(other_study(lite.image(order, PatientID="P-OTHER"), "1.9.8.2"))
    lite.look()
    study = lite.study("1.9.8.2")
    assert study["status"] == "available"
    assert "basedOn" not in study
    assert study["subject"]["reference"] != f"Patient/{lite.patient_id}"
    assert lite.reviews() == ["patient-mismatch"]
    assert lite.study(uid(order))["status"] == "registered"


@pytest.mark.case(15)
def test_an_accession_number_used_twice_links_nothing(lite: Hospital) -> None:
    given = [imaging_study.accession_identifier("urn:isocenter:accession", "TWICE")]
    first, _ = lite.order(identifier=given), lite.order(identifier=given)
    lite.send(other_study(lite.image(first), "1.9.8.3"))
    lite.look()
    assert "basedOn" not in lite.study("1.9.8.3")
    assert lite.reviews() == ["ambiguous-order"]


@pytest.mark.case(13)
def test_a_study_without_an_order_gets_a_placeholder_and_a_question(both: Hospital) -> None:
    both.send(both.image(PatientID="STRANGER", PatientName="Fremd^Eva", AccessionNumber=""))
    both.look()
    study = both.study("1.2.3.1")
    patient = both.read("Patient", study["subject"]["reference"].removeprefix("Patient/"))
    assert patient["identifier"] == [{"system": "urn:isocenter:mrn", "value": "STRANGER"}]
    assert patient["name"][0]["family"] == "Fremd"
    assert both.reviews() == ["no-order"]


@pytest.mark.case(13)
def test_an_order_that_comes_after_its_images_still_gets_them(both: Hospital) -> None:
    both.send(both.image(AccessionNumber="LATE-1"))
    both.settle()
    order = both.order(identifier=[imaging_study.accession_identifier("urn:isocenter:accession", "LATE-1")])
    both.settle()
    study = both.study("1.2.3.1")
    assert [one["reference"] for one in study["basedOn"]] == [f"ServiceRequest/{order['id']}"]
    assert both.study(uid(order))["status"] == "entered-in-error"
    assert both.reviews() == []


@pytest.mark.case(13)
def test_a_registered_patient_outweighs_the_placeholder_of_earlier_images(lite: Hospital) -> None:
    lite.send(lite.image(PatientID="P-9"))
    lite.look()
    registered = lite.patient("P-9", "Echt")
    lite.send(other_study(lite.image(PatientID="P-9"), "1.2.3.2"))
    lite.look()
    assert lite.study("1.2.3.2")["subject"] == {"reference": f"Patient/{registered}"}


@pytest.mark.case(12)
def test_one_study_uid_under_two_patient_ids_stays_two_studies(both: Hospital) -> None:
    both.patient("P-2")
    both.send(both.image(PatientID="P-1"), both.image(PatientID="P-2"))
    both.look()
    found = both.find("ImagingStudy", ("identifier", "urn:dicom:uid|urn:oid:1.2.3.1"))
    assert len(found) == 2
    assert len({study["subject"]["reference"] for study in found}) == 2
    assert [study["numberOfInstances"] for study in found] == [1, 1]


def test_a_late_series_of_another_modality_makes_a_new_version(lite: Hospital) -> None:
    order = lite.order()
    lite.send(lite.image(order))
    lite.settle()
    first = lite.study(uid(order))
    lite.send(_sibling(lite, order))
    lite.settle()
    study = lite.study(uid(order))
    assert lite.version(study) == lite.version(first) + 1
    assert [series["modality"]["code"] for series in study["series"]] == ["CT", "PT"]
    assert sorted(coding["code"] for coding in study["modality"]) == ["CT", "PT"]
    assert lite.reviews() == []


def _sibling(at: Hospital, order: dict[str, Any]) -> Dataset:
    image = at.archive.orthanc.dataset(at.archive.orthanc.instances_with_uid(f"{uid(order)[:50]}.1.1")[0],
                                       stop_before_pixels=False)  # fmt: skip
    image.SeriesInstanceUID, image.SOPInstanceUID = f"{uid(order)[:50]}.7", f"{uid(order)[:50]}.7.1"
    image.Modality, image.SeriesNumber = "PT", 7
    return image


@pytest.mark.case(19)
def test_a_step_of_another_modality_is_not_ended_by_these_images(lite: Hospital) -> None:
    order = lite.order()
    [step] = lite.find("Task")
    other = step | {"identifier": [{"system": step["identifier"][0]["system"], "value": "X-2"}]}
    other["input"] = [step["input"][0] | {"valueCodeableConcept": {"coding": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"}]}}]  # fmt: skip # noqa: E501
    second = {key: value for key, value in other.items() if key != "meta"} | {"id": "second-step"}
    lite.store.transact(lambda connection: resources.put(connection, second, cause="test"))
    image = other_study(lite.image(), uid(order)[:50] + ".1")
    image.StudyInstanceUID = uid(order)
    lite.send(image)
    lite.settle()
    image.SOPInstanceUID = f"{uid(order)[:50]}.1.2"
    lite.send(image)
    lite.settle()
    assert lite.read("Task", step["id"])["status"] == "completed"
    assert lite.read("Task", second["id"])["status"] == "accepted"


# --- repeats -----------------------------------------------------------------------------------------------------


@pytest.mark.case(9)
def test_a_duplicate_and_an_overwritten_image_make_no_new_version(lite: Hospital) -> None:
    image = lite.image()
    lite.send(image)
    lite.settle()
    before = lite.study("1.2.3.1")
    lite.send(image)
    lite.settle()
    lite.delete("instances", lite.archive.orthanc.instances_with_uid(image.SOPInstanceUID)[0])
    lite.send(image)
    sweep.sweep(lite.archive)
    lite.settle()
    assert lite.version(lite.study("1.2.3.1")) == lite.version(before)


@pytest.mark.case(47)
def test_versions_do_not_grow_with_the_number_of_images(lite: Hospital) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            lite.poll()
            if not arrivals.rebuild_one(lite.archive):
                stop.wait(0.01)

    worker = threading.Thread(target=work)
    worker.start()
    start = time.monotonic()
    for number in range(1, 61):
        lite.send(lite.image(number=number, InstanceNumber=number))
    wait_until(
        lambda: lite.find("ImagingStudy") and lite.study("1.2.3.1")["numberOfInstances"] == 60, "all sixty images"
    )
    took = time.monotonic() - start
    stop.set()
    worker.join()
    assert lite.version(lite.study("1.2.3.1")) <= 3 + took


# --- values that break the rules ---------------------------------------------------------------------------------


@pytest.mark.case(37)
@pytest.mark.parametrize(
    "attributes",
    [
        {"StudyDate": "2025.01.02"},
        {"StudyDate": "20251399", "StudyTime": "250000"},
        {"SeriesNumber": "1.0"},
        {"PatientName": "N" * 65},
        {"Modality": None},
        {"Modality": "C  T"},
        {"Modality": "CT\\MR"},
        {"StudyDescription": "with\x1b\ttab"},
        {"StudyInstanceUID": "1.2.3.1", "TimezoneOffsetFromUTC": "+9999"},
        {"PatientID": "", "PatientBirthDate": "00000000", "PatientSex": "?"},
        {"SOPInstanceUID": "1.2.bad_uid"},
    ],
    ids=lambda attributes: "-".join(attributes),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_invalid_value_does_not_park_the_study(lite: Hospital, attributes: dict[str, Any]) -> None:
    image = lite.image()
    for keyword, value in attributes.items():
        if value is None:
            delattr(image, keyword)
        else:
            tag = tag_for_keyword(keyword)
            assert tag
            image.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE))
    content = phantoms.part10(image)
    lite.send(content)
    lite.look()
    study = lite.study("1.2.3.1")
    assert (study["status"], study["numberOfInstances"]) == ("available", 1)
    assert study["series"][0]["modality"]["code"]


@pytest.mark.case(37)
def test_a_number_that_is_none_does_not_park_the_study(lite: Hospital) -> None:
    lite.send(phantoms.part10(lite.image(SeriesNumber=9977)).replace(b"9977", b"99AB"))
    lite.look()
    assert "number" not in lite.study("1.2.3.1")["series"][0]


@pytest.mark.case(36)
@pytest.mark.parametrize(
    ("charset", "encoding", "family"),
    [
        ("ISO_IR 100", "latin-1", "Größe"),
        ("ISO_IR 192", "utf-8", "Łukasiewicz"),
        ("ISO_IR 144", "iso8859_5", "Иванов"),
        ("GB18030", "gb18030", "王"),
    ],
)
def test_names_are_read_in_their_character_set(lite: Hospital, charset: str, encoding: str, family: str) -> None:
    image = lite.image(PatientID="CS", SpecificCharacterSet=charset, PatientName=f"{family}^Eva")
    lite.send(image)
    lite.look()
    reference = lite.study("1.2.3.1")["subject"]["reference"]
    assert lite.read("Patient", reference.removeprefix("Patient/"))["name"][0]["family"] == family


@pytest.mark.case(36)
def test_bytes_outside_the_character_set_do_not_park_the_study(lite: Hospital) -> None:
    marked = phantoms.part10(lite.image(PatientID="CS", StudyDescription="MARKMARKMARK"))
    lite.send(marked.replace(b"MARKMARKMARK", b"ab\xff\xfe\xe9\xc3cdefgh"[:12]))
    lite.look()
    assert lite.study("1.2.3.1")["status"] == "available"


@pytest.mark.case(32)
def test_a_copy_that_the_archive_anonymised_is_linked_to_nobody(lite: Hospital) -> None:
    order = lite.order()
    lite.send(lite.image(order))
    lite.settle()
    lite.pacs.post(f"/studies/{lite.orthanc_id(uid(order))}/anonymize", json={}).raise_for_status()
    lite.settle()
    [copy] = [one for one in lite.find("ImagingStudy") if imaging_study.uid_of(one) != uid(order)]
    assert "basedOn" not in copy
    assert copy["subject"]["reference"] != f"Patient/{lite.patient_id}"
    assert lite.reviews() == ["anonymised-copy"]


# --- losing the thread -------------------------------------------------------------------------------------------


@pytest.mark.case(2)
def test_a_worker_that_dies_between_poll_and_rebuild_is_followed_by_one_that_ends_the_same(both: Hospital) -> None:
    order = both.order()
    both.send(both.image(order))
    both.poll()
    claimed = both.store.transact(sync.claim)
    assert claimed is not None
    expired = sync.dirty_study.update().values(claimed_until=0)
    both.store.transact(lambda tx: tx.execute(expired))
    both.restart()
    both.owner = "test"
    both.settle()
    assert both.study(uid(order))["status"] == "available"
    assert both.store.transact(sync.waiting) == 0


@pytest.mark.case(43)
def test_two_workers_publish_two_studies_of_one_unknown_patient(both: Hospital) -> None:
    for number in range(6):
        both.send(other_study(both.image(PatientID="STRANGER"), f"1.7.{number}"))
    both.poll()
    both.hurry()
    problems: list[Exception] = []

    def work(at: Archive) -> None:
        try:
            while arrivals.rebuild_one(at):
                pass
        except Exception as error:  # noqa: BLE001 - told below
            problems.append(error)

    workers = [
        threading.Thread(target=work, args=(Archive(both.store, both.archive.orthanc, both.archive.site),))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = both.find("ImagingStudy")
    assert problems == []
    assert len(found) == 6
    assert len({study["subject"]["reference"] for study in found}) == 1
    assert both.store.transact(sync.waiting) == 0


@pytest.mark.case(43)
def test_a_worker_whose_claim_ran_out_does_not_overwrite_what_was_seen_later(lite: Hospital) -> None:
    lite.send(lite.image())
    lite.poll()
    stale = lite.store.transact(sync.claim)
    assert stale is not None
    old = arrivals.archive.outline(lite.archive.orthanc, stale.orthanc_id)
    assert old is not None
    lite.store.transact(lambda tx: tx.execute(sync.dirty_study.update().values(claimed_until=0, due=0)))
    lite.send(lite.image(number=2))
    lite.rebuild()
    facts = [imaging_study.SeriesFacts(one.uid, Dataset(), one.instances) for one in old.series]
    lite.store.transact(lambda tx: arrivals._publish(lite.archive.site, tx, arrivals.Look(stale, old, facts, facts)))
    assert lite.study("1.2.3.1")["numberOfInstances"] == 2


@pytest.mark.case(14)
def test_an_accession_number_of_an_unknown_issuer_is_not_taken_for_ours(lite: Hospital) -> None:
    order = lite.order()
    issuer = Dataset()
    issuer.LocalNamespaceEntityID = "ELSEWHERE"
    image = other_study(lite.image(order, IssuerOfAccessionNumberSequence=[issuer]), "1.9.8.4")
    lite.send(image)
    lite.look()
    assert worklist.accession(order) == image.AccessionNumber
    assert "basedOn" not in lite.study("1.9.8.4")
