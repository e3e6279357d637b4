"""A clinic with a real archive: orders as clients write them, images as a scanner makes them of the worklist."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fhir.resources.R4B import get_fhir_model_class
from pydicom.dataset import Dataset
from sqlalchemy.engine import Connection

from app.access import SYSTEM, VERBS, Access, Scope
from app.dicom.orthanc import Orthanc as Client
from app.dicom.worklist import WorklistKeys
from app.fhir import interactions, resources, validation
from app.fhir.calls import Call, Door
from app.settings import Settings
from app.store import outbox, sync
from app.store.database import Store
from app.workflow import arrivals, changes, evidence, guards, orders, reports, site
from app.workflow.arrivals import Archive
from tests.orthanc import phantoms
from tests.orthanc.conftest import Orthanc

Json = dict[str, Any]
RADIOLOGIST = Access(
    "viewer",
    user_id="r",
    fhir_user="Practitioner/r",
    scopes=(Scope("user", "*", frozenset(VERBS)),),
    rights=frozenset({reports.SIGN}),
)
CT_CHEST = {"coding": [{"system": "http://loinc.org", "code": "24627-2", "display": "CT Chest"}]}


@dataclass
class Hospital:
    """A store, its site, one archive; every step of the worker by hand."""

    archive: Archive
    server: Orthanc
    pacs: httpx.Client
    patient_id: str = ""
    owner: str = "test"
    reader: changes.Reader = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    @property
    def store(self) -> Store:
        return self.archive.store

    def restart(self) -> None:
        """A new process on the same store."""
        self.archive = Archive(self.store, self.archive.orthanc, self.archive.site)
        self.reader = changes.Reader(self.archive)

    # --- clients -------------------------------------------------------------------------------------------------

    def write(self, resource: Json, caller: Access = SYSTEM) -> Json:
        """Create or update as the FHIR door does: guard, store, hook, one transaction."""
        what = "update" if "id" in resource else "create"
        sent = {"content-type": "application/fhir+json"}
        kind, body = resource["resourceType"], resources.dumps(resource)
        call = Call(self.door(), caller, what, kind, resource.get("id", ""), headers=sent, body=body)
        return resources.loads(self.store.transact(interactions.prepare(call)).body)

    def door(self) -> Door:
        def ordered(connection: Connection, caller: Access, order: Json, before: Json | None) -> None:
            orders.received(self.archive.site, connection, caller, order, before)

        return Door(
            store=self.store,
            settings=Settings(),
            authenticate=lambda _: SYSTEM,
            hooks={"ServiceRequest": ordered, "DiagnosticReport": reports.received},
            guards=guards.GUARDS,
            audit=lambda _: None,
            key=b"k" * 32,
            delete_guards=guards.DELETE_GUARDS,
        )

    def patient(self, mrn: str, family: str = "Beispiel") -> str:
        identifier = {"system": "urn:isocenter:mrn", "value": mrn}
        name = {"family": family, "given": ["Ada"]}
        return self.write({"resourceType": "Patient", "identifier": [identifier], "name": [name]})["id"]

    def order(self, **elements: Any) -> Json:
        order = {
            "resourceType": "ServiceRequest",
            "status": "active",
            "intent": "order",
            "code": CT_CHEST,
            "subject": {"reference": f"Patient/{self.patient_id}"},
        }
        return self.write(order | elements)

    # --- the scanner ---------------------------------------------------------------------------------------------

    def item(self, order: Json) -> Dataset:
        """The worklist item a modality got for an order."""
        [found] = [
            item
            for item in orders.worklist_of(self.store, self.archive.site)(WorklistKeys("TEST"))
            if item.StudyInstanceUID == uid(order)
        ]
        return found

    def image(self, order: Json | None = None, number: int = 1, **attributes: Any) -> Dataset:
        """One image, with the attributes of the order's worklist item; a keyword of None is deleted."""
        image = phantoms.image(mrn="P-1", study="1.2.3.1", series="1.2.3.1.1", instance=f"1.2.3.1.1.{number}")
        if order is not None:
            item = self.item(order)
            study = str(item.StudyInstanceUID)
            image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study[:50]}.1"
            image.SOPInstanceUID = f"{study[:50]}.1.{number}"
            image.PatientName, image.PatientID = item.PatientName, item.PatientID
            image.AccessionNumber = item.AccessionNumber
        for keyword, value in attributes.items():
            if value is None:
                delattr(image, keyword)
            else:
                setattr(image, keyword, value)
        return image

    def send(self, *images: Dataset | bytes) -> None:
        for image in images:
            content = image if isinstance(image, bytes) else phantoms.part10(image)
            self.archive.orthanc.store(content)

    def delete(self, level: str, orthanc_id: str) -> None:
        self.pacs.delete(f"/{level}/{orthanc_id}").raise_for_status()

    # --- the worker ----------------------------------------------------------------------------------------------

    def poll(self) -> int:
        def hold(connection: Connection) -> int | None:
            return sync.hold(connection, changes.CHANGES, self.owner, seconds=60)

        fence = self.store.transact(hold)
        assert fence is not None
        return changes.read(self.reader, fence)

    def look(self) -> int:
        """Poll, and look at every marked study now, whatever its debounce says; how many."""
        self.poll()
        return self.rebuild()

    def rebuild(self) -> int:
        looked = 0
        self.hurry()
        while arrivals.rebuild_one(self.archive):
            looked += 1
        return looked

    def rebuild_once(self) -> None:
        self.hurry()
        arrivals.rebuild_one(self.archive)

    def hurry(self) -> None:
        """Let every waiting study be due now."""
        self.store.transact(lambda connection: connection.execute(sync.dirty_study.update().values(due=0)))

    def effects(self) -> list[str]:
        """Do every effect that is due; their kinds."""
        kinds: list[str] = []
        while effect := self.store.transact(lambda tx: outbox.claim(tx, ("evidence", "archive-report"))):
            kinds.append(effect.kind)
            if effect.kind == "evidence":
                evidence.read_one(self.archive, effect.payload["sop_uid"])
            else:
                reports.archive_one(self.archive, effect)
            self.store.transact(lambda tx, done=effect.id: outbox.done(tx, done))
        return kinds

    def settle(self) -> None:
        """The worker's turn, once around."""
        self.look()
        self.effects()
        self.look()
        arrivals.settle(self.archive)

    # --- what came of it -----------------------------------------------------------------------------------------

    def find(self, kind: str, *criteria: tuple[str, str]) -> list[Json]:
        with self.store.read() as connection:
            return resources.find(connection, kind, list(criteria))

    def read(self, kind: str, resource_id: str) -> Json:
        with self.store.read() as connection:
            found = resources.read(connection, kind, resource_id)
        assert found is not None
        return found

    def study(self, study_uid: str) -> Json:
        [found] = self.find("ImagingStudy", ("identifier", f"urn:dicom:uid|urn:oid:{study_uid}"))
        return found

    def version(self, resource: Json) -> int:
        return int(resource["meta"]["versionId"])

    def reviews(self) -> list[str]:
        found = [task["code"]["coding"][0]["code"] for task in self.find("Task") if task["status"] == "requested"]
        return sorted(found)

    def orthanc_id(self, study_uid: str) -> str:
        [found] = [one for one in self.archive.orthanc.lookup(study_uid) if one.level == "Study"]
        return found.orthanc_id

    def judge(self) -> None:
        """Every resource of the store is valid for our judge and for fhir.resources."""
        kinds = ("ImagingStudy", "Patient", "Task", "Observation", "DiagnosticReport", "ServiceRequest", "Provenance")
        for kind in (*kinds, "Device"):
            for resource in self.find(kind):
                body = resources.dumps(resource)
                assert validation.validate(validation.parse(body), kind) == []
                get_fhir_model_class(kind).model_validate(orjson.loads(body))


