"""A round of chaos: a clinic at work on a real archive while network, archive and workers fail, all from one seed.

The script of a round (what is done, which fault comes when) follows from its seed; how far the worker has come at each
step does not, so a round that is played again may need more than one try to fail again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from pydicom.dataset import Dataset

from app.dicom.orthanc import Orthanc as Client
from app.fhir import rebuild, resources
from app.settings import Settings
from app.store.database import Store
from app.workflow import site as workflow_site
from app.workflow.site import Archive
from tests.faults import oracle
from tests.faults.nursery import Nursery, Process
from tests.faults.oracle import Verdict
from tests.faults.proxy import Proxy
from tests.orthanc import phantoms
from tests.orthanc.conftest import Orthanc, configuration
from tests.orthanc.hospital import Hospital
from tests.processes import answers, free_port, program, wait_until

Json = dict[str, Any]

STEPS = int(os.environ.get("ISOCENTER_CHAOS_STEPS", "60"))
KINDS = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
}
REGISTERED = ("P-1", "P-2")
STRANGERS = ("S-1", "S-2", "S-3")
FROZEN_SECONDS = 7.0
"""Longer than a worker that says nothing is believed to live."""
ORDERS = 2
"""So many orders has each registered patient."""
CROWD, MASS = 24, 20
"""So many studies stand in a round that takes them all away; what counts as a mass."""


# --- what a round leaves -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Round:
    """One seed on one engine: what was done, what the oracle said, what was printed meanwhile."""

    seed: int
    engine: str
    done: Counter[str] = field(default_factory=Counter)
    script: list[str] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    drift: Json = field(default_factory=dict)
    before: int = 0
    """Versions that were written before anybody reconciled: by a sync amid its faults."""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return bool(self.verdict.problems)

    def told(self) -> str:
        """What a failure prints: enough to play the round again."""
        again = f"ISOCENTER_CHAOS_SEED={self.seed} ISOCENTER_CHAOS_ROUNDS=1 pytest tests/faults/test_sync_chaos.py"
        script = ", ".join(self.script)
        return "\n  ".join((f"seed {self.seed} on {self.engine}; again: {again}", *self.verdict.problems, script))


# --- the archive -------------------------------------------------------------------------------------------------


@dataclass
class Pacs:
    """An Orthanc in a folder of its own: started, killed, put back to an older state."""

    folder: Path
    server: Orthanc
    overwrite: bool
    more: Json = field(default_factory=dict)
    """Settings of Orthanc beside those of every test."""
    process: subprocess.Popen[bytes] | None = None
    older: Path | None = None
    starts: int = 0

    def start(self) -> None:
        self.starts += 1
        settings, log = self.folder / "orthanc.json", self.folder / f"orthanc-{self.starts}.log"
        settings.write_text(json.dumps(self._configuration()))
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [program("/usr/sbin/Orthanc"), str(settings)], stdout=output, stderr=output, start_new_session=True
            )
        with self.server.client() as client:
            answers(self.process, log, lambda: _answers(client), "Orthanc")

    def kill(self) -> None:
        """kill -9; back when it is gone."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def keep(self) -> None:
        """Stop, and keep a copy of the database and its files."""
        self.stop()
        self.older = self.folder / f"older-{self.starts}"
        shutil.copytree(self.folder / "db", self.older)

    def put_back(self) -> None:
        """Stop, and put the kept copy in place: a backup that was restored."""
        self.stop()
        assert self.older is not None
        shutil.rmtree(self.folder / "db")
        shutil.copytree(self.older, self.folder / "db")

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)
            self.process.wait(30)

    def _configuration(self) -> Json:
        # DICOMweb takes no part in the sync, and a plugin less starts sooner.
        own = {"Plugins": [], "OverwriteInstances": self.overwrite, "HttpThreadsCount": 16}
        return configuration(self.server, self.folder) | own | self.more


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/system").is_success
    except httpx.TransportError:
        return False


# --- the clinic --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ordered:
    """What a scanner got of an order from its worklist."""

    study_uid: str
    accession: str
    mrn: str


