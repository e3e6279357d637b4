"""STOW-RS through the gateway into the real archive."""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import httpx
import pydicom
import pydicom.examples
import pytest
from dicomweb_client import DICOMwebClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from app.dicom import stow
from app.dicom.multipart import Limits, MediaType, Part
from app.dicom.spool import Content, Spool
from app.store import studies
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.gateway import GRANTS, TWIN, Running, U, V, Z, filled
from tests.orthanc.phantoms import COMPREHENSIVE_SR, image, part10, report

pytestmark = pytest.mark.orthanc

MARK = "frontier"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
RELATED = f'multipart/related; type="application/dicom"; boundary={MARK}'


@pytest.fixture(scope="module")
def running(orthanc: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with filled(orthanc, tmp_path_factory.mktemp("stow")) as running:
        yield running


def everything(running: Running) -> set[str]:
    series = [one for study in running.archive.study_ids() for one in running.archive.series_of(study)]
    return {instance for one in series for instance in one["Instances"]}


@pytest.fixture(autouse=True)
def as_before(running: Running) -> Iterator[None]:
    before = everything(running)
    running.dirty.clear()
    running.records.clear()
    yield
    for instance in everything(running) - before:
        running.archive.delete_instance(instance)


def body(*contents: bytes, part_type: str = "application/dicom") -> bytes:
    parts = [f"--{MARK}\r\nContent-Type: {part_type}\r\n\r\n".encode() + content + b"\r\n" for content in contents]
    return b"".join(parts) + f"--{MARK}--\r\n".encode()


def send(
    running: Running, content: bytes, *, grant: str = "writer", study: str | None = U, kind: str = RELATED
) -> httpx.Response:
    path = f"/dicom-web/studies/{study}" if study else "/dicom-web/studies"
    with running.client(grant) as client:
        return client.post(path, content=content, headers={"Content-Type": kind, "Accept": "application/dicom+json"})


def sr(**changed: str) -> Dataset:
    return report(**({"mrn": "A", "study": U, "series": f"{U}.9", "instance": f"{U}.9.1"} | changed))


def failures(response: httpx.Response) -> list[int]:
    answer = response.json()
    items = answer.get("00081198", {}).get("Value", []) + answer.get("0008119A", {}).get("Value", [])
    return [item["00081197"]["Value"][0] for item in items]


def held(running: Running) -> dict[str, int]:
    return {
        f"{content['MainDicomTags']['StudyInstanceUID']}/{content['PatientMainDicomTags']['PatientID']}": sum(
            len(series["Instances"]) for series in running.archive.series_of(content["ID"])
        )
        for content in map(running.archive.study, running.archive.study_ids())
    }


BEFORE = {f"{U}/A": 4, f"{V}/A": 4, f"{Z}/B": 4, f"{TWIN}/A": 4, f"{TWIN}/B": 4}


@pytest.mark.ps318("10.5.2")
def test_a_report_saved_by_a_viewer_lands_in_its_study_and_is_read_back(running: Running) -> None:
    content = part10(sr())
    response = send(running, body(content))
    assert response.status_code == 200
    answer = response.json()
    assert answer["00081190"]["Value"] == [f"{running.url}/dicom-web/studies/{U}"]
    (referenced,) = answer["00081199"]["Value"]
    assert referenced["00081155"]["Value"] == [f"{U}.9.1"]
    assert "00081198" not in answer
    assert held(running) == BEFORE | {f"{U}/A": 5}
    with running.client("writer") as client:
        (metadata,) = client.get(f"/dicom-web/studies/{U}/series/{U}.9/metadata").json()
        assert metadata["0040A160"]["Value"] == ["seen"]
        stored = client.get(
            referenced["00081190"]["Value"][0], headers={"Accept": "application/dicom; transfer-syntax=*"}
        )
    assert stored.content == content


def test_who_stored_it_is_known_and_the_study_is_marked(running: Running) -> None:
    content = part10(sr())
    send(running, body(content))
    with running.store.read() as connection:
        stowed = studies.stowed(connection, f"{U}.9.1")
    assert stowed == studies.Stowed(f"{U}.9.1", U, "g", "app", None, hashlib.sha256(content).hexdigest())
    (orthanc_id,) = running.dirty
    assert running.archive.study(orthanc_id)["MainDicomTags"]["StudyInstanceUID"] == U
    (record,) = [record for record in running.records if record.action == "store"]
    assert (record.outcome, record.study_uid, record.detail) == ("allowed", U, {"stored": 1, "failed": 0})


@pytest.mark.ps318("10.5.1")
def test_a_foreign_client_stores(running: Running) -> None:
    client = DICOMwebClient(f"{running.url}/dicom-web", headers={"Authorization": "Bearer writer"})
    answer = client.store_instances([pydicom.dcmread(BytesIO(part10(sr())))], U)
    assert answer.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"{U}.9.1"


@pytest.mark.parametrize(
    ("kind", "part_type"),
    [
        (f"multipart/related; type=application/dicom; boundary={MARK}", "application/dicom"),
        (f'multipart/related; boundary="{MARK}"; type="application/dicom"', "application/dicom"),
        (RELATED, "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"),
        (RELATED, 'application/dicom; transfer-syntax="1.2.840.10008.1.2.1"'),
    ],
)
@pytest.mark.ps318("8.6.1", "10.5.1")
def test_every_usual_way_to_name_the_parts_is_understood(running: Running, kind: str, part_type: str) -> None:
    assert send(running, body(part10(sr()), part_type=part_type), kind=kind).status_code == 200
    assert held(running)[f"{U}/A"] == 5


def test_implicit_vr_objects_are_stored(running: Running) -> None:
    assert send(running, body(part10(sr(), ImplicitVRLittleEndian))).status_code == 200


def picture(*, pixels: bytes | None = None, sop_class: str = SECONDARY_CAPTURE) -> Dataset:
    dataset = image(mrn="A", study=U, series=f"{U}.9", instance=f"{U}.9.1")
    dataset.SOPClassUID = sop_class
    if pixels is not None:
        dataset.PixelData = pixels
    return dataset


def compressed() -> Dataset:
    dataset = picture(pixels=encapsulate([b"\xff\xd8 no true picture \xff\xd9"]))
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return dataset


@pytest.mark.parametrize(
    ("dataset", "syntax"),
    [
        (sr, ImplicitVRLittleEndian),
        (sr, ExplicitVRBigEndian),
        (picture, ExplicitVRBigEndian),
        (compressed, JPEGBaseline8Bit),
        (compressed, RLELossless),
        (compressed, UID("1.2.840.10008.1.2.4.203")),
        (compressed, UID("1.2.3.4.5.6.7")),
    ],
)
@pytest.mark.ps318("10.5.2")
def test_every_transfer_syntax_is_stored_as_it_is(
    running: Running, dataset: Callable[[], Dataset], syntax: UID
) -> None:
    content = written(dataset(), syntax)
    response = send(running, body(content))
    assert (response.status_code, failures(response)) == (200, [])
    (orthanc_id,) = running.archive.instances_with_uid(f"{U}.9.1")
    assert running.archive.file(orthanc_id) == content


def written(dataset: Dataset, syntax: UID) -> bytes:
    """The file in a syntax that pydicom may not know: then that of JPEG, under its name."""
    if syntax.is_transfer_syntax:
        return part10(dataset, syntax)
    octets = part10(dataset, JPEGBaseline8Bit)
    known, other = (f"{uid}\0".encode() if len(uid) % 2 else uid.encode() for uid in (JPEGBaseline8Bit, syntax))
    old, new = (b"\x10\x00UI" + len(uid).to_bytes(2, "little") + uid for uid in (known, other))
    length = int.from_bytes(octets[140:144], "little") + len(new) - len(old)
    return octets[:140] + length.to_bytes(4, "little") + octets[144:].replace(old, new)


def test_what_may_be_stored_is_up_to_the_site(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    private, ct = "1.2.826.0.1.3680043.9.9.1", "1.2.840.10008.5.1.4.1.1.2"
    contents = [part10(picture(sop_class=one)) for one in (ct, private)] + [part10(sr())]
    for named, told in (
        (["evidence"], [[stow.CLASS_NOT_SUPPORTED], [stow.CLASS_NOT_SUPPORTED], []]),
        ([private], [[stow.CLASS_NOT_SUPPORTED], [], [stow.CLASS_NOT_SUPPORTED]]),
        (["evidence", ct], [[], [stow.CLASS_NOT_SUPPORTED], []]),
        (["all"], [[], [], []]),
    ):
        rules = replace(running.gateway.rules, classes=stow.accepted_classes(named))
        monkeypatch.setattr(running.gateway, "rules", rules)
        for content, expected in zip(contents, told, strict=True):
            assert failures(send(running, body(content))) == expected
            for instance in running.archive.instances_with_uid(f"{U}.9.1"):
                running.archive.delete_instance(instance)


OHIF = Path("tests/data/dicom/ohif-3.13")


def test_what_viewers_and_toolkits_write_is_stored_byte_for_byte(running: Running) -> None:
    seen = pydicom.examples.ct
    stored = running.archive.store(part10(Dataset(seen), seen.file_meta.TransferSyntaxUID))
    row = studies.HeldStudy(stored.study_orthanc_id, seen.StudyInstanceUID, "study-ct", "p1")
    running.store.transact(lambda connection: studies.put(connection, row, digest="d"))
    contents = {file.name: file.read_bytes() for file in sorted(OHIF.rglob("*.dcm"))}
    assert len(contents) >= 3
    response = send(running, body(*contents.values()), grant="patient-writer", study=row.study_uid)
    assert (response.status_code, failures(response)) == (200, [])
    kept = {running.archive.file(one) for one in everything(running)}
    assert set(contents.values()) <= kept


@pytest.mark.ps318("10.5.1", "8.6.1")
def test_one_object_alone_is_a_body_too(running: Running) -> None:
    content = part10(sr())
    assert send(running, content, kind="application/dicom; transfer-syntax=1.2.840.10008.1.2.1").status_code == 200
    assert held(running)[f"{U}/A"] == 5
    response = send(running, b"no DICOM", kind="application/dicom")
    assert (response.status_code, failures(response)) == (409, [stow.CANNOT_UNDERSTAND])
    assert send(running, b"", kind="application/dicom").status_code == 400


@pytest.mark.parametrize("accept", [None, "*/*", "application/*", "application/dicom+json", "application/json;q=0.5"])
@pytest.mark.ps318("10.5.3.3")
def test_the_answer_is_json_for_whoever_can_take_it(running: Running, accept: str | None) -> None:
    with running.client("writer") as client:
        del client.headers["Accept"]
        headers = {"Content-Type": RELATED} | ({"Accept": accept} if accept else {})
        response = client.post(f"/dicom-web/studies/{U}", content=body(part10(sr())), headers=headers)
    assert response.status_code == 200
    assert response.headers["Content-Type"] in {"application/dicom+json", "application/json"}
    assert "no-store" in response.headers["Cache-Control"]


def test_who_cannot_take_json_stores_nothing(running: Running) -> None:
    with running.client("writer") as client:
        headers = {"Content-Type": RELATED, "Accept": "application/dicom+xml"}
        assert client.post(f"/dicom-web/studies/{U}", content=body(part10(sr())), headers=headers).status_code == 406
    assert held(running) == BEFORE


def test_a_patient_id_is_compared_as_text_in_whatever_characters_it_is_written(running: Running) -> None:
    first = image(mrn="Ä7", study="1.2.9", series="1.2.9.1", instance="1.2.9.1.1")
    stored = running.archive.store(part10(first))
    row = studies.HeldStudy(stored.study_orthanc_id, "1.2.9", "study-9", "p1")
    running.store.transact(lambda connection: studies.put(connection, row, digest="d"))
    names = {"mrn": "Ä7", "study": "1.2.9", "series": "1.2.9.9", "instance": "1.2.9.9.1"}
    latin = sr(**names)
    latin.SpecificCharacterSet = "ISO_IR 100"
    assert send(running, body(part10(latin)), grant="patient-writer", study="1.2.9").status_code == 200
    cyrillic = sr(**names | {"mrn": "Ж7"})
    cyrillic.SpecificCharacterSet = "ISO_IR 144"
    response = send(running, body(part10(cyrillic)), grant="patient-writer", study="1.2.9")
    assert failures(response) == [stow.MISMATCH]


def test_the_name_of_the_patient_is_not_compared(running: Running) -> None:
    document = sr()
    document.PatientName = "Else^Spelled"
    assert send(running, body(part10(document))).status_code == 200


def twice() -> bytes:
    octets = part10(sr())
    at = octets.index(b"\x10\x00\x20\x00LO")
    element = octets[at : at + 10]
    return octets[:at] + element + octets[at:]


def wrong_meta() -> bytes:
    return part10(sr()).replace(f"{U}.9.1".encode(), f"{U}.9.2".encode(), 1)


def nested(depth: int) -> Dataset:
    document, level = sr(), Dataset()
    document.ContentSequence = [level]
    for _ in range(depth):
        level.ContentSequence = [Dataset()]
        level = level.ContentSequence[0]
    return document


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: part10(nested(80)), stow.CANNOT_UNDERSTAND),
        (lambda: part10(sr(study=V)), stow.MISMATCH),
        (lambda: part10(sr(study=Z, mrn="B")), stow.MISMATCH),
        (lambda: part10(sr(mrn="B")), stow.MISMATCH),
        (lambda: part10(sr(mrn="a")), stow.MISMATCH),
        (lambda: part10(sr(series=f"{V}.1")), stow.MISMATCH),
        (lambda: part10(sr(instance=f"{U}.1.1")), stow.DUPLICATE),
        (lambda: part10(sr(instance=f"{Z}.1.1")), stow.DUPLICATE),
        (lambda: part10(image(mrn="A", study=U, series=f"{U}.9", instance=f"{U}.9.1")), stow.CLASS_NOT_SUPPORTED),
        (wrong_meta, stow.MISMATCH),
        (lambda: b"not DICOM at all", stow.CANNOT_UNDERSTAND),
        (lambda: part10(sr())[:400], stow.CANNOT_UNDERSTAND),
        (lambda: b"", stow.CANNOT_UNDERSTAND),
        (twice, stow.CANNOT_UNDERSTAND),
        (lambda: part10(sr()) + b"trailing garbage", stow.CANNOT_UNDERSTAND),
        (lambda: part10(sr())[:-1], stow.CANNOT_UNDERSTAND),
        (lambda: part10(picture())[:-2], stow.CANNOT_UNDERSTAND),
        (lambda: part10(picture(pixels=b"few bytes.")), stow.MISMATCH),
        (lambda: part10(compressed(), JPEGBaseline8Bit)[:-8], stow.CANNOT_UNDERSTAND),
        (lambda: part10(sr(instance="1.2..3")), stow.CANNOT_UNDERSTAND),
        (lambda: part10(sr(series="1.2.3.")), stow.CANNOT_UNDERSTAND),
    ],
)  # fmt: skip
@pytest.mark.ps318("I.2", "10.5.2")
def test_an_object_that_does_not_belong_is_refused_and_changes_nothing(running: Running, content, reason: int) -> None:
    response = send(running, body(content()))
    assert response.status_code == 409
    assert failures(response) == [reason]
    assert held(running) == BEFORE
    assert running.dirty == []


