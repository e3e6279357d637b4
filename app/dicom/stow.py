"""STOW-RS: objects are spooled, checked one by one, put into the archive, and verified there (PS3.18 section 10.5)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import pydicom
import structlog
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from starlette.requests import Request

from app.access import Access
from app.dicom import multipart, qido
from app.dicom.holdings import Holding, Holdings
from app.dicom.multipart import Limits, Part, PartReader
from app.dicom.orthanc import Json, Orthanc, Stored
from app.errors import BadRequest, IsocenterError, NotFound, TooLarge, UnsupportedMediaType
from app.store import studies
from app.store.database import Store
from app.store.studies import HeldStudy, Stowed

log = structlog.get_logger()

LIMITS = Limits(body=512 << 20, part=512 << 20, parts=5000)
DEFER = 1 << 16

# Failure reasons of PS3.18 Table I.2-2 and PS3.7 Annex C.
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE: Final = 0x0111
CLASS_NOT_SUPPORTED: Final = 0x0122
NOT_AUTHORIZED: Final = 0x0124
MISMATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
TRANSFER_SYNTAX_NOT_SUPPORTED: Final = 0xC122
DEEPEST: Final = 24
"""Sequences within sequences: reports nest to ten or so, and some sixty end an Orthanc 1.10.1."""

SOP_CLASSES: Final = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.88.11",  # Basic Text SR
        "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
        "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
        "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
        "1.2.840.10008.5.1.4.1.1.88.35",  # Extensible SR
        "1.2.840.10008.5.1.4.1.1.88.59",  # Key Object Selection
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
        "1.2.840.10008.5.1.4.1.1.11.1",  # Grayscale Softcopy Presentation State
        "1.2.840.10008.5.1.4.1.1.11.2",  # Color Softcopy Presentation State
        "1.2.840.10008.5.1.4.1.1.481.3",  # RT Structure Set
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
        "1.2.840.10008.5.1.4.1.1.7.4",  # Multi-frame True Color Secondary Capture
        "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
    }
)
"""What a reader adds to a study. Images come from modalities, reports from the report itself."""


@dataclass(frozen=True, slots=True)
class Spool:
    """The received parts. Close it after use."""

    parts: list[Part]
    reader: PartReader

    def close(self) -> None:
        """Drop the parts."""
        self.reader.close()


@dataclass(frozen=True, slots=True)
class Door:
    """Through which objects go in, and for whom."""

    store: Store
    orthanc: Orthanc
    holdings: Holdings
    access: Access


@dataclass(frozen=True, slots=True)
class Sent:
    """What an object says of itself; unreadable ones say nothing."""

    sop_class: str = ""
    sop_uid: str = ""
    study_uid: str = ""
    series_uid: str = ""


class Refused(Exception):
    """One object is not stored, for this reason."""

    def __init__(self, reason: int, sent: Sent) -> None:
        """`reason` is a DICOM status."""
        super().__init__(f"{reason:04X}H")
        self.reason, self.sent = reason, sent


@dataclass(slots=True)
class Outcome:
    """What became of each object."""

    stored: list[Sent] = field(default_factory=list[Sent])
    failed: list[Refused] = field(default_factory=list[Refused])
    touched: set[str] = field(default_factory=set[str])
    media_type = "application/dicom+json"

    @property
    def status(self) -> int:
        """All, some or none of the objects are stored."""
        if not self.failed:
            return 200
        return 202 if self.stored else 409

    def body(self, base: str) -> Json:
        """The Store Instances Response Module (PS3.18 Table I.2-1)."""
        uids = {sent.study_uid for sent in self.stored}
        url = f"{base}/studies/{uids.pop()}" if len(uids) == 1 else None
        named = [refused for refused in self.failed if refused.sent.sop_uid]
        nameless = [refused for refused in self.failed if not refused.sent.sop_uid]
        sequences = {
            "ReferencedSOPSequence": [_referenced(sent, base) for sent in self.stored],
            "FailedSOPSequence": [{**_sop(each.sent), **_reason(each)} for each in named],
            "OtherFailuresSequence": [_reason(each) for each in nameless],
        }
        answer = {qido.tag(name): {"vr": "SQ", "Value": items} for name, items in sequences.items() if items}
        return ({qido.tag("RetrieveURL"): qido.element("RetrieveURL", url)} if url else {}) | answer


def _sop(sent: Sent) -> Json:
    return {
        qido.tag(keyword): qido.element(keyword, value)
        for keyword, value in (("ReferencedSOPClassUID", sent.sop_class), ("ReferencedSOPInstanceUID", sent.sop_uid))
    }


def _referenced(sent: Sent, base: str) -> Json:
    url = f"{base}/studies/{sent.study_uid}/series/{sent.series_uid}/instances/{sent.sop_uid}"
    return {**_sop(sent), qido.tag("RetrieveURL"): qido.element("RetrieveURL", url)}


def _reason(refused: Refused) -> Json:
    return {qido.tag("FailureReason"): qido.element("FailureReason", refused.reason)}


async def spool(request: Request, limits: Limits) -> Spool:
    """The parts of the request's body, on disk where they are large."""
    media_type = multipart.content_type(request.headers.get("content-type", "") or "none/none")
    if media_type.type != "multipart/related" or media_type.part != "application/dicom":
        raise UnsupportedMediaType('objects are stored as multipart/related; type="application/dicom"')
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdecimal() and int(length) > limits.body:
        raise TooLarge(f"the body is larger than {limits.body} bytes")
    reader = PartReader(media_type.parameters.get("boundary", ""), limits)
    parts = await reader.read(request.stream())
    if not parts:
        raise BadRequest("the body has no part")
    return Spool(parts, reader)


