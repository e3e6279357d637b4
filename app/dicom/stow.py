"""STOW-RS: objects are spooled, checked one by one, put into the archive, and verified there (PS3.18 section 10.5)."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
from starlette.requests import Request

from app.access import Access
from app.dicom import multipart, part10, paths, qido, spool
from app.dicom.holdings import Holding, Holdings
from app.dicom.multipart import Limits, MediaType, Part, PartReader
from app.dicom.orthanc import Json, Orthanc, Stored
from app.dicom.part10 import Meta, Outline, Unreadable
from app.dicom.spool import Content, Pace, Spool
from app.errors import (
    ArchiveUnavailable,
    BadRequest,
    IsocenterError,
    NotFound,
    TooLarge,
    UnsupportedMediaType,
)
from app.store import studies
from app.store.database import Store
from app.store.studies import HeldStudy, Stowed

log = structlog.get_logger()

DICOM: Final = "application/dicom"
LIMITS = Limits(body=512 << 20, part=512 << 20, parts=5000)
PACE = Pace()

# Failure reasons of PS3.18 Table I.2-2, PS3.4 Table B.2-1 and PS3.7 Annex C.
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE: Final = 0x0111
CLASS_NOT_SUPPORTED: Final = 0x0122
NOT_AUTHORIZED: Final = 0x0124
OUT_OF_RESOURCES: Final = 0xA700
MISMATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
TRANSFER_SYNTAX_NOT_SUPPORTED: Final = 0xC122
COERCED: Final = 0xB000
"""A warning: the archive keeps the object in a form of its own."""

EVIDENCE: Final = frozenset(
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


def accepted_classes(named: Iterable[str]) -> frozenset[str] | None:
    """The SOP classes that settings name: UIDs, `evidence` for what readers make, `all` for any (None)."""
    names = set(named)
    if "all" in names:
        return None
    return frozenset(names - {"evidence"}) | (EVIDENCE if "evidence" in names else frozenset())


@dataclass(frozen=True, slots=True)
class Rules:
    """What may come in, how large, how slowly, and where it waits meanwhile."""

    limits: Limits = LIMITS
    pace: Pace = PACE
    classes: frozenset[str] | None = EVIDENCE
    """None: any."""
    folder: Path | None = None


RULES = Rules()


@dataclass(frozen=True, slots=True)
class Received:
    """The parts of a request, on a spool. Close it after use."""

    parts: list[Part]
    spool: Spool

    def close(self) -> None:
        """Drop the parts."""
        self.spool.close()


@dataclass(frozen=True, slots=True)
class Door:
    """Through which objects go in, for whom, and which ones."""

    store: Store
    orthanc: Orthanc
    holdings: Holdings
    access: Access
    classes: frozenset[str] | None = EVIDENCE


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

    stored: dict[Sent, int | None] = field(default_factory=dict[Sent, "int | None"])
    """With a warning, if there is one."""
    known: int = 0
    """So many were there before, with the same content."""
    failed: list[Refused] = field(default_factory=list[Refused])
    left: list[str] = field(default_factory=list[str])
    """Objects that are not where they belong and could not be removed."""
    touched: set[str] = field(default_factory=set[str])
    away: bool = False
    """The archive ceased to answer."""
    media_type = "application/dicom+json"

    @property
    def status(self) -> int:
        """All, some or none of the objects are stored (PS3.18 Table 10.5.3-1)."""
        if self.stored:
            return 202 if self.failed or any(self.stored.values()) else 200
        return 503 if self.away else 409

    def headers(self) -> dict[str, str]:
        """When to send it again."""
        return {"Retry-After": "5"} if self.status == 503 else {}

    def detail(self) -> Json:
        """For the audit trail."""
        reasons = Counter(f"{refused.reason:04X}" for refused in self.failed)
        more = {"known": self.known, "reasons": dict(reasons), "left": self.left}
        return {"stored": len(self.stored), "failed": len(self.failed)} | {k: v for k, v in more.items() if v}

    def body(self, base: str) -> Json:
        """The Store Instances Response Module (PS3.18 Table I.2-1)."""
        uids = {sent.study_uid for sent in self.stored}
        url = f"{base}/studies/{uids.pop()}" if len(uids) == 1 else None
        named = [refused for refused in self.failed if refused.sent.sop_uid]
        nameless = [refused for refused in self.failed if not refused.sent.sop_uid]
        sequences = {
            "ReferencedSOPSequence": [_referenced(sent, warning, base) for sent, warning in self.stored.items()],
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


def _referenced(sent: Sent, warning: int | None, base: str) -> Json:
    url = f"{base}/studies/{sent.study_uid}/series/{sent.series_uid}/instances/{sent.sop_uid}"
    warned = {qido.tag("WarningReason"): qido.element("WarningReason", warning)} if warning else {}
    return {**_sop(sent), qido.tag("RetrieveURL"): qido.element("RetrieveURL", url), **warned}


def _reason(refused: Refused) -> Json:
    return {qido.tag("FailureReason"): qido.element("FailureReason", refused.reason)}


async def receive(request: Request, rules: Rules) -> Received:
    """The parts of the request's body, on disk."""
    media_type = _body_type(request)
    length = request.headers.get("content-length", "0")
    announced = int(length) if length.isascii() and length.isdecimal() else 0
    if announced > rules.limits.body:
        raise TooLarge(f"the body is larger than {rules.limits.body} bytes")
    spool.check_room(rules.folder, announced)
    held = Spool(rules.folder)
    try:
        parts = await _parts(request, media_type, held, rules)
    except BaseException:
        held.close()
        raise
    return Received(parts, held)


