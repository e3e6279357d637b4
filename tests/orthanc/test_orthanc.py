"""The REST client against the real archive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.dicom.orthanc import Orthanc
from app.errors import ArchiveUnavailable, BadRequest, NotFound
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.phantoms import image, part10
from tests.processes import free_port

pytestmark = pytest.mark.orthanc


@pytest.fixture
def client(clean_orthanc: Archive) -> Iterator[Orthanc]:
    with Orthanc(clean_orthanc.url, clean_orthanc.username, clean_orthanc.password) as client:
        yield client


def test_a_stored_instance_is_found_under_its_study_and_series(client: Orthanc) -> None:
    stored = client.store(part10(image(mrn="A", study="1.2.3", series="1.2.3.1", instance="1.2.3.1.1")))
    assert stored.status == "Success"
    assert list(client.study_ids()) == [stored.study_orthanc_id]
    assert client.study(stored.study_orthanc_id)["MainDicomTags"]["StudyInstanceUID"] == "1.2.3"
    (series,) = client.series_of(stored.study_orthanc_id)
    assert series["Instances"] == [stored.orthanc_id]
    (instance,) = client.bulk_content("Instance", series["Instances"])
    assert instance["MainDicomTags"]["SOPInstanceUID"] == "1.2.3.1.1"
    assert instance["Metadata"]["SopClassUid"] == "1.2.840.10008.5.1.4.1.1.2"
    assert client.tags(stored.orthanc_id)["0010,0020"]["Value"] == "A"
    assert client.dataset(stored.orthanc_id).PatientID == "A"
    assert "PixelData" not in client.dataset(stored.orthanc_id)
    assert [found.orthanc_id for found in client.lookup("1.2.3.1.1")] == [stored.orthanc_id]
    assert client.parent("instances", stored.orthanc_id, "study")["ID"] == stored.study_orthanc_id


def test_storing_twice_changes_nothing(client: Orthanc) -> None:
    content = part10(image(mrn="A", study="1.2.3", series="1.2.3.1", instance="1.2.3.1.1"))
    first = client.store(content)
    assert client.store(content).status == "AlreadyStored"
    assert client.statistics()["CountInstances"] == 1
    assert first.orthanc_id


def test_changes_are_read_in_pages(client: Orthanc) -> None:
    before = client.last_change()
    client.store(part10(image(mrn="A", study="1.2.3", series="1.2.3.1", instance="1.2.3.1.1")))
    page = client.changes(before, limit=1)
    assert len(page["Changes"]) == 1
    assert page["Done"] is False
    assert client.last_change() > before


def test_what_is_gone_is_not_found(client: Orthanc) -> None:
    stored = client.store(part10(image(mrn="A", study="1.2.3", series="1.2.3.1", instance="1.2.3.1.1")))
    client.delete_study(stored.study_orthanc_id)
    client.delete_study(stored.study_orthanc_id)
    client.delete_instance(stored.orthanc_id)
    with pytest.raises(NotFound):
        client.tags(stored.orthanc_id)
    assert client.bulk_content("Instance", [stored.orthanc_id]) == []
    assert client.bulk_content("Instance", []) == []


def test_bytes_that_are_not_dicom_are_refused(client: Orthanc) -> None:
    with pytest.raises(BadRequest):
        client.store(b"not DICOM")


def test_an_archive_that_does_not_answer_is_unavailable() -> None:
    with Orthanc(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(ArchiveUnavailable):
        client.system()


def test_a_refused_credential_is_said_so(orthanc: Archive) -> None:
    with (
        Orthanc(orthanc.url, "isocenter", "wrong") as client,
        pytest.raises(ArchiveUnavailable, match="refuses our credential"),
    ):
        client.system()