@dataclass(frozen=True, slots=True)
class Batch:
    """The objects of one request on their way: without `study` each one's own study is asked for by `find`."""

    door: Door
    study: HeldStudy | None
    find: Callable[[str], HeldStudy]
    outcome: Outcome = field(default_factory=Outcome)
    trees: dict[str, Holding] = field(default_factory=dict[str, Holding])

    def add(self, part: Part) -> None:
        """Store one object, or say why not."""
        try:
            sent, dataset = read(part)
            self._add(sent, dataset, part.content)
        except Refused as refused:
            self.outcome.failed.append(refused)
        else:
            self.outcome.stored.append(sent)

    def _add(self, sent: Sent, dataset: FileDataset, content: BinaryIO) -> None:
        held = self.study or _found(self.find, sent)
        try:
            tree = self.trees.get(held.orthanc_id) or self.door.holdings.read(held)
            self.trees[held.orthanc_id] = tree
            check(self.door, tree, sent, dataset)
            self.outcome.touched.add(held.orthanc_id)
            self.door.holdings.forget(held)
            _put(self.door, held, sent, content)
        except IsocenterError as error:
            # What is stored already must be told, so from then on the archive's silence fails single objects.
            if not self.outcome.stored:
                raise
            raise Refused(PROCESSING_FAILURE, sent) from error


def store(batch: Batch, received: Spool) -> Outcome:
    """Store every object that may be stored."""
    for part in received.parts:
        batch.add(part)
    return batch.outcome


def _found(find: Callable[[str], HeldStudy], sent: Sent) -> HeldStudy:
    try:
        return find(sent.study_uid)
    except IsocenterError as error:
        raise Refused(NOT_AUTHORIZED, sent) from error


def read(part: Part) -> tuple[Sent, FileDataset]:
    """What the object says of itself, with everything but its pixels."""
    if part.media_type.type != "application/dicom":
        raise Refused(CANNOT_UNDERSTAND, Sent())
    try:
        dataset = _parsed(part.content)
        meta = dataset.file_meta
        sent = Sent(*(str(dataset[keyword].value) for keyword in _UIDS))
        agrees = meta.MediaStorageSOPInstanceUID == sent.sop_uid and meta.MediaStorageSOPClassUID == sent.sop_class
        well_formed = all(UID(uid).is_valid for uid in (sent.sop_class, sent.sop_uid, sent.study_uid, sent.series_uid))
    except Refused:
        raise
    except Exception as error:  # whatever bytes made to break a parser raise
        raise Refused(CANNOT_UNDERSTAND, Sent()) from error
    if _nested_beyond(dataset, DEEPEST):
        raise Refused(CANNOT_UNDERSTAND, Sent())
    if not agrees or not well_formed:
        raise Refused(MISMATCH if well_formed else CANNOT_UNDERSTAND, sent if well_formed else Sent())
    return sent, dataset


