"""What FHIR must say of an archive, read from its files by REST and compared with what the store says.

Written apart from the sync: it knows none of its modules, reads every instance's own tags instead of the archive's
index, and compares facts instead of resources. What all files of a study agree on must stand in its ImagingStudy.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any

import httpx
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import tables
from app.store.database import Store

Json = dict[str, Any]

MRN = "urn:isocenter:mrn"
FROM_IMAGES = "from-images"
TOMBSTONE = "/withdrawn-from-archive"
OPEN = frozenset({"requested", "accepted", "in-progress", "on-hold"})


# --- what the archive holds --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """One study: its files' tags by the archive's id of the instance."""

    orthanc_id: str
    copied: bool
    files: Mapping[str, Mapping[str, Any]]
    zone: tzinfo

    def agreed(self, keyword: str, files: Iterable[Mapping[str, Any]] | None = None) -> str | None:
        """The value that every file has; None when they differ or it is empty."""
        found = {str(one.get(keyword) or "").strip(" \0") for one in (files or self.files.values())}
        return found.pop() or None if len(found) == 1 else None

    @property
    def uid(self) -> str:
        return self.agreed("StudyInstanceUID") or ""

    @property
    def mrn(self) -> str:
        return self.agreed("PatientID") or ""

    def series(self) -> dict[str, list[Mapping[str, Any]]]:
        """The files of each series."""
        found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for one in self.files.values():
            found[one["SeriesInstanceUID"]].append(one)
        return found


def archive(pacs: httpx.Client, zone: tzinfo = UTC) -> list[Held]:
    """Every study of the archive; `zone` is the site's, for times that name none."""
    return [_held(pacs, one, zone) for one in pacs.get("/studies").raise_for_status().json()]


def _held(pacs: httpx.Client, orthanc_id: str, zone: tzinfo) -> Held:
    study = pacs.get(f"/studies/{orthanc_id}").raise_for_status().json()
    files = pacs.get(f"/studies/{orthanc_id}/instances-tags?simplify").raise_for_status().json()
    nameless = any(one.get("PatientIdentityRemoved") == "YES" for one in files.values())
    return Held(orthanc_id, nameless or "AnonymizedFrom" in study or "ModifiedFrom" in study, files, zone)


# --- what is published -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Published:
    """What the store says: current resources, every version of the ImagingStudies, and who holds which instance."""

    studies: Sequence[Json]
    patients: Mapping[str, Json]
    tasks: Sequence[Json]
    orders: Sequence[Json]
    versions: Mapping[str, Sequence[Json]]
    known: Sequence[Mapping[str, Any]]
    members: Sequence[tuple[str, ...]]

    def available(self) -> list[Json]:
        return [one for one in self.studies if one["status"] == "available"]


def published(store: Store) -> Published:
    """All of it, read in one transaction."""
    with store.read() as connection:
        return read(connection)


def read(connection: Connection) -> Published:
    """All of it, as this transaction sees it."""
    current = list(_current(connection))
    versions: dict[str, list[Json]] = defaultdict(list)
    for one in _history(connection):
        versions[one["id"]].append(one)
    rows = connection.execute(sa.select(tables.study)).mappings()
    known = [dict(one) for one in rows if one["instances"]]
    names = ("orthanc_id", "study_orthanc_id", "series_uid", "sop_uid", "sop_class", "modality")
    columns = [tables.instance.c[name] for name in names]
    members = [tuple(one) for one in connection.execute(sa.select(*columns))]
    studies = [one for one in current if one["resourceType"] == "ImagingStudy"]
    for one in studies:
        versions[one["id"]].append(one)
    patients = {one["id"]: one for one in current if one["resourceType"] == "Patient"}
    tasks = [one for one in current if one["resourceType"] == "Task"]
    orders = [one for one in current if one["resourceType"] == "ServiceRequest"]
    return Published(studies, patients, tasks, orders, versions, known, members)


def _current(connection: Connection) -> Iterator[Json]:
    kinds = ("ImagingStudy", "Patient", "Task", "ServiceRequest")
    rows = sa.select(tables.resource.c.body).where(
        tables.resource.c.resource_type.in_(kinds), tables.resource.c.deleted.is_(False)
    )
    yield from (json.loads(body) for body in connection.execute(rows).scalars())


def _history(connection: Connection) -> Iterator[Json]:
    past = tables.resource_version
    own = sa.select(past.c.body).where(past.c.resource_type == "ImagingStudy", past.c.deleted.is_(False))
    yield from (json.loads(body) for body in connection.execute(own.order_by(past.c.rid, past.c.version)).scalars())


# --- the comparison ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Verdict:
    """What differs, in sentences, and how much was compared."""

    problems: list[str] = field(default_factory=list)
    studies: int = 0
    instances: int = 0
    withdrawn: int = 0
    versions: int = 0
    lost: int = 0
    duplicated: int = 0


def judge(pacs: httpx.Client, store: Store, zone: tzinfo = UTC) -> Verdict:
    """Compare the archive with what is published of it."""
    return compare(archive(pacs, zone), published(store))


