"""Images of every kind, character set and oddity, through a real archive into ImagingStudies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from app.dicom import archive, uids
from app.dicom.orthanc import Orthanc
from app.fhir import resources
from app.fhir.mapping import terms
from app.store import sync
from app.workflow import sweep
from tests import pydicom_files
from tests.orthanc import phantoms
from tests.orthanc.hospital import Hospital, ids, lite, uid

__all__ = ["lite"]

pytestmark = pytest.mark.orthanc

Json = dict[str, Any]
DATA = Path(__file__).parents[1] / "data" / "dicom"
STUDY = "1.2.3.1"


def flags(study: Json) -> list[tuple[str, str]]:
    """Issue and attribute of each flag."""
    found = [one["extension"] for one in study.get("extension", []) if one["url"] == terms.QUALITY]
    return [(issue["valueCode"], attribute["valueString"]) for issue, attribute, *_ in found]


def spoiled(image: Dataset, charset: bytes = b"ISO_IR 192", **raw: bytes) -> bytes:
    """The image's file with these bytes as values, whatever they are."""
    marks = {keyword: f"{number}" * len(value) for number, (keyword, value) in enumerate(raw.items(), 1)}
    for keyword, mark in marks.items():
        setattr(image, keyword, "")
        image[keyword].VR = "PN" if keyword.endswith("Name") else "LO"
        image[keyword].value = mark
    content = phantoms.part10(image)
    declared = b"\x08\x00\x05\x00CS"
    pieces = {declared + b"\x0a\x00ISO_IR 192": declared + len(charset).to_bytes(2, "little") + charset}
    for old, new in (pieces | {mark.encode(): raw[keyword] for keyword, mark in marks.items()}).items():
        assert content.count(old) == 1
        content = content.replace(old, new)
    return content


# --- files of every kind -----------------------------------------------------------------------------------------


def test_every_file_that_pydicom_ships_becomes_a_study_or_is_refused_for_a_reason(lite: Hospital) -> None:
    refused: set[str] = set()
    for path in pydicom_files.paths():
        if lite.pacs.post("/instances", content=path.read_bytes()).status_code != httpx.codes.OK:
            refused.add(pydicom_files.name(path))
    assert refused == pydicom_files.REASONS.keys()
    lite.look()
    held = {one: lite.archive.orthanc.study(one) for one in lite.archive.orthanc.study_ids()}
    totals = {one: lite.pacs.get(f"/studies/{one}/statistics").json() for one in held}
    found = {one["id"]: one for one in lite.find("ImagingStudy")}
    published = {one: found[_imaging_study(lite, one)] for one in held}
    # One file pads its patient id as no other does: the archive has two studies there, FHIR one.
    alone = [one for one in held if sum(key(other) == key(held[one]) for other in held.values()) == 1]
    assert len(found) == len({key(one) for one in held.values()}) == len(alone) + 1 > 40
    for one in alone:
        study = published[one]
        counts = int(totals[one]["CountSeries"]), int(totals[one]["CountInstances"])
        assert (study["numberOfSeries"], study["numberOfInstances"]) == counts
        assert sum(len(series["instance"]) for series in study["series"]) == counts[1]


def key(study: Json) -> tuple[str, str]:
    """What makes a study one: its UID and its patient."""
    return study["MainDicomTags"]["StudyInstanceUID"], study["PatientMainDicomTags"].get("PatientID", "").strip()


def _imaging_study(hospital: Hospital, orthanc_id: str) -> str:
    with hospital.store.read() as connection:
        row = sync.known(connection, orthanc_id)
    assert row is not None
    return row.imaging_study_id


@pytest.mark.case(36)
@pytest.mark.parametrize(
    "name",
    sorted(path.name for path in (pydicom_files.FOLDER / "charset_files").glob("*.dcm") if "SQ" not in path.name),
)
def test_names_in_every_character_set_are_read_as_pydicom_reads_them(lite: Hospital, name: str) -> None:
    path = pydicom_files.FOLDER / "charset_files" / name
    lite.send(path.read_bytes())
    lite.look()
    [patient] = [one for one in lite.find("Patient") if one["id"] != lite.patient_id]
    groups = str(pydicom_files.read(path).PatientName).rstrip("=").split("=")
    families = [one["family"] for one in patient["name"]]
    assert families == [group.split("^")[0] for group in groups if group]
    assert "undecodable" not in {issue for [study] in [lite.find("ImagingStudy")] for issue, _ in flags(study)}


