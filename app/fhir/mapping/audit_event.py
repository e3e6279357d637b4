"""A record of the audit trail as an AuditEvent (https://hl7.org/fhir/R4/auditevent.html), in the shape of IHE BALP.

BALP's profiles are claimed for what they are about: successful REST interactions whose client's address is known.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from app.fhir.mapping import terms
from app.fhir.mapping.codes import Json

REST = "http://terminology.hl7.org/CodeSystem/audit-event-type"
RESTFUL = "http://hl7.org/fhir/restful-interaction"
ACTION = f"{terms.BASE}/CodeSystem/audit-action"
"""What has no code elsewhere is told in the trail's own words."""
CLIENT = f"{terms.BASE}/sid/client"
OUTCOMES = {"allowed": "0", "denied": "4", "failed": "8"}
TOLD = {"denied": "refused", "failed": "not carried out"}
ENTITY_TYPES = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
ROLES = "http://terminology.hl7.org/CodeSystem/object-role"
BALP = "https://profiles.ihe.net/ITI/BALP"
REQUEST = {"system": f"{BALP}/CodeSystem/BasicAuditEntityType", "code": "XrequestId"}
PROFILE = f"{BALP}/StructureDefinition/IHE.BasicAudit."
PARTICIPANT = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
ADDRESS, QUERY = "address", "query"
"""Entries of a record's detail that have their own place in an AuditEvent."""

_DESTINATION = {"system": terms.DCM, "code": "110152", "display": "Destination Role ID"}
_SOURCE = {"system": terms.DCM, "code": "110153", "display": "Source Role ID"}
_APPLICATION = {"system": terms.DCM, "code": "110150", "display": "Application"}
_CUSTODIAN = {"system": PARTICIPANT, "code": "custodian", "display": "Custodian"}
_RECIPIENT = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType",
    "code": "IRCP",
    "display": "information recipient",
}
_LOCAL = re.compile(r"[A-Z][A-Za-z]+/[A-Za-z0-9\-.]{1,64}")


