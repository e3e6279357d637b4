"""Modality Performed Procedure Step, the receiving side: what a scanner says it has done (PS3.4 F.7.2)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from app import errors

Json: TypeAlias = dict[str, Any]

IN_PROGRESS: Final = "IN PROGRESS"
COMPLETED: Final = "COMPLETED"
DISCONTINUED: Final = "DISCONTINUED"
TERMINAL: Final = frozenset({COMPLETED, DISCONTINUED})

INVALID_VALUE: Final = 0x0106
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE_INSTANCE: Final = 0x0111
NO_SUCH_INSTANCE: Final = 0x0112
MISSING_ATTRIBUTE: Final = 0x0120
MISSING_VALUE: Final = 0x0121
MAY_NO_LONGER_BE_UPDATED: Final = 0xA710

# Table F.7.2-1: type 1 of the N-CREATE; missing type 2 attributes are forgiven, scanners leave many out.
CREATE_REQUIRED: Final = (
    "ScheduledStepAttributesSequence", "PerformedProcedureStepID", "PerformedStationAETitle",
    "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "PerformedProcedureStepStatus", "Modality",
)  # fmt: skip
STEP_REQUIRED: Final = ("StudyInstanceUID",)
END_REQUIRED: Final = ("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime")
SERIES_REQUIRED: Final = ("SeriesInstanceUID", "ProtocolName")
# Set once by N-CREATE; a different value in an N-SET is refused, an equal one forgiven.
FIXED: Final = (
    "ScheduledStepAttributesSequence", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "PerformedProcedureStepID", "PerformedStationAETitle", "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime", "Modality", "StudyID",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """One scheduled step that was performed; all but the study may be None: work that was not ordered."""

    study_uid: str
    accession: str | None
    procedure_id: str | None
    step_id: str | None


@dataclass(frozen=True, slots=True)
class PerformedSeries:
    """One series as the scanner counts it; its instances are the expected set."""

    series_uid: str
    instance_uids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PerformedStep:
    """What is now known of one performed procedure step; times are the scanner's wall time."""

    uid: str
    status: str
    scheduled: tuple[ScheduledStep, ...]
    series: tuple[PerformedSeries, ...]
    modality: str
    station_ae: str
    mrn: str | None
    issuer: str | None
    start: datetime | None
    end: datetime | None
    reason: tuple[str, str] | None
    """Why it was discontinued: coding scheme and code, such as ("DCM", "110514")."""

    @property
    def step_ids(self) -> tuple[str, ...]:
        """The Scheduled Procedure Step IDs that were worked off."""
        return tuple(step.step_id for step in self.scheduled if step.step_id)

    @property
    def instance_uids(self) -> tuple[str, ...]:
        """All instances of all series."""
        return tuple(uid for series in self.series for uid in series.instance_uids)


@dataclass(frozen=True, slots=True)
class MppsHandler:
    """How states are kept and who is told.

    `performed` is called before `save`: when either fails the scanner gets a failure and asks again,
    so `performed` must be safe to repeat.
    """

    load: Callable[[str], Json | None]
    save: Callable[[str, Json], None]
    performed: Callable[[PerformedStep], None]


class Refused(errors.IsocenterError):
    """The request is answered with a failure status of PS3.7 Annex C."""

    status, code = 422, "processing"

    def __init__(
        self, dimse_status: int, comment: str, *, keywords: tuple[str, ...] = (), error_id: int | None = None
    ) -> None:
        """`comment` goes to the scanner and must name no patient."""
        self.dimse_status = dimse_status
        self.comment = comment
        self.attributes = tuple(Tag(keyword) for keyword in keywords)
        self.error_id = error_id
        super().__init__(comment)


# Two messages about one step, on two associations, are taken one after the other.
_one_at_a_time = threading.Lock()


def create(handler: MppsHandler, uid: str, attributes: Dataset) -> None:
    """N-CREATE: a step has begun."""
    _require(attributes, CREATE_REQUIRED)
    for step in attributes.ScheduledStepAttributesSequence:
        _require(step, STEP_REQUIRED)
    if attributes.PerformedProcedureStepStatus != IN_PROGRESS:
        raise Refused(INVALID_VALUE, "a step begins IN PROGRESS", keywords=("PerformedProcedureStepStatus",))
    with _one_at_a_time:
        if handler.load(uid) is not None:
            raise Refused(DUPLICATE_INSTANCE, "this performed procedure step exists")
        _take(handler, uid, attributes)


