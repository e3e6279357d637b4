"""Images in the archive become an ImagingStudy: from the archive's present state, whatever happened in between.

Changes are a hint for speed, the sweep is the truth; both only mark studies, and one code path looks at a marked study
and writes what differs. A crash anywhere leaves the mark, and the look is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydicom.dataset import Dataset
from sqlalchemy.engine import Connection

from app.dicom import archive, uids
from app.dicom.archive import HeldInstance, HeldSeries, HeldStudy
from app.errors import ArchiveUnavailable, NotFound
from app.fhir import resources
from app.fhir.mapping import imaging_study
from app.fhir.mapping.codes import Json
from app.fhir.mapping.imaging_study import Links, SeriesFacts
from app.fhir.resources import Own
from app.store import outbox, studies, sync, timeline
from app.store import resources as rows
from app.store.database import now
from app.store.outbox import Effect
from app.store.resources import Stored
from app.store.sync import Dirty, Known
from app.store.timeline import Happening
from app.workflow import absences, described, evidence, matching, orders, owned
from app.workflow.site import Archive, Site

LARGE = 200
"""With more instances a study is made before the transaction, in which everybody who writes would wait for it."""
AWAY_MS = 1000
"""So soon a study is looked at again whose archive did not answer."""


# --- one marked study --------------------------------------------------------------------------------------------


def rebuild_one(at: Archive) -> bool:
    """Look at one marked study and publish what differs; False when none is due."""
    dirty = at.store.transact(sync.claim)
    if dirty is not None:
        look_at(at, dirty)
    return dirty is not None


def look_at(at: Archive, dirty: Dirty) -> None:
    """Look at a study that was claimed, and publish what differs."""
    Looking(at, dirty).end()


class Looking:
    """A look at a claimed study: it has been read, and what differs is on its way to the disk until it is ended.

    Either raises what went wrong; the study then stays marked and is looked at again later.
    """

    __slots__ = ("_at", "_dirty", "_steps", "_written")

    def __init__(self, at: Archive, dirty: Dirty, held: HeldStudy | None = None) -> None:
        """`held` is the study's outline, if it was read since it was claimed."""
        self._at, self._dirty, self._steps = at, dirty, _look(at, dirty, held)
        with _postponed(at, dirty):
            self._written = at.store.submit(next(self._steps))

    def end(self) -> None:
        """Wait until everything is written."""
        with _postponed(self._at, self._dirty), suppress(StopIteration):
            while True:
                self._written = self._at.store.submit(self._steps.send(self._written.result()))


@contextmanager
def _postponed(at: Archive, dirty: Dirty) -> Generator[None]:
    try:
        yield
    except ArchiveUnavailable:
        # That says nothing of the study: it is no failed attempt, and due as soon as the archive may be back.
        at.store.transact(lambda connection: sync.postpone(connection, dirty, AWAY_MS, dirty.attempts))
        raise
    except Exception:
        # Whatever went wrong, the study stays marked and is looked at again later.
        attempts = dirty.attempts + 1
        wait = min(500 * 2 ** min(attempts, 7), 60_000)
        at.store.transact(lambda connection: sync.postpone(connection, dirty, wait, attempts))
        raise


def outlined(at: Archive, some: Sequence[Dirty]) -> dict[str, HeldStudy]:
    """The outlines of several studies that were claimed, as far as they can be read together, by the archive's ids."""
    try:
        return archive.outlines(at.orthanc, [one.orthanc_id for one in some]) if len(some) > 1 else {}
    except (ArchiveUnavailable, NotFound):
        # Each look finds out by itself.
        return {}


Work = Callable[[Connection], Any]
"""What is written in one transaction."""