def _body_type(request: Request) -> MediaType:
    if request.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise UnsupportedMediaType("a body is taken as it is, without Content-Encoding")
    media_type = multipart.content_type(request.headers.get("content-type", "") or "none/none")
    several = media_type.type == "multipart/related" and media_type.part.strip("'") in {DICOM, "*/*"}
    if not several and media_type.type != DICOM:
        raise UnsupportedMediaType(f'objects are stored as multipart/related; type="{DICOM}", or one as {DICOM}')
    return media_type


async def _parts(request: Request, media_type: MediaType, held: Spool, rules: Rules) -> list[Part]:
    chunks = spool.paced(aiter(request.stream()), rules.pace)
    if media_type.type == DICOM:
        async for chunk in chunks:
            await held.write(chunk)
            if held.size > min(rules.limits.part, rules.limits.body):
                raise TooLarge(f"the body is larger than {rules.limits.body} bytes")
        await held.flush()
        parts = [Part(media_type, Content(held, 0, held.size))] if held.size else []
    else:
        reader = PartReader(media_type.parameters.get("boundary", ""), rules.limits, held)
        parts = await reader.read(chunks, MediaType(DICOM))
    if not parts:
        raise BadRequest("the body has no part")
    return parts


def read(part: Part) -> tuple[Sent, Meta, Outline]:
    """What the object says of itself."""
    sent = Sent()
    if part.fault or part.media_type.type != DICOM:
        raise Refused(CANNOT_UNDERSTAND, sent)
    try:
        meta = part10.meta(part.content)
        if all(map(_is_uid, (meta.sop_class, meta.sop_uid))):
            # Of a dataset that cannot be read at least its file meta information names it.
            sent = Sent(meta.sop_class, meta.sop_uid)
        if meta.transfer_syntax in part10.DEFLATED:
            # It grows without bound when it is read.
            raise Refused(TRANSFER_SYNTAX_NOT_SUPPORTED, sent)
        outline = part10.outline(part.content, meta)
        uids = [outline.uid(tag) for tag in _UIDS]
    except Unreadable as error:
        raise Refused(CANNOT_UNDERSTAND, sent) from error
    if not all(map(_is_uid, uids)):
        raise Refused(CANNOT_UNDERSTAND, sent)
    sent = Sent(*uids)
    if (meta.sop_class, meta.sop_uid) != (sent.sop_class, sent.sop_uid) or part10.short_of_pixels(meta, outline):
        raise Refused(MISMATCH, sent)
    return sent, meta, outline


_UIDS = (part10.SOP_CLASS, part10.SOP_UID, part10.STUDY_UID, part10.SERIES_UID)


_TURNS: Final = tuple(threading.Lock() for _ in range(64))


def _turn(sop_uid: str) -> threading.Lock:
    """Uploads of one UID come one after another; only those of other processes are left to the archive to order."""
    return _TURNS[hash(sop_uid) % len(_TURNS)]


def _is_uid(text: str) -> bool:
    return len(text) <= 64 and paths.UID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Thing:
    """One object that may be stored: what it says of itself, its bytes, and the study it is for."""

    sent: Sent
    meta: Meta
    outline: Outline
    content: Content
    held: HeldStudy
    tree: Holding

    @property
    def orthanc_id(self) -> str:
        """Where the archive puts it, if it reads the same identifiers in it (Orthanc Book, Orthanc identifiers)."""
        named = (self.sent.study_uid, self.sent.series_uid, self.sent.sop_uid)
        text = "|".join((self.outline.text(part10.PATIENT_ID), *named))
        digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return "-".join(digest[at : at + 8] for at in range(0, 40, 8))


