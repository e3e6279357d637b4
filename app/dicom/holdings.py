"""What the archive holds of one study: the tree under its Orthanc id, which is the gateway's proof of membership.

Orthanc's ids hash patient, study, series and instance, so a Study UID used for two patients stays two trees.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from app.dicom.orthanc import Json, Orthanc
from app.errors import ArchiveUnavailable, NotFound
from app.store.studies import HeldStudy

FRESH_SECONDS = 1.0
"""A tree this young answers for the objects it has; one it lacks is looked for anew."""
TICK_SECONDS = 2.0
"""The archive tells the time of a change in whole seconds: within these a second change would not show."""
SKEW_SECONDS = 300.0
"""Clocks of two machines do not differ by more, or a series is read once more than needed."""
STUDIES = 64


@dataclass(frozen=True, slots=True)
class Instance:
    """One object and where it stands; `tags` are Orthanc's main tags by keyword."""

    orthanc_id: str
    series_uid: str
    sop_uid: str
    sop_class: str
    transfer_syntax: str
    tags: Mapping[str, str]
    version: str = ""
    """The archive's name of the file, a new one for each file it takes in: it never names another content."""

    @property
    def number(self) -> int:
        """InstanceNumber for sorting; 0 without one."""
        text = self.tags.get("InstanceNumber", "").strip()
        return int(text) if text.lstrip("-").isdecimal() else 0

    @property
    def frames(self) -> int:
        """How many frames there are; objects without the attribute have one."""
        text = self.tags.get("NumberOfFrames", "").strip()
        return int(text) if text.isdecimal() else 1


@dataclass(frozen=True, slots=True)
class Series:
    """One series with its instances by SOP Instance UID, in order of their number."""

    orthanc_id: str
    uid: str
    last_update: str
    tags: Mapping[str, str]
    instances: Mapping[str, Instance]
    seen_at: float = 0.0
    """When this `last_update` was first seen, on our monotonic clock."""
    is_settled: bool = True
    """Whether a later change must show as another `last_update`."""

    @property
    def version(self) -> str:
        """Names this set of files and no other."""
        names = sorted(f"{one.orthanc_id} {one.version}" for one in self.instances.values())
        return hashlib.sha256("\n".join(names).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Holding:
    """One study; `tags` are those of study and patient."""

    orthanc_id: str
    study_uid: str
    tags: Mapping[str, str]
    series: Mapping[str, Series]
    read_at: float
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """The archive's name of each instance's file, by Orthanc id."""

    def instance(self, series_uid: str | None, sop_uid: str | None) -> Instance | None:
        """The instance, if it is in this series of this study."""
        series = self.series.get(series_uid or "")
        return series.instances.get(sop_uid or "") if series else None

    def instances(self, series_uid: str | None = None) -> list[Instance]:
        """The instances of one series, or of all."""
        wanted = [self.series[series_uid]] if series_uid else self.series.values()
        return [instance for series in wanted for instance in series.instances.values()]

    def has(self, series_uid: str | None, sop_uid: str | None) -> bool:
        """Whether the named series, and the named instance in it, belong to the study."""
        if sop_uid is not None:
            return self.instance(series_uid, sop_uid) is not None
        return series_uid is None or series_uid in self.series


class Holdings:
    """The trees read lately. Safe to share between threads."""

    def __init__(self, orthanc: Orthanc) -> None:
        """Reads through this client only."""
        self._orthanc = orthanc
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Holding] = OrderedDict()
        self._reading: dict[str, threading.Lock] = {}

    def kept(self, study: HeldStudy, series_uid: str | None, sop_uid: str | None) -> Holding | None:
        """A fresh tree that has these objects, without asking the archive."""
        with self._lock:
            holding = self._kept.get(study.orthanc_id)
        if holding is None or time.monotonic() - holding.read_at > FRESH_SECONDS:
            return None
        return holding if holding.study_uid == study.study_uid and holding.has(series_uid, sop_uid) else None

    def fresh(self, study: HeldStudy, series_uid: str | None, sop_uid: str | None) -> Holding:
        """The same, or else the tree as it is now, read once for all who wait for it."""
        with self._lock:
            reading = self._reading.setdefault(study.orthanc_id, threading.Lock())
        with reading:
            found = self.kept(study, series_uid, sop_uid)
            if found is not None:
                return found
            try:
                return self.read(study)
            finally:
                with self._lock:
                    self._reading.pop(study.orthanc_id, None)

    def read(self, study: HeldStudy) -> Holding:
        """The tree as the archive has it now; what did not change since the last time is not read again."""
        try:
            return self._read(study)
        except (LookupError, TypeError, AttributeError) as error:
            raise ArchiveUnavailable("the archive answered something that cannot be understood") from error

    def _read(self, study: HeldStudy) -> Holding:
        with self._lock:
            before = self._kept.get(study.orthanc_id)
        began = time.monotonic()
        contents = self._orthanc.series_of(study.orthanc_id)
        if before is not None and before.study_uid == study.study_uid and _is_unchanged(contents, before):
            holding = replace(before, read_at=began)
        else:
            holding = self._made(study, contents, before, began)
        with self._lock:
            self._kept[study.orthanc_id] = holding
            self._kept.move_to_end(study.orthanc_id)
            while len(self._kept) > STUDIES:
                self._kept.popitem(last=False)
        return holding

    def _made(self, study: HeldStudy, contents: list[Json], before: Holding | None, began: float) -> Holding:
        content = self._orthanc.study(study.orthanc_id)
        tags = content["PatientMainDicomTags"] | content["MainDicomTags"]
        if tags.get("StudyInstanceUID") != study.study_uid:
            raise NotFound("the archive holds another study there")
        series = self._series(contents, before)
        versions = {one.orthanc_id: one.version for each in series.values() for one in each.instances.values()}
        return Holding(study.orthanc_id, study.study_uid, tags, series, began, versions)

    def forget(self, study: HeldStudy) -> None:
        """The study was changed by us."""
        with self._lock:
            self._kept.pop(study.orthanc_id, None)

    def _series(self, contents: list[Json], before: Holding | None) -> dict[str, Series]:
        known = {series.orthanc_id: series for series in before.series.values()} if before else {}
        at = time.monotonic()
        changed = [content for content in contents if not _same(content, known.get(content["ID"]))]
        ids = [instance_id for content in changed for instance_id in content["Instances"]]
        by_series: dict[str, list[Json]] = {}
        for instance in self._orthanc.bulk_content("Instance", ids):
            by_series.setdefault(instance["ParentSeries"], []).append(instance)
        read: dict[str, Series] = {}
        for content in changed:
            seen_at = _first_seen(content, known.get(content["ID"]), at)
            read[content["ID"]] = _one(content, by_series.get(content["ID"], []), seen_at, at)
        all_series = [read.get(content["ID"]) or known[content["ID"]] for content in contents]
        return {series.uid: series for series in sorted(all_series, key=_series_order)}