def test_an_issuer_that_is_not_the_studys_is_refused(running: Running) -> None:
    first = image(mrn="I", study="1.2.8", series="1.2.8.1", instance="1.2.8.1.1")
    first.IssuerOfPatientID = "HOSP"
    stored = running.archive.store(part10(first))
    row = studies.HeldStudy(stored.study_orthanc_id, "1.2.8", "study-8", "p1")
    running.store.transact(lambda connection: studies.put(connection, row, digest="d"))
    other = sr(mrn="I", study="1.2.8", series="1.2.8.9", instance="1.2.8.9.1")
    other.IssuerOfPatientID = "ELSEWHERE"
    assert failures(send(running, body(part10(other)), grant="patient-writer", study="1.2.8")) == [stow.MISMATCH]
    other.IssuerOfPatientID = "HOSP"
    assert send(running, body(part10(other)), grant="patient-writer", study="1.2.8").status_code == 200


def test_a_deflated_object_is_not_inflated(running: Running) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = COMPREHENSIVE_SR, f"{U}.9.1"
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = BytesIO(b"\0" * 128 + b"DICM")
    head.seek(132)
    write_file_meta_info(head, meta, enforce_standard=True)
    bomb = zlib.compressobj(wbits=-15)
    packed = bomb.compress(b"\0" * 50_000_000) + bomb.flush()
    response = send(running, body(head.getvalue() + packed))
    assert failures(response) == [stow.TRANSFER_SYNTAX_NOT_SUPPORTED]
    assert response.json()["00081198"]["Value"][0]["00081155"]["Value"] == [f"{U}.9.1"]


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ("Content-Type: application/dicom+json", stow.CANNOT_UNDERSTAND),
        ("Content-Type: multipart/related; type=application/dicom; boundary=x", stow.CANNOT_UNDERSTAND),
        ("Content-Transfer-Encoding: base64", stow.CANNOT_UNDERSTAND),
        ("Content-Length: 7", stow.CANNOT_UNDERSTAND),
        ("Content-Transfer-Encoding: binary\r\nContent-ID: <a>", 0),
        ("MIME-Version: 1.0", 0),
    ],
)
def test_a_part_says_what_it_is(running: Running, headers: str, told: int) -> None:
    good = part10(sr(instance=f"{U}.9.2"))
    part = f"--{MARK}\r\n{headers}\r\n\r\n".encode() + part10(sr()) + b"\r\n"
    response = send(running, part + body(good))
    assert (response.status_code, failures(response)) == ((202, [told]) if told else (200, []))


