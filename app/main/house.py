"""What main hands to the parts of the HTTP interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from app.access import Access
from app.audit import Record
from app.main.auditing import Auditor
from app.settings import Settings
from app.smart import tokens
from app.store.database import Store
from app.workflow import site


@dataclass(frozen=True, slots=True)
class House:
    """One process: its store, its site, its audit trail."""

    store: Store
    settings: Settings
    site: site.Site
    auditor: Auditor

    def audit(self, record: Record) -> None:
        """Keep an audit record, soon."""
        self.auditor.note(record)

    def by_token(self) -> Callable[[Request], Access]:
        """Who asks, by the bearer token."""
        known = tokens.authenticate(self.store)
        return lambda request: known(tokens.bearer(request))