@pytest.mark.case(36)
@pytest.mark.parametrize(
    ("declared", "written", "shown", "flag"),
    [
        (b"ISO-IR 100", "Rüdiger^Äne".encode("latin-1"), "Äne Rüdiger", {"undeclared-charset"}),
        (b"ISO_IR 6", "Rüdiger^Ane".encode("latin-1"), "Ane R\N{REPLACEMENT CHARACTER}diger", {"undecodable"}),
        (b"ISO_IR 999", b"Ruediger^Ane", "Ane Ruediger", {"undeclared-charset"}),
        (b"ISO 2022 IR 100\\ISO 2022 IR 126", b"M\xfcller^\x1b\x2d\x46\xe1\xe2", "αβ Müller", set()),
        (b"ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾀﾛｳ ﾔﾏﾀﾞ", set()),
    ],
)
def test_what_the_archive_cannot_decode_is_read_from_the_file_and_what_nobody_can_is_marked(
    lite: Hospital, declared: bytes, written: bytes, shown: str, flag: set[str]
) -> None:
    # Even lengths, as DICOM wants them.
    declared, written = (one + b" " * (len(one) % 2) for one in (declared, written))
    lite.send(spoiled(lite.image(), declared, ReferringPhysicianName=written))
    lite.look()
    study = lite.study(STUDY)
    assert study["referrer"]["display"] == shown
    assert {issue for issue, _ in flags(study)} == flag


# --- values and UIDs that break their rules ----------------------------------------------------------------------


@pytest.mark.case(37)
def test_values_that_break_their_rules_cost_themselves_and_are_flagged(lite: Hospital) -> None:
    lite.send(spoiled(
        lite.image(), StudyDate=b"2025.01.02", StudyTime=b"24:00 ", SeriesNumber=b"one ", InstanceNumber=b" 1.0",
        TimezoneOffsetFromUTC=b"+9900 ",
    ))  # fmt: skip
    lite.look()
    study = lite.study(STUDY)
    assert study["started"] == "2025-01-02"
    assert study["series"][0]["instance"][0]["number"] == 1
    assert flags(study) == [
        ("invalid", "SeriesNumber"), ("invalid", "StudyTime"), ("invalid", "TimezoneOffsetFromUTC"),
    ]  # fmt: skip


@pytest.mark.case(37)
def test_an_image_without_a_modality_is_other_and_says_that_it_is_missing(lite: Hospital) -> None:
    lite.send(lite.image(Modality=""))
    lite.look()
    study = lite.study(STUDY)
    assert study["series"][0]["modality"]["code"] == "OT"
    assert flags(study) == [("missing", "Modality")]


@pytest.mark.case(38)
def test_spaces_and_nuls_around_uids_are_no_part_of_them(lite: Hospital) -> None:
    lite.send(
        spoiled(lite.image(), StudyInstanceUID=b"1.2.3.1 \0", SeriesInstanceUID=b"1.2.3.1.1\0", PatientID=b"P-1 ")
    )
    lite.send(lite.image(number=2))
    lite.look()
    studies = lite.find("ImagingStudy")
    assert {study["identifier"][0]["value"] for study in studies} == {f"urn:oid:{STUDY}"}
    assert {study["subject"]["reference"] for study in studies} == {f"Patient/{lite.patient_id}"}
    assert all(series["uid"] == "1.2.3.1.1" for study in studies for series in study["series"])


# --- who speaks for a study --------------------------------------------------------------------------------------


@pytest.mark.case(11)
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_of_images_that_disagree_the_same_one_is_believed_in_whatever_order_they_come(
    lite: Hospital, order: tuple[int, ...]
) -> None:
    says = {1: "Chest", 2: "Abdomen", 3: "Pelvis"}
    for number in order:
        name = {"PatientName": "Other^Name"} if number == 3 else {}
        lite.send(lite.image(number=number, StudyDescription=says[number], **name))
        lite.look()
    study = lite.study(STUDY)
    assert study["description"] == "Chest"
    assert flags(study) == [("conflict", "PatientName"), ("conflict", "StudyDescription")]
    assert lite.look() == 0


@pytest.mark.case(12)
def test_one_study_uid_under_two_patients_is_two_studies_that_know_nothing_of_each_other(lite: Hospital) -> None:
    other = lite.patient("P-2", "Zweite")
    lite.send(lite.image(), lite.image(PatientID="P-2", number=2, StudyDescription="another's"))
    lite.look()
    found = {one["subject"]["reference"]: one for one in lite.find("ImagingStudy")}
    assert found.keys() == {f"Patient/{lite.patient_id}", f"Patient/{other}"}
    mine, theirs = found[f"Patient/{lite.patient_id}"], found[f"Patient/{other}"]
    assert (mine["numberOfInstances"], theirs["numberOfInstances"]) == (1, 1)
    assert mine["description"] != theirs["description"] == "another's"
    assert flags(mine) == flags(theirs) == []


