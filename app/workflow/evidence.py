"""Measurements saved in the viewer become Observations of the study, its order and its report (PS3.16 TID 1500)."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import structlog
from pydicom.dataset import Dataset
from sqlalchemy.engine import Connection

from app.dicom import archive, sr
from app.errors import NotFound
from app.fhir import resources
from app.fhir.mapping import observation, terms
from app.fhir.mapping.codes import Json
from app.store import evidence, studies, sync, timeline
from app.store.studies import HeldInstance, Stowed
from app.store.sync import Known
from app.store.timeline import Happening
from app.workflow import reports
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
            document = at.orthanc.dataset(member.orthanc_id)
        except NotFound:
            continue
        said = sr.read(document, lambda uid: _image(at, uid))
        found = Found(member, said, stowed)
        at.store.transact(lambda connection, found=found: publish(at.site, connection, found))


def publish(site: Site, connection: Connection, found: Found) -> None:
    """Write the Observations of one report, withdraw what it replaced, gather them in the report of the order."""
    study_row = sync.known(connection, found.member.study_orthanc_id)
    if study_row is None:
        return
    study = resources.read(connection, "ImagingStudy", study_row.imaging_study_id)
    if study is None:
        return
    cause = f"structured report {found.said.sop_uid}"
    earlier = resources.find(connection, "Observation", [("derived-from", f"ImagingStudy/{study['id']}")])
    made = observation.observations(found.said, _context(site, connection, found, study, earlier))
    for resource in made:
        _put(connection, resource, earlier, cause)
    _withdraw(connection, found.said.predecessors, made, earlier, cause)
    if evidence.remember(connection, found.said.sop_uid, study_row, list(map(str, found.said.problems))) and made:
        detail = {"observations": len(made), "sop_uid": found.said.sop_uid}
        happening = Happening("evidence-read", cause, study_row.order_id, study_row.study_uid, detail)
        timeline.add(connection, happening)
    if made:
        members = {member["reference"] for resource in made for member in resource.get("hasMember", [])}
        tops = [reference for one in made if (reference := f"Observation/{one['id']}") not in members]
        reports.gather(connection, study, tops, cause)


def withdraw_missing(connection: Connection, study_row: Known, present: Iterable[str]) -> None:
    """Observations of reports the archive no longer holds were withdrawn with them."""
    gone = evidence.of_study(connection, study_row.orthanc_id) - frozenset(present)
    if not gone:
        return
    found = resources.find(connection, "Observation", [("derived-from", f"ImagingStudy/{study_row.imaging_study_id}")])
    for sop_uid in gone:
        _withdraw(connection, [sop_uid], [], found, f"structured report {sop_uid} gone from the archive")
        evidence.forget(connection, sop_uid)


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
        resource = resource | {"identifier": resource["identifier"] + _other_items(before, resource)}
    if before is not None and before["status"] in SIGNED:
        resource = resource | {"status": before["status"] if _says_the_same(before, resource) else "amended"}
    resources.put(connection, resource, cause=cause)


def _other_items(before: Json, resource: Json) -> list[Json]:
    """The content items in which the same measurement was seen before: its first one gives the id."""
    held = [one for one in before.get("identifier", []) if one.get("system") == terms.CONTENT_ITEM]
    return [one for one in held if one not in resource["identifier"]]


def _says_the_same(before: Json, resource: Json) -> bool:
    what = ("code", "valueQuantity", "valueCodeableConcept", "valueString", "dataAbsentReason", "bodySite", "method")
    return all(before.get(name) == resource.get(name) for name in what)


def _withdraw(
    connection: Connection, sop_uids: Iterable[str], made: list[Json], earlier: list[Json], cause: str
) -> None:
    kept = {resource["id"] for resource in made}
    for sop_uid in sop_uids:
        for resource in earlier:
            if resource["id"] not in kept and _only_from(resource, sop_uid):
                changes = {"status": "entered-in-error"}
                resources.edit(connection, "Observation", resource["id"], changes, cause=cause)


def _only_from(resource: Json, sop_uid: str) -> bool:
    identifiers: list[Json] = resource.get("identifier", [])
    items = [one["value"] for one in identifiers if one.get("system") == terms.CONTENT_ITEM]
    return bool(items) and all(item.startswith(f"{sop_uid}#") for item in items)