def _nested_beyond(dataset: Dataset, depth: int) -> bool:
    level: list[Dataset] = [dataset]
    for _ in range(depth):
        level = [item for one in level for element in one if element.VR == "SQ" for item in element.value]
        if not level:
            return False
    return True


_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def _parsed(content: BinaryIO) -> FileDataset:
    content.seek(0)
    if content.read(132)[128:] != b"DICM":
        raise Refused(CANNOT_UNDERSTAND, Sent())
    meta = read_dataset(content, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    # A deflated dataset grows without bound when it is read.
    if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        raise Refused(TRANSFER_SYNTAX_NOT_SUPPORTED, Sent())
    content.seek(0)
    return pydicom.dcmread(content, stop_before_pixels=True, defer_size=DEFER)


def check(door: Door, tree: Holding, sent: Sent, dataset: FileDataset) -> None:
    """Refuse an object that is not of this study, is not allowed, or is there already."""
    if sent.study_uid != tree.study_uid or not _same_patient(door.orthanc, tree, dataset):
        raise Refused(MISMATCH, sent)
    if sent.sop_class not in SOP_CLASSES:
        raise Refused(CLASS_NOT_SUPPORTED, sent)
    if any(found.level == "Instance" for found in door.orthanc.lookup(sent.sop_uid)):
        raise Refused(DUPLICATE, sent)
    own = tree.series.get(sent.series_uid)
    known = {found.orthanc_id for found in door.orthanc.lookup(sent.series_uid) if found.level == "Series"}
    for series_id in known - ({own.orthanc_id} if own else set()):
        if door.orthanc.parent("series", series_id, "study")["ID"] != tree.orthanc_id:
            raise Refused(MISMATCH, sent)


def _same_patient(orthanc: Orthanc, tree: Holding, dataset: FileDataset) -> bool:
    if str(dataset.get("PatientID", "")).strip() != tree.tags.get("PatientID", "").strip():
        return False
    issuer = str(dataset.get("IssuerOfPatientID", "")).strip()
    instances = tree.instances()
    if not issuer or not instances:
        return True
    known = orthanc.tags(instances[0].orthanc_id).get("0010,0021", {}).get("Value", "")
    return known in {"", issuer}


def _put(door: Door, held: HeldStudy, sent: Sent, content: BinaryIO) -> None:
    content.seek(0)
    octets = content.read()
    access = door.access
    who = Stowed(
        sent.sop_uid,
        sent.study_uid,
        access.grant_id,
        access.client_id,
        access.fhir_user,
        hashlib.sha256(octets).hexdigest(),
    )
    door.store.transact(lambda connection: studies.record_stow(connection, who))
    try:
        stored = door.orthanc.store(octets)
    except IsocenterError as error:
        raise Refused(PROCESSING_FAILURE, sent) from error
    if stored.status == "AlreadyStored":
        raise Refused(DUPLICATE, sent)
    _verify(door, held, sent, stored)


def _verify(door: Door, held: HeldStudy, sent: Sent, stored: Stored) -> None:
    # The archive parses with another library: what it made of the bytes is what counts.
    try:
        landed = door.orthanc.instance(stored.orthanc_id)["MainDicomTags"].get("SOPInstanceUID") == sent.sop_uid
        landed = landed and door.orthanc.parent("instances", stored.orthanc_id, "study")["ID"] == held.orthanc_id
    except (NotFound, BadRequest):
        landed = False
    if landed:
        return
    log.error("stored object landed elsewhere and is removed", sop_uid=sent.sop_uid, study_uid=held.study_uid)
    door.orthanc.delete_instance(stored.orthanc_id)
    door.store.transact(lambda connection: studies.forget_stow(connection, sent.sop_uid))
    raise Refused(PROCESSING_FAILURE, sent)
