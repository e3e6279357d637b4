"""Two patients with two studies each in a real archive, every object full of words that occur nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset

from app.dicom.orthanc import Orthanc
from app.fhir import rebuild
from app.main.prepare import prepare
from app.settings import Settings
from app.store import studies, sync
from app.store.database import Store
from app.store.studies import HeldStudy
from app.workflow import arrivals, site
from app.workflow.arrivals import Archive
from tests.orthanc.conftest import Orthanc as Server
from tests.orthanc.phantoms import image, part10

ROOT = "1.2.826.0.1.3680043.10.771."
SIDE = 32
BULK = "00420011"
"""Encapsulated Document, which our images carry in an item: a value that bulk data addresses lead to."""


@dataclass(frozen=True, slots=True)
class Person:
    """One patient; the words stand in every object of theirs."""

    mrn: str
    word: str


@dataclass(frozen=True, slots=True)
class Seeded:
    """One study by its UID; `word` stands in its texts, pixels and bulk values and in no other study."""

    uid: str
    word: str
    person: Person
    shade: int

    def series(self, number: int = 1) -> str:
        return f"{self.uid}.{number}"

    def instance(self, series: int = 1, number: int = 1) -> str:
        return f"{self.uid}.{series}.{number}"

    def secrets(self) -> list[bytes]:
        """What tells of this study: its word, and every UID in it."""
        uids = [self.uid, *(self.series(n) for n in (1, 2)), *(self.instance(s, i) for s in (1, 2) for i in (1, 2))]
        return [self.word.encode(), *(uid.encode() for uid in uids)]


ADA, BEN = Person("FOSSA-1", "FOSSA"), Person("NUMBAT-2", "NUMBAT")
U = Seeded(f"{ROOT}1", "QUAGGA", ADA, 40)
V = Seeded(f"{ROOT}14", "OKAPIS", ADA, 90)
Z = Seeded(f"{ROOT}2", "GERENUK", BEN, 150)
Y = Seeded(f"{ROOT}25", "BONGOS", BEN, 210)
STUDIES = (U, V, Z, Y)
"""V's UID begins as U's does, Y's as Z's."""
GHOSTS = {
    study: Seeded(study.uid[:-1] + last, "GHOST", Person("GHOST", "GHOST"), 0)
    for study, last in zip(STUDIES, "7788", strict=True)
}
"""For each study one that does not exist, with UIDs of the same length."""


def objects(study: Seeded) -> Iterator[Dataset]:
    """Two series of two images of two frames each."""
    for series in (1, 2):
        for number in (1, 2):
            yield _image(study, series, number)


def _image(study: Seeded, series: int, number: int) -> Dataset:
    person, place = study.person, f"{study.word} {series} {number}"
    dataset = image(
        mrn=person.mrn, study=study.uid, series=study.series(series), instance=study.instance(series, number), frames=2
    )
    dataset.PatientName, dataset.PatientComments = f"{person.word}^Test", f"{person.word} comment"
    dataset.AccessionNumber, dataset.StudyID = f"A{study.word}", f"S{study.word}"
    dataset.StudyDescription, dataset.SeriesDescription = f"{study.word} study", f"{place} series"
    dataset.ReferringPhysicianName, dataset.ProtocolName = f"{study.word}^Referrer", study.word
    dataset.BodyPartExamined, dataset.SeriesNumber = study.word, series
    dataset.Rows = dataset.Columns = SIDE
    dataset.WindowCenter, dataset.WindowWidth = str(-1024 + 128), "256"
    frames = [_pixels(study.shade, place, series * 4 + number * 2 + frame) for frame in (0, 1)]
    dataset.PixelData = b"".join(frames)
    dataset["PixelData"].VR = "OW"
    item = Dataset()
    item.EncapsulatedDocument = place.encode().ljust(2048, b"#")
    dataset.AcquisitionContextSequence = [item]
    return dataset


def _pixels(shade: int, place: str, step: int) -> bytes:
    """A frame whose first row spells where it is from, and whose rest is a pattern of this study and place alone."""
    words = place.encode().ljust(SIDE * 2, b".")[: SIDE * 2]
    rest = bytearray()
    for at in range(SIDE * (SIDE - 1)):
        rest += bytes(((shade + (at // step) % 7 * 5) % 256, 0))
    return words + bytes(rest)


@dataclass(slots=True)
class World:
    """The seeded archive and the store that knows of it."""

    settings: Settings
    store: Store
    archive: Orthanc
    held: dict[Seeded, HeldStudy] = field(default_factory=dict[Seeded, HeldStudy])

    def of(self, seeded: Seeded) -> HeldStudy:
        """The store's row of a study."""
        return self.held[seeded]

    def state(self) -> list[tuple[str, ...]]:
        """Everything the archive holds, for a comparison."""
        ids = self.archive.study_ids()
        return sorted((one, *sorted(i["ID"] for i in self.archive.series_of(one))) for one in ids)


@contextmanager
def seeded(server: Server, folder: Path, port: int) -> Iterator[World]:
    """The four studies, in the archive and known to the store."""
    with empty(server, folder, port) as world:
        fill(world, [one for study in STUDIES for one in objects(study)])
        with world.store.read() as connection:
            for study in STUDIES:
                [world.held[study]] = studies.with_uid(connection, study.uid)
        yield world


@contextmanager
def empty(server: Server, folder: Path, port: int) -> Iterator[World]:
    """A migrated store beside the archive; what comes into the archive meanwhile is deleted in the end."""
    settings = Settings(
        port=port,
        public_url=f"http://localhost:{port}",
        data_dir=folder,
        orthanc_url=server.url,
        orthanc_username=server.username,
        orthanc_password=server.password,  # type: ignore[arg-type]
        quiet_seconds=0,
    )
    rebuild.upgrade(settings)
    prepare(settings)
    store = Store(settings.database)
    with Orthanc(server.url, server.username, server.password) as archive:
        before = set(archive.study_ids())
        try:
            yield World(settings, store, archive)
        finally:
            for study_id in set(archive.study_ids()) - before:
                archive.delete_study(study_id)
            store.close()


def fill(world: World, datasets: Iterable[Dataset]) -> None:
    """Store images, and make them known."""
    know(world, {world.archive.store(part10(dataset)).study_orthanc_id for dataset in datasets})


def know(world: World, marks: Iterable[str]) -> None:
    """Let the worker's own code tell the store of studies that are in the archive."""
    world.store.transact(lambda tx: sync.mark(tx, marks, "seeded"))
    at = Archive(world.store, world.archive, site.of(world.settings))
    while arrivals.rebuild_one(at):
        pass


def standing_alone(secret: bytes) -> re.Pattern[bytes]:
    """A UID or word that is not part of a longer one."""
    return re.compile(rb"(?<![0-9A-Za-z.])" + re.escape(secret) + rb"(?![0-9A-Za-z])(?!\.[0-9])")
