"""What the workflow's tests share: a site, and a clinic with one patient, on both engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy.engine import Connection

from app.access import SYSTEM
from app.fhir import resources
from app.settings import Settings
from app.store import resources as rows
from app.store.database import Store
from app.workflow import orders, site

Json = dict[str, Any]
CT_CHEST = {"coding": [{"system": "http://loinc.org", "code": "24627-2", "display": "CT Chest"}]}


@dataclass(frozen=True)
class Clinic:
    """A store with a site and a patient in it."""

    store: Store
    site: site.Site
    patient_id: str

    def write(self, resource: Json) -> Json:
        """Create or update as a client does, hooks included; the stored resource."""

        def work(connection: Connection) -> Json:
            kind, draft = resource["resourceType"], resources.accepted(resource["resourceType"], orjson.dumps(resource))
            known = rows.current(connection, kind, resource["id"], for_update=True) if "id" in resource else None
            before = resources.loads(known.body) if known else None
            if known:
                change = resources.replaced(known, draft, cause="test")
            else:
                change = resources.created(kind, draft, cause="test", resource_id=resource.get("id"))
            stored = rows.write(connection, [change])[0] if change else known
            assert stored is not None
            now = resources.read(connection, kind, stored.resource_id)
            assert now is not None
            if kind == "ServiceRequest":
                orders.received(self.site, connection, SYSTEM, now, before)
            return resources.read(connection, kind, stored.resource_id) or {}

        return self.store.transact(work)

    def order(self, **elements: Any) -> Json:
        """An accepted CT order."""
        return self.write(
            {
                "resourceType": "ServiceRequest",
                "status": "active",
                "intent": "order",
                "code": CT_CHEST,
                "subject": {"reference": f"Patient/{self.patient_id}"},
                "occurrenceDateTime": "2026-03-02T09:30:00+01:00",
            }
            | elements
        )

    def find(self, kind: str, *criteria: tuple[str, str]) -> list[Json]:
        with self.store.read() as connection:
            return resources.find(connection, kind, list(criteria))

    def read(self, kind: str, resource_id: str) -> Json:
        with self.store.read() as connection:
            found = resources.read(connection, kind, resource_id)
        assert found is not None
        return found


@pytest.fixture
def clinic(store: Store, tmp_path: Path) -> Clinic:
    settings = Settings(data_dir=tmp_path, timezone="Europe/Berlin")
    made = Clinic(store, site.of(settings), "")
    patient = made.write(
        {
            "resourceType": "Patient",
            "identifier": [{"system": "urn:isocenter:mrn", "value": "P-1"}],
            "name": [{"family": "Beispiel", "given": ["Ada"]}],
            "birthDate": "1970-01-02",
            "gender": "female",
        }
    )
    return Clinic(store, made.site, patient["id"])