def _look(at: Archive, dirty: Dirty, held: HeldStudy | None) -> Generator[Work, Any, None]:
    """What is to be written, step by step; each step is told what came of the one before."""
    held = held or archive.outline(at.orthanc, dirty.orthanc_id)
    if held is None:
        yield lambda connection: absences.absent(at.site, connection, dirty)
        return
    with at.store.read() as connection:
        before = sync.known(connection, dirty.orthanc_id)
    if before and before.digest == held.digest and before.missing_since is None:
        yield partial(_same, dirty=dirty, row=before, last_update=held.last_update)
        return
    own = _described(at, held)
    look = Look(dirty, held, own, own)
    while (lacking := (yield partial(_publish, at.site, look=look))) is not None:
        if isinstance(lacking, Basis):
            look = replace(look, made=_made(at.site, look, lacking))
        else:
            look = replace(look, facts=_with(at, own, lacking), joined=lacking, made=None)


@dataclass(frozen=True, slots=True)
class Basis:
    """What the database says that an ImagingStudy depends on: its links, and the version before."""

    links: Links
    natural_key: str
    earlier: Stored | None


@dataclass(frozen=True, slots=True)
class Look:
    """What one study of the archive holds, and with `joined` the others that FHIR takes for the same study.

    Those were read after they had been published with the digests noted here; whoever publishes one of them meanwhile
    may have read it later. `made` is the resource, where it was made before the transaction, and what it depends on.
    """

    dirty: Dirty
    held: HeldStudy
    own: list[SeriesFacts]
    facts: list[SeriesFacts]
    joined: Mapping[str, str] = field(default_factory=dict[str, str])
    made: tuple[Basis, Own] | None = None


def _made(site: Site, look: Look, basis: Basis) -> tuple[Basis, Own]:
    """The ImagingStudy, ready to be stored."""
    study = imaging_study.available(look.held.uid, look.facts, basis.links, site.settings.zone)
    kept = owned.kept(study, resources.content(basis.earlier))
    cause = f"archive {look.dirty.reason}"
    return basis, resources.own(kept, cause=cause, natural_key=basis.natural_key, before=basis.earlier)


def _described(at: Archive, held: HeldStudy) -> list[SeriesFacts]:
    every = at.headers.read_all(at.orthanc, held) if described.reads_all(held) else {}

    def read(one: HeldInstance) -> Dataset:
        return every[one.orthanc_id] if one.orthanc_id in every else at.headers.read(at.orthanc, one)

    return described.facts(held, read, at.site.settings.zone_of)


def _with(at: Archive, own: list[SeriesFacts], others: Iterable[str]) -> list[SeriesFacts]:
    """The series of several studies of the archive: a patient may have more than one number."""
    outlines = (archive.outline(at.orthanc, one) for one in sorted(others))
    read = [_described(at, one) for one in outlines if one]
    return described.together([*own, *(series for one in read for series in one)])


def _same(connection: Connection, dirty: Dirty, row: Known, last_update: str) -> None:
    if sync.owned(connection, dirty):
        sync.touched(connection, row, last_update)
        sync.clean(connection, dirty)


def _publish(site: Site, connection: Connection, look: Look) -> dict[str, str] | Basis | None:
    """Write what differs, or tell what is lacking to do so.

    That are other studies of the archive that belong to it and were not read since they were published; or what a
    large study has to be made for, which everybody who writes would have to wait for.
    """
    held = look.held
    if not sync.owned(connection, look.dirty):
        return None
    rows.lock(connection, f"study {held.uid}")
    before = sync.known(connection, held.orthanc_id)
    match = _matched(site, connection, look)
    patient_id, placeholder = matching.patient_for(connection, site, held, look.own[0].header, match)
    resource_id = orders.study_resource_id(held.uid, patient_id)
    others = _others(connection, held, resource_id)
    if others != look.joined:
        return others
    links = described.links(site, match.order, (resource_id, patient_id), look.facts)
    earlier = rows.current(connection, "ImagingStudy", resource_id, for_update=True)
    basis = Basis(links, orders.natural_key(held.uid, patient_id), earlier)
    made = look.made
    if made is None or made[0] != basis:
        if held.count > LARGE:
            return basis
        made = _made(site, look, basis)
    asked = _question(connection, held, basis, match)
    resources.put_all(connection, [one for one in (placeholder, made[1], asked) if one is not None])
    _published(connection, look, basis, match, before)
    return None