@dataclass
class Clinic:
    """Whoever stores, deletes and changes: each deed is one or a few requests to the archive itself."""

    seed: int
    pacs: httpx.Client
    overwrite: bool
    ordered: Sequence[Ordered] = ()
    made: int = 0
    sent: dict[str, Dataset] = field(default_factory=dict)
    """Every image by its SOP Instance UID, as it was last sent."""
    accessions: dict[str, str] = field(default_factory=dict)
    """The accession number of each ordered study."""

    # --- deeds -----------------------------------------------------------------------------------------------------

    def new_study(self, chance: random.Random) -> None:
        self._study(chance, chance.choice(REGISTERED + STRANGERS))

    def ordered_study(self, chance: random.Random) -> None:
        """Images of an order; some scanners make a Study Instance UID of their own."""
        order = chance.choice(self.ordered)
        self.made += 1
        study = order.study_uid if chance.random() < 0.7 else f"1.2.{self.seed}.{self.made}"
        self.accessions[study] = order.accession
        for _ in range(chance.randint(1, 3)):
            self._send(self._image(study, order.mrn, "CT", chance))

    def twin(self, chance: random.Random) -> None:
        """The same Study Instance UID for another patient, as a scanner with a bad clock makes it."""
        for image in self._pick(chance, 1):
            other = chance.choice([one for one in REGISTERED + STRANGERS if one != image.PatientID])
            self._send(self._image(image.StudyInstanceUID, other, "CT", chance))

    def late_image(self, chance: random.Random) -> None:
        for image in self._pick(chance, 1):
            series = str(image.SeriesInstanceUID) if image.Modality in KINDS and chance.random() < 0.5 else None
            kind = str(image.Modality) if series else chance.choice(list(KINDS))
            late = self._image(str(image.StudyInstanceUID), str(image.PatientID), kind, chance, series)
            if series:
                for keyword in ("SeriesDescription", "SeriesNumber", "PatientIdentityRemoved"):
                    if keyword in image:
                        setattr(late, keyword, image[keyword].value)
            self._send(late)

    def nameless_series(self, chance: random.Random) -> None:
        """A series that says of itself that it names nobody: the whole study is nobody's while it is there."""
        for image in self._pick(chance, 1):
            late = self._image(str(image.StudyInstanceUID), str(image.PatientID), "CT", chance)
            late.PatientIdentityRemoved = "YES"
            self._send(late)

    def report(self, chance: random.Random) -> None:
        """A structured report beside the images."""
        for image in self._pick(chance, 1):
            study, uid = str(image.StudyInstanceUID), self._uid(str(image.StudyInstanceUID))
            made = phantoms.report(mrn=str(image.PatientID), study=study, series=uid, instance=f"{uid}.1")
            made.AccessionNumber = image.AccessionNumber
            self._send(made)

    def send_again(self, chance: random.Random) -> None:
        for image in self._pick(chance, 2):
            self._send(image)

    def overwrite_image(self, chance: random.Random) -> None:
        """The same SOP Instance UID with other values; an archive that keeps the first needs it deleted before."""
        for image in self._pick(chance, 1):
            image.InstanceNumber = chance.randrange(1, 1000)
            image.SeriesDescription = f"changed {chance.randrange(1000)}"
            image.StudyDescription = f"study {chance.randrange(1000)}"
            if not self.overwrite:
                self._delete_where("instances", str(image.SOPInstanceUID))
            self._send(image)

    def delete_instance(self, chance: random.Random) -> None:
        self._delete_any("instances", chance)

    def delete_series(self, chance: random.Random) -> None:
        self._delete_any("series", chance)

    def delete_study(self, chance: random.Random) -> None:
        self._delete_any("studies", chance)

    def delete_patient(self, chance: random.Random) -> None:
        self._delete_any("patients", chance)

    def replace_study(self, chance: random.Random) -> None:
        """Deleted and sent again: an overwrite as some archives' users do it."""
        for image in self._pick(chance, 1):
            study = str(image.StudyInstanceUID)
            self._delete_where("studies", study)
            for one in [one for one in self.sent.values() if one.StudyInstanceUID == study]:
                self._send(one)

    def modify(self, chance: random.Random) -> None:
        for study in self._choose("studies", chance):
            changes = {"Replace": {"StudyDescription": f"modified {chance.randrange(1000)}"}}
            keeps = {"KeepSource": chance.random() < 0.5}
            self._post(f"/studies/{study}/modify", changes | keeps)

    def anonymise(self, chance: random.Random) -> None:
        for study in self._choose("studies", chance):
            self._post(f"/studies/{study}/anonymize", {"KeepSource": chance.random() < 0.7})

    def merge(self, chance: random.Random) -> None:
        studies = self._choose("studies", chance, 2)
        if len(studies) == 2:
            self._post(f"/studies/{studies[0]}/merge", {"Resources": [studies[1]], "KeepSource": chance.random() < 0.3})

    def split(self, chance: random.Random) -> None:
        for study in self._choose("studies", chance, 3):
            series = self.pacs.get(f"/studies/{study}").raise_for_status().json()["Series"]
            if len(series) > 1:
                wanted = {"Series": [min(series)], "KeepSource": chance.random() < 0.3}
                self._post(f"/studies/{study}/split", wanted)
                return

    def clear_changes(self, _: random.Random) -> None:
        self.pacs.delete("/changes").raise_for_status()

    def wipe(self, _: random.Random) -> None:
        """Everything goes."""
        for patient in self.pacs.get("/patients").raise_for_status().json():
            self.pacs.delete(f"/patients/{patient}").raise_for_status()

    def crowd(self, chance: random.Random) -> None:
        """So many studies that their going is a mass."""
        for _ in range(CROWD - len(self.pacs.get("/studies").raise_for_status().json())):
            self._study(chance, chance.choice(REGISTERED + STRANGERS), most=1)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _study(self, chance: random.Random, mrn: str, most: int = 3) -> None:
        self.made += 1
        study = f"1.2.{self.seed}.{self.made}"
        for _ in range(chance.randint(1, most)):
            kind, series = chance.choice(list(KINDS)), self._uid(study)
            for _ in range(chance.randint(1, most)):
                self._send(self._image(study, mrn, kind, chance, series))

    def _image(self, study: str, mrn: str, kind: str, chance: random.Random, series: str | None = None) -> Dataset:
        series = series or self._uid(study)
        image = phantoms.image(mrn=mrn, study=study, series=series, instance=self._uid(series))
        image.Modality, image.SOPClassUID = kind, KINDS[kind]
        image.AccessionNumber = self.accessions.get(study, image.AccessionNumber)
        image.SeriesNumber = int(series.rsplit(".", 1)[1])
        image.StudyTime = f"{chance.randrange(24):02d}{chance.randrange(60):02d}00"
        return image

    def _uid(self, root: str) -> str:
        self.made += 1
        return f"{root}.{self.made}"

    def _pick(self, chance: random.Random, count: int) -> list[Dataset]:
        known = sorted(self.sent)
        return [self.sent[uid] for uid in chance.sample(known, min(count, len(known)))]

    def _choose(self, level: str, chance: random.Random, count: int = 1) -> list[str]:
        there = sorted(self.pacs.get(f"/{level}").raise_for_status().json())
        return chance.sample(there, min(count, len(there)))

    def _send(self, image: Dataset) -> None:
        self.sent[str(image.SOPInstanceUID)] = image
        self.pacs.post("/instances", content=phantoms.part10(image)).raise_for_status()

    def _delete_any(self, level: str, chance: random.Random) -> None:
        for one in self._choose(level, chance):
            self.pacs.delete(f"/{level}/{one}").raise_for_status()

    def _delete_where(self, level: str, uid: str) -> None:
        for found in self.pacs.post("/tools/lookup", content=uid).raise_for_status().json():
            if found["Path"].startswith(f"/{level}/"):
                self.pacs.delete(found["Path"]).raise_for_status()

    def _post(self, path: str, body: Json) -> None:
        self.pacs.post(path, json=body | {"Synchronous": True, "Force": True}).raise_for_status()