@pytest.mark.ps318("10.5.3.1", "I.2")
def test_good_objects_are_stored_beside_bad_ones(running: Running) -> None:
    response = send(running, body(part10(sr()), part10(sr(study=V, instance=f"{U}.9.2")), b"x"))
    assert response.status_code == 202
    assert failures(response) == [stow.MISMATCH, stow.CANNOT_UNDERSTAND]
    assert held(running) == BEFORE | {f"{U}/A": 5}


def test_what_is_sent_again_is_stored_once_and_is_a_success(running: Running) -> None:
    content = part10(sr())
    assert send(running, body(content, content)).status_code == 200
    running.records.clear()
    response = send(running, body(content))
    assert response.status_code == 200
    (referenced,) = response.json()["00081199"]["Value"]
    assert referenced["00081155"]["Value"] == [f"{U}.9.1"]
    assert [record.detail for record in running.records] == [{"stored": 1, "failed": 0, "known": 1}]
    assert held(running) == BEFORE | {f"{U}/A": 5}


def test_another_content_under_a_known_uid_is_a_duplicate_and_changes_nothing(running: Running) -> None:
    content = part10(sr())
    assert send(running, body(content, part10(sr(text="else")))).status_code == 202
    with running.store.read() as connection:
        first = studies.stowed(connection, f"{U}.9.1")
    for other in (sr(text="else"), sr(text="SEEN"), sr(series=f"{U}.8")):
        response = send(running, body(part10(other)))
        assert (response.status_code, failures(response)) == (409, [stow.DUPLICATE])
    (orthanc_id,) = running.archive.instances_with_uid(f"{U}.9.1")
    assert running.archive.file(orthanc_id) == content
    with running.store.read() as connection:
        assert studies.stowed(connection, f"{U}.9.1") == first