def compare(held: Sequence[Held], said: Published) -> Verdict:
    """Every fact that must hold."""
    verdict = Verdict(studies=len(held), instances=sum(len(one.files) for one in held))
    told: dict[str, str] = {}
    for study in held:
        found = [one for one in said.available() if _uid(one) == study.uid and _is_of(study, one, said)]
        verdict.lost += not found
        verdict.duplicated += max(0, len(found) - 1)
        if len(found) != 1:
            verdict.problems.append(f"study {study.uid} of {study.mrn}: {len(found)} available ImagingStudies")
            continue
        told[study.orthanc_id] = found[0]["id"]
        differences = [*_differences(study, found[0]), *_order(study, found[0], said)]
        verdict.lost += sum(one.startswith("lost") for one in differences)
        verdict.duplicated += sum(one.startswith("twice") for one in differences)
        verdict.problems += [f"study {study.uid}: {one}" for one in differences]
    _the_others(held, said, set(told.values()), verdict)
    verdict.problems += [*_membership(held, said, told), *_history_faults(said), *_patients(held, said), *_tasks(said)]
    verdict.versions = sum(map(len, said.versions.values()))
    return verdict


def _is_of(study: Held, one: Json, said: Published) -> bool:
    """Whether the ImagingStudy is of the study's patient: a copy is of somebody without a number, shared by nobody."""
    patient = said.patients.get(one["subject"]["reference"].removeprefix("Patient/"), {})
    if not study.copied:
        return {"system": MRN, "value": study.mrn} in patient.get("identifier", [])
    sharing = [other for other in said.studies if other["subject"] == one["subject"]]
    return "identifier" not in patient and _is_placeholder(patient) and len(sharing) == 1 and "basedOn" not in one


def _is_placeholder(patient: Json) -> bool:
    return any(tag.get("code") == FROM_IMAGES for tag in patient.get("meta", {}).get("tag", []))


def _differences(study: Held, one: Json) -> Iterator[str]:
    series = study.series()
    yield from _unequal("numberOfSeries", len(series), one.get("numberOfSeries"))
    yield from _unequal("numberOfInstances", len(study.files), one.get("numberOfInstances"))
    modalities = {str(file.get("Modality") or "OT") for file in study.files.values()}
    yield from _unequal("modality", modalities, {coding["code"] for coding in one.get("modality", [])})
    yield from _unequal("description", study.agreed("StudyDescription"), one.get("description"))
    yield from _unequal("started", _moment(study), _instant(one.get("started")))
    accession = [entry["value"] for entry in one["identifier"] if _type(entry) == "ACSN"]
    if number := study.agreed("AccessionNumber"):
        yield from _unequal("accession number", [number], accession)
    if not one.get("endpoint"):
        yield "no endpoint"
    yield from _sets("series", series, [entry["uid"] for entry in one.get("series", [])])
    for entry in one.get("series", []):
        yield from _series(study, entry, series.get(entry["uid"], []))