def update(handler: MppsHandler, uid: str, modifications: Dataset) -> None:
    """N-SET: the step goes on or ends. One that has ended never changes again."""
    with _one_at_a_time:
        state = handler.load(uid)
        if state is None:
            raise Refused(NO_SUCH_INSTANCE, "no such performed procedure step")
        current = Dataset.from_json(state)
        if current.PerformedProcedureStepStatus in TERMINAL:
            raise Refused(PROCESSING_FAILURE, "the step may no longer be updated", error_id=MAY_NO_LONGER_BE_UPDATED)
        changed = _modified(current, modifications)
        if _as_json(changed) != state:
            _check_end(changed)
            _take(handler, uid, changed)


def _take(handler: MppsHandler, uid: str, dataset: Dataset) -> None:
    handler.performed(performed_step(uid, dataset))
    handler.save(uid, _as_json(dataset))


def _modified(current: Dataset, modifications: Dataset) -> Dataset:
    before, after = _as_json(current), _as_json(modifications)
    for keyword in FIXED:
        key = f"{Tag(keyword):08X}"
        if key in after and after[key] != before.get(key):
            raise Refused(INVALID_VALUE, f"{keyword} cannot change", keywords=(keyword,))
    return Dataset.from_json(before | after)


def _check_end(dataset: Dataset) -> None:
    status = dataset.get("PerformedProcedureStepStatus")
    if status not in {IN_PROGRESS, *TERMINAL}:
        raise Refused(INVALID_VALUE, "unknown status", keywords=("PerformedProcedureStepStatus",))
    if status in TERMINAL:
        _require(dataset, END_REQUIRED)
    if status == COMPLETED:
        _require(dataset, ("PerformedSeriesSequence",))
    if status in TERMINAL:
        for series in dataset.get("PerformedSeriesSequence") or ():
            _require(series, SERIES_REQUIRED)


def _require(dataset: Dataset, keywords: tuple[str, ...]) -> None:
    missing = tuple(keyword for keyword in keywords if keyword not in dataset)
    if missing:
        raise Refused(MISSING_ATTRIBUTE, f"missing {missing[0]}", keywords=missing)
    empty = tuple(keyword for keyword in keywords if dataset[keyword].is_empty)
    if empty:
        raise Refused(MISSING_VALUE, f"no value in {empty[0]}", keywords=empty)


def _as_json(dataset: Dataset) -> Json:
    # JSON is text already; the character set of the message that brought it says nothing any more.
    content = dataset.to_json_dict(suppress_invalid_tags=True)
    return {tag: element for tag, element in content.items() if tag != "00080005"}


def performed_step(uid: str, dataset: Dataset) -> PerformedStep:
    """The event of a state."""
    reasons = dataset.get("PerformedProcedureStepDiscontinuationReasonCodeSequence") or ()
    return PerformedStep(
        uid=uid,
        status=str(dataset.PerformedProcedureStepStatus),
        scheduled=tuple(map(_scheduled_step, dataset.ScheduledStepAttributesSequence)),
        series=tuple(map(_performed_series, dataset.get("PerformedSeriesSequence") or ())),
        modality=str(dataset.Modality),
        station_ae=str(dataset.PerformedStationAETitle),
        mrn=_value(dataset, "PatientID"),
        issuer=_value(dataset, "IssuerOfPatientID"),
        start=_moment(dataset, "PerformedProcedureStepStart"),
        end=_moment(dataset, "PerformedProcedureStepEnd"),
        reason=next(((str(code.CodingSchemeDesignator), str(code.CodeValue)) for code in reasons), None),
    )


def _scheduled_step(step: Dataset) -> ScheduledStep:
    return ScheduledStep(
        study_uid=str(step.StudyInstanceUID),
        accession=_value(step, "AccessionNumber"),
        procedure_id=_value(step, "RequestedProcedureID"),
        step_id=_value(step, "ScheduledProcedureStepID"),
    )


def _performed_series(series: Dataset) -> PerformedSeries:
    references = [
        *(series.get("ReferencedImageSequence") or ()),
        *(series.get("ReferencedNonImageCompositeSOPInstanceSequence") or ()),
    ]
    return PerformedSeries(
        series_uid=str(series.get("SeriesInstanceUID") or ""),
        instance_uids=tuple(str(reference.ReferencedSOPInstanceUID) for reference in references),
    )


def _value(dataset: Dataset, keyword: str) -> str | None:
    return str(dataset.get(keyword) or "").strip() or None


def _moment(dataset: Dataset, prefix: str) -> datetime | None:
    day, time = _value(dataset, f"{prefix}Date"), _value(dataset, f"{prefix}Time")
    if not day or not time:
        return None
    try:
        # Wall time of the scanner: the site's zone is known above, not here.
        return datetime.strptime(f"{day} {time.partition('.')[0]:0<6}", "%Y%m%d %H%M%S")  # noqa: DTZ007
    except ValueError:
        return None