@pytest.mark.ps318("10.5.1")
def test_of_uploads_that_race_for_one_uid_one_wins_and_is_who_stored_it(running: Running) -> None:
    for round_ in range(4):
        name = f"{U}.9.{round_ + 20}"
        contents = [part10(sr(instance=name, text=f"by {number}")) for number in range(4)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda content: send(running, body(content)), contents))
        (winner,) = [content for content, answer in zip(contents, answers, strict=True) if answer.status_code == 200]
        assert [failures(answer) for answer in answers if answer.status_code != 200] == [[stow.DUPLICATE]] * 3
        (orthanc_id,) = running.archive.instances_with_uid(name)
        assert running.archive.file(orthanc_id) == winner
        who = recorded(running, name)
        assert who is not None
        assert who.sha256 == hashlib.sha256(winner).hexdigest()


def test_uploads_of_the_same_at_the_same_time_all_succeed(running: Running) -> None:
    content = part10(sr())
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: send(running, body(content)), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert held(running) == BEFORE | {f"{U}/A": 5}


def test_without_a_study_in_the_address_each_object_is_decided(running: Running) -> None:
    own, other = part10(sr()), part10(sr(study=V, series=f"{V}.9", instance=f"{V}.9.1"))
    response = send(running, body(own, other), study=None)
    assert (response.status_code, failures(response)) == (202, [stow.NOT_AUTHORIZED])
    response = send(running, body(other), study=None, grant="patient-writer")
    assert response.status_code == 200
    assert held(running) == BEFORE | {f"{U}/A": 5, f"{V}/A": 5}