class Row(Protocol):
    """One record as the store keeps it; `at` in milliseconds."""

    # fmt: off
    @property
    def id(self) -> int: ...
    @property
    def at(self) -> int: ...
    @property
    def door(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def client_id(self) -> str: ...
    @property
    def grant_id(self) -> str | None: ...
    @property
    def fhir_user(self) -> str | None: ...
    @property
    def patient_id(self) -> str | None: ...
    @property
    def study_uid(self) -> str | None: ...
    @property
    def target(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def detail(self) -> Mapping[str, Any]: ...
    # fmt: on


# --- what was done -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """What an action is in the words of AuditEvent; `shape` names the profile it may follow."""

    letter: str
    type: tuple[str, str, str]
    subtype: tuple[str, str] = ("", "")
    shape: str = ""


_OPERATION = (REST, "rest", "Restful Operation")
_TRANSFERRED = (terms.DCM, "110104", "DICOM Instances Transferred")
_ASKED = (terms.DCM, "110112", "Query")
_KNOWN_USER = (terms.DCM, "110114", "User Authentication")
_ACTIVITY = (terms.DCM, "110100", "Application Activity")
_ACCESSED = (terms.DCM, "110103", "DICOM Instances Accessed")
_PROCEDURE = (terms.DCM, "110111", "Procedure Record")


def _rest(letter: str, shape: str, *codes: str) -> Iterator[tuple[str, Kind]]:
    for code in codes:
        yield code, Kind(letter, _OPERATION, (RESTFUL, code), shape)


KINDS: Mapping[str, Mapping[str, Kind]] = {
    "fhir": {
        **dict(_rest("R", "Read", "read", "vread")),
        **dict(_rest("R", "", "history-instance", "history-type", "history-system")),
        **dict(_rest("E", "Query", "search-type", "search-system")),
        "search-compartment": Kind("E", _OPERATION, (RESTFUL, "search"), "Query"),
        **dict(_rest("C", "Create", "create")),
        **dict(_rest("U", "Update", "update", "patch")),
        **dict(_rest("D", "Delete", "delete")),
        **dict(_rest("E", "", "batch", "transaction", "operation")),
    },
    "dicomweb": {
        "search": Kind("E", _ASKED),
        "store": Kind("C", _TRANSFERRED),
    },
    "smart": {"login": Kind("E", _KNOWN_USER, (terms.DCM, "110122"))},
    "viewer": {"logout": Kind("E", _KNOWN_USER, (terms.DCM, "110123"))},
    "dicom": {},
    "workflow": {},
}
"""By door and action; an action without a subtype has its own name in our code system."""
SHAPES = frozenset(kind.shape for kind in KINDS["fhir"].values() if kind.shape)
OTHERS: Mapping[str, Kind] = {
    "fhir": Kind("E", _OPERATION),
    "dicomweb": Kind("R", _TRANSFERRED),
    "smart": Kind("E", _KNOWN_USER),
    "viewer": Kind("E", _ACTIVITY),
    "dicom": Kind("E", _ACCESSED),
    "workflow": Kind("E", _PROCEDURE),
}
"""All other actions of a door."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Records of one door: those with these actions, or those with none of them."""

    door: str
    actions: frozenset[str]
    excluded: bool = False


def kind_of(door: str, action: str) -> Kind:
    """What an action is."""
    return KINDS[door].get(action) or OTHERS[door]


def choices(fits: Callable[[Kind], bool]) -> Iterator[Choice]:
    """The records whose kind fits; the choices of one search parameter."""
    for door, known in KINDS.items():
        fitting = frozenset(action for action, kind in known.items() if fits(kind))
        if fits(OTHERS[door]):
            yield Choice(door, frozenset(known) - fitting, excluded=True)
        elif fitting:
            yield Choice(door, fitting)


def named(system: str | None, code: str | None) -> Iterator[Choice]:
    """The records with a subtype; in our own code system the code is the action itself."""
    yield from choices(lambda kind: _is(kind.subtype, system, code))
    if system in {None, ACTION}:
        for door, known in KINDS.items():
            own = frozenset(action for action, kind in known.items() if not kind.subtype[0])
            others = frozenset(known) - own
            if code is None:
                yield Choice(door, others, excluded=True)
            elif code not in others:
                yield Choice(door, frozenset({code}))


def typed(system: str | None, code: str | None) -> Iterator[Choice]:
    """The records with a type."""
    return choices(lambda kind: _is(kind.type[:2], system, code))


def _is(coding: tuple[str, ...], system: str | None, code: str | None) -> bool:
    return bool(coding[0]) and system in {None, coding[0]} and code in {None, coding[1]}


# --- the event -----------------------------------------------------------------------------------------------


def event(row: Row, server: str) -> Json:
    """The record; `server` is our FHIR base as clients know it."""
    kind, moment = kind_of(row.door, row.action), _instant(row.at)
    profile = _profile(row, kind)
    made: Json = {
        "resourceType": "AuditEvent",
        "id": str(row.id),
        "meta": {"versionId": "1", "lastUpdated": moment, **({"profile": [profile]} if profile else {})},
        "type": dict(zip(("system", "code", "display"), kind.type, strict=True)),
        "subtype": [_subtype(row, kind)],
        "action": kind.letter,
        "recorded": moment,
        "outcome": OUTCOMES[row.outcome],
        "outcomeDesc": TOLD.get(row.outcome),
        "agent": [_client(row, kind), _server(kind, server), *_user(row)],
        "source": {
            "observer": {"display": server},
            "type": [{"system": "http://terminology.hl7.org/CodeSystem/security-source-type", "code": "4"}],
        },
        "entity": [*_patient(row), *_query(row, kind), *_data(row, kind), *_request(row)],
    }
    return {name: value for name, value in made.items() if value not in (None, [])}


def _profile(row: Row, kind: Kind) -> str | None:
    complete = row.outcome == "allowed" and row.client_id and ADDRESS in row.detail
    if not complete or not kind.shape or (QUERY in row.detail) != (kind.shape == "Query"):
        return None
    if kind.shape != "Query" and not _LOCAL.fullmatch(row.target):
        return None
    return f"{PROFILE}{'Patient' if row.patient_id else ''}{kind.shape}"


def _subtype(row: Row, kind: Kind) -> Json:
    system, code = kind.subtype if kind.subtype[0] else (ACTION, row.action)
    return {"system": system, "code": code}


def _client(row: Row, kind: Kind) -> Json:
    agent: Json = {"type": {"coding": [_roles(kind)[0]]}, "requestor": not row.fhir_user}
    if row.client_id:
        agent |= {"who": {"identifier": {"system": CLIENT, "value": row.client_id}}, "altId": row.client_id}
    if row.grant_id:
        agent["policy"] = [f"urn:uuid:{row.grant_id}"]
    if ADDRESS in row.detail:
        agent["network"] = {"address": str(row.detail[ADDRESS]), "type": "2"}
    return agent


def _server(kind: Kind, server: str) -> Json:
    network = {"address": server, "type": "5"}
    return {
        "type": {"coding": [_roles(kind)[1]]},
        "who": {"display": server},
        "requestor": False,
        "network": network,
    }


def _user(row: Row) -> Iterator[Json]:
    if row.fhir_user:
        yield {"type": {"coding": [_RECIPIENT]}, "who": {"reference": row.fhir_user}, "requestor": True}


def _roles(kind: Kind) -> tuple[Json, Json]:
    """Client and server: what is read flows to the client, what is asked or written flows to us."""
    match kind.letter:
        case "R":
            return _DESTINATION, _SOURCE
        case "D":
            return _APPLICATION, _CUSTODIAN
        case _:
            return _SOURCE, _DESTINATION


def _patient(row: Row) -> Iterator[Json]:
    if row.patient_id:
        yield _entity("1", "1") | {"what": {"reference": f"Patient/{row.patient_id}"}}


def _query(row: Row, kind: Kind) -> Iterator[Json]:
    if QUERY in row.detail:
        asked = f"{row.target}?{row.detail[QUERY]}"
        yield _entity("2", "24") | {"query": base64.b64encode(asked.encode()).decode()}
    elif kind.shape == "Query":
        yield _entity("2", "24") | {"description": row.target or "all types"}


def _data(row: Row, kind: Kind) -> Iterator[Json]:
    if kind.shape == "Query" or not (row.target or row.study_uid):
        return
    what: Json = {"reference": row.target} if _LOCAL.fullmatch(row.target) else {}
    if row.study_uid:
        what |= {"type": "ImagingStudy"} if not what else {}
        what["identifier"] = {"system": terms.DICOM_UID, "value": f"urn:oid:{row.study_uid}"}
    entity = _entity("2", "4") | ({"what": what} if what else {})
    if row.target and "reference" not in what:
        entity["description"] = row.target
    details = [{"type": name, "valueString": str(value)} for name, value in _facts(row)]
    yield entity | ({"detail": details} if details else {})


def _facts(row: Row) -> Iterator[tuple[str, Any]]:
    for name, value in row.detail.items():
        if name not in {ADDRESS, QUERY} and isinstance(value, str | int | float) and value != "":
            yield name, value


def _request(row: Row) -> Iterator[Json]:
    if row.request_id:
        yield {"what": {"identifier": {"value": row.request_id}}, "type": REQUEST}


def _entity(kind: str, role: str) -> Json:
    return {"type": {"system": ENTITY_TYPES, "code": kind}, "role": {"system": ROLES, "code": role}}


def _instant(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"
