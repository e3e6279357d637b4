"""Standalone launch: a person says whose record, and which study, the app opens (SMART App Launch 2.2).

What was chosen stands behind an opaque value that only this person and this app can take, once, like a launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy.engine import Connection

from app.smart import launches, scopes
from app.smart.authorize import Asking, Person, Refused
from app.smart.launches import LaunchContext

What = Literal["", "patient", "study"]
PATIENT, STUDY = "launch/patient", "launch/imagingstudy"
KIND: launches.Kind = "chosen"


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of the page: what is chosen, and how a person knows it again."""

    id: str
    label: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Study:
    """A study that can be opened."""

    patient_id: str
    imaging_study_id: str
    study_uid: str
    order_id: str | None


@dataclass(frozen=True, slots=True)
class Records:
    """Where one chooses; handed in, for the FHIR store lies above. With ids, only of those patients."""

    patients: Callable[[Connection, str, Sequence[str] | None], list[Choice]]
    """Whom a text means: a name, a date of birth or a number."""
    patient: Callable[[Connection, str], Choice | None]
    studies: Callable[[Connection, str], list[Choice]]
    study: Callable[[Connection, str], Study | None]


def needed(asking: Asking, context: LaunchContext | None) -> What:
    """What has to be chosen before anything can be granted."""
    if asking.launch is not None:
        return ""
    asked = scopes.within(scopes.parse(asking.scope), asking.client.scope)
    with_study = asking.client.study_bound or STUDY in asked.words
    if context is None:
        of_patient = any(scope.context == "patient" for scope, _ in asked.scopes)
        return "patient" if with_study or of_patient or PATIENT in asked.words else ""
    return "study" if with_study and context.imaging_study_id is None else ""


def allowed(asking: Asking) -> Sequence[str] | None:
    """The patients this app may be opened for; None means all. Refused for an app that is bound to listed studies."""
    client = asking.client
    if client.access != "listed":
        return None
    if not client.patients:
        raise Refused("access_denied", "this app is opened from a study it may see")
    return client.patients


def choose_patient(connection: Connection, records: Records, asking: Asking, person: Person, patient_id: str) -> str:
    """The value that stands for this patient; Refused for one the app may not be opened for."""
    only = allowed(asking)
    if records.patient(connection, patient_id) is None or (only is not None and patient_id not in only):
        raise Refused("access_denied", "this patient cannot be chosen")
    return _kept(connection, _context(asking, person, patient_id))


def choose_study(
    connection: Connection, records: Records, asking: Asking, person: Person, chosen: tuple[LaunchContext, str]
) -> str:
    """The value that stands for this study of the patient chosen before; Refused for any other study."""
    context, imaging_study_id = chosen
    study = records.study(connection, imaging_study_id)
    if study is None or study.patient_id != context.patient_id:
        raise Refused("access_denied", "this study cannot be chosen")
    about = {"imaging_study_id": study.imaging_study_id, "study_uid": study.study_uid, "order_id": study.order_id}
    return _kept(connection, replace(_context(asking, person, study.patient_id), **about))


def _context(asking: Asking, person: Person, patient_id: str) -> LaunchContext:
    user = person.user
    return LaunchContext(
        client_id=asking.client.id,
        user_id=user.id,
        fhir_user=user.fhir_user,
        user_name=user.name,
        patient_id=patient_id,
        imaging_study_id=None,
        study_uid=None,
        order_id=None,
        made_by="",
    )


def _kept(connection: Connection, context: LaunchContext) -> str:
    return launches.open_launch(connection, context, kind=KIND)