def _others(connection: Connection, held: HeldStudy, resource_id: str) -> dict[str, str]:
    """The other studies that FHIR takes for the same one, with the digest of what was last published of each."""
    ids = [one for one in studies.of_imaging_study(connection, resource_id) if one != held.orthanc_id]
    known = (sync.known(connection, one) for one in ids)
    return {one.orthanc_id: one.digest for one in known if one}


def _question(connection: Connection, held: HeldStudy, basis: Basis, match: matching.Match) -> Own | None:
    """What a person is asked about a study that fulfils no order."""
    if match.reason is None:
        return None
    focus = f"ImagingStudy/{basis.links.resource_id}"
    return orders.question(connection, f"study|{held.orthanc_id}", match.reason, focus, _patient_id(basis))


def _patient_id(basis: Basis) -> str:
    return basis.links.subject["reference"].removeprefix("Patient/")


def _published(connection: Connection, look: Look, basis: Basis, match: matching.Match, before: Known | None) -> None:
    """What follows from a study that was just stored."""
    dirty, held, patient_id, resource_id = look.dirty, look.held, _patient_id(basis), basis.links.resource_id
    cause = f"archive {dirty.reason}"
    grew = _images(held) - (studies.count_images(connection, held.orthanc_id, uids.NOT_IMAGES) if before else 0)
    row = Known(
        held.orthanc_id, held.uid, resource_id, patient_id, match.order["id"] if match.order else None,
        held.digest, now(), False, None, held.count, len(held.series), held.last_update,
    )  # fmt: skip
    _keep(connection, held, row, before)
    _supersede(connection, before, resource_id, cause)
    back = before is not None and before.instances == 0
    first = before is None or back or (resources.content(basis.earlier) or {}).get("status") == "registered"
    _compare(connection, row, grew, cause, back=back)
    _tell(connection, Arrival(held, cause, first, late=grew > 0 and not back), match)
    sync.clean(connection, dirty)


def _matched(site: Site, connection: Connection, look: Look) -> matching.Match:
    """The order of the study's own images, else the one that the others tell of."""
    match = matching.order_for(connection, site, look.held, [one.header for one in look.own])
    if match.order is None and look.joined:
        found = matching.order_for(connection, site, look.held, [one.header for one in look.facts])
        match = found if found.order is not None else match
    if match.order is not None:
        orders.lock(connection, match.order["id"])
    return match


def _compare(connection: Connection, row: Known, grew: int, cause: str, *, back: bool) -> None:
    if back:
        absences.back(connection, row, cause)
    elif grew < 0:
        absences.shrunk(connection, row, cause)


def _keep(connection: Connection, held: HeldStudy, row: Known, before: Known | None) -> None:
    sync.write(connection, row)
    members = [_member(held, series, one) for series in held.series for one in series.instances]
    studies.put_instances(connection, held.orthanc_id, members)
    if before is not None:
        evidence.withdraw_missing(connection, row, [member.sop_uid for member in members])
    # A report is read once, again when its images have come, and again when the archive got it anew.
    seen = "with images" if _images(held) else "alone"
    for one in (one for series in held.series for one in series.instances if one.sop_class in uids.STRUCTURED_REPORTS):
        once = f"{one.sop_uid}|{one.file}|{seen}"
        outbox.add(connection, Effect("evidence", f"study:{held.uid}", once, {"sop_uid": one.sop_uid}))


def _member(held: HeldStudy, series: HeldSeries, one: HeldInstance) -> studies.HeldInstance:
    place = (one.orthanc_id, held.orthanc_id, series.uid)
    return studies.HeldInstance(*place, one.sop_uid, one.sop_class, series.modality, one.file)


