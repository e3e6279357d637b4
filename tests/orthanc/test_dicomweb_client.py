"""A client we did not write, dicomweb-client: each of its calls, with the values that break other servers.

Orthanc 1.10.1 alone does not decode `%5E`, `%2A`, `%20` and accents in a query and finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from PIL import Image
from pydicom.dataset import Dataset

from tests.hostile.credentials import Mint
from tests.hostile.server import serving
from tests.hostile.world import World, empty, fill
from tests.orthanc.conftest import Orthanc
from tests.orthanc.phantoms import image, part10, report
from tests.processes import free_port

pytestmark = pytest.mark.orthanc

STUDY, PLAIN = "2.25.771001", "2.25.771002"
NAME = "Buc^Jérôme François"
DESCRIPTION = "CT HEAD & NECK 100% (w/o+w) ^angio*"
NUMBER = "A 17/b+c"


def dataset(study: str, series: int, number: int) -> Dataset:
    """The first study's patient has accents, its texts every sign that an address has to encode."""
    made = image(
        mrn="MRN 5^x", study=study, series=f"{study}.{series}", instance=f"{study}.{series}.{number}", frames=2
    )
    made.PatientName, made.StudyDescription, made.AccessionNumber = NAME, DESCRIPTION, NUMBER
    made.ReferringPhysicianName, made.SeriesDescription = "Müller-Łęcka^Žofie", f"série {series}"
    made.SeriesNumber, made.StudyID = series, "S 1"
    if study == PLAIN:
        made.PatientID, made.PatientName, made.StudyDescription = "P-2", "DOE^JOHN", "plain"
        made.AccessionNumber, made.ReferringPhysicianName = "17", "Refer^Rita"
    return made


@dataclass(frozen=True, slots=True)
class Site:
    """The running server and the client's two views of it."""

    world: World
    reader: DICOMwebClient
    writer: DICOMwebClient


@pytest.fixture(scope="module")
def site(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("client")
    with empty(orthanc, folder, free_port()) as world:
        fill(world, [dataset(uid, series, number) for uid in (STUDY, PLAIN) for series in (1, 2) for number in (1, 2)])
        mint = Mint(world)
        mint.register()

        def client(scope: str) -> DICOMwebClient:
            headers = {"Authorization": f"Bearer {mint.token(mint.grant(scope))}"}
            return DICOMwebClient(f"http://127.0.0.1:{world.settings.port}/dicom-web", headers=headers)

        with serving(world, folder / "serve.log"):
            yield Site(world, client("system/ImagingStudy.rs"), client("system/ImagingStudy.rus"))


@pytest.fixture
def client(site: Site) -> DICOMwebClient:
    return site.reader


def uids(found: list[dict[str, dict[str, object]]], tag: str = "0020000D") -> list[object]:
    return [one["Value"][0] for one in (each[tag] for each in found)]  # type: ignore[index]


@pytest.mark.ps318("8.3.4.1", "10.6.1")
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", NAME),
        ("PatientName", "Buc^*"),
        ("PatientName", "buc^jérôme*"),
        ("PatientName", "*Jér?me*"),
        ("PatientName", "Buc*"),
        ("PatientID", "MRN 5^x"),
        ("StudyDescription", DESCRIPTION),
        ("StudyDescription", "CT HEAD*"),
        ("StudyDescription", "*100% (w/o+w)*"),
        ("AccessionNumber", NUMBER),
        ("ReferringPhysicianName", "Müller-Łęcka^Žofie"),
        ("ReferringPhysicianName", "Müller*"),
        ("StudyID", "S 1"),
        ("00100010", "Buc^Jérôme*"),
        ("00081030", DESCRIPTION),
    ],
)
def test_values_with_every_sign_find_their_study(client: DICOMwebClient, keyword: str, value: str) -> None:
    found = client.search_for_studies(search_filters={keyword: value})
    assert STUDY in uids(found)
    assert len(found) == (2 if keyword == "StudyID" else 1)
    series = client.search_for_series(search_filters={keyword: value, "SeriesNumber": "2"})
    assert f"{STUDY}.2" in uids(series, "0020000E")


@pytest.mark.ps318("8.3.4.1")
@pytest.mark.parametrize("value", ["DOE^JOHN", "DOE*", "doe^john", "D?E^*"])
def test_a_plain_name_finds_only_its_own_study(client: DICOMwebClient, value: str) -> None:
    assert uids(client.search_for_studies(search_filters={"PatientName": value})) == [PLAIN]


@pytest.mark.ps318("8.3.4.1", "10.6.2")
def test_what_is_nowhere_finds_nothing(client: DICOMwebClient) -> None:
    for value in ("Bux^*", "* *x", "Jérôme^Buc"):
        assert client.search_for_studies(search_filters={"PatientName": value}) == []


@pytest.mark.ps318("8.3.4.3", "8.3.4.4")
def test_pages_and_more_attributes_are_understood(client: DICOMwebClient) -> None:
    assert len(client.search_for_studies(limit=1)) == 1
    pages = [client.search_for_studies(limit=1, offset=at) for at in (0, 1, 2)]
    assert sorted(uid for page in pages for uid in uids(page)) == sorted([STUDY, PLAIN])
    (study,) = client.search_for_studies(
        fields=["StudyDescription", "00100010"], search_filters={"PatientName": "Buc*"}
    )
    assert study["00081030"]["Value"] == [DESCRIPTION]
    assert study["00100010"]["Value"] == [{"Alphabetic": NAME}]