def _is_unchanged(contents: list[Json], before: Holding) -> bool:
    known = {series.orthanc_id: series for series in before.series.values()}
    return len(contents) == len(known) and all(_same(content, known.get(content["ID"])) for content in contents)


def _same(content: Json, known: Series | None) -> bool:
    if known is None or not known.is_settled or known.last_update != content["LastUpdate"]:
        return False
    return {instance.orthanc_id for instance in known.instances.values()} == set(content["Instances"])


def _first_seen(content: Json, known: Series | None, at: float) -> float:
    return known.seen_at if known and known.last_update == content["LastUpdate"] else at


def _is_old(last_update: str) -> bool:
    """Whether the archive's clock has moved on since, however wrong it goes."""
    try:
        changed = datetime.strptime(last_update, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return False
    return time.time() - changed.timestamp() > SKEW_SECONDS


def _one(content: Json, contents: list[Json], seen_at: float, at: float) -> Series:
    uid = content["MainDicomTags"]["SeriesInstanceUID"]
    instances = sorted((_instance(uid, each) for each in contents), key=lambda each: (each.number, each.sop_uid))
    by_uid = {instance.sop_uid: instance for instance in instances}
    is_settled = at - seen_at > TICK_SECONDS or _is_old(content["LastUpdate"])
    return Series(
        content["ID"], uid, content["LastUpdate"], content["MainDicomTags"], by_uid, seen_at, is_settled=is_settled
    )


def _instance(series_uid: str, content: Json) -> Instance:
    tags, metadata = content["MainDicomTags"], content["Metadata"]
    sop_class, transfer_syntax = metadata.get("SopClassUid", ""), metadata.get("TransferSyntax", "")
    sop_uid, version = tags["SOPInstanceUID"], content["FileUuid"]
    return Instance(content["ID"], series_uid, sop_uid, sop_class, transfer_syntax, tags, version)


def _series_order(series: Series) -> tuple[int, str]:
    text = series.tags.get("SeriesNumber", "").strip()
    return (int(text) if text.lstrip("-").isdecimal() else 1 << 31, series.uid)
