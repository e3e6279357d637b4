"""Measurements saved in the viewer become Observations of the study, its order and its report (PS3.16 TID 1500)."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from io import BytesIO

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from app.dicom import archive, sr
from app.errors import NotFound, Unavailable
from app.fhir import resources
from app.fhir.mapping import observation, terms
from app.fhir.mapping.codes import Json
from app.store import evidence, outbox, studies, sync, timeline
from app.store.database import now
from app.store.evidence import Reading
from app.store.outbox import Effect
from app.store.studies import HeldInstance, Stowed
from app.store.sync import Known
from app.store.timeline import Happening
from app.workflow import orders, owned, reports
from app.workflow.site import Archive, Site

log = structlog.get_logger(__name__)

DEVICE_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, terms.BASE + "/Device")
SIGNED = frozenset({"final", "amended", "corrected"})


@dataclass(frozen=True, slots=True)
class Found:
    """A structured report as it was read, where it lies, and who brought it."""

    member: HeldInstance
    said: sr.Evidence
    stowed: Stowed | None


def read_one(at: Archive, sop_uid: str) -> None:
    """Read a structured report of the archive and publish what it says. Safe to repeat."""
    with at.store.read() as connection:
        members = studies.instance_of(connection, sop_uid)
        stowed = studies.stowed(connection, sop_uid)
    for member in members:
        try:
            content = at.orthanc.file(member.orthanc_id)
        except NotFound:
            continue
        try:
            said = sr.read(dcmread(BytesIO(content)), lambda uid: _image(at, uid))
            # The archive may hold another object than the one whose storing was recorded, and perhaps failed.
            is_it = stowed is not None and stowed.sha256 == hashlib.sha256(content).hexdigest()
            found = Found(member, said, stowed if is_it else None)
            at.store.transact(lambda connection, found=found: publish(at.site, connection, found))
        except (Unavailable, OperationalError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a document does to its readers, it would do again
            problem = f"not readable ({type(error).__name__})"
            log.warning("structured report not readable", sop_uid=sop_uid, error=type(error).__name__)
            at.store.transact(lambda connection, held=member, why=problem: _failed(connection, held, why))


def _failed(connection: Connection, member: HeldInstance, problem: str) -> None:
    study_row = sync.known(connection, member.study_orthanc_id)
    if study_row is not None:
        _remember(connection, (member.sop_uid, study_row), "failed", (), (problem,))


def publish(site: Site, connection: Connection, found: Found) -> None:
    """Write the Observations of one report, withdraw what it replaced, gather them in the report of the order."""
    study_row = sync.known(connection, found.member.study_orthanc_id)
    if study_row is None:
        return
    if study_row.order_id is not None:
        orders.lock(connection, study_row.order_id)
    study = resources.read(connection, "ImagingStudy", study_row.imaging_study_id)
    if study is None:
        return
    sop_uid, cause = found.member.sop_uid, f"structured report {found.member.sop_uid}"
    before = evidence.known(connection, sop_uid)
    if _of_another(connection, before, study_row):
        log.warning("structured report of two patients", sop_uid=sop_uid)
        return
    problems = tuple(map(str, found.said.problems))
    _remember(connection, (sop_uid, study_row), "read", tuple(found.said.predecessors), problems)
    living, replaced = _standing(connection, study_row)
    earlier = _observations(connection, study_row)
    made = observation.observations(found.said, _context(site, connection, found, study, earlier))
    for resource in made:
        write = _put_replaced if sop_uid in replaced else _put
        write(connection, resource, earlier, cause)
    _withdraw(connection, living, made, earlier, cause)
    if before is None and made:
        detail = {"observations": len(made), "sop_uid": sop_uid}
        timeline.add(connection, Happening("evidence-read", cause, study_row.order_id, study_row.study_uid, detail))
    if sop_uid not in replaced:
        _gather(connection, study, made, cause)


def _gather(connection: Connection, study: Json, made: list[Json], cause: str) -> None:
    if made:
        members = {member["reference"] for resource in made for member in resource.get("hasMember", [])}
        tops = [reference for one in made if (reference := f"Observation/{one['id']}") not in members]
        reports.gather(connection, study, tops, cause)


def _of_another(connection: Connection, before: Reading | None, study_row: Known) -> bool:
    """Whether the SOP Instance UID was read in another patient's study that is still there: the first keeps it."""
    if before is None or before.study_orthanc_id == study_row.orthanc_id:
        return False
    other = sync.known(connection, before.study_orthanc_id)
    return other is not None and other.missing_since is None and other.imaging_study_id != study_row.imaging_study_id


def _remember(
    connection: Connection,
    read: tuple[str, Known],
    state: str,
    predecessors: tuple[str, ...],
    problems: tuple[str, ...],
) -> None:
    sop_uid, study_row = read
    row = Reading(sop_uid, study_row.imaging_study_id, study_row.orthanc_id, state, predecessors, problems)
    evidence.remember(connection, row)


def _standing(connection: Connection, study_row: Known) -> tuple[frozenset[str], frozenset[str]]:
    """The reports of a study that stand, and those that a later one replaces, whichever was read first."""
    readings = evidence.of_study(connection, study_row.orthanc_id)
    named = {(sop_uid, reading.sop_uid) for reading in readings.values() for sop_uid in reading.predecessors}
    replaced = frozenset(sop_uid for sop_uid, successor in named if sop_uid != successor)
    return frozenset(readings) - replaced, replaced


def _observations(connection: Connection, study_row: Known) -> list[Json]:
    return resources.find(connection, "Observation", [("derived-from", f"ImagingStudy/{study_row.imaging_study_id}")])


