"""A simulated scanner: worklist, MPPS, images, C-STORE (PS3.4 Annexes B, F, K; IHE RAD-5 to RAD-8)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association

from app import errors
from app.dicom import mpps, phantom, uids, worklist

RETURN_KEYS: Final = (
    "AccessionNumber", "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "PatientName", "PatientID",
    "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientWeight", "PatientSize", "MedicalAlerts",
    "Allergies", "PregnancyStatus", "StudyInstanceUID", "ReferencedStudySequence", "ReferencedPatientSequence",
    "RequestingPhysician", "RequestedProcedureDescription", "RequestedProcedureCodeSequence", "RequestedProcedureID",
    "RequestedProcedurePriority", "ReasonForTheRequestedProcedure", "AdmissionID",
    "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest",
)  # fmt: skip
STEP_RETURN_KEYS: Final = (
    "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime", "Modality",
    "ScheduledPerformingPhysicianName", "ScheduledProcedureStepDescription", "ScheduledProtocolCodeSequence",
    "ScheduledProcedureStepID", "ScheduledStationName", "ScheduledProcedureStepLocation",
    "ScheduledProcedureStepStatus",
)  # fmt: skip

# PS3.17 Annex J: image attribute <- worklist attribute, where the name is the same.
COPIED: Final = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientWeight", "PatientSize", "StudyInstanceUID", "AccessionNumber", "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName", "AdmissionID", "ReferencedStudySequence",
)  # fmt: skip
TYPE_2: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "ReferringPhysicianName",
)
# One item of the Request Attributes Sequence: from the requested procedure, and from the step.
REQUEST_ATTRIBUTES: Final = (
    "RequestedProcedureID", "RequestedProcedureDescription", "RequestedProcedureCodeSequence",
    "AccessionNumber", "IssuerOfAccessionNumberSequence", "StudyInstanceUID",
)  # fmt: skip
STEP_ATTRIBUTES: Final = (
    "ScheduledProcedureStepID", "ScheduledProcedureStepDescription", "ScheduledProtocolCodeSequence",
)  # fmt: skip
SUCCESS: Final = 0x0000


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side of an association, and the name we call it by and under."""

    host: str
    port: int
    ae_title: str
    calling: str = "MODALITY"