@pytest.mark.ps318("10.6.1.1")
def test_series_and_instances_are_found_at_every_level(client: DICOMwebClient) -> None:
    assert uids(client.search_for_series(STUDY), "0020000E") == [f"{STUDY}.1", f"{STUDY}.2"]
    assert len(client.search_for_series()) == 4
    assert len(client.search_for_instances(STUDY)) == 4
    assert len(client.search_for_instances(STUDY, f"{STUDY}.2")) == 2
    assert len(client.search_for_instances()) == 8
    assert len(client.search_for_instances(STUDY, search_filters={"InstanceNumber": "2"})) == 2


@pytest.mark.ps318("10.4.1.1.1")
def test_studies_series_and_instances_are_retrieved(client: DICOMwebClient) -> None:
    assert len(client.retrieve_study(STUDY)) == 4
    assert len(client.retrieve_series(STUDY, f"{STUDY}.1")) == 2
    one = client.retrieve_instance(STUDY, f"{STUDY}.1", f"{STUDY}.1.2")
    assert (one.PatientName, one.StudyDescription) == (NAME, DESCRIPTION)
    assert {each.SOPInstanceUID for each in client.iter_study(STUDY)} == {
        f"{STUDY}.{s}.{i}" for s in (1, 2) for i in (1, 2)
    }
    assert len(list(client.iter_series(STUDY, f"{STUDY}.2"))) == 2


@pytest.mark.ps318("8.7.3.5.2")
def test_media_types_with_transfer_syntaxes_are_negotiated(client: DICOMwebClient) -> None:
    for syntax in ("1.2.840.10008.1.2.1", "*"):
        one = client.retrieve_instance(
            STUDY, f"{STUDY}.1", f"{STUDY}.1.1", media_types=(("application/dicom", syntax),)
        )
        assert one.SOPInstanceUID == f"{STUDY}.1.1"


@pytest.mark.ps318("10.4.1.1.2")
def test_metadata_is_read_at_every_level_and_is_a_dataset(client: DICOMwebClient) -> None:
    assert len(client.retrieve_study_metadata(STUDY)) == 4
    assert len(client.retrieve_series_metadata(STUDY, f"{STUDY}.1")) == 2
    told = client.retrieve_instance_metadata(STUDY, f"{STUDY}.1", f"{STUDY}.1.1")
    read = Dataset.from_json(told, bulk_data_uri_handler=lambda *_: b"")
    assert (read.PatientName, read.AccessionNumber) == (NAME, NUMBER)


@pytest.mark.ps318("10.4.1.1.6")
def test_frames_are_retrieved_one_by_one_and_together(client: DICOMwebClient) -> None:
    place = (STUDY, f"{STUDY}.1", f"{STUDY}.1.1")
    first, second = client.retrieve_instance_frames(*place, [1, 2])
    assert first == second == f"{STUDY}.1.1".encode().ljust(32, b".")
    assert client.retrieve_instance_frames(*place, [2], media_types=("application/octet-stream",)) == [second]
    assert list(client.iter_instance_frames(*place, [1, 2])) == [first, second]


@pytest.mark.ps318("10.4.1.1.5")
def test_bulk_data_is_read_where_metadata_says_it_is(client: DICOMwebClient) -> None:
    told = client.retrieve_instance_metadata(STUDY, f"{STUDY}.1", f"{STUDY}.1.1")
    (whole,) = client.retrieve_bulkdata(told["7FE00010"]["BulkDataURI"].replace("localhost", "127.0.0.1"))
    assert whole == f"{STUDY}.1.1".encode().ljust(32, b".") * 2


@pytest.mark.ps318("10.4.1.1.3", "8.3.5.1.2")
def test_pictures_are_rendered_as_asked(client: DICOMwebClient) -> None:
    place = (STUDY, f"{STUDY}.1", f"{STUDY}.1.1")
    for media_type, start in (("image/jpeg", b"\xff\xd8"), ("image/png", b"\x89PNG")):
        assert client.retrieve_instance_rendered(*place, media_types=(media_type,)).startswith(start)
        assert client.retrieve_instance_frames_rendered(*place, [2], media_types=(media_type,)).startswith(start)
    picture = client.retrieve_instance_rendered(*place, media_types=("image/png",), params={"viewport": "8,8"})
    assert np.asarray(Image.open(BytesIO(picture))).shape[:2] == (8, 8)
    assert client.retrieve_series_rendered(STUDY, f"{STUDY}.1", media_types=("image/jpeg",))


@pytest.mark.ps318("10.5.1", "10.5.3.3")
def test_what_is_stored_is_found_and_comes_back(site: Site) -> None:
    document = report(
        mrn="MRN 5^x", study=STUDY, series=f"{STUDY}.9", instance=f"{STUDY}.9.1", text="größer als 5 µm ^ *"
    )
    document.PatientName = NAME
    stored = site.writer.store_instances([pydicom.dcmread(BytesIO(part10(document)))], study_instance_uid=STUDY)
    assert stored.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.9.1"
    back = site.reader.retrieve_instance(STUDY, f"{STUDY}.9", f"{STUDY}.9.1")
    assert back.TextValue == "größer als 5 µm ^ *"
    document.SOPInstanceUID = f"{STUDY}.9.2"
    both = [pydicom.dcmread(BytesIO(part10(one))) for one in (document, dataset(STUDY, 5, 1))]
    told = site.writer.store_instances(both)
    assert told.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.9.2"
    assert told.FailedSOPSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.5.1"
