"""What a client may not write into resources whose truth is elsewhere: studies in the archive, records of the past."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from app.access import Access
from app.errors import Conflict, Forbidden
from app.fhir import resources
from app.fhir.mapping import imaging_study as mapping
from app.fhir.mapping.codes import Json
from app.workflow.orders import natural_key


def imaging_study(connection: Connection, caller: Access, study: Json, before: Json | None) -> None:
    """A study keeps its patient and its UID, and exists once: whoever holds its ImagingStudy holds its images."""
    if caller.studies is not None:
        # Its "u" is for STOW-RS: what a viewer stores changes the study, not what it says about it.
        raise Forbidden("a grant for one study stores images; the ImagingStudy follows the archive")
    if before is not None:
        if _owner(study) != _owner(before):
            raise Conflict("an ImagingStudy keeps its patient and its Study Instance UID")
        return
    uid, patient_id = _owner(study)
    if uid and resources.by_natural_key(connection, natural_key(uid, patient_id)) is not None:
        raise Conflict("this patient's study with this Study Instance UID has an ImagingStudy already")


def provenance(_connection: Connection, _caller: Access, _record: Json, before: Json | None) -> None:
    """What was recorded stays as it was recorded."""
    if before is not None:
        raise Conflict("a Provenance is a record of the past and cannot be changed")


def _owner(study: Json) -> tuple[str, str]:
    reference: str = study.get("subject", {}).get("reference", "")
    return mapping.uid_of(study) or "", reference.removeprefix("Patient/")
