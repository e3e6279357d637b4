"""Searches of a foreign client on images that real modalities might have made: every sign, every level, every grant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from app.dicom import finding
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.gateway import GRANTS, Running, publish, register, scoped, serving
from tests.orthanc.phantoms import CT_IMAGE, image, part10

pytestmark = pytest.mark.orthanc

MRN = "urn:isocenter:mrn"
# Study: Patient ID, name, character set, description, referring physician, accession number.
WARD: dict[str, tuple[str, str, str, str, str, str]] = {
    "1.2.40.1": ("A 1", "Buc^Jérôme", "ISO_IR 100", "CT HEAD", "Refer^Rita", "ACC+1"),
    "1.2.40.2": ("A*2", "Yamada^Tarou=山田^太郎=やまだ^たろう", "ISO_IR 192", "Tête & cou", "Müller^Jörg", "50%"),
    "1.2.40.3": ("K,3", "Иванов^Пётр", "ISO_IR 144", "МР Колено", "Refer^Rita", "A^3"),
    "1.2.40.4": ("D-4", "Doe^John^^Dr.", "", "CT HEAD AND NECK", "", ""),
}
ONE = "1.2.40.2"


def images(study: str) -> Iterator[Dataset]:
    mrn, name, charset, description, referring, accession = WARD[study]
    for series, modality, number in ((1, "CT", 1), (1, "CT", 2), (2, "SR", 1)):
        made = image(mrn=mrn, study=study, series=f"{study}.{series}", instance=f"{study}.{series}.{number}")
        made.SpecificCharacterSet = charset or "ISO_IR 100"
        made.PatientName, made.StudyDescription = name, description
        made.ReferringPhysicianName, made.AccessionNumber = referring, accession
        made.StudyDate, made.TimezoneOffsetFromUTC = f"2026030{study[-1]}", "+0100"
        made.SeriesNumber, made.Modality, made.BodyPartExamined = series, modality, "HEAD" if series == 1 else ""
        made.PatientAge, made.PerformedProcedureStepStartDate = "056Y", "20260301"
        request = Dataset()
        request.ScheduledProcedureStepID, request.RequestedProcedureID = f"SPS {series}", "RP"
        made.RequestAttributesSequence = [request]
        yield made


@pytest.fixture(scope="module")
def running(orthanc: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(orthanc, tmp_path_factory.mktemp("qido")) as running:
        for study in list(running.archive.study_ids()):
            running.archive.delete_study(study)
        # One patient is registered, with a number of another authority beside; the others only images tell of.
        numbers = [{"system": MRN, "value": "D-4"}, {"system": "urn:isocenter:issuer:X", "value": "OLD"}]
        register(
            running.store, "doe", identifier=numbers, name=[{"family": "Doe", "given": ["John"], "prefix": ["Dr."]}]
        )
        for study in WARD:
            for made in images(study):
                running.archive.store(part10(made))
        publish(running.archive, running.store)
        GRANTS["doe"] = scoped("patient/ImagingStudy.rs", patient_id="doe")
        GRANTS["yamada"] = scoped("system/ImagingStudy.rs", studies=frozenset({ONE}))
        yield running
        del GRANTS["doe"], GRANTS["yamada"]
        for study in list(running.archive.study_ids()):
            running.archive.delete_study(study)


def foreign(running: Running, grant: str = "system") -> DICOMwebClient:
    return DICOMwebClient(f"{running.url}/dicom-web", headers={"Authorization": f"Bearer {grant}"})


def uids(results: list[dict[str, Any]], tag: str = "0020000D") -> list[str]:
    return sorted(one[tag]["Value"][0] for one in results)


@pytest.mark.parametrize(
    ("keyword", "value", "found"),
    [
        ("PatientName", "Buc^Jérôme", "1"),
        ("PatientName", "buc^jerome", "1"),
        ("PatientName", "Buc*", "1"),
        ("PatientName", "Buc^J?r?me", "1"),
        ("PatientName", "山田^太郎", "2"),
        ("PatientName", "*=山田*", "2"),
        ("PatientName", "やまだ^*", "2"),
        ("PatientName", "YAMADA^TAROU", "2"),
        ("PatientName", "иванов*", "3"),
        ("PatientName", "Doe^John^^Dr.", "4"),
        ("PatientName", "*", "1234"),
        ("PatientName", "", "1234"),
        ("PatientName", "Nobody", ""),
        ("PatientID", "A 1", "1"),
        ("PatientID", "A?*", "12"),
        ("PatientID", "K,3", "3"),
        ("PatientID", "a 1", ""),
        ("AccessionNumber", "ACC+1", "1"),
        ("AccessionNumber", "50%", "2"),
        ("AccessionNumber", "A^3", "3"),
        ("AccessionNumber", "A*", "13"),
        ("StudyDescription", "CT HEAD", "1"),
        ("StudyDescription", "CT HEAD*", "14"),
        ("StudyDescription", "Tête & cou", "2"),
        ("StudyDescription", "*Колено", "3"),
        ("ReferringPhysicianName", "refer^*", "13"),
        ("ReferringPhysicianName", "Muller^Jorg", "2"),
        ("StudyDate", "20260302-20260303", "23"),
        ("StudyDate", "-20260301", "1"),
        ("StudyTime", "101500", "1234"),
        ("ModalitiesInStudy", "SR,MR", "1234"),
        ("ModalitiesInStudy", "MR", ""),
        ("SOPClassesInStudy", "1.2.840.10008.5.1.4.1.1.2", "1234"),
        ("PatientBirthDate", "19700101", "123"),
        ("PatientSex", "O", "123"),
        ("StudyID", "S1", "1234"),
        ("NumberOfStudyRelatedInstances", "3", "1234"),
        ("00080050", "A^3", "3"),
        ("0020000d", "1.2.40.1,1.2.40.3", "13"),
    ],
)
@pytest.mark.ps318("8.3.1", "8.3.4.1")
def test_a_foreign_client_finds_studies_by_any_sign(running: Running, keyword: str, value: str, found: str) -> None:
    results = foreign(running).search_for_studies(search_filters={keyword: value})
    assert uids(results) == [f"1.2.40.{number}" for number in found]


@pytest.mark.ps318("8.8", "8.6.2.1")
def test_names_in_every_script_are_told_as_they_are(running: Running) -> None:
    results = foreign(running).search_for_studies(fields=["PatientAge"])
    names = {one["0020000D"]["Value"][0]: one["00100010"]["Value"] for one in results}
    assert names == {
        "1.2.40.1": [{"Alphabetic": "Buc^Jérôme"}],
        "1.2.40.2": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}],
        "1.2.40.3": [{"Alphabetic": "Иванов^Пётр"}],
        "1.2.40.4": [{"Alphabetic": "Doe^John^^Dr."}],
    }
    assert {one["00101010"]["Value"][0] for one in results} == {"056Y"}, "no index has it: a header was read"


@pytest.mark.ps318("10.6.1.1")
def test_series_and_instances_are_found_at_the_root_and_below_a_study(running: Running) -> None:
    client = foreign(running)
    assert len(client.search_for_series()) == 8
    assert len(client.search_for_instances()) == 12
    by_study = {"PatientID": "A*2", "Modality": "CT"}
    assert uids(client.search_for_series(search_filters=by_study), "0020000E") == [f"{ONE}.1"]
    assert uids(client.search_for_instances(search_filters={**by_study, "InstanceNumber": "2"}), "00080018") == [
        f"{ONE}.1.2"
    ]
    assert uids(client.search_for_instances(search_filters={"SOPInstanceUID": f"{ONE}.2.1"}), "00080018") == [
        f"{ONE}.2.1"
    ]
    for narrow in ({"SeriesNumber": "2"}, {"BodyPartExamined": "HEAD"}, {"SeriesDescription": "ax*"}):
        at_root = {
            one for one in uids(client.search_for_series(search_filters=narrow), "0020000E") if one.startswith(ONE)
        }
        assert at_root == set(uids(client.search_for_series(ONE, search_filters=narrow), "0020000E"))
    assert len(client.search_for_instances(ONE)) == 3
    assert len(client.search_for_instances(ONE, f"{ONE}.1", search_filters={"SOPClassUID": f"1.2.3,{CT_IMAGE}"})) == 2


@pytest.mark.ps318("10.6.3.3")
def test_results_have_what_their_level_requires(running: Running) -> None:
    client = foreign(running)
    [study] = client.search_for_studies(search_filters={"StudyInstanceUID": ONE})
    assert study["00081190"]["Value"] == [f"{running.url}/dicom-web/studies/{ONE}"]
    assert (study["00080056"]["Value"], study["00080201"]["Value"]) == (["ONLINE"], ["+0100"])
    assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([2], [3])
    assert study["00080061"]["Value"] == ["CT", "SR"]
    assert study["00080090"]["Value"] == [{"Alphabetic": "Müller^Jörg"}]
    series = client.search_for_series(ONE, fields=["RequestAttributesSequence", "00400244"])[0]
    assert series["00081190"]["Value"] == [f"{running.url}/dicom-web/studies/{ONE}/series/{ONE}.1"]
    assert (series["00080060"]["Value"], series["00200011"]["Value"], series["00201209"]["Value"]) == (["CT"], [1], [2])
    assert series["00400275"]["Value"][0]["00400009"] == {"vr": "SH", "Value": ["SPS 1"]}
    assert series["00400244"] == {"vr": "DA", "Value": ["20260301"]}
    [instance] = client.search_for_instances(ONE, f"{ONE}.2")
    assert instance["00080016"]["Value"] == ["1.2.840.10008.5.1.4.1.1.2"]
    assert [instance[tag]["Value"] for tag in ("00280010", "00280011", "00280100", "00200013")] == [[4], [4], [16], [1]]
    at_root = client.search_for_instances(search_filters={"SOPInstanceUID": f"{ONE}.2.1"})[0]
    assert {"00100020", "00080020", "00080060", "00080018"} <= set(at_root), "the address leaves open whose it is"


def test_a_number_of_another_authority_finds_its_patient_too(running: Running) -> None:
    client = foreign(running, "doe")
    [study] = client.search_for_studies(fields=["OtherPatientIDsSequence"])
    assert study["00100020"]["Value"] == ["D-4"]
    assert client.search_for_studies(search_filters={"PatientID": "A 1"}) == []


@pytest.mark.ps318("8.11")
def test_every_grant_sees_its_own_only(running: Running) -> None:
    for grant, own in (("doe", "1.2.40.4"), ("yamada", ONE)):
        client = foreign(running, grant)
        for filters in (
            {},
            {"PatientName": "*"},
            {"StudyInstanceUID": ",".join(WARD)},
            {"ReferringPhysicianName": "*"},
        ):
            assert set(uids(client.search_for_studies(search_filters=filters, fields=["all"]))) == {own}
            assert set(uids(client.search_for_series(search_filters=filters))) == {own}
            assert set(uids(client.search_for_instances(search_filters=filters, limit=1))) == {own}
    with running.client("observations") as client:
        assert client.get("/dicom-web/studies").status_code == 403


@pytest.mark.parametrize("path", ["studies", "series", "instances", f"studies/{ONE}/instances"])
@pytest.mark.ps318("8.3.4.4")
def test_pages_join_to_the_whole(running: Running, path: str) -> None:
    with running.client("system") as client:
        whole = client.get(f"/dicom-web/{path}").json()
        at, pages = 0, []
        while page := client.get(f"/dicom-web/{path}", params={"limit": 2, "offset": at}):
            assert (finding.MORE in page.headers.get("warning", "")) is (at + 2 < len(whole))
            if not page.json():
                break
            pages += page.json()
            at += 2
    assert pages == whole


@pytest.mark.ps318("8.3.4.2", "10.6.3.2")
def test_what_the_standard_says_to_warn_of_is_warned_of(running: Running) -> None:
    with running.client("system") as client:
        answer = client.get("/dicom-web/studies", params={"PatientName": "Buk^Jerome", "fuzzymatching": "true"})
    assert answer.json() == []
    assert answer.headers["warning"] == f"299 {running.url}/dicom-web: {finding.NOT_FUZZY}"


@pytest.mark.parametrize(
    ("accept", "status"),
    [("application/dicom+json", 200), ("application/json", 200), ("*/*", 200),
     ('multipart/related; type="application/dicom+xml"', 406), ("application/dicom+xml", 406)],
)  # fmt: skip
@pytest.mark.ps318("8.7.3.2", "8.4.1.1")
def test_json_is_the_only_form(running: Running, accept: str, status: int) -> None:
    with running.client("system") as client:
        assert client.get("/dicom-web/studies", headers={"Accept": accept}).status_code == status


@pytest.mark.ps318("8.3.2")
def test_a_refusal_names_the_parameter(running: Running) -> None:
    with running.client("system") as client:
        answer = client.get("/dicom-web/studies?PatientNmae=A")
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert "PatientNmae" in answer.text


def test_the_archive_is_asked_a_few_times_for_a_page_and_never_for_each_study(running: Running) -> None:
    asked: list[str] = []
    send = running.gateway.orthanc._wire.send

    def counted(method: str, path: str, **more: Any) -> Any:
        asked.append(path)
        return send(method, path, **more)

    running.gateway.orthanc._wire.send = counted  # type: ignore[method-assign]
    try:
        with running.client("system") as client:
            for path, most in (
                ("studies", 1),
                ("studies?ReferringPhysicianName=*R*", 1),
                ("series", 2),
                ("instances?SOPInstanceUID=9", 0),
            ):
                asked.clear()
                assert client.get(f"/dicom-web/{path}").status_code == httpx.codes.OK
                assert len(asked) <= most, path
    finally:
        running.gateway.orthanc._wire.send = send  # type: ignore[method-assign]


def test_a_study_the_archive_has_lost_is_told_of_as_unavailable_until_it_is_withdrawn(running: Running) -> None:
    lost = image(mrn="A 1", study="1.2.40.9", series="1.2.40.9.1", instance="1.2.40.9.1.1")
    stored = running.archive.store(part10(lost))
    publish(running.archive, running.store)
    running.archive.delete_study(stored.study_orthanc_id)
    client = foreign(running)
    [study] = client.search_for_studies(search_filters={"StudyInstanceUID": "1.2.40.9"}, fields=["PatientAge"])
    assert study["00080056"]["Value"] == ["UNAVAILABLE"]
    assert client.search_for_series(search_filters={"StudyInstanceUID": "1.2.40.9"}) == []
    with running.client("system") as plain:
        assert plain.get("/dicom-web/studies/1.2.40.9/series").status_code == httpx.codes.NOT_FOUND
