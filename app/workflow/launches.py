"""A trusted EHR or RIS opens one study for one of its users: POST /launches (SMART App Launch 2.2, EHR launch)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.engine import Connection

from app.access import Access
from app.errors import BadRequest, Conflict, Forbidden, NotFound
from app.fhir import resources
from app.fhir.mapping import imaging_study, terms, values
from app.fhir.mapping.codes import Json
from app.settings import Settings
from app.smart import clients
from app.smart.launches import LaunchContext, open_launch
from app.workflow import orders
from app.workflow.orders import escaped

LAUNCH = "isocenter/launch"
SECONDS = 60
TARGETS = ("study_uid", "accession", "service_request")
FIELDS = frozenset({*TARGETS, "user", "client_id"})
PERSON_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, terms.BASE + "/Practitioner")
USER_SYSTEM = f"{terms.BASE}/sid/vouched-user/"
"""Followed by the client's id: a user name means something only to the client that gave it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller asks for: one way to name a study, the person, and the app to open it in."""

    kind: str
    value: str
    user_id: str
    user_name: str
    client_id: str


def parse(body: object, default_client: str) -> Wanted:
    """The request body; BadRequest says which field is wrong."""
    if not isinstance(body, Mapping) or body.keys() - FIELDS:
        raise BadRequest(f"the body is one JSON object with {', '.join(sorted(FIELDS))}")
    named = [kind for kind in TARGETS if body.get(kind)]
    user: Any = body.get("user")
    if len(named) != 1 or not isinstance(body[named[0]], str):
        raise BadRequest(f"name the study by exactly one of {', '.join(TARGETS)}")
    if not isinstance(user, Mapping) or not _text(user.get("id")) or not _text(user.get("name")):
        raise BadRequest("user needs an id and a name")
    client_id = body.get("client_id") or default_client
    if not isinstance(client_id, str):
        raise BadRequest("client_id is a text")
    return Wanted(named[0], body[named[0]], user["id"], user["name"], client_id)


def create(connection: Connection, settings: Settings, caller: Access, wanted: Wanted, ids: tuple[str, str]) -> Json:
    """Open the launch and answer with its addresses. `ids` are the viewer's client id and its handle's base address."""
    if LAUNCH not in caller.rights:
        raise Forbidden(f"opening launches needs the scope {LAUNCH}")
    viewer_client, handle_base = ids
    client = clients.find(connection, wanted.client_id)
    if client is None or client.disabled or not client.launch_uri:
        raise NotFound("no app with a launch address has this client_id")
    study = _study(connection, wanted)
    context = _context(connection, caller, wanted, study)
    launch = open_launch(connection, context, kind="launch", seconds=SECONDS)
    handle = open_launch(connection, _for(context, viewer_client), kind="viewer", seconds=SECONDS)
    query = urlencode({"iss": settings.fhir_base, "launch": launch})
    return {
        "launch": launch,
        "iss": settings.fhir_base,
        "launch_url": f"{client.launch_uri}{'&' if '?' in client.launch_uri else '?'}{query}",
        "viewer_url": f"{handle_base}/{handle}",
        "expires_in": SECONDS,
    }


def _context(connection: Connection, caller: Access, wanted: Wanted, study: Json) -> LaunchContext:
    uid = imaging_study.uid_of(study)
    based_on: list[Json] = study.get("basedOn", [])
    order_id = based_on[0]["reference"].removeprefix("ServiceRequest/") if based_on else None
    return LaunchContext(
        client_id=wanted.client_id,
        user_id=f"{caller.client_id}:{wanted.user_id}",
        fhir_user=_person(connection, caller.client_id, wanted),
        user_name=wanted.user_name,
        patient_id=study["subject"]["reference"].removeprefix("Patient/"),
        imaging_study_id=study["id"],
        study_uid=uid,
        order_id=order_id,
        made_by=caller.client_id,
    )


def _for(context: LaunchContext, client_id: str) -> LaunchContext:
    known = {name: getattr(context, name) for name in LaunchContext.__slots__}
    return LaunchContext(**{**known, "client_id": client_id})


def _study(connection: Connection, wanted: Wanted) -> Json:
    """The one study that is meant and has images: nothing is NotFound, several are a Conflict."""
    found = [study for study in _candidates(connection, wanted) if study["status"] == "available"]
    if not found:
        raise NotFound("no study with images is known by that")
    if len(found) > 1:
        raise Conflict("several studies fit; name one by its Study Instance UID")
    return found[0]


def _candidates(connection: Connection, wanted: Wanted) -> list[Json]:
    if wanted.kind == "study_uid":
        uid = values.oid(values.bare(wanted.value))
        return resources.find(connection, "ImagingStudy", [("identifier", f"{terms.DICOM_UID}|{escaped(uid)}")])
    if wanted.kind == "service_request":
        return orders.studies_of(connection, wanted.value.removeprefix("ServiceRequest/"))
    found = resources.find(connection, "ServiceRequest", [("identifier", escaped(wanted.value))])
    by_order = [study for order in found for study in orders.studies_of(connection, order["id"])]
    direct = resources.find(connection, "ImagingStudy", [("identifier", escaped(wanted.value))])
    return list({study["id"]: study for study in [*by_order, *direct]}.values())


def _person(connection: Connection, client_id: str, wanted: Wanted) -> str:
    """The Practitioner the caller vouches for: made, or its name brought up to date."""
    resource_id = str(uuid.uuid5(PERSON_NAMESPACE, f"{client_id}|{wanted.user_id}"))
    known = resources.read(connection, "Practitioner", resource_id) or {}
    person = known | {
        "resourceType": "Practitioner",
        "id": resource_id,
        "identifier": [{"system": USER_SYSTEM + client_id, "value": wanted.user_id}],
        "name": [{"text": wanted.user_name}],
    }
    resources.put(connection, person, cause=f"user of {client_id}")
    return f"Practitioner/{resource_id}"


def _text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value.strip()) <= 200