def _supersede(connection: Connection, before: Known | None, resource_id: str, cause: str) -> None:
    """The study is told of under another patient now: what told of it before was wrong."""
    if before is None or before.imaging_study_id == resource_id:
        return
    if others := studies.of_imaging_study(connection, before.imaging_study_id):
        sync.reconsider(connection, others, cause)
        return
    gone = {"status": "entered-in-error", "endpoint": None}
    resources.edit(connection, "ImagingStudy", before.imaging_study_id, gone, cause=cause)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A study just published: why, whether these are its first images or more of them."""

    held: HeldStudy
    cause: str
    first: bool
    late: bool


def _tell(connection: Connection, arrival: Arrival, match: matching.Match) -> None:
    """Let order, steps and people know what the images mean."""
    held, cause = arrival.held, arrival.cause
    if arrival.first:
        order_id = match.order["id"] if match.order else None
        detail = {"instances": held.count}
        happening = Happening("images-available", cause, order_id=order_id, study_uid=held.uid, detail=detail)
        timeline.add(connection, happening)
    if match.reason is None:
        orders.settled(connection, f"study|{held.orthanc_id}", cause)
    if match.order is None:
        return
    _alias(connection, match.order, held.uid, cause)
    orders.advance(connection, match.order["id"], modalities(held), "images-available", cause)
    if arrival.late:
        _late(connection, match.order, held)


def _alias(connection: Connection, order: Json, uid: str, cause: str) -> None:
    """The modality did not use the reserved Study UID: what was registered under it will never have images."""
    reserved = imaging_study.uid_of(order)
    if reserved in {None, uid}:
        return
    registered = orders.study_resource_id(reserved or "", orders.patient_of(order) or "")
    study = resources.read(connection, "ImagingStudy", registered)
    if study is not None and study["status"] == "registered":
        resources.edit(connection, "ImagingStudy", registered, {"status": "entered-in-error"}, cause=cause)


def modalities(held: HeldStudy) -> frozenset[str]:
    """The modalities that acquired images of the study."""
    return frozenset(series.modality for series in held.series) - uids.NOT_IMAGES


def _images(held: HeldStudy) -> int:
    return sum(len(series.instances) for series in held.series if series.modality not in uids.NOT_IMAGES)


def _late(connection: Connection, order: Json, held: HeldStudy) -> None:
    for report in orders.final_reports(connection, order["id"]):
        # One question for each study and signing, however many images follow.
        key = f"late|{held.orthanc_id}|{report['id']}|{report.get('issued')}"
        focus = f"ServiceRequest/{order['id']}"
        orders.review(connection, key, "late-images", focus, orders.patient_of(order))


# --- studies that went quiet -------------------------------------------------------


def settle(at: Archive) -> int:
    """Declare studies complete that have been quiet long enough; how many."""
    before = now() - int(at.site.settings.quiet_seconds * 1000)
    with at.store.read() as connection:
        candidates = sync.quiet(connection, before)
    for one in candidates:
        at.store.transact(lambda connection, one=one: _complete(connection, one.orthanc_id, before))
    return len(candidates)


def _complete(connection: Connection, orthanc_id: str, before: int) -> None:
    row = sync.known(connection, orthanc_id)
    if row is None or row.complete or row.changed > before:
        return
    sync.write(connection, replace(row, complete=True))
    cause = f"quiet since {datetime.fromtimestamp(row.changed / 1000, UTC).isoformat(timespec='seconds')}"
    missing, key = studies.awaited(connection, row.study_uid), f"images-missing|{orthanc_id}"
    what, detail = ("images-missing", {"missing": missing}) if missing else ("images-complete", {})
    timeline.add(connection, Happening(what, cause, order_id=row.order_id, study_uid=row.study_uid, detail=detail))
    if missing:
        # Not complete; more images, or another word of the modality, bring it here again.
        focus = f"ImagingStudy/{row.imaging_study_id}"
        orders.review(connection, key, "images-missing", focus, row.patient_id)
        return
    orders.settled(connection, key, cause)
    if row.order_id is not None:
        acquired = studies.modalities(connection, orthanc_id) - uids.NOT_IMAGES
        orders.advance(connection, row.order_id, acquired, "images-complete", cause)
        orders.complete(connection, row.order_id, cause)
