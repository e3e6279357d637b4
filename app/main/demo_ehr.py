"""The demo EHR gets what a hospital's would be given: a registered client's token and our address."""

from __future__ import annotations

import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from sqlalchemy.engine import Connection

from app.console import ehr
from app.fhir import resources
from app.settings import Settings
from app.smart import clients, tokens, users
from app.smart.clients import Client
from app.store import timeline
from app.store.database import Store
from app.workflow.site import CATALOGUE

CLIENT_ID = "demo-ehr"
SCOPE = "system/*.cruds isocenter/launch isocenter/sign user/*.rs user/ImagingStudy.cu user/Observation.cud"
TOKEN_SECONDS = 3600
PASSWORD = "demo-only"  # noqa: S105 - printed on the screen; the demo listens on loopback only

PEOPLE = (
    ("radiologist", "Dr. Rana Demo-Radiologist", "Rana", "Demo-Radiologist"),
    ("technologist", "Toni Demo-Technologist", "Toni", "Demo-Technologist"),
    ("operator", "Olu Demo-Operator", "Olu", "Demo-Operator"),
    ("admin", "Adi Demo-Admin", "Adi", "Demo-Admin"),
)
PATIENTS = (
    ("DEMO-0001", "Testperson", "Phantom", "1968-04-12", "female"),
    ("DEMO-0002", "Mustermann", "Fiktiv", "1955-11-30", "male"),
    ("DEMO-0003", "Beispiel", "Ada", "1990-02-28", "female"),
)


def seed(connection: Connection, settings: Settings) -> None:
    """Users, patients and the EHR's registration, once."""
    for login, name, given, family in PEOPLE:
        practitioner: dict[str, Any] = {
            "resourceType": "Practitioner",
            "id": f"demo-{login}",
            "name": [{"text": name, "given": [given], "family": family}],
        }
        if resources.read(connection, "Practitioner", practitioner["id"]) is None:
            resources.put(connection, practitioner, cause="demo")
        if users.find(connection, login) is None:
            users.add(connection, users.User(login, name, login, f"Practitioner/demo-{login}"), PASSWORD)
    system = settings.default_authority("mrn").fhir_system
    for mrn, family, given, born, gender in PATIENTS:
        patient: dict[str, Any] = {
            "resourceType": "Patient",
            "id": mrn.lower(),
            "identifier": [{"system": system, "value": mrn}],
            "name": [{"use": "official", "family": family, "given": [given]}],
            "birthDate": born,
            "gender": gender,
        }
        if resources.read(connection, "Patient", patient["id"]) is None:
            resources.put(connection, patient, cause="demo")
    if clients.find(connection, CLIENT_ID) is None:
        # Nobody learns the secret: the demo's tokens are made beside the store.
        clients.register(connection, Client(CLIENT_ID, "Demo EHR", "symmetric", scope=SCOPE))


@dataclass(slots=True)
class Tokens:
    """A token of the demo EHR, renewed before it ends."""

    store: Store
    value: str = field(default="", repr=False)
    until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> str:
        """A token that is good for at least a minute."""
        with self.lock:
            if time.monotonic() > self.until:
                self.value = self.store.transact(_token)
                self.until = time.monotonic() + TOKEN_SECONDS - 60
            return self.value


def _token(connection: Connection) -> str:
    grant_id = tokens.open_grant(
        connection,
        client_id=CLIENT_ID,
        user=None,
        patient_id=None,
        studies=None,
        scope="system/*.cruds isocenter/launch isocenter/sign",
        context={},
        lifetime=TOKEN_SECONDS,
    )
    return tokens.issue(connection, grant_id, seconds=TOKEN_SECONDS)["access_token"]


def mount(app: FastAPI, store: Store, settings: Settings) -> None:
    """Put the demo EHR at /ehr."""

    def people() -> Sequence[ehr.EhrUser]:
        with store.read() as connection:
            known = users.list_users(connection)
        return [ehr.EhrUser(one.id, one.name, one.role, one.fhir_user or "") for one in known if not one.disabled]

    def events(order_id: str) -> Sequence[Mapping[str, Any]]:
        with store.read() as connection:
            return [dict(row) for row in timeline.of_order(connection, order_id)]

    base = f"http://{settings.host}:{settings.port}"
    demo = ehr.Ehr(
        base=base,
        token=Tokens(store),
        users=people,
        procedures=procedures(),
        timeline=events,
        mrn_system=settings.default_authority("mrn").fhir_system,
        zone=settings.zone,
    )
    app.include_router(ehr.routes(demo), prefix="/ehr")


def procedures() -> tuple[ehr.EhrProcedure, ...]:
    """What can be ordered: the catalogue's procedures by their first coding."""
    catalogue = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))["procedure"]
    first = [(entry["name"], entry["codings"][0]) for entry in catalogue]
    return tuple(ehr.EhrProcedure(name, one["system"], one["code"], one["display"]) for name, one in first)