def test_a_twin_gets_only_its_own_patients_objects(running: Running) -> None:
    mine = part10(sr(study=TWIN, series=f"{TWIN}.9", instance=f"{TWIN}.9.1"))
    other = part10(sr(study=TWIN, mrn="B", series=f"{TWIN}.9", instance=f"{TWIN}.9.2"))
    response = send(running, body(mine, other), grant="patient-writer", study=TWIN)
    assert (response.status_code, failures(response)) == (202, [stow.MISMATCH])
    assert held(running) == BEFORE | {f"{TWIN}/A": 5}


@pytest.mark.parametrize(("grant", "study"), [("one-study", U), ("writer", V), ("writer", Z), ("writer", "1.2.999")])
@pytest.mark.ps318("8.11")
def test_storing_needs_the_right_to_write_to_that_study(running: Running, grant: str, study: str) -> None:
    assert send(running, body(part10(sr(study=study))), grant=grant, study=study).status_code == 403
    assert held(running) == BEFORE
    assert [record.outcome for record in running.records] == ["denied"]


@pytest.mark.parametrize(
    "kind",
    ["application/dicom+json", f'multipart/related; type="application/dicom+json"; boundary={MARK}', "text/plain",
     f'multipart/related; type="application/dicom+xml"; boundary={MARK}', f"multipart/form-data; boundary={MARK}"],
)  # fmt: skip
@pytest.mark.ps318("8.5", "10.5.1")
def test_only_dicom_files_are_taken(running: Running, kind: str) -> None:
    assert send(running, body(part10(sr())), kind=kind).status_code == 415