@dataclass(frozen=True, slots=True)
class Scan:
    """How to acquire. With a seed the same worklist item gives the same UIDs and pixels again."""

    mpps: bool = True
    seed: int | None = None
    at: datetime | None = None
    phantom: phantom.Phantom = field(default_factory=phantom.Phantom)


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What was made and stored; `mpps_uid` is None where the worklist server takes no MPPS."""

    study_uid: str
    series_uid: str
    sop_uids: tuple[str, ...]
    mpps_uid: str | None


# --- worklist -------------------------------------------------------------------------------------------------------


def find_worklist(peer: Peer, keys: Mapping[str, Any] | None = None) -> list[Dataset]:
    """The items that match; keys are keywords of the identifier or of its Scheduled Procedure Step."""
    with _association(peer, [uids.MODALITY_WORKLIST_FIND]) as association:
        found: list[Dataset] = []
        for status, answer in association.send_c_find(_identifier(keys or {}), uids.MODALITY_WORKLIST_FIND):
            code = status.get("Status")
            if code in {0xFF00, 0xFF01} and answer is not None:
                found.append(answer)
            elif code != SUCCESS:
                raise errors.Unavailable(f"the worklist of {peer.ae_title} answers {_name(status)}")
    return found


def _identifier(keys: Mapping[str, Any]) -> Dataset:
    step, query = Dataset(), Dataset()
    query.SpecificCharacterSet = worklist.UTF_8
    for keyword in RETURN_KEYS:
        setattr(query, keyword, [] if keyword.endswith("Sequence") else None)
    for keyword in STEP_RETURN_KEYS:
        setattr(step, keyword, [] if keyword.endswith("Sequence") else None)
    for keyword, value in keys.items():
        setattr(step if keyword in STEP_RETURN_KEYS else query, keyword, value)
    query.ScheduledProcedureStepSequence = [step]
    return query


# --- acquisition ----------------------------------------------------------------------------------------------------


def acquire(item: Dataset, worklist_peer: Peer, archive: Peer, scan: Scan | None = None) -> Acquisition:
    """Do the step of a worklist item: MPPS in progress, images to the archive, MPPS completed or discontinued."""
    scan = scan or Scan()
    series, step = _series(item, scan), item.ScheduledProcedureStepSequence[0]
    mpps_uid = str(series.uid("mpps")) if scan.mpps else None
    if mpps_uid and not _begin(worklist_peer, mpps_uid, _performed_step(item, series, worklist_peer)):
        mpps_uid = None
    if mpps_uid:
        series.common.ReferencedPerformedProcedureStepSequence = [
            _reference(uids.MODALITY_PERFORMED_PROCEDURE_STEP, mpps_uid)
        ]
    made = list(phantom.images(str(step.Modality), scan.phantom, series))
    try:
        store(archive, made)
    except errors.IsocenterError:
        if mpps_uid:
            _end(worklist_peer, mpps_uid, _ended(mpps.DISCONTINUED, series, [], archive))
        raise
    if mpps_uid:
        _end(worklist_peer, mpps_uid, _ended(mpps.COMPLETED, series, made, archive))
    sop_uids = tuple(str(image.SOPInstanceUID) for image in made)
    return Acquisition(str(item.StudyInstanceUID), str(series.series_uid), sop_uids, mpps_uid)


def images(item: Dataset, scan: Scan) -> list[Dataset]:
    """The images alone, for another C-STORE client to send."""
    return list(phantom.images(str(item.ScheduledProcedureStepSequence[0].Modality), scan.phantom, _series(item, scan)))


def store(archive: Peer, datasets: Iterable[Dataset]) -> None:
    """C-STORE over one association; the first refusal ends it."""
    sent = list(datasets)
    classes = {UID(image.SOPClassUID) for image in sent}
    with _association(archive, sorted(classes)) as association:
        for image in sent:
            status = association.send_c_store(image)
            # Bxxx are warnings: it is stored, with coercion or elements dropped (PS3.4 B.2.3).
            if status.get("Status") != SUCCESS and status.get("Status", 0) & 0xF000 != 0xB000:
                raise errors.ArchiveUnavailable(f"{archive.ae_title} answers {_name(status)} to C-STORE")


def _series(item: Dataset, scan: Scan) -> phantom.Series:
    # A scanner writes its own wall time; it has no zone to offer.
    at = scan.at or datetime.now()  # noqa: DTZ005
    step = item.ScheduledProcedureStepSequence[0]
    if scan.seed is None:
        series_uid = uids.new()
    else:
        series_uid = uids.derived(item.StudyInstanceUID, step.get("ScheduledProcedureStepID"), scan.seed)
    return phantom.Series(_common(item, at), series_uid, at, scan.seed)


def _common(item: Dataset, at: datetime) -> Dataset:
    """Patient, study, series and equipment attributes of every image (PS3.17 Annex J)."""
    step, common = item.ScheduledProcedureStepSequence[0], Dataset()
    _copy(item, common, COPIED)
    for keyword in TYPE_2:
        if keyword not in common:
            setattr(common, keyword, None)
    common.StudyDate, common.StudyTime = f"{at:%Y%m%d}", f"{at:%H%M%S}"
    common.StudyID = item.get("RequestedProcedureID")
    common.StudyDescription = item.get("RequestedProcedureDescription")
    if item.get("RequestedProcedureCodeSequence"):
        common.ProcedureCodeSequence = item.RequestedProcedureCodeSequence
    common.Modality = step.Modality
    common.SeriesNumber = 1
    common.SeriesDescription = common.ProtocolName = _protocol(step)
    common.PerformingPhysicianName = step.get("ScheduledPerformingPhysicianName")
    common.RequestAttributesSequence = [_request_attributes(item)]
    common.PerformedProcedureStepID = step.get("ScheduledProcedureStepID") or "1"
    common.PerformedProcedureStepStartDate, common.PerformedProcedureStepStartTime = common.StudyDate, common.StudyTime
    common.PerformedProcedureStepDescription = step.get("ScheduledProcedureStepDescription")
    _equipment(common, step)
    return common


def _equipment(common: Dataset, step: Dataset) -> None:
    common.Manufacturer = "Isocenter"
    common.ManufacturerModelName = "Phantom"
    common.DeviceSerialNumber = "1"
    common.SoftwareVersions = uids.IMPLEMENTATION_VERSION
    common.StationName = step.get("ScheduledStationName")


def _protocol(step: Dataset) -> str:
    return str(step.get("ScheduledProcedureStepDescription") or "Phantom")


def _request_attributes(item: Dataset) -> Dataset:
    request = Dataset()
    _copy(item, request, REQUEST_ATTRIBUTES)
    _copy(item.ScheduledProcedureStepSequence[0], request, STEP_ATTRIBUTES)
    return request


def _copy(source: Dataset, target: Dataset, keywords: Iterable[str]) -> None:
    for keyword in keywords:
        if keyword in source and not source[keyword].is_empty:
            target[keyword] = source[keyword]


def _reference(sop_class: UID, uid: str) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, uid
    return reference


# --- performed procedure step ---------------------------------------------------------------------------------------


def _performed_step(item: Dataset, series: phantom.Series, peer: Peer) -> Dataset:
    """The N-CREATE of table F.7.2-1."""
    common, created = series.common, Dataset()
    scheduled = _request_attributes(item)
    for keyword in ("AccessionNumber", "RequestedProcedureID", "RequestedProcedureDescription", *STEP_ATTRIBUTES[:2]):
        if keyword not in scheduled:
            setattr(scheduled, keyword, None)
    scheduled.ReferencedStudySequence = item.get("ReferencedStudySequence") or []
    if "ScheduledProtocolCodeSequence" not in scheduled:
        scheduled.ScheduledProtocolCodeSequence = []
    created.ScheduledStepAttributesSequence = [scheduled]
    _copy(common, created, ("SpecificCharacterSet", "IssuerOfPatientID"))
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "Modality"):
        setattr(created, keyword, common.get(keyword))
    created.ReferencedPatientSequence = []
    created.ProcedureCodeSequence = common.get("ProcedureCodeSequence") or []
    created.PerformedProcedureStepID = common.PerformedProcedureStepID
    created.PerformedProcedureStepDescription = common.PerformedProcedureStepDescription
    created.PerformedProcedureTypeDescription = None
    created.PerformedStationAETitle = peer.calling
    created.PerformedStationName, created.PerformedLocation = common.StationName, None
    created.PerformedProcedureStepStartDate = common.StudyDate
    created.PerformedProcedureStepStartTime = common.StudyTime
    created.PerformedProcedureStepEndDate = created.PerformedProcedureStepEndTime = None
    created.PerformedProcedureStepStatus = mpps.IN_PROGRESS
    created.PerformedProtocolCodeSequence, created.PerformedSeriesSequence = [], []
    return created


def _ended(status: str, series: phantom.Series, images: list[Dataset], archive: Peer) -> Dataset:
    ended, performed = Dataset(), Dataset()
    ended.PerformedProcedureStepStatus = status
    ended.PerformedProcedureStepEndDate, ended.PerformedProcedureStepEndTime = (
        f"{series.at:%Y%m%d}",
        f"{series.at:%H%M%S}",
    )
    _copy(series.common, ended, ("SpecificCharacterSet",))
    performed.SeriesInstanceUID = series.series_uid
    performed.SeriesDescription = performed.ProtocolName = series.common.ProtocolName
    performed.PerformingPhysicianName = series.common.PerformingPhysicianName
    performed.OperatorsName = None
    performed.RetrieveAETitle = archive.ae_title
    performed.ReferencedImageSequence = [_reference(image.SOPClassUID, image.SOPInstanceUID) for image in images]
    performed.ReferencedNonImageCompositeSOPInstanceSequence = []
    ended.PerformedSeriesSequence = [performed]
    return ended


def _begin(peer: Peer, uid: str, created: Dataset) -> bool:
    """False where the server does not offer MPPS: many do not, and the scan goes on."""
    try:
        with _association(peer, [uids.MODALITY_PERFORMED_PROCEDURE_STEP]) as association:
            status, _ = association.send_n_create(created, uids.MODALITY_PERFORMED_PROCEDURE_STEP, UID(uid))
    except errors.NotSupported:
        return False
    if status.get("Status") != SUCCESS:
        raise errors.Unavailable(f"{peer.ae_title} answers {_name(status)} to N-CREATE")
    return True


def _end(peer: Peer, uid: str, modifications: Dataset) -> None:
    with _association(peer, [uids.MODALITY_PERFORMED_PROCEDURE_STEP]) as association:
        status, _ = association.send_n_set(modifications, uids.MODALITY_PERFORMED_PROCEDURE_STEP, UID(uid))
    if status.get("Status") != SUCCESS:
        raise errors.Unavailable(f"{peer.ae_title} answers {_name(status)} to N-SET")


# --- association ----------------------------------------------------------------------------------------------------


@contextmanager
def _association(peer: Peer, sop_classes: Iterable[UID]) -> Generator[Association]:
    entity = AE(ae_title=peer.calling)
    entity.implementation_class_uid = uids.IMPLEMENTATION_CLASS
    entity.implementation_version_name = uids.IMPLEMENTATION_VERSION
    entity.connection_timeout = entity.acse_timeout = 10
    entity.dimse_timeout = entity.network_timeout = 60
    for sop_class in sop_classes:
        entity.add_requested_context(sop_class, uids.EXPLICIT_VR_LITTLE_ENDIAN)
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
    where = f"{peer.ae_title} at {peer.host}:{peer.port}"
    if not association.is_established:
        # A server that knows none of the classes accepts with no context, which ends the association too.
        if association.rejected_contexts:
            raise errors.NotSupported(f"{where} does not offer that SOP class")
        raise errors.Unavailable(f"no DICOM association with {where}")
    try:
        if association.rejected_contexts:
            raise errors.NotSupported(f"{where} does not offer every SOP class that is needed")
        yield association
    finally:
        association.release()


def _name(status: Dataset) -> str:
    code = status.get("Status")
    return "nothing" if code is None else f"{code:04X} {status.get('ErrorComment', '')}".strip()