def withdraw_missing(connection: Connection, study_row: Known, present: Iterable[str]) -> None:
    """Observations of reports that the study no longer holds are withdrawn; what those replaced is read again."""
    held, readings = frozenset(present), evidence.of_study(connection, study_row.orthanc_id)
    gone = readings.keys() - held
    if not gone:
        return
    for sop_uid in sorted(gone):
        evidence.forget(connection, sop_uid)
        for restored in held.intersection(readings[sop_uid].predecessors):
            once = f"{restored}|without {sop_uid}|{now()}"
            outbox.add(connection, Effect("evidence", f"study:{study_row.study_uid}", once, {"sop_uid": restored}))
    living, _ = _standing(connection, study_row)
    _withdraw(connection, living, [], _observations(connection, study_row), "structured report gone from the archive")


def _image(at: Archive, sop_uid: str) -> Dataset | None:
    with at.store.read() as connection:
        members = studies.instance_of(connection, sop_uid)
    try:
        return archive.header(at.orthanc, members[0].orthanc_id) if members else None
    except NotFound:
        return None


def _context(site: Site, connection: Connection, found: Found, study: Json, earlier: list[Json]) -> observation.Context:
    return observation.Context(
        subject=study["subject"],
        imaging_study={"reference": f"ImagingStudy/{study['id']}"},
        zone=site.settings.zone,
        based_on=tuple(study.get("basedOn", [])),
        performer=_performer(found),
        device=_device(connection, found.said),
        effective=study.get("started"),
        origins=_origins(earlier),
    )


def _performer(found: Found) -> tuple[Json, ...]:
    # Who was logged in is known; what the document says of its author is only text, and the mapping's fallback.
    fhir_user = found.stowed.fhir_user if found.stowed else None
    return ({"reference": fhir_user},) if fhir_user else ()


def _device(connection: Connection, said: sr.Evidence) -> Json | None:
    equipment = said.equipment
    named = [part or "" for part in (equipment.manufacturer, equipment.model, equipment.serial, *equipment.versions)]
    if not equipment.manufacturer and not equipment.model:
        return None
    device: Json = {
        "resourceType": "Device",
        "id": str(uuid.uuid5(DEVICE_NAMESPACE, "|".join(named))),
        "manufacturer": equipment.manufacturer,
        "serialNumber": equipment.serial,
        "deviceName": [{"name": equipment.model or equipment.manufacturer, "type": "model-name"}],
        "version": [{"value": version} for version in equipment.versions],
    }
    filled = {key: value for key, value in device.items() if value}
    resources.put(connection, filled, cause="equipment of a structured report")
    return {"reference": f"Device/{device['id']}"}


def _origins(earlier: Iterable[Json]) -> dict[str, str]:
    """Lineage → the content item in which it was first seen, so that the same measurement keeps its id."""
    origins: dict[str, str] = {}
    for resource in earlier:
        identifiers: list[Json] = resource.get("identifier", [])
        lineage = next((one["value"] for one in identifiers if one.get("system") == terms.LINEAGE), None)
        items = [one["value"] for one in identifiers if one.get("system") == terms.CONTENT_ITEM]
        first = next((item for item in items if observation.resource_id(item) == resource["id"]), None)
        if lineage and first:
            origins[lineage] = first
    return origins


def _put(connection: Connection, resource: Json, earlier: list[Json], cause: str) -> None:
    before = next((one for one in earlier if one["id"] == resource["id"]), None)
    if before is not None:
        resource = resource | {"identifier": _identifiers(before, resource)}
    if before is not None and before["status"] in SIGNED:
        resource = resource | {"status": before["status"] if _says_the_same(before, resource) else "amended"}
    resources.put(connection, owned.kept(resource, before), cause=cause)


def _put_replaced(connection: Connection, resource: Json, earlier: list[Json], cause: str) -> None:
    """A replaced report that comes late adds where a measurement was seen too; what only it says is withdrawn."""
    before = next((one for one in earlier if one["id"] == resource["id"]), None)
    if before is None:
        resources.put(connection, resource | {"status": "entered-in-error"}, cause=cause)
        return
    merged = before["identifier"] + _other_items(resource, before)
    resources.edit(connection, "Observation", before["id"], {"identifier": merged}, cause=cause)


def _identifiers(before: Json, resource: Json) -> list[Json]:
    """The identifiers of both, in the order they had: a report that is read again changes nothing."""
    merged = resource["identifier"] + _other_items(before, resource)
    held = before.get("identifier", [])
    return held if all(one in held for one in merged) and all(one in merged for one in held) else merged


def _other_items(one: Json, other: Json) -> list[Json]:
    """The content items in which the same measurement was seen before: its first one gives the id."""
    held = [entry for entry in one.get("identifier", []) if entry.get("system") == terms.CONTENT_ITEM]
    return [entry for entry in held if entry not in other["identifier"]]


def _says_the_same(before: Json, resource: Json) -> bool:
    what = ("code", "valueQuantity", "valueCodeableConcept", "valueString", "dataAbsentReason", "bodySite", "method")
    return all(before.get(name) == resource.get(name) for name in what)


def _withdraw(
    connection: Connection, living: Collection[str], made: list[Json], earlier: list[Json], cause: str
) -> None:
    """Withdraw what no living report says."""
    kept = {resource["id"] for resource in made}
    for resource in earlier:
        sources = _sources(resource)
        if resource["id"] not in kept and sources and sources.isdisjoint(living):
            resources.edit(connection, "Observation", resource["id"], {"status": "entered-in-error"}, cause=cause)


def _sources(resource: Json) -> set[str]:
    """The reports in which a measurement was seen."""
    identifiers: list[Json] = resource.get("identifier", [])
    items = [one["value"] for one in identifiers if one.get("system") == terms.CONTENT_ITEM]
    return {item.partition("#")[0] for item in items}