@pytest.mark.parametrize(
    "content",
    [b"", b"--frontier--\r\n", b"--frontier\r\nContent-Type: application/dicom\r\n\r\nhalf", b"no boundary at all",
     b"--frontier garbage\r\n\r\n\r\n--frontier--\r\n", b"--frontier\r\n" + b"X: " + b"y" * 9000 + b"\r\n\r\n"],
)  # fmt: skip
@pytest.mark.ps318("8.5")
def test_a_broken_body_is_a_bad_request(running: Running, content: bytes) -> None:
    assert send(running, content).status_code == 400
    assert held(running) == BEFORE


@pytest.mark.parametrize("limits", [Limits(1000, 10**6, 10), Limits(10**6, 1000, 10), Limits(10**6, 10**6, 1)])
@pytest.mark.ps318("8.5")
def test_what_is_larger_than_a_limit_is_refused(
    running: Running, monkeypatch: pytest.MonkeyPatch, limits: Limits
) -> None:
    monkeypatch.setattr(running.gateway, "rules", replace(running.gateway.rules, limits=limits))
    content = part10(sr(text="x" * 1200))
    assert send(running, body(content, content)).status_code == 413
    assert held(running) == BEFORE


@pytest.mark.ps318("10.5.2")
@contextmanager
def on_its_way(running: Running, row: studies.HeldStudy, octets: bytes) -> Iterator[tuple[stow.Batch, stow.Thing]]:
    """An object that was checked and is about to be stored."""
    spool = Spool()
    asyncio.run(spool.write(octets))
    asyncio.run(spool.flush())
    content = Content(spool, 0, len(octets))
    sent, meta, outline = stow.read(Part(MediaType("application/dicom"), content))
    thing = stow.Thing(sent, meta, outline, content, row, running.gateway.holdings.read(row))
    door = stow.Door(running.store, running.archive, running.gateway.holdings, GRANTS["writer"])
    yield stow.Batch(door, row, lambda _: row), thing
    spool.close()


