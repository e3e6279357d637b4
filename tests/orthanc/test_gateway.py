"""The DICOMweb gateway in front of the real archive: what it gives, and what it never gives."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import httpx
import pydicom
import pytest
from dicomweb_client import DICOMwebClient

from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.gateway import TWIN, Running, U, V, filled
from tests.orthanc.phantoms import image, part10, report

pytestmark = pytest.mark.orthanc

STUDY, SERIES, INSTANCE = f"/dicom-web/studies/{U}", f"/series/{U}.1", f"/instances/{U}.1.1"
ANY_DICOM = "multipart/related; type=application/dicom; transfer-syntax=*"
OHIF_FRAMES = "multipart/related; type=application/octet-stream; transfer-syntax=*"


@pytest.fixture(scope="module")
def running(orthanc: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with filled(orthanc, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


def foreign(running: Running, grant: str = "one-study") -> DICOMwebClient:
    return DICOMwebClient(f"{running.url}/dicom-web", headers={"Authorization": f"Bearer {grant}"})


# What it gives


@pytest.mark.ps318("10.4.1.1.1", "10.6.1.1")
def test_a_foreign_client_finds_and_retrieves_the_granted_study(running: Running) -> None:
    client = foreign(running)
    (study,) = client.search_for_studies(search_filters={"PatientName": "patient*"}, fields=["StudyDescription"])
    assert study["0020000D"]["Value"] == [U]
    assert study["00080061"]["Value"] == ["CT"]
    assert [s["0020000E"]["Value"] for s in client.search_for_series(U)] == [[f"{U}.1"], [f"{U}.2"]]
    assert len(client.search_for_instances(U, f"{U}.1")) == 2
    metadata = client.retrieve_study_metadata(U)
    assert [one["00080018"]["Value"][0] for one in metadata] == [f"{U}.{s}.{i}" for s in (1, 2) for i in (1, 2)]
    (frame,) = client.retrieve_instance_frames(U, f"{U}.1", f"{U}.1.2", [2])
    assert frame.startswith(f"{U}.1.2.".encode())
    assert client.retrieve_instance(U, f"{U}.1", f"{U}.1.1").PatientID == "A"
    assert {dataset.SeriesInstanceUID for dataset in client.retrieve_study(U)} == {f"{U}.1", f"{U}.2"}
    assert client.retrieve_instance_rendered(U, f"{U}.1", f"{U}.1.1").startswith(b"\xff\xd8")
    bulk = client.retrieve_bulkdata(f"{running.url}{STUDY}{SERIES}{INSTANCE}/bulkdata/7FE00010")
    assert len(bulk[0]) == 96


@pytest.mark.ps318("8.3.4.3", "10.6.1.1")
def test_what_ohif_asks_is_answered(client: httpx.Client) -> None:
    query = {"limit": "101", "offset": "0", "fuzzymatching": "false", "includefield": "00081030,00080060"}
    (study,) = client.get("/dicom-web/studies", params={**query, "StudyInstanceUID": U}).json()
    assert study["00081030"]["Value"] == ["CT of a phantom"]
    assert client.get("/dicom-web/studies", params={**query, "00100020": "A"}).json() == [study]
    series = client.get(f"{STUDY}/series", params={"includefield": "00081030,00080060,00080021"}).json()
    assert [one["00201209"]["Value"] for one in series] == [[2], [2]]
    metadata = client.get(f"{STUDY}{SERIES}/metadata")
    assert metadata.headers["content-type"] == "application/dicom+json"
    frame = client.get(f"{STUDY}{SERIES}{INSTANCE}/frames/1", headers={"Accept": OHIF_FRAMES})
    assert f"{U}.1.1....".encode() in frame.content
    assert b"transfer-syntax=1.2.840.10008.1.2.1" in frame.content


@pytest.mark.ps318("10.4.3")
def test_every_answer_is_private_and_only_pixels_may_be_kept_to_be_asked_for_again(client: httpx.Client) -> None:
    kept, lists = "private, no-cache", "private, no-store"
    pixels = {f"{STUDY}{SERIES}{INSTANCE}/frames/1": kept, f"{STUDY}/rendered": kept}
    for path, expected in {"/dicom-web/studies": lists, f"{STUDY}/metadata": lists, **pixels}.items():
        response = client.get(path)
        assert response.headers["cache-control"] == expected, path
        assert ("etag" in response.headers) == (expected == kept), path
        assert response.headers["vary"] == "Authorization, Cookie, Accept", path


@pytest.mark.ps318("10.4.1.1.2")
def test_addresses_in_metadata_are_the_gateways_own(running: Running, client: httpx.Client) -> None:
    response = client.get(f"{STUDY}/metadata")
    assert running.gateway.upstream._url not in response.text
    for instance in response.json():
        place = f"{running.url}{STUDY}/series/{instance['0020000E']['Value'][0]}/instances/"
        place += instance["00080018"]["Value"][0]
        assert instance["00081190"]["Value"] == [place]
        assert instance["7FE00010"] == {"vr": "OW", "BulkDataURI": f"{place}/bulkdata/7FE00010"}


@pytest.mark.ps318("10.6.3.3")
def test_search_answers_carry_the_required_attributes_and_no_patient_counters(client: httpx.Client) -> None:
    (study,) = client.get("/dicom-web/studies", params={"includefield": "all"}).json()
    required = "00080020 00080030 00080050 00080056 00080061 00080090 00081190 00100010 00100020 00100030 00100040"
    assert set(required.split()) | {"0020000D", "00200010", "00201206", "00201208"} <= set(study)
    assert not {"00201200", "00201202", "00201204"} & set(study)
    (instance, *_) = client.get(f"{STUDY}{SERIES}/instances").json()
    assert (instance["00280010"]["Value"], instance["00280008"]["Value"]) == ([4], [3])


@pytest.mark.case(50)
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"PatientID": "A"}, True),
        ({"PatientID": "B"}, False),
        ({"00100020": "B"}, False),
        ({"StudyInstanceUID": V}, False),
        ({"0020000d": f"{V},{U}"}, True),
        ({"PatientName": "PATIENT^?"}, True),
        ({"PatientName": "Other*"}, False),
        ({"AccessionNumber": "ACC3"}, True),
        ({"StudyDate": "20260101-20261231"}, True),
        ({"StudyDate": "-20251231"}, False),
        ({"StudyTime": "10-11"}, True),
        ({"ModalitiesInStudy": "CT"}, True),
        ({"ModalitiesInStudy": "MR"}, False),
        ({"offset": "1"}, False),
        ({"limit": "0"}, False),
        ({"fuzzymatching": "true", "includefield": "all"}, True),
    ],
)
@pytest.mark.ps318("8.3.4.1", "10.6.2")
def test_a_search_finds_the_granted_study_or_nothing(client: httpx.Client, query: dict[str, str], found: bool) -> None:
    response = client.get("/dicom-web/studies", params=query)
    assert [study["0020000D"]["Value"] for study in response.json()] == ([[U]] if found else [])


@pytest.mark.parametrize(
    "query",
    ["NoSuchKeyword=3", "SOPInstanceUID=1.2", "limit=-1", "limit=x", "PatientID=A&PatientID=B", "StudyDate=March",
     "includefield=Nonsense", "fuzzymatching=maybe", "00100020=%FF", "PatientID=A&NoSuch=1", "77777777=1"],
)  # fmt: skip
@pytest.mark.ps318("8.3.2")
def test_a_query_that_is_not_understood_is_refused(client: httpx.Client, query: str) -> None:
    assert client.get(f"/dicom-web/studies?{query}").status_code == 400


@pytest.mark.ps318("10.6.1.1")
def test_searches_at_the_root_stay_below_the_granted_study(client: httpx.Client) -> None:
    assert {one["0020000D"]["Value"][0] for one in client.get("/dicom-web/series").json()} == {U}
    instances = client.get("/dicom-web/instances", params={"SeriesInstanceUID": f"{U}.2"}).json()
    assert [one["00080018"]["Value"][0] for one in instances] == [f"{U}.2.1", f"{U}.2.2"]
    assert client.get("/dicom-web/instances", params={"SOPInstanceUID": f"{V}.1.1"}).json() == []


def test_a_patients_grant_finds_all_studies_of_that_patient_only(running: Running) -> None:
    with running.client("patient") as client:
        studies = client.get("/dicom-web/studies").json()
    assert {(one["0020000D"]["Value"][0], one["00100020"]["Value"][0]) for one in studies} == {
        (U, "A"),
        (V, "A"),
        (TWIN, "A"),
    }


@pytest.mark.ps318("8.3.4.4")
def test_pages_of_a_search_join_without_gap(running: Running) -> None:
    with running.client("system") as client:
        whole = client.get("/dicom-web/studies").json()
        pages = [client.get("/dicom-web/studies", params={"limit": 2, "offset": at}).json() for at in (0, 2, 4)]
    assert len(whole) == 5
    assert [study for page in pages for study in page] == whole


@pytest.mark.ps318("8.7.3.1", "10.4.1.1.1")
def test_stored_bytes_are_sent_unchanged(running: Running, client: httpx.Client) -> None:
    stored = part10(image(mrn="A", study=U, series=f"{U}.1", instance=f"{U}.1.1", frames=3))
    for accept in (ANY_DICOM, 'multipart/related; type="application/dicom"; transfer-syntax=*', ANY_DICOM + ", */*"):
        response = client.get(STUDY + SERIES, headers={"Accept": accept})
        assert response.headers["content-type"].startswith('multipart/related; type="application/dicom"')
        assert response.content.count(b"application/dicom; transfer-syntax=1.2.840.10008.1.2.1") == 2
        assert stored in response.content
    single = client.get(STUDY + SERIES + INSTANCE, headers={"Accept": "application/dicom"})
    assert single.content == stored


@pytest.mark.ps318("8.7.3.5.2")
def test_another_transfer_syntax_is_made_when_asked_for(client: httpx.Client) -> None:
    lossless = "1.2.840.10008.1.2.4.70"
    accept = {"Accept": f"application/dicom; transfer-syntax={lossless}"}
    dataset = pydicom.dcmread(BytesIO(client.get(STUDY + SERIES + INSTANCE, headers=accept).content))
    assert dataset.file_meta.TransferSyntaxUID == lossless
    assert dataset.SOPInstanceUID == f"{U}.1.1"


@pytest.mark.ps318("8.7.3.3", "10.4.1.1.6")
def test_compressed_frames_come_as_stored_or_decoded(running: Running, client: httpx.Client) -> None:
    plain = image(mrn="A", study=U, series=f"{U}.8", instance=f"{U}.8.1", frames=2)
    stored = running.archive.store(part10(plain))
    packed = pydicom.dcmread(BytesIO(running.archive.transcoded(stored.orthanc_id, "1.2.840.10008.1.2.4.70")))
    packed.SOPInstanceUID = packed.file_meta.MediaStorageSOPInstanceUID = f"{U}.8.2"
    buffer = BytesIO()
    packed.save_as(buffer)
    compressed = running.archive.store(buffer.getvalue())
    try:
        path = f"{STUDY}/series/{U}.8/instances/{U}.8.2/frames/2"
        for accept in (OHIF_FRAMES, "multipart/related; type=image/jpeg", "*/*, " + OHIF_FRAMES + ";q=1"):
            answer = client.get(path, headers={"Accept": accept})
            if accept.startswith("*/*"):
                assert f"{U}.8.1....".encode() in answer.content
            else:
                assert b"\xff\xd8" in answer.content
                assert b"transfer-syntax=1.2.840.10008.1.2.4.70" in answer.content
        little = client.get(path, headers={"Accept": "application/octet-stream"})
        assert little.content == f"{U}.8.1".encode().ljust(32, b".")
        assert client.get(path, headers={"Accept": "image/jp2"}).status_code == 406
    finally:
        running.archive.delete_instance(compressed.orthanc_id)
        running.archive.delete_instance(stored.orthanc_id)


@pytest.mark.parametrize(
    ("path", "accept", "start"),
    [
        ("/rendered", "image/png", b"\x89PNG"),
        ("/rendered?viewport=2,2&window=40,400", "image/jpeg", b"\xff\xd8"),
        ("/thumbnail", "*/*", b"\xff\xd8"),
        (f"{SERIES}/rendered", "image/*", b"\xff\xd8"),
        (f"{SERIES}/thumbnail", "image/png", b"\x89PNG"),
        (f"{SERIES}{INSTANCE}/rendered", "*/*", b"\xff\xd8"),
        (f"{SERIES}{INSTANCE}/thumbnail?viewport=16,16", "*/*", b"\xff\xd8"),
        (f"{SERIES}{INSTANCE}/frames/3/rendered", "image/png", b"\x89PNG"),
        (f"{SERIES}{INSTANCE}/frames/3/thumbnail", "*/*", b"\xff\xd8"),
    ],
)
@pytest.mark.ps318("8.7.4", "10.4.1.1.3", "10.4.1.1.4")
def test_pictures_are_rendered(client: httpx.Client, path: str, accept: str, start: bytes) -> None:
    response = client.get(STUDY + path, headers={"Accept": accept})
    assert response.status_code == 200
    assert response.content.startswith(start)


@pytest.mark.parametrize(
    ("path", "accept", "status"),
    [
        ("/metadata", "application/dicom+xml", 406),
        ("", "application/zip", 406),
        ("", "image/jpeg", 406),
        (f"{SERIES}{INSTANCE}/frames/1", "image/png", 406),
        (f"{SERIES}{INSTANCE}/frames/4", "*/*", 404),
        (f"{SERIES}{INSTANCE}/frames/4/rendered", "*/*", 404),
        (f"{SERIES}{INSTANCE}/rendered", "image/webp", 406),
        ("/rendered?viewport=0,0", "*/*", 400),
        ("/rendered?annotation=patient", "*/*", 400),
        (f"{SERIES}{INSTANCE}/bulkdata/00420011", "*/*", 404),
        (f"{SERIES}{INSTANCE}/frames/1", 'text/"', 400),
    ],
)
@pytest.mark.ps318("8.4.1.1", "8.5")
def test_what_cannot_be_given_is_said_so(client: httpx.Client, path: str, accept: str, status: int) -> None:
    assert client.get(STUDY + path, headers={"Accept": accept}).status_code == status


def test_an_object_that_has_just_arrived_is_served(running: Running, client: httpx.Client) -> None:
    client.get(f"{STUDY}/metadata")
    stored = running.archive.store(part10(report(mrn="A", study=U, series=f"{U}.9", instance=f"{U}.9.1")))
    try:
        assert client.get(f"{STUDY}/series/{U}.9/metadata").json()[0]["00080018"]["Value"] == [f"{U}.9.1"]
        assert len(client.get(f"{STUDY}/series").json()) == 3
        for suffix in ("frames/1", "thumbnail", "frames/1/rendered"):
            assert client.get(f"{STUDY}/series/{U}.9/instances/{U}.9.1/{suffix}").status_code == 404
        assert client.get(f"{STUDY}/thumbnail").status_code == 200
    finally:
        running.archive.delete_instance(stored.orthanc_id)


def test_the_viewers_mount_names_itself_and_takes_its_cookie(running: Running) -> None:
    with httpx.Client(base_url=running.url, cookies={"viewer": "one-study"}, trust_env=False) as client:
        response = client.get(f"/v/abc/dicom-web/studies/{U}{SERIES}/metadata")
    url = response.json()[0]["00081190"]["Value"][0]
    assert url == f"{running.url}/v/abc/dicom-web/studies/{U}{SERIES}{INSTANCE}"
    with running.client("one-study") as client:
        assert client.get("/v/abc/dicom-web/studies").status_code == 401


# What it never gives


@pytest.mark.case(12)
@pytest.mark.ps318("8.11")
def test_one_uid_of_two_patients_shows_only_the_granted_patients_study(running: Running) -> None:
    with running.client("twin") as client:
        path = f"/dicom-web/studies/{TWIN}"
        for metadata in client.get(f"{path}/metadata").json():
            assert metadata["00100020"]["Value"] == ["A"]
        assert len(client.get(f"{path}/metadata").json()) == 4
        whole = client.get(path, headers={"Accept": ANY_DICOM}).content
        assert whole.count(b"Patient^A") == 4
        assert b"Patient^B" not in whole
        assert client.get(f"{path}/series/{TWIN}.1/instances/{TWIN}.1.1/frames/1").status_code == 200
        assert [one["00100020"]["Value"] for one in client.get("/dicom-web/studies").json()] == [["A"]]
    with running.client("system") as client:
        assert client.get(f"/dicom-web/studies/{TWIN}/metadata").status_code == 409