@pytest.mark.case(32)
def test_an_anonymised_copy_is_nobodys_and_says_so(lite: Hospital) -> None:
    order = lite.order()
    lite.send(lite.image(order))
    lite.look()
    lite.pacs.post(f"/studies/{lite.orthanc_id(uid(order))}/anonymize", json={}).raise_for_status()
    lite.look()
    [copy] = [one for one in lite.find("ImagingStudy") if one["id"] != lite.study(uid(order))["id"]]
    assert "basedOn" not in copy
    assert copy["subject"]["reference"] != f"Patient/{lite.patient_id}"
    assert ("anonymised", "PatientIdentityRemoved") in flags(copy)


@pytest.mark.case(40)
def test_reports_documents_segmentations_and_key_objects_are_counted_and_titled(lite: Hospital) -> None:
    files = {
        "generated/encapsulated_pdf.dcm", "generated/kos_of_interest.dcm", "generated/tid1500_1410_verified.dcm",
        "highdicom/seg_image_ct_binary.dcm",
    }  # fmt: skip
    lite.send(*((DATA / name).read_bytes() for name in sorted(files)), lite.image())
    dose = phantoms.report(mrn="P-1", study="1.2.3.7", series="1.2.3.7.1", instance="1.2.3.7.1.1")
    dose.SOPClassUID, concept = UID("1.2.840.10008.5.1.4.1.1.88.67"), Dataset()
    concept.CodeValue, concept.CodingSchemeDesignator = "113701", "DCM"
    concept.CodeMeaning = "X-Ray Radiation Dose Report"
    dose.ConceptNameCodeSequence = [concept]
    state = phantoms.report(mrn="P-1", study="1.2.3.7", series="1.2.3.7.2", instance="1.2.3.7.2.1")
    state.SOPClassUID, state.Modality, state.ContentLabel = UID("1.2.840.10008.5.1.4.1.1.11.1"), "PR", "BONE WINDOW"
    lite.send(dose, state)
    lite.look()
    titles = {
        instance["sopClass"]["code"].removeprefix("urn:oid:"): instance.get("title")
        for study in lite.find("ImagingStudy")
        for series in study["series"]
        for instance in series["instance"]
    }
    assert titles[uids.CT_IMAGE] is None
    assert {titles.pop("1.2.840.10008.5.1.4.1.1.88.67"), titles.pop("1.2.840.10008.5.1.4.1.1.11.1")} == {
        "X-Ray Radiation Dose Report", "BONE WINDOW",
    }  # fmt: skip
    assert all(titles[name] for name in titles if name != uids.CT_IMAGE), titles


# --- what is the server's and what is a client's -----------------------------------------------------------------


def test_what_a_client_says_of_readers_and_places_outweighs_the_images(lite: Hospital) -> None:
    named = {"NameOfPhysiciansReadingStudy": "Reader^Ron", "InstitutionalDepartmentName": "Radiology"}
    lite.send(lite.image(**named))
    lite.look()
    study = lite.study(STUDY)
    assert (study["interpreter"][0]["display"], study["location"]["display"]) == ("Ron Reader", "Radiology")
    reader = lite.write({"resourceType": "Practitioner", "name": [{"family": "Reader"}]})
    own = [{"reference": f"Practitioner/{reader['id']}"}]
    lite.write({name: value for name, value in study.items() if name != "location"} | {"interpreter": own})
    lite.send(lite.image(number=2, **named))
    lite.look()
    study = lite.study(STUDY)
    assert study["numberOfInstances"] == 2
    assert study["interpreter"] == own
    assert study["location"]["display"] == "Radiology"


def test_the_encounter_of_the_order_is_that_of_the_images(lite: Hospital) -> None:
    coding = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}
    subject = {"reference": f"Patient/{lite.patient_id}"}
    encounter = lite.write({"resourceType": "Encounter", "status": "planned", "class": coding, "subject": subject})
    reference = {"reference": f"Encounter/{encounter['id']}"}
    order = lite.order(encounter=reference)
    assert lite.study(uid(order))["encounter"]["reference"] == reference["reference"]
    lite.send(lite.image(order))
    lite.look()
    found = lite.find("ImagingStudy", ("encounter", reference["reference"]))
    assert ids(found) == {lite.study(uid(order))["id"]}
    assert found[0]["basedOn"][0]["identifier"]["value"] == lite.item(order).AccessionNumber


# --- how much is asked, and when again ---------------------------------------------------------------------------


