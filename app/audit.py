"""Neutral audit records: who did what to which object through which door, and how it ended (for IHE BALP)."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

Outcome = Literal["allowed", "denied", "failed"]
Door = Literal["fhir", "dicomweb", "smart", "viewer", "dicom", "workflow"]


class Record(Struct, frozen=True):
    """One audited act. Identifiers only: no names, no tokens, no search values."""

    door: Door
    action: str
    outcome: Outcome
    client_id: str = ""
    grant_id: str | None = None
    fhir_user: str | None = None
    patient_id: str | None = None
    study_uid: str | None = None
    target: str = ""
    request_id: str = ""
    detail: dict[str, Any] = field(default_factory=dict[str, Any])


class Caller(Protocol):
    """Whose act it was, as every grant knows it."""

    @property
    def client_id(self) -> str:
        """The app."""
        ...

    @property
    def grant_id(self) -> str | None:
        """The grant behind the credential."""
        ...

    @property
    def fhir_user(self) -> str | None:
        """The person, as a FHIR reference."""
        ...


def of(caller: Caller, record: Record) -> Record:
    """The record with its caller filled in."""
    return replace(record, client_id=caller.client_id, grant_id=caller.grant_id, fhir_user=caller.fhir_user)