DEEDS: dict[str, tuple[int, Callable[[Clinic, random.Random], None]]] = {
    "new study": (20, Clinic.new_study),
    "ordered study": (6, Clinic.ordered_study),
    "twin": (2, Clinic.twin),
    "late image": (12, Clinic.late_image),
    "nameless series": (3, Clinic.nameless_series),
    "report": (3, Clinic.report),
    "send again": (4, Clinic.send_again),
    "overwrite": (8, Clinic.overwrite_image),
    "delete instance": (6, Clinic.delete_instance),
    "delete series": (4, Clinic.delete_series),
    "delete study": (5, Clinic.delete_study),
    "delete patient": (1, Clinic.delete_patient),
    "replace study": (3, Clinic.replace_study),
    "modify": (4, Clinic.modify),
    "anonymise": (4, Clinic.anonymise),
    "merge": (3, Clinic.merge),
    "split": (3, Clinic.split),
    "clear changes": (3, Clinic.clear_changes),
}
FAULTS: dict[str, int] = {
    "cut": 4,
    "stall": 4,
    "slow": 4,
    "break off": 5,
    "kill worker": 8,
    "stop worker": 2,
    "second worker": 2,
    "kill reconcile": 2,
    "kill rebuild": 1,
    "kill archive": 6,
    "restart archive": 2,
}


