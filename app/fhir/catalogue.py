"""DICOMweb searches on what is stored: their keys as conditions of the index, and studies in DICOM's words.

What the conditions find may be more than matches: names and numbers are compared exactly by whoever asked. It is never
less, and never more than the grant covers (docs/decisions/0080).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from msgspec.structs import replace
from sqlalchemy.engine import Connection

from app.access import Access, Action
from app.dicom import criteria, qido
from app.dicom.criteria import Wanted
from app.dicom.matching import WILDCARD_VRS, wildcard
from app.dicom.paths import Level
from app.dicom.shelf import Catalogue, Narrowed
from app.fhir import granted, resources
from app.fhir.index import fold
from app.fhir.mapping import catalogue, patient, task, values
from app.fhir.mapping.codes import Json
from app.fhir.mapping.worklist import Site
from app.fhir.registry import offer
from app.fhir.resources import STUDY_UID
from app.store import candidates
from app.store import resources as rows
from app.store.query import Clause, Condition, Date, Ids, Link, Query, Text, Token
from app.store.studies import HeldStudy

STUDY, PATIENT = "ImagingStudy", "Patient"
HOUR = 3_600_000
FAR = 15 * HOUR
"""A local time is at most so far from the same time in UTC."""
MANY = 64
"""A longer list would be a statement that no database plans: it is matched without the index, or by ids."""
HELD = Clause((Token("status", None, "available"),))
"""Of the others the archive holds nothing."""
EXACT = frozenset({"StudyInstanceUID"})
"""Keys of which the index finds neither more nor less than matches."""


def of(site: Site) -> Catalogue:
    """What the store knows of studies, at a site with these authorities."""
    return Catalogue(narrow, partial(_tell, site))


# --- keys as conditions ---------------------------------------------------------------------------------------------


def narrow(connection: Connection, access: Access, query: qido.Query) -> Narrowed:
    """The ImagingStudies that a search has to look at."""
    kind = offer(STUDY)
    by_keyword = {one.path[0]: one for one in query.wanted if len(one.path) == 1 and one.values}
    # How long it takes to look through all values there are may tell of others' studies.
    free = None if granted.is_bounded(access, Action("s", STUDY)) else connection
    own = (HELD, *_clauses(OF_STUDY, by_keyword, free), *_started(by_keyword))
    if access.studies is not None and len(access.studies) > MANY:
        own = (*own, Clause((Ids(candidates.ids(connection, access.studies)),)))
        access = replace(access, studies=None)
    confined = granted.confine(Query(STUDY, own, natural=kind.sort), kind, access)
    # Whose study it is belongs to the study: no right to read Patients is needed to be told so.
    whose = _clauses(OF_PATIENT, by_keyword, free)
    if whose:
        people = Query(PATIENT, whose, natural=offer(PATIENT).sort)
        confined = replace(confined, clauses=(*confined.clauses, Clause((Link("patient", people),))))
    return Narrowed(confined, exact=all(one.path[0] in EXACT and len(one.values) <= MANY for one in query.wanted))


Alternatives = Callable[[Wanted, Connection | None], Iterable[Condition] | None]
"""The conditions of which one must hold; None where the index cannot tell. With a connection it may be looked into."""


def _clauses(
    table: Mapping[str, Alternatives], by_keyword: Mapping[str, Wanted], free: Connection | None
) -> tuple[Clause, ...]:
    found = (table[keyword](one, free) for keyword, one in by_keyword.items() if keyword in table)
    return tuple(Clause(tuple(conditions)) for conditions in found if conditions is not None)


def _token(
    resource_type: str, param: str, written: Callable[[str], str] = str, system: str | None = None
) -> Alternatives:
    def conditions(wanted: Wanted, free: Connection | None) -> list[Condition] | None:
        plain: Sequence[str] | None = [written(value) for value in wanted.plain()]
        if not plain and free is not None and criteria.vr_of(wanted.keyword) in WILDCARD_VRS:
            patterns = wanted.values
            plain = candidates.values(
                free, resource_type, param, lambda value: any(wildcard(one, value) for one in patterns), limit=MANY
            )
        elif not plain or len(plain) > MANY:
            plain = None
        return None if plain is None else [Token(param, system, value) for value in plain]

    return conditions


def _study(wanted: Wanted, free: Connection | None) -> Iterable[Condition] | None:
    if free is not None and len(wanted.values) > MANY:
        return [Ids(candidates.ids(free, wanted.values))]
    return _token(STUDY, "identifier", values.oid, STUDY_UID)(wanted, free)


def _beginning(param: str) -> Alternatives:
    """Texts by what stands before the first wildcard; of a name, before the end of its first part."""

    def conditions(wanted: Wanted, _free: Connection | None) -> list[Condition] | None:
        groups = [next((group for group in value.split("=") if group.strip("*^")), "") for value in wanted.values]
        known = [_known(param, re.split(r"[*?^]", group)) for group in groups]
        return list(filter(None, known)) if all(known) and len(known) <= MANY else None

    return conditions


def _known(param: str, runs: Sequence[str]) -> Text | None:
    """What a text has to begin with, or else to have within."""
    first, longest = fold(runs[0]), fold(max(runs, key=len))
    if first:
        return Text(param, "starts", first)
    return Text(param, "contains", longest) if longest else None


def _born(wanted: Wanted, _free: Connection | None) -> list[Condition] | None:
    return _between("birthdate", criteria.span_of(wanted))


def _between(param: str, span: tuple[datetime | None, datetime | None]) -> list[Condition] | None:
    """The first bound that there is, with room for every time zone: exact matching follows."""
    first, last = (_milliseconds(one) if one else None for one in span)
    if first is not None:
        return [Date(param, "ge", first - FAR, first - FAR + 1)]
    return [Date(param, "le", last + FAR, last + FAR + 1)] if last is not None else None


def _started(by_keyword: Mapping[str, Wanted]) -> list[Clause]:
    """Both ends of the days a study may have begun on."""
    days = by_keyword.get("StudyDate")
    if days is None:
        return []
    first, last = criteria.span_of(days)
    found = (_between("started", (first, None)), _between("started", (None, last)))
    return [Clause(tuple(one)) for one in found if one]


def _milliseconds(moment: datetime) -> int:
    return int(moment.replace(tzinfo=UTC).timestamp() * 1000)


def _gender(sex: str) -> str:
    return patient.SEX_TO_GENDER.get(sex, "")


OF_STUDY: Mapping[str, Alternatives] = {
    "StudyInstanceUID": _study,
    "AccessionNumber": _token(STUDY, "accession"),
    "StudyID": _token(STUDY, "identifier"),
    "StudyDescription": _beginning("description"),
    "ModalitiesInStudy": _token(STUDY, "modality"),
    "SOPClassesInStudy": _token(STUDY, "dicom-class", values.oid),
    "SeriesInstanceUID": _token(STUDY, "series"),
    "Modality": _token(STUDY, "modality"),
    "SOPInstanceUID": _token(STUDY, "instance"),
    "SOPClassUID": _token(STUDY, "dicom-class", values.oid),
}
OF_PATIENT: Mapping[str, Alternatives] = {
    "PatientName": _beginning("name"),
    "PatientID": _token(PATIENT, "identifier"),
    "PatientBirthDate": _born,
    "PatientSex": _token(PATIENT, "gender", _gender),
}

# --- studies in DICOM's words ---------------------------------------------------------------------------------------


def _tell(site: Site, connection: Connection, held: Sequence[HeldStudy], level: Level) -> dict[str, dict[str, Any]]:
    found = _read(connection, STUDY, {one.imaging_study_id for one in held})
    people = _read(connection, PATIENT, {one.patient_id for one in held})
    told = {
        one.imaging_study_id: catalogue.study(catalogue.view(study, people.get(one.patient_id, {}), site))
        for one in held
        if (study := found.get(one.imaging_study_id)) is not None
    }
    if level != "study":
        for imaging_study_id, asked in _requests(connection, found).items():
            told[imaging_study_id]["RequestAttributesSequence"] = asked
    return told


def _requests(connection: Connection, found: Mapping[str, Json]) -> dict[str, list[Json]]:
    """What was requested, of the studies that fulfil an order: by the ImagingStudy's id."""
    orders = {one: catalogue.orders_of(study) for one, study in found.items()}
    known = _read(connection, "ServiceRequest", {one for several in orders.values() for one in several})
    pairs = [("ServiceRequest", one) for one in sorted(known)]
    ids = rows.referrers(connection, "Task", "focus", pairs, resources.MAX_FOUND) if pairs else []
    steps = [one for one in _read(connection, "Task", ids).values() if task.modality(one)]
    by_order: dict[str, list[Json]] = {}
    for step in sorted(steps, key=lambda one: one["id"]):
        by_order.setdefault(step["focus"]["reference"].removeprefix("ServiceRequest/"), []).append(step)
    asked = {
        imaging_study_id: [
            item for one in several if one in known for item in catalogue.requests(known[one], by_order.get(one, []))
        ]
        for imaging_study_id, several in orders.items()
    }
    return {imaging_study_id: items for imaging_study_id, items in asked.items() if items}


def _read(connection: Connection, resource_type: str, ids: Iterable[str]) -> dict[str, Json]:
    """Those of these that are there, by id."""
    stored = rows.several(connection, resource_type, sorted(ids))
    return {one.resource_id: resources.loads(one.body) for one in stored if not one.deleted}
