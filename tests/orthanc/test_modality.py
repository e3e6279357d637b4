"""The DIMSE server and the simulated scanner over real associations; DCMTK as foreign client, Orthanc as archive."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE

from app import errors
from app.dicom import edge, modality, mpps, phantom, uids, worklist
from tests.orthanc.conftest import Orthanc
from tests.processes import free_port, program, wait_until
from tests.unit.dicom.items import item, query

SMALL = phantom.Phantom(slices=6, matrix=64, spacing=3.2)
ITEMS = [
    item(),
    item(
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
        PatientID="MRN2",
        AccessionNumber="A2",
        StudyInstanceUID="2.25.1002",
        Modality="MR",
        ScheduledStationAETitle="MR1",
        ScheduledProcedureStepStartDate="20250707",
        ScheduledProcedureStepStartTime="180000",
    ),
    item(
        PatientName="Иванов^Иван",
        PatientID="MRN3",
        AccessionNumber="A3",
        StudyInstanceUID="2.25.1003",
        Modality="DX",
        ScheduledStationAETitle="DX1",
        ScheduledProcedureStepStartDate="20250707",
        ScheduledProcedureStepStartTime="190000",
    ),
]


@dataclass
class Site:
    """A running server, what it was asked and what it was told."""

    peer: modality.Peer
    asked: list[worklist.WorklistKeys] = field(default_factory=list)
    told: list[mpps.PerformedStep] = field(default_factory=list)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)

    def handler(self) -> mpps.MppsHandler:
        return mpps.MppsHandler(self.states.get, self.states.__setitem__, self.told.append)


@contextmanager
def serving(
    source: Callable[[worklist.WorklistKeys], Any] = lambda _: ITEMS, *, steps: bool = True, site: Site | None = None
) -> Iterator[Site]:
    site = site or Site(modality.Peer("127.0.0.1", 0, "ISOCENTER", "CT1"))

    def items(keys: worklist.WorklistKeys) -> Any:
        site.asked.append(keys)
        return source(keys)

    server = edge.serve("127.0.0.1", 0, "ISOCENTER", items, site.handler() if steps else None)
    site.peer = modality.Peer("127.0.0.1", server.port, "ISOCENTER", "CT1")
    try:
        yield site
    finally:
        server.stop()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


def findscu(peer: modality.Peer, folder: Path, *keys: str) -> list[Dataset]:
    """DCMTK asks; its answers are read from the files it writes."""
    command = [program("/usr/bin/findscu"), "-W", "-X", "-aet", "CT1", "-aec", peer.ae_title, "-od", str(folder)]
    asked = [part for key in ("0010,0010", "0010,0020", *keys) for part in ("-k", key)]
    done = subprocess.run([*command, *asked, peer.host, str(peer.port)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [pydicom.dcmread(file, force=True) for file in sorted(folder.glob("rsp*.dcm"))]


STEP = "(0040,0100)[0]."


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ((), ["MRN1", "MRN2", "MRN3"]),
        (("PatientID=MRN2",), ["MRN2"]),
        (("AccessionNumber=A3",), ["MRN3"]),
        (("PatientName=doe*",), ["MRN1"]),
        (("PatientName=YAM?DA^*",), ["MRN2"]),
        ((f"{STEP}Modality=DX",), ["MRN3"]),
        ((f"{STEP}ScheduledStationAETitle=MR1",), ["MRN2"]),
        ((f"{STEP}ScheduledProcedureStepStartDate=20250706",), ["MRN1"]),
        ((f"{STEP}ScheduledProcedureStepStartDate=20250707-",), ["MRN2", "MRN3"]),
        (
            (
                f"{STEP}ScheduledProcedureStepStartDate=20250705-20250707",
                f"{STEP}ScheduledProcedureStepStartTime=1000-1800",
            ),
            ["MRN1", "MRN2"],
        ),
        (("PatientID=MRN9",), []),
    ],
)
def test_dcmtk_finds_by(site: Site, tmp_path: Path, keys: tuple[str, ...], found: list[str]):
    answers = findscu(site.peer, tmp_path, *keys)
    assert sorted(answer.PatientID for answer in answers) == found
    assert all(len(answer.get(worklist.STEPS, [0])) == 1 for answer in answers)


@pytest.mark.parametrize(
    ("asked", "mrn", "name", "answered"),
    [
        ("ISO_IR 192", "MRN2", "Yamada^Tarou=山田^太郎=やまだ^たろう", "ISO_IR 192"),
        ("\\ISO 2022 IR 87", "MRN2", "Yamada^Tarou=山田^太郎=やまだ^たろう", ["", "ISO 2022 IR 87"]),
        ("ISO_IR 144", "MRN3", "Иванов^Иван", "ISO_IR 144"),
        ("ISO_IR 100", "MRN3", "Иванов^Иван", "ISO_IR 192"),
        ("ISO_IR 100", "MRN1", "Doe^Jane", None),
    ],
)
def test_dcmtk_reads_names_in_its_character_set(
    site: Site, tmp_path: Path, asked: str, mrn: str, name: str, answered: object
):
    [answer] = findscu(site.peer, tmp_path, f"SpecificCharacterSet={asked}", f"PatientID={mrn}")
    assert answer.get("SpecificCharacterSet") == answered
    assert answer.PatientName == name


def test_a_name_in_the_callers_characters_is_found(site: Site):
    [japanese] = modality.find_worklist(site.peer, {"PatientName": "山田*"})
    [cyrillic] = modality.find_worklist(site.peer, {"PatientName": "иванов^*"})
    assert (japanese.PatientID, cyrillic.PatientID) == ("MRN2", "MRN3")


def test_the_source_hears_the_calling_scanner_and_the_plain_keys(site: Site):
    site.asked.clear()
    modality.find_worklist(site.peer, {"PatientID": "MRN1", "Modality": "CT", "AccessionNumber": "A*"})
    assert site.asked == [worklist.WorklistKeys("CT1", patient_id="MRN1", modality="CT")]


@contextmanager
def association(peer: modality.Peer, called: str | None = None) -> Iterator[Any]:
    entity = AE(ae_title=peer.calling)
    for sop_class in (uids.VERIFICATION, uids.MODALITY_WORKLIST_FIND, uids.MODALITY_PERFORMED_PROCEDURE_STEP):
        entity.add_requested_context(sop_class)
    opened = entity.associate(peer.host, peer.port, ae_title=called or peer.ae_title)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def test_echo_answers_and_a_wrong_called_title_is_rejected(site: Site):
    with association(site.peer) as opened:
        assert opened.send_c_echo().Status == 0x0000
    with association(site.peer, called="SOMEBODY") as opened:
        assert opened.is_rejected


def statuses(peer: modality.Peer, identifier: Dataset) -> list[int]:
    with association(peer) as opened:
        return [status.Status for status, _ in opened.send_c_find(identifier, uids.MODALITY_WORKLIST_FIND)]


def test_statuses_say_what_happened(site: Site):
    assert statuses(site.peer, query(PatientID="MRN1")) == [0xFF00, 0x0000]
    assert statuses(site.peer, query(PatientID="MRN1", PatientWeight=70)) == [0xFF01, 0x0000]
    assert statuses(site.peer, query(PatientID="MRN1", step={"ScheduledProcedureStepStartDate": "soon"})) == [0xA900]
    assert statuses(site.peer, query(ScheduledProcedureStepSequence=[Dataset(), Dataset()])) == [0xA900]


def test_a_failing_source_becomes_a_status_without_its_words():
    def broken(_: worklist.WorklistKeys) -> list[Dataset]:
        raise RuntimeError("Doe^Jane is on fire")

    with serving(broken) as site, association(site.peer) as opened:
        [(status, _)] = opened.send_c_find(query(PatientID=""), uids.MODALITY_WORKLIST_FIND)
        assert (status.Status, status.ErrorComment) == (0xC000, "unable to process")
        assert opened.send_c_echo().Status == 0x0000


@pytest.mark.case(48)
def test_a_query_that_matches_too_much_ends_with_out_of_resources():
    with serving(lambda _: (ITEMS[0] for _ in range(edge.MAXIMUM_MATCHES + 5))) as site:
        found = statuses(site.peer, query(PatientID=""))
    assert found == [0xFF00] * edge.MAXIMUM_MATCHES + [0xA700]


@pytest.mark.case(48)
def test_a_cancelled_query_stops():
    with serving(lambda _: (ITEMS[0] for _ in range(edge.MAXIMUM_MATCHES))) as site, association(site.peer) as opened:
        found: list[int] = []
        for status, _ in opened.send_c_find(query(PatientID=""), uids.MODALITY_WORKLIST_FIND, msg_id=5):
            if not found:
                opened.send_c_cancel(5, query_model=uids.MODALITY_WORKLIST_FIND)
            found.append(status.Status)
    assert found[-1] == 0xFE00
    assert len(found) < edge.MAXIMUM_MATCHES


@pytest.mark.case(48)
def test_twenty_scanners_are_served_at_once(site: Site):
    entity = AE(ae_title="MANY")
    entity.add_requested_context(uids.VERIFICATION)
    opened = [entity.associate(site.peer.host, site.peer.port, ae_title="ISOCENTER") for _ in range(20)]
    try:
        assert [one.send_c_echo().Status for one in opened] == [0x0000] * 20
    finally:
        for one in opened:
            one.release()


def test_a_taken_port_is_a_sentence(site: Site):
    with pytest.raises(errors.ConfigurationError, match="ISOCENTER_DICOM_PORT"):
        edge.serve("127.0.0.1", site.peer.port, "ISOCENTER", lambda _: ITEMS)


# --- performed procedure steps --------------------------------------------------------------------------------------


def created(**values: Any) -> Dataset:
    series = modality._series(ITEMS[0], modality.Scan(at=datetime.fromisoformat("2025-07-06T08:31:00")))
    dataset = modality._performed_step(ITEMS[0], series, modality.Peer("", 0, "", "CT1"))
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def ended(status: str = mpps.COMPLETED, **values: Any) -> Dataset:
    series, image = Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = uids.CT_IMAGE, "2.25.3"
    series.SeriesInstanceUID, series.ProtocolName, series.ReferencedImageSequence = "2.25.2", "Chest", [image]
    dataset = Dataset()
    dataset.PerformedProcedureStepStatus = status
    dataset.PerformedProcedureStepEndDate, dataset.PerformedProcedureStepEndTime = "20250706", "084000"
    dataset.PerformedSeriesSequence = [series]
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def n_create(peer: modality.Peer, uid: str, dataset: Dataset) -> Dataset:
    with association(peer) as opened:
        return opened.send_n_create(dataset, uids.MODALITY_PERFORMED_PROCEDURE_STEP, uid)[0]


def n_set(peer: modality.Peer, uid: str, dataset: Dataset) -> Dataset:
    with association(peer) as opened:
        return opened.send_n_set(dataset, uids.MODALITY_PERFORMED_PROCEDURE_STEP, uid)[0]


def test_a_step_begins_ends_and_never_changes_again_even_after_a_restart():
    with serving() as site:
        assert n_create(site.peer, "2.25.1", created()).Status == 0x0000
    with serving(site=site):
        assert n_create(site.peer, "2.25.1", created()).Status == mpps.DUPLICATE_INSTANCE
        assert n_set(site.peer, "2.25.1", ended()).Status == 0x0000
    with serving(site=site):
        refused = n_set(site.peer, "2.25.1", ended(mpps.DISCONTINUED))
    assert (refused.Status, refused.ErrorID) == (mpps.PROCESSING_FAILURE, mpps.MAY_NO_LONGER_BE_UPDATED)
    begun, completed = site.told
    assert begun == mpps.PerformedStep(
        uid="2.25.1",
        status=mpps.IN_PROGRESS,
        scheduled=(mpps.ScheduledStep("2.25.1001", "A1", "RP1", "SPS1"),),
        series=(),
        modality="CT",
        station_ae="CT1",
        mrn="MRN1",
        issuer="HOSP",
        start=datetime.fromisoformat("2025-07-06T08:31:00"),
        end=None,
        reason=None,
    )
    assert (completed.status, completed.step_ids) == (mpps.COMPLETED, ("SPS1",))
    assert completed.series == (mpps.PerformedSeries("2.25.2", ("2.25.3",)),)
    assert completed.end == datetime.fromisoformat("2025-07-06T08:40:00")


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"PerformedProcedureStepStatus": "COMPLETED"}, mpps.INVALID_VALUE),
        ({"PerformedProcedureStepID": ""}, mpps.MISSING_VALUE),
        ({"ScheduledStepAttributesSequence": []}, mpps.MISSING_VALUE),
        ({"ScheduledStepAttributesSequence": [Dataset()]}, mpps.MISSING_ATTRIBUTE),
    ],
)
def test_an_n_create_that_lacks_something_is_refused(site: Site, values: dict[str, Any], status: int):
    uid = str(uids.new())
    assert n_create(site.peer, uid, created(**values)).Status == status
    assert uid not in site.states


@pytest.mark.parametrize(
    ("modifications", "status"),
    [
        (ended(PerformedProcedureStepEndDate=""), mpps.MISSING_VALUE),
        (ended(PerformedSeriesSequence=[]), mpps.MISSING_VALUE),
        (ended(PerformedSeriesSequence=[Dataset()]), mpps.MISSING_ATTRIBUTE),
        (ended("PAUSED"), mpps.INVALID_VALUE),
        (ended(PatientID="MRN2"), mpps.INVALID_VALUE),
        (ended(PatientID="MRN1"), 0x0000),
        (ended(mpps.DISCONTINUED, PerformedSeriesSequence=[]), 0x0000),
    ],
)
def test_an_n_set_is_checked(site: Site, modifications: Dataset, status: int):
    uid = str(uids.new())
    assert n_create(site.peer, uid, created()).Status == 0x0000
    assert n_set(site.peer, uid, modifications).Status == status


def test_an_unknown_step_is_not_set(site: Site):
    assert n_set(site.peer, "2.25.404", ended()).Status == mpps.NO_SUCH_INSTANCE


def test_an_n_set_that_changes_nothing_is_not_told_again():
    with serving() as site:
        n_create(site.peer, "2.25.1", created())
        same = Dataset()
        same.PerformedProcedureStepStatus = mpps.IN_PROGRESS
        assert n_set(site.peer, "2.25.1", same).Status == 0x0000
    assert len(site.told) == 1


def test_when_nobody_above_can_take_the_event_the_scanner_may_ask_again():
    site = Site(modality.Peer("", 0, ""))
    failing = [True]

    def performed(event: mpps.PerformedStep) -> None:
        if failing:
            raise errors.Unavailable(str(failing.pop()))
        site.told.append(event)

    handler = mpps.MppsHandler(site.states.get, site.states.__setitem__, performed)
    server = edge.serve("127.0.0.1", 0, "ISOCENTER", lambda _: [], handler)
    try:
        peer = modality.Peer("127.0.0.1", server.port, "ISOCENTER")
        assert n_create(peer, "2.25.1", created()).Status == mpps.PROCESSING_FAILURE
        assert n_create(peer, "2.25.1", created()).Status == 0x0000
    finally:
        server.stop()
    assert [event.uid for event in site.told] == ["2.25.1"]


# --- the whole scan -------------------------------------------------------------------------------------------------


def archive_of(orthanc: Orthanc) -> modality.Peer:
    return modality.Peer(orthanc.dicom_host, orthanc.dicom_port, orthanc.aet, "CT1")


@pytest.mark.orthanc
@pytest.mark.parametrize(("mrn", "kind", "count"), [("MRN1", "CT", 6), ("MRN2", "MR", 6), ("MRN3", "DX", 1)])
def test_a_scan_goes_from_worklist_to_archive(clean_orthanc: Orthanc, mrn: str, kind: str, count: int):
    with serving() as site:
        [found] = modality.find_worklist(site.peer, {"PatientID": mrn})
        done = modality.acquire(found, site.peer, archive_of(clean_orthanc), modality.Scan(phantom=SMALL))
    with clean_orthanc.client() as client:
        stored = client.get("/instances?expand").raise_for_status().json()
        tags = client.get(f"/instances/{stored[0]['ID']}/simplified-tags").raise_for_status().json()
    assert {one["MainDicomTags"]["SOPInstanceUID"] for one in stored} == set(done.sop_uids)
    assert len(stored) == count
    assert (tags["StudyInstanceUID"], tags["SeriesInstanceUID"]) == (found.StudyInstanceUID, done.series_uid)
    assert (tags["PatientName"], tags["Modality"]) == (str(found.PatientName), kind)
    assert tags["RequestAttributesSequence"][0]["ScheduledProcedureStepID"] == "SPS1"
    [reference] = tags["ReferencedPerformedProcedureStepSequence"]
    assert reference["ReferencedSOPInstanceUID"] == done.mpps_uid
    assert [event.status for event in site.told] == [mpps.IN_PROGRESS, mpps.COMPLETED]
    assert site.told[-1].instance_uids == done.sop_uids


@pytest.mark.orthanc
def test_a_scan_goes_on_where_nobody_takes_mpps(clean_orthanc: Orthanc):
    with serving(steps=False) as site:
        [found] = modality.find_worklist(site.peer, {"PatientID": "MRN1"})
        done = modality.acquire(found, site.peer, archive_of(clean_orthanc), modality.Scan(phantom=SMALL))
    assert done.mpps_uid is None
    with clean_orthanc.client() as client:
        assert len(client.get("/instances").json()) == len(done.sop_uids)


def test_a_scan_that_cannot_be_stored_is_discontinued():
    with serving() as site:
        [found] = modality.find_worklist(site.peer, {"PatientID": "MRN1"})
        # The worklist server stores no images.
        with pytest.raises(errors.NotSupported):
            modality.acquire(found, site.peer, site.peer, modality.Scan(phantom=SMALL))
        wait_until(lambda: len(site.told) == 2, "the second message")
    assert site.told[-1].status == mpps.DISCONTINUED
    assert site.told[-1].instance_uids == ()


# pynetdicom 3.0.4 does not close the socket of a refused connection; the collector does.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worklist_that_does_not_listen_is_a_sentence():
    port = free_port()
    with pytest.raises(errors.Unavailable, match=f"ISOCENTER at 127.0.0.1:{port}"):
        modality.find_worklist(modality.Peer("127.0.0.1", port, "ISOCENTER"))
    gc.collect()