@dataclass(frozen=True, slots=True)
class Batch:
    """The objects of one request on their way: without `study` each one's own study is asked for by `find`."""

    door: Door
    study: HeldStudy | None
    find: Callable[[str], HeldStudy]
    outcome: Outcome = field(default_factory=Outcome)
    trees: dict[str, Holding] = field(default_factory=dict[str, Holding])
    issuers: dict[str, str] = field(default_factory=dict[str, str])
    parents: dict[str, str] = field(default_factory=dict[str, str])
    """The study of a series, both by the archive's ids."""

    def store(self, parts: Iterable[Part]) -> Outcome:
        """Store every object that may be stored."""
        for part in parts:
            self._add(part)
        return self.outcome

    def _add(self, part: Part) -> None:
        sent = Sent()
        try:
            sent, meta, outline = read(part)
            warning = self._one(sent, meta, outline, part.content)
        except Refused as refused:
            self.outcome.failed.append(refused)
        except IsocenterError:
            # What may be stored already must be told.
            if not self.outcome.touched:
                raise
            self.outcome.failed.append(Refused(PROCESSING_FAILURE, sent))
        else:
            self.outcome.stored[sent] = self.outcome.stored.get(sent) or warning

    def _one(self, sent: Sent, meta: Meta, outline: Outline, content: Content) -> int | None:
        if self.outcome.away:
            raise Refused(OUT_OF_RESOURCES, sent)
        held = self.study or self._found(sent)
        try:
            thing = Thing(sent, meta, outline, content, held, self._tree(held, sent))
            self._check(thing)
        except ArchiveUnavailable as error:
            raise self._unreached(sent) from error
        with _turn(sent.sop_uid):
            return self._take(thing)

    def _take(self, thing: Thing) -> int | None:
        try:
            is_there = self._is_there(thing)
        except ArchiveUnavailable as error:
            raise self._unreached(thing.sent) from error
        if not is_there:
            return self._put(thing)
        self.outcome.known += 1
        return None

    def _unreached(self, sent: Sent) -> Refused:
        """The archive did not get this object: sending it again is all there is to do."""
        self.outcome.away = True
        return Refused(OUT_OF_RESOURCES, sent)

    def _found(self, sent: Sent) -> HeldStudy:
        try:
            return self.find(sent.study_uid)
        except IsocenterError as error:
            raise Refused(NOT_AUTHORIZED, sent) from error

    def _tree(self, held: HeldStudy, sent: Sent) -> Holding:
        if held.orthanc_id not in self.trees:
            try:
                self.trees[held.orthanc_id] = self.door.holdings.read(held)
            except NotFound as error:
                # The archive has lost the study since it was published.
                if self.study is not None:
                    raise
                raise Refused(NOT_AUTHORIZED, sent) from error
        return self.trees[held.orthanc_id]

    # --- may it be stored -------------------------------------------------------------------------------------

    def _check(self, thing: Thing) -> None:
        """Refuse what is not of this study, or is not allowed."""
        sent, classes = thing.sent, self.door.classes
        if sent.study_uid != thing.tree.study_uid or not self._is_patients(thing):
            raise Refused(MISMATCH, sent)
        if classes is not None and sent.sop_class not in classes:
            raise Refused(CLASS_NOT_SUPPORTED, sent)
        for found in self.door.orthanc.lookup(sent.series_uid):
            if found.level == "Series" and self._study_of(found.orthanc_id) != thing.tree.orthanc_id:
                raise Refused(MISMATCH, sent)

    def _is_patients(self, thing: Thing) -> bool:
        if thing.outline.text(part10.PATIENT_ID) != thing.tree.tags.get("PatientID", "").strip():
            return False
        issuer = thing.outline.text(part10.ISSUER)
        return not issuer or self._issuer(thing.tree) in {"", issuer}

    def _issuer(self, tree: Holding) -> str:
        if tree.orthanc_id not in self.issuers:
            instances = tree.instances()
            tags = self.door.orthanc.tags(instances[0].orthanc_id) if instances else {}
            self.issuers[tree.orthanc_id] = str(tags.get("0010,0021", {}).get("Value", "")).strip()
        return self.issuers[tree.orthanc_id]

    def _study_of(self, series_id: str) -> str:
        if series_id not in self.parents:
            self.parents[series_id] = self.door.orthanc.parent("series", series_id, "study")["ID"]
        return self.parents[series_id]

    def _is_there(self, thing: Thing) -> bool:
        """Whether this very object is there already; another one of its UID is refused."""
        found = self.door.orthanc.instances_with_uid(thing.sent.sop_uid)
        if not found:
            return False
        if found != [thing.orthanc_id] or not self._is_kept(thing):
            raise Refused(DUPLICATE, thing.sent)
        return True

    def _is_kept(self, thing: Thing) -> bool:
        orthanc = self.door.orthanc
        if _has_sum(orthanc.md5(thing.orthanc_id), orthanc, thing):
            return True
        # An archive that writes each object anew has no sum of ours; but who sent it first is known.
        with self.door.store.read() as connection:
            before = studies.stowed(connection, thing.sent.sop_uid)
        same = before is not None and before.sha256 == _digest("sha256", thing.content)
        return same and _syntax(orthanc, thing.orthanc_id) != thing.meta.transfer_syntax

    # --- storing ----------------------------------------------------------------------------------------------

    def _put(self, thing: Thing) -> int | None:
        """Record who stores it, store it, and see that it is what and where it should be."""
        who = self._who(thing)
        before = self.door.store.transact(lambda connection: studies.record_stow(connection, who))
        self.outcome.touched.add(thing.held.orthanc_id)
        self.door.holdings.forget(thing.held)
        try:
            stored = self._stored(thing)
            warning = self._verify(thing, stored) if stored else None
        except Refused:
            self._undo(who, before)
            raise
        except IsocenterError as error:
            # Whether it is stored is not known. The record stays, and sending it again tells.
            self.outcome.away = not self._answers()
            raise Refused(PROCESSING_FAILURE, thing.sent) from error
        if stored:
            self._confirm(who)
        else:
            self._undo(who, before)
            self.outcome.known += 1
        return warning

    def _who(self, thing: Thing) -> Stowed:
        access, sent = self.door.access, thing.sent
        digest = _digest("sha256", thing.content)
        return Stowed(sent.sop_uid, sent.study_uid, access.grant_id, access.client_id, access.fhir_user, digest)

    def _confirm(self, who: Stowed) -> None:
        """Others may have recorded themselves for the same UID meanwhile, and failed: it is this one's."""
        with self.door.store.read() as connection:
            recorded = studies.stowed(connection, who.sop_uid)
        if recorded != who:
            self.door.store.transact(lambda connection: studies.record_stow(connection, who))

    def _undo(self, who: Stowed, before: Stowed | None) -> None:
        self.door.store.transact(lambda connection: studies.undo_stow(connection, who, before))

    def _answers(self) -> bool:
        try:
            self.door.orthanc.system()
        except IsocenterError:
            return False
        return True

    def _stored(self, thing: Thing) -> Stored | None:
        """How the archive took it; None when the very object came in at the same moment by another way."""
        try:
            stored = self.door.orthanc.store(thing.content)
        except BadRequest as error:
            raise Refused(CANNOT_UNDERSTAND, thing.sent) from error
        if stored.status == "AlreadyStored":
            if stored.orthanc_id != thing.orthanc_id or not self._is_kept(thing):
                raise Refused(DUPLICATE, thing.sent)
            return None
        if stored.status != "Success":
            raise Refused(PROCESSING_FAILURE, thing.sent)
        return stored

    def _verify(self, thing: Thing, stored: Stored) -> int | None:
        # The archive parses with another library: what it made of the bytes is what counts.
        orthanc = self.door.orthanc
        seen = orthanc.bulk_content("Instance", [stored.orthanc_id])
        landed = stored.orthanc_id == thing.orthanc_id and len(seen) == 1 and self._is_in_place(thing, seen[0])
        if landed and _has_sum(orthanc.md5(stored.orthanc_id), orthanc, thing):
            return None
        if landed and seen[0]["Metadata"].get("TransferSyntax") != thing.meta.transfer_syntax:
            return COERCED
        self._remove(thing, stored)
        raise Refused(PROCESSING_FAILURE, thing.sent)

    def _is_in_place(self, thing: Thing, seen: Json) -> bool:
        is_it = seen["MainDicomTags"].get("SOPInstanceUID") == thing.sent.sop_uid
        return is_it and self._study_of(seen["ParentSeries"]) == thing.held.orthanc_id

    def _remove(self, thing: Thing, stored: Stored) -> None:
        sent = thing.sent
        log.error("stored object is not what or where it should be", sop_uid=sent.sop_uid, study_uid=sent.study_uid)
        try:
            self.door.orthanc.delete_instance(stored.orthanc_id)
        except IsocenterError:
            self.outcome.left.append(sent.sop_uid)
            log.error("and could not be removed", sop_uid=sent.sop_uid, orthanc_id=stored.orthanc_id)  # noqa: TRY400


def _has_sum(told: str, orthanc: Orthanc, thing: Thing) -> bool:
    if told:
        return told.lower() == _digest("md5", thing.content)
    # An archive may be told to keep no sums.
    kept = hashlib.sha256(orthanc.file(thing.orthanc_id)).hexdigest()
    return kept == _digest("sha256", thing.content)


def _syntax(orthanc: Orthanc, orthanc_id: str) -> str:
    seen = orthanc.bulk_content("Instance", [orthanc_id])
    return seen[0]["Metadata"].get("TransferSyntax", "") if seen else ""


def _digest(name: str, content: Content) -> str:
    digest = hashlib.new(name, usedforsecurity=False)
    for block in content:
        digest.update(block)
    return digest.hexdigest()