# --- the installation --------------------------------------------------------------------------------------------


@dataclass
class Site:
    """One installation: archive, network, workers, and what is broken until which step."""

    folder: Path
    url: str
    pacs: Pacs
    network: Proxy
    nursery: Nursery
    workers: list[Process] = field(default_factory=list)
    repairs: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    starts: int = 0

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ISOCENTER_CONFIG": str(self.folder / "isocenter.toml"),
            "ISOCENTER_DATA_DIR": str(self.folder),
            "ISOCENTER_DATABASE_URL": self.url,
            "ISOCENTER_ORTHANC_URL": f"http://127.0.0.1:{self.network.port}",
            "ISOCENTER_ORTHANC_USERNAME": self.pacs.server.username,
            "ISOCENTER_ORTHANC_PASSWORD": self.pacs.server.password,
            "ISOCENTER_SECRET_KEY": "a secret key for tests only, long enough",
            "ISOCENTER_QUIET_SECONDS": "0.3",
            "ISOCENTER_DELETE_GRACE": "0.2",
        }

    def run(self, *words: str) -> Process:
        """One command of the installation."""
        self.starts += 1
        output = self.folder / f"{words[0]}-{self.starts}"
        return self.nursery.isocenter(*words, environment=self.environment, output=output)

    def work(self) -> None:
        self.workers.append(self.run("serve", "--role", "worker"))

    def reconcile(self, *options: str) -> Json:
        """`isocenter sync reconcile` beside the workers; what it prints."""
        process = self.run("sync", "reconcile", *options)
        status = process.wait(120)
        assert status == 0, f"reconcile ended with {status}: {process.told()}"
        return json.loads(process.printed().splitlines()[-1])

    def mend(self, step: int) -> None:
        """Do the repairs that are due at this step."""
        due = [repair for when, repair in self.repairs if when <= step]
        self.repairs = [(when, repair) for when, repair in self.repairs if when > step]
        for repair in due:
            repair()

    def end(self) -> None:
        for _, repair in self.repairs:
            repair()
        for worker in self.workers:
            worker.kill()
        self.pacs.kill()


@contextmanager
def site(folder: Path, nursery: Nursery, url: str, *, overwrite: bool) -> Iterator[Site]:
    """An archive, a network and a worker; gone at the end whatever happened."""
    server = Orthanc(f"http://127.0.0.1:{free_port()}", "127.0.0.1", free_port(), "ORTHANC", "isocenter", "secret")
    with Proxy(int(server.url.rsplit(":", 1)[1])) as network:
        made = Site(folder, url, Pacs(folder, server, overwrite), network, nursery)
        try:
            made.pacs.start()
            made.work()
            yield made
        finally:
            made.end()


# --- a round -----------------------------------------------------------------------------------------------------