def _series(study: Held, entry: Json, files: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    where = f"series {entry['uid']}: "
    yield from _unequal(where + "numberOfInstances", len(files), entry.get("numberOfInstances"))
    yield from _sets(
        where + "instance",
        {file["SOPInstanceUID"] for file in files},
        [one["uid"] for one in entry.get("instance", [])],
    )
    listed = {one["uid"]: one for one in entry.get("instance", [])}
    for file in files:
        told = listed.get(file["SOPInstanceUID"], {})
        code = told.get("sopClass", {}).get("code")
        yield from _unequal(where + "sopClass", f"urn:oid:{file['SOPClassUID']}", code)
        yield from _unequal(where + "number", _number(file.get("InstanceNumber")), told.get("number"))
    agreed = {keyword: study.agreed(keyword, files) for keyword in ("Modality", "SeriesDescription", "SeriesNumber")}
    if agreed["Modality"]:
        yield from _unequal(where + "modality", agreed["Modality"], entry["modality"]["code"])
    if agreed["SeriesDescription"]:
        yield from _unequal(where + "description", agreed["SeriesDescription"], entry.get("description"))
    if agreed["SeriesNumber"]:
        yield from _unequal(where + "number", _number(agreed["SeriesNumber"]), entry.get("number"))


def _order(study: Held, one: Json, said: Published) -> Iterator[str]:
    """The order that reserved the study's UID, else the one whose accession number all files have; of its patient."""
    if study.copied:
        return
    number = study.agreed("AccessionNumber")
    found = [order for order in said.orders if _uid(order) == study.uid]
    if not found and number is None and any(file.get("AccessionNumber") for file in study.files.values()):
        return
    found = found or [order for order in said.orders if number and number in _accessions(order)]
    own = [order["id"] for order in found if order["subject"] == one["subject"]]
    linked = [reference["reference"].removeprefix("ServiceRequest/") for reference in one.get("basedOn", [])]
    yield from _unequal("basedOn", own if len(own) == 1 else [], linked)


def _accessions(order: Json) -> list[str]:
    return [entry["value"] for entry in order["identifier"] if _type(entry) == "ACSN"]


def _the_others(held: Sequence[Held], said: Published, told: set[str], verdict: Verdict) -> None:
    """Every ImagingStudy that no study of the archive stands behind is withdrawn, or was replaced by another."""
    uids = Counter(_uid(one) for one in said.studies)
    reserved = {_uid(one) for one in said.orders}
    for one in said.studies:
        if one["id"] in told:
            continue
        if one["status"] == "available":
            verdict.duplicated += any(_uid(one) == study.uid for study in held)
            verdict.problems.append(f"ImagingStudy {one['id']} of {_uid(one)} is available without a study behind it")
        elif one["status"] == "entered-in-error" and (uids[_uid(one)] > 1 or _uid(one) in reserved):
            # Told of under another patient, or its order's images came under another UID.
            continue
        elif one["status"] == "registered" and _uid(one) in reserved and not one.get("numberOfInstances"):
            continue
        elif not _is_withdrawn(one):
            verdict.problems.append(f"ImagingStudy {one['id']} of {_uid(one)} is {one['status']} and not withdrawn")
        else:
            verdict.withdrawn += 1


def _is_withdrawn(one: Json) -> bool:
    marked = any(entry["url"].endswith(TOMBSTONE) for entry in one.get("extension", []))
    empty = not one.get("series") and not one.get("endpoint") and not one.get("numberOfInstances")
    return one["status"] == "unknown" and marked and empty


def _membership(held: Sequence[Held], said: Published, told: Mapping[str, str]) -> Iterator[str]:
    """The rows that viewers are let in by are those of the archive, and of nothing else."""
    rows = {row["orthanc_id"]: row["imaging_study_id"] for row in said.known if row["missing_since"] is None}
    yield from _sets("known study", {study.orthanc_id for study in held}, list(rows))
    yield from (
        f"{orthanc_id} is known as {rows[orthanc_id]}, published as {resource_id}"
        for orthanc_id, resource_id in told.items()
        if rows.get(orthanc_id, resource_id) != resource_id
    )
    expected = {
        (key, study.orthanc_id, *(str(file.get(keyword) or "") for keyword in MEMBER))
        for study in held
        for key, file in study.files.items()
    }
    yield from _sets("instance row", expected, list(said.members))


MEMBER = ("SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")


def _history_faults(said: Published) -> Iterator[str]:
    """Every version says something else than the one before, and none is missing."""
    for resource_id, versions in said.versions.items():
        numbers = [int(one["meta"]["versionId"]) for one in versions]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"ImagingStudy {resource_id} has the versions {numbers}"
        for before, after in itertools.pairwise(versions):
            if _content(before) == _content(after):
                yield f"ImagingStudy {resource_id}: version {after['meta']['versionId']} says nothing new"


def _patients(held: Sequence[Held], said: Published) -> Iterator[str]:
    for mrn in sorted({study.mrn for study in held if not study.copied}):
        bearers = [one for one in said.patients.values() if {"system": MRN, "value": mrn} in one.get("identifier", [])]
        if len(bearers) != 1:
            yield f"{len(bearers)} Patients with the number {mrn}"


def _tasks(said: Published) -> Iterator[str]:
    """Nobody is asked the same question twice."""
    asked = Counter(
        (one.get("code", {}).get("coding", [{}])[0].get("code"), one.get("focus", {}).get("reference"))
        for one in said.tasks
        if one["status"] in OPEN
    )
    yield from (f"{count} open Tasks {what}" for what, count in asked.items() if count > 1)


# --- values ------------------------------------------------------------------------------------------------------


def _uid(one: Json) -> str:
    found = [entry["value"] for entry in one["identifier"] if entry.get("system") == "urn:dicom:uid"]
    return found[0].removeprefix("urn:oid:")


def _type(identifier: Json) -> str:
    return identifier.get("type", {}).get("coding", [{}])[0].get("code", "")


def _number(text: object) -> int | None:
    return int(str(text)) if text not in {None, ""} else None


def _moment(study: Held) -> datetime | None:
    day, clock = study.agreed("StudyDate"), study.agreed("StudyTime")
    if day is None or clock is None:
        return None
    return datetime.strptime(f"{day}{clock[:6]}", "%Y%m%d%H%M%S").replace(tzinfo=study.zone).astimezone(UTC)


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _content(one: Json) -> Json:
    meta = {name: value for name, value in one["meta"].items() if name not in {"versionId", "lastUpdated"}}
    return {**one, "meta": meta}


def _unequal(what: str, expected: object, said: object) -> Iterator[str]:
    if expected is not None and expected != said:
        yield f"{what} is {said!r}, the archive has {expected!r}"


def _sets(what: str, expected: Iterable[Any], said: Sequence[Any]) -> Iterator[str]:
    wanted = set(expected)
    yield from (f"lost {what} {one}" for one in sorted(wanted - set(said)))
    yield from (f"{what} {one} is not in the archive" for one in sorted(set(said) - wanted))
    yield from (f"twice {what} {one}" for one, count in sorted(Counter(said).items()) if count > 1)