def known(running: Running, study_uid: str) -> studies.HeldStudy:
    with running.store.read() as connection:
        return next(row for row in studies.with_uid(connection, study_uid) if row.patient_id == "p1")


def recorded(running: Running, name: str) -> studies.Stowed | None:
    with running.store.read() as connection:
        return studies.stowed(connection, name)


def test_what_lands_elsewhere_is_removed_again(running: Running) -> None:
    # The archive's parser could see another patient than ours: as it does when a row names a wrong Orthanc id.
    elsewhere = part10(sr(mrn="B", study=TWIN, series=f"{TWIN}.9", instance=f"{TWIN}.9.7"))
    way = on_its_way(running, known(running, TWIN), elsewhere)
    with way as (batch, thing), pytest.raises(stow.Refused) as refused:
        batch._put(thing)
    assert refused.value.reason == stow.PROCESSING_FAILURE
    assert held(running) == BEFORE
    assert recorded(running, f"{TWIN}.9.7") is None


def test_another_process_may_be_quicker_with_the_same_or_with_something_else(running: Running) -> None:
    quicker, name = part10(sr(instance=f"{U}.9.8")), f"{U}.9.8"
    first = studies.Stowed(name, U, "other", "app", None, hashlib.sha256(quicker).hexdigest())
    running.store.transact(lambda connection: studies.record_stow(connection, first))
    running.archive.store(quicker)
    with on_its_way(running, known(running, U), quicker) as (batch, thing):
        assert batch._put(thing) is None
        assert batch.outcome.known == 1
    way = on_its_way(running, known(running, U), part10(sr(instance=name, text="else")))
    with way as (batch, thing), pytest.raises(stow.Refused) as refused:
        batch._put(thing)
    assert refused.value.reason == stow.DUPLICATE
    assert recorded(running, name) == first


@settings(
    max_examples=int(os.environ.get("ISOCENTER_STOW_FUZZ", "15")),
    deadline=None,
    derandomize="ISOCENTER_STOW_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_whatever_is_spoilt_lands_where_the_answer_says_or_nowhere(running: Running, data: st.DataObject) -> None:
    before = everything(running)
    octets = bytearray(part10(sr(), data.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(128, len(octets) - 1))
        match data.draw(st.sampled_from(["change", "cut", "double", "insert"])):
            case "change":
                octets[at] = data.draw(st.integers(0, 255))
            case "cut":
                del octets[at : at + data.draw(st.integers(1, 40))]
            case "double":
                octets[at:at] = octets[at : at + data.draw(st.integers(1, 80))]
            case _:
                octets[at:at] = data.draw(st.binary(min_size=1, max_size=12))
    response = send(running, body(bytes(octets)))
    new = everything(running) - before
    stored = [item["00081155"]["Value"][0] for item in response.json().get("00081199", {}).get("Value", [])]
    assert response.status_code == (200 if stored else 409)
    assert [running.archive.instance(one)["MainDicomTags"]["SOPInstanceUID"] for one in new] == stored
    for one in new:
        assert running.archive.file(one) == octets
        assert running.archive.parent("instances", one, "study")["MainDicomTags"]["StudyInstanceUID"] == U
        assert running.archive.parent("instances", one, "patient")["MainDicomTags"]["PatientID"] == "A"
        running.archive.delete_instance(one)
