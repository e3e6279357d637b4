"""One interaction asked for, by HTTP or by an entry of a Bundle, and its answer (https://hl7.org/fhir/R4/http.html)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct
from sqlalchemy.engine import Connection
from starlette.requests import Request

from app.access import Access, Action, Facts, permits
from app.audit import Outcome, Record
from app.errors import Forbidden
from app.fhir.registry import Offer, offer
from app.fhir.resources import Draft
from app.fhir.validation import Json
from app.settings import Settings
from app.store.database import Store

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
Authenticate = Callable[[Request], Access]
Hook = Callable[[Connection, Access, Json, Json | None], None]
"""(transaction, caller, resource now, resource before): after a write, in its transaction; may edit, may raise."""
Guard = Hook
"""The same before the write, with the resource as the client wants it; raises to refuse."""
DeleteGuard = Callable[[Connection, Access, Json], None]
"""(transaction, caller, resource): before a deletion; raises to refuse."""


@dataclass(frozen=True, slots=True)
class Door:
    """What every interaction works with; `key` seals paging links."""

    store: Store
    settings: Settings
    authenticate: Authenticate
    hooks: Mapping[str, Hook]
    guards: Mapping[str, Guard]
    audit: Callable[[Record], None]
    key: bytes
    delete_guards: Mapping[str, DeleteGuard] = field(default_factory=dict[str, DeleteGuard])
    audit_in: Callable[[Connection, Sequence[Record]], None] | None = None
    """Keeps the records of writes in the writes' own transaction; without it `audit` keeps them."""
    recognize: Callable[[Connection, Request], Access] | None = None
    """Authenticates on the connection that the answer is read on; without it `authenticate` does on its own."""
    settle_audit: Callable[[], None] = lambda: None
    """Waits until every record that was noted can be found."""
    operations: Mapping[str, Callable[[Connection], Mapping[str, Any]]] = field(
        default_factory=dict[str, Callable[[Connection], Mapping[str, Any]]]
    )
    """What operations tell, by their name, by the names of their parameters."""
    read_only: bool = False

    @property
    def base(self) -> str:
        """The FHIR base as clients see it."""
        return self.settings.fhir_base


@dataclass(slots=True)
class Call:
    """One interaction; `about` gathers what its audit record will tell, `headers` have lower-case names.

    Nobody changes one; but to freeze it would cost as much as reading a row, for every request.
    """

    door: Door
    access: Access
    interaction: str
    resource_type: str = ""
    resource_id: str = ""
    version: str = ""
    criteria: tuple[tuple[str, str], ...] = ()
    """Query and form parameters in their order."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    draft: Draft | None = None
    """A body that was judged already, as those of a Bundle's entries are."""
    request_id: str = ""
    about: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def offer(self) -> Offer:
        """What is served of the type; NotSupported when nothing is."""
        return offer(self.resource_type)

    @property
    def target(self) -> str:
        """Type, and id when the address has a legal one: any other text is nobody's to keep."""
        known = self.resource_id if _ID.fullmatch(self.resource_id) else ""
        return f"{self.resource_type}/{known}".strip("/")

    @property
    def cause(self) -> str:
        """What a version says of its making."""
        return f"{self.interaction} by {self.access.client_id}"

    def permit(self, verb: str) -> None:
        """Forbidden unless some scope could allow the verb on this type: asked before anything is looked up."""
        if not permits(self.access, Action(verb, self.resource_type)):
            raise Forbidden

    def record(self, outcome: Outcome) -> Record:
        """What the audit trail keeps of this call."""
        caller, about = self.access, self.about
        return Record(
            "fhir",
            self.interaction,
            outcome,
            caller.client_id,
            caller.grant_id,
            caller.fhir_user,
            about.get("patient_id"),
            about.get("study_uid"),
            about.get("target") or self.target,
            self.request_id,
            about.get("detail") or {},
        )

    def tell(self, facts: Facts) -> None:
        """Let the audit record name the patient and the study."""
        self.about["patient_id"] = facts.patient_id
        self.about["study_uid"] = min(facts.study_uids, default=None)


class Reply(Struct, frozen=True):
    """The answer before it is put into HTTP or into a Bundle entry; `body` is JSON, or nothing."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}