def uid(order: Json) -> str:
    return next(
        one["value"].removeprefix("urn:oid:") for one in order["identifier"] if one.get("system") == "urn:dicom:uid"
    )


@contextmanager
def hospital(store: Store, server: Orthanc, folder: Path, **settings: Any) -> Iterator[Hospital]:
    """A hospital on this store and archive; a study is quiet and gone at once."""
    chosen = Settings(data_dir=folder, timezone="Europe/Berlin", **({"quiet_seconds": 0, "delete_grace": 0} | settings))
    with Client(server.url, server.username, server.password) as orthanc, server.client() as pacs:
        made = Hospital(Archive(store, orthanc, site.of(chosen)), server, pacs)
        made.patient_id = made.patient("P-1")
        # The archive is shared by the session: what was before this test is not ours.
        last = orthanc.last_change()
        start = sync.Position(last, "test", {"from": last})
        store.transact(lambda tx: sync.move(tx, changes.CHANGES, start))
        yield made


def ids(found: Iterable[Json]) -> set[str]:
    return {one["id"] for one in found}


@pytest.fixture
def lite(sqlite_template: Path, clean_orthanc: Orthanc, tmp_path: Path) -> Iterator[Hospital]:
    """A hospital on SQLite, every resource of it judged at the end: most cases ask nothing of the engine."""
    shutil.copy(sqlite_template, tmp_path / "lite.sqlite")
    store = Store(f"sqlite:///{tmp_path / 'lite.sqlite'}")
    with hospital(store, clean_orthanc, tmp_path) as made:
        yield made
        made.judge()
    store.close()


@pytest.fixture
def both(store: Store, clean_orthanc: Orthanc, tmp_path: Path) -> Iterator[Hospital]:
    """A hospital on each engine."""
    with hospital(store, clean_orthanc, tmp_path) as made:
        yield made
        made.judge()