def test_a_study_of_four_series_takes_six_requests_and_another_image_reads_no_header_again(
    lite: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    for series in range(4):
        lite.send(*(lite.image(number=10 * series + n, SeriesInstanceUID=f"1.2.3.1.{series}") for n in range(1, 6)))
    lite.poll()
    asked, send = list[str](), Orthanc._send

    def counted(client: Orthanc, method: str, path: str, **more: Any) -> Any:
        asked.append(path)
        return send(client, method, path, **more)

    monkeypatch.setattr(Orthanc, "_send", counted)
    lite.rebuild()
    assert len(asked) <= 6
    lite.send(lite.image(number=9, SeriesInstanceUID="1.2.3.1.0"))
    lite.poll()
    asked.clear()
    lite.rebuild()
    assert len(asked) == 2


def test_a_mapping_that_changed_renews_what_was_published_before(
    lite: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite.send(lite.image(BodyPartExamined="CHEST"))
    lite.look()
    study = lite.study(STUDY)
    older = study | {"series": [{**one, "bodySite": {"display": "CHEST"}} for one in study["series"]]}
    lite.store.transact(lambda tx: resources.put(tx, older, cause="an older mapping"))
    monkeypatch.setattr(archive, "MAP_VERSION", archive.MAP_VERSION + 1)
    with lite.store.read() as connection:
        [known] = sync.present(connection)
    lite.store.transact(lambda tx: sync.mark(tx, {known}, "rebuild"))
    lite.rebuild()
    assert lite.study(STUDY)["series"] == study["series"]


# --- one study under two numbers of one patient ----------------------------------------------------------------------


def known_by_two_numbers(lite: Hospital) -> Json:
    """A patient with a second number, and an image of one study under each."""
    patient = lite.read("Patient", lite.patient_id)
    second = {"system": "urn:isocenter:mrn", "value": "P-9"}
    lite.write(patient | {"identifier": [*patient["identifier"], second]})
    return {1: lite.image(number=1), 2: lite.image(number=2, PatientID="P-9", StudyDescription="sent again")}


@pytest.mark.case(12)
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_study_under_two_numbers_of_one_patient_is_one_whatever_came_first(
    lite: Hospital, order: tuple[int, int]
) -> None:
    images = known_by_two_numbers(lite)
    for number in order:
        lite.send(images[number])
        lite.look()
    [study] = lite.find("ImagingStudy")
    assert (study["numberOfSeries"], study["numberOfInstances"]) == (1, 2)
    assert [one["uid"] for one in study["series"][0]["instance"]] == ["1.2.3.1.1.1", "1.2.3.1.1.2"]
    assert study["description"] == "CT of a phantom"
    assert flags(study) == [("conflict", "PatientID"), ("conflict", "StudyDescription")]


@pytest.mark.case(12)
def test_when_one_of_two_goes_what_the_other_holds_stays(lite: Hospital) -> None:
    lite.send(*known_by_two_numbers(lite).values())
    lite.look()
    by_number = {number_of(lite, one): one for one in studies(lite)}
    lite.delete("studies", by_number["P-1"])
    disappears(lite)
    study = lite.study(STUDY)
    assert (study["status"], study["numberOfInstances"], study["description"]) == ("available", 1, "sent again")
    assert flags(study) == []
    lite.delete("studies", by_number["P-9"])
    disappears(lite)
    assert lite.study(STUDY)["status"] == "unknown"


@pytest.mark.case(12, 43)
def test_what_was_published_of_the_second_while_the_first_was_looked_at_stays(lite: Hospital) -> None:
    images = known_by_two_numbers(lite)
    lite.send(*images.values())
    lite.look()
    wire, [second] = lite.archive.orthanc._wire, [one for one in studies(lite) if number_of(lite, one) == "P-9"]
    send, later = wire.send, [lite.image(number=3, PatientID="P-9")]

    def late(method: str, path: str, **more: Any) -> tuple[int, bytes]:
        answer = send(method, path, **more)
        if later and second.encode() in more.get("body", b"") and path == "/tools/bulk-content":
            # The look at the first study has read the second one, to which an image comes that is published at once.
            lite.send(later.pop())
            lite.poll()
            lite.rebuild()
        return answer

    lite.send(lite.image(number=4))
    lite.poll()
    wire.send = late  # type: ignore[method-assign]
    lite.rebuild()
    assert not later
    assert lite.study(STUDY)["numberOfInstances"] == 4


def studies(lite: Hospital) -> list[str]:
    return [one.orthanc_id for one in lite.archive.orthanc.lookup(STUDY) if one.level == "Study"]


def number_of(lite: Hospital, orthanc_id: str) -> str:
    return lite.archive.orthanc.study(orthanc_id)["PatientMainDicomTags"]["PatientID"].strip()


def disappears(lite: Hospital) -> None:
    """A sweep finds what is gone, the grace passes, and what is left is looked at."""
    for _ in range(3):
        sweep.sweep(lite.archive)
        lite.rebuild()