@dataclass
class Play:
    """A round under way."""

    round: Round
    at: Site
    clinic: Clinic
    store: Store
    special: dict[int, str] = field(default_factory=dict)
    """Steps at which the round's own disaster happens."""

    def step(self, number: int) -> None:
        self.at.mend(number)
        chance = random.Random(f"{self.round.seed}:{number}")
        if number in self.special:
            self._disaster(self.special[number], chance)
        elif chance.random() < 0.2:
            self._fault(_weighted(chance, FAULTS), number, chance)
        else:
            name = _weighted(chance, {name: weight for name, (weight, _) in DEEDS.items()})
            self._note(name)
            DEEDS[name][1](self.clinic, chance)
        # The clinic's own pace, part of the script: sometimes the worker comes after it, sometimes it does not.
        threading.Event().wait(chance.choice((0, 0, 0, 0.01, 0.03, 0.1)))

    def _note(self, what: str) -> None:
        self.round.done[what] += 1
        self.round.script.append(what)

    def _disaster(self, name: str, chance: random.Random) -> None:
        self._note(name)
        if name == "crowd":
            self.mend()
            self.clinic.crowd(chance)
            # Only studies that were known can go in a mass.
            wait_until(lambda: len(oracle.published(self.store).available()) >= MASS, "a crowd of studies", 60)
        elif name == "wipe":
            self.clinic.wipe(chance)
        elif name == "freeze":
            self.mend()
            self._freeze()
        else:
            self.at.pacs.keep() if name == "back up" else self.at.pacs.put_back()
            self.at.pacs.start()

    def _freeze(self) -> None:
        """One worker stands still for longer than others believe it to live, and goes on when another has its work."""
        frozen, began = self.at.workers.pop(), time.monotonic()
        frozen.freeze()
        self.at.work()

        def thaw() -> None:
            # Until then it must stand still: this is the fault itself, not a wait for something.
            threading.Event().wait(max(0.0, began + FROZEN_SECONDS - time.monotonic()))
            frozen.thaw()
            self.at.workers.append(frozen)

        self.at.repairs.append((STEPS, thaw))

    def mend(self) -> None:
        """Everything that is broken comes back, and at least one worker works."""
        self.at.mend(STEPS + 100)
        self.at.network.restore()
        if not self.at.workers:
            self.at.work()

    def _fault(self, name: str, step: int, chance: random.Random) -> None:
        self._note(name)
        at, mended = self.at, step + chance.randint(1, 5)
        network = {
            "cut": at.network.cut,
            "stall": at.network.stall,
            "slow": lambda: at.network.slow(chance.choice((0.002, 0.01))),
            "break off": lambda: at.network.break_after(chance.randrange(1, 6000)),
        }
        if name in network:
            network[name]()
            at.repairs.append((mended, at.network.restore))
        elif name == "second worker":
            at.work()
        elif name in {"kill reconcile", "kill rebuild"}:
            command = at.run("sync", name.removeprefix("kill "))
            at.repairs.append((mended, command.kill))
        elif name in {"kill worker", "stop worker"}:
            worker = at.workers.pop(chance.randrange(len(at.workers))) if at.workers else None
            if worker is not None:
                worker.kill() if name == "kill worker" else worker.stop()
                at.repairs.append((chance.choice((step, mended)), at.work))
        elif name == "restart archive":
            at.pacs.stop()
            at.pacs.start()
        else:
            self._kill_amid(chance)

    def _kill_amid(self, chance: random.Random) -> None:
        """kill -9 of the archive while a deed is under way; nobody knows how much of it was done."""
        name = _weighted(chance, {name: weight for name, (weight, _) in DEEDS.items()})
        self.round.script.append(f"(amid {name})")

        def deed() -> None:
            with suppress(httpx.HTTPError):
                DEEDS[name][1](self.clinic, chance)

        under_way = threading.Thread(target=deed)
        wait = random.Random(self.round.seed).random() * 0.02
        under_way.start()
        under_way.join(wait)
        self.at.pacs.kill()
        under_way.join()
        self.at.pacs.start()


def play(seed: int, url: str, folder: Path, nursery: Nursery) -> Round:
    """Play the round of this seed on this database, which is migrated and empty, and let the oracle judge."""
    began, done = time.monotonic(), Round(seed, url.split(":", 1)[0])
    rebuild.upgrade(Settings(database_url=SecretStr(url)))
    store = Store(url)
    try:
        _play(done, store, url, (folder, nursery))
    except (AssertionError, httpx.HTTPError) as error:
        done.verdict.problems.append(f"the round did not come to its end: {type(error).__name__}: {error}")
    finally:
        store.close()
    done.seconds = time.monotonic() - began
    return done


def _play(done: Round, store: Store, url: str, where: tuple[Path, Nursery]) -> None:
    chance = random.Random(done.seed)
    overwrite = chance.random() < 0.5
    with site(*where, url, overwrite=overwrite) as at, at.pacs.server.client() as pacs:
        clinic = Clinic(done.seed, pacs, overwrite, _register(store, at, pacs))
        under_way = Play(done, at, clinic, store, _disasters(chance))
        _begin(under_way)
        for step in range(STEPS):
            under_way.step(step)
        _end(under_way)


def _register(store: Store, at: Site, pacs: httpx.Client) -> list[Ordered]:
    """Some patients are known before their images come, and some have orders."""
    for mrn in REGISTERED:
        patient = {
            "resourceType": "Patient",
            "id": f"known-{mrn}",
            "identifier": [{"system": oracle.MRN, "value": mrn}],
            "name": [{"family": "Known"}],
        }
        store.transact(lambda connection, patient=patient: resources.put(connection, patient, cause="test"))
    ordered = []
    with Client(at.pacs.server.url, at.pacs.server.username, at.pacs.server.password) as orthanc:
        desk = Hospital(Archive(store, orthanc, workflow_site.of(Settings())), at.pacs.server, pacs)
        for mrn in REGISTERED * ORDERS:
            desk.patient_id = f"known-{mrn}"
            item = desk.item(desk.order())
            ordered.append(Ordered(str(item.StudyInstanceUID), str(item.AccessionNumber), mrn))
    return ordered


def _disasters(chance: random.Random) -> dict[int, str]:
    """What only some rounds have: everything goes, an older copy of the database comes back, a worker freezes."""
    kind, middle = chance.random(), STEPS // 2
    if kind < 0.2:
        return {middle: "crowd", middle + STEPS // 4: "wipe"}
    if kind < 0.4:
        return {STEPS // 3: "back up", middle + STEPS // 4: "restore"}
    return {STEPS // 3: "freeze"} if kind < 0.6 else {}


def _begin(under_way: Play) -> None:
    """The first study is there before anything fails: what fails then is a sync at work."""
    under_way.clinic.new_study(random.Random(f"{under_way.round.seed}:first"))
    [worker] = under_way.at.workers

    def is_published() -> bool:
        assert worker.ended() is None, f"the worker ended: {worker.told()}"
        return bool(oracle.published(under_way.store).available())

    wait_until(is_published, "the first study to be published", 60)


def _end(under_way: Play) -> None:
    """Everything comes back, a person reconciles, accepts what is gone, and the oracle judges."""
    at, done = under_way.at, under_way.round
    under_way.mend()
    done.before = sum(map(len, oracle.published(under_way.store).versions.values()))
    done.drift = at.reconcile()
    if done.drift["after"].get("held"):
        done.done["held back"] += 1
        done.drift = at.reconcile("--accept-missing")
    with at.pacs.server.client() as pacs:
        done.verdict = oracle.judge(pacs, under_way.store)
    if _differs(done.drift["after"]) or "note" in done.drift:
        done.verdict.problems.append(f"reconcile leaves a drift: {done.drift}")
    again = at.reconcile()
    if _differs(again["before"]) or again["before"].get("held"):
        done.verdict.problems.append(f"a second reconcile finds a drift: {again['before']}")
    versions = sum(map(len, oracle.published(under_way.store).versions.values()))
    if versions != done.verdict.versions:
        done.verdict.problems.append(f"a second reconcile wrote {versions - done.verdict.versions} versions")


def _differs(drift: Json) -> bool:
    return any(drift[name] for name in ("new", "missing", "changed"))


def _weighted(chance: random.Random, weights: dict[str, int]) -> str:
    return chance.choices(list(weights), list(weights.values()))[0]
