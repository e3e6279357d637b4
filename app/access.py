"""Who asks, for what, about what: frozen values and the one pure decision of every door (SMART App Launch 2.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import parse_qsl

from msgspec import Struct, field

Context = Literal["patient", "user", "system"]
VERBS = "cruds"
V1_VERBS: Mapping[str, str] = {"read": "rs", "write": "cud", "*": VERBS}
SCOPE = re.compile(
    r"(?P<context>patient|user|system)/(?P<type>[A-Z][A-Za-z]*|\*)\."
    r"(?P<verbs>read|write|\*|c?r?u?d?s?)(?:\?(?P<query>[^\s?#]+))?"
)

SHARED_TYPES = frozenset(
    {"Practitioner", "PractitionerRole", "Organization", "Location", "Endpoint", "Device", "ConceptMap"}
)
"""Types that belong to no patient: a patient/ scope may read all of them, but for what is one patient's own, such as
an implant, and write none but the patient's own."""
READING = frozenset("rs")

# A token scope value or reference, per search parameter: ("urn:dicom:uid", "urn:oid:1.2") or ("Patient", "7").
Value = tuple[str, str]


class Scope(Struct, frozen=True):
    """One SMART v2 resource scope; `criteria` are its granular search parameters, AND-ed."""

    context: Context
    resource_type: str
    verbs: frozenset[str]
    criteria: tuple[tuple[str, str], ...] = ()

    def names(self, resource_type: str, verb: str) -> bool:
        """Whether the scope speaks of this verb on this type at all."""
        return verb in self.verbs and self.resource_type in {resource_type, "*"}


def parse_scope(text: str) -> Scope | None:
    """One resource scope, v1 or v2; None for anything else, malformed included."""
    match = SCOPE.fullmatch(text)
    if match is None or not match["verbs"]:
        return None
    context = match["context"]
    if context not in {"patient", "user", "system"}:
        return None
    verbs = V1_VERBS.get(match["verbs"], match["verbs"])
    criteria = tuple(parse_qsl(match["query"] or "", keep_blank_values=True))
    if match["query"] and not criteria:
        return None
    return Scope(context, match["type"], frozenset(verbs), criteria)  # pyright: ignore[reportArgumentType]


def parse_scopes(text: str) -> tuple[tuple[Scope, ...], frozenset[str]]:
    """The resource scopes of a scope string, and the words that are none (`openid`, `launch`, `isocenter/sign`)."""
    words = text.split()
    parsed = [(word, parse_scope(word)) for word in words]
    scopes = tuple(scope for _, scope in parsed if scope is not None)
    return scopes, frozenset(word for word, scope in parsed if scope is None)


class Access(Struct, frozen=True, cache_hash=True):
    """One caller and what its grant allows. `studies` binds the grant to Study Instance UIDs; None binds to none."""

    client_id: str
    grant_id: str | None = None
    user_id: str | None = None
    fhir_user: str | None = None
    patient_id: str | None = None
    studies: frozenset[str] | None = None
    scopes: tuple[Scope, ...] = ()
    rights: frozenset[str] = frozenset()


SYSTEM = Access(client_id="isocenter", scopes=(Scope("system", "*", frozenset(VERBS)),))
"""The server itself, for the work no caller asked for."""


class Action(Struct, frozen=True):
    """A SMART verb (c, r, u, d, s) on a resource type. Pixels count as their ImagingStudy."""

    verb: str
    resource_type: str


class Facts(Struct, frozen=True):
    """What the decision may know of its object. `patient_id` is None outside the patient compartment."""

    resource_id: str | None = None
    patient_id: str | None = None
    study_uids: frozenset[str] = frozenset()
    index: Mapping[str, frozenset[Value]] = field(default_factory=dict[str, "frozenset[Value]"])


def study_facts(study_uid: str, patient_id: str | None) -> Facts:
    """The facts of a study's pixels, which are those of its ImagingStudy."""
    identifier = frozenset({("urn:dicom:uid", f"urn:oid:{study_uid}")})
    return Facts(patient_id=patient_id, study_uids=frozenset({study_uid}), index={"identifier": identifier})


def permits(access: Access, action: Action) -> bool:
    """Whether any scope could allow the action on some object: asked before anything is looked up."""
    return any(scope.names(action.resource_type, action.verb) for scope in access.scopes)


def decide(access: Access, action: Action, facts: Facts) -> bool:
    """Whether the grant allows the action on this object. Everything not allowed is denied."""
    if access.studies is not None and not facts.study_uids <= access.studies:
        return False
    if access.studies is not None and action.resource_type == "ImagingStudy" and not facts.study_uids:
        return False
    return any(_covers(scope, access, action, facts) for scope in access.scopes)


def bounds(access: Access, action: Action) -> list[Scope]:
    """The scopes a search runs under; its result is the union of what each allows."""
    return [scope for scope in access.scopes if scope.names(action.resource_type, action.verb)]


def _covers(scope: Scope, access: Access, action: Action, facts: Facts) -> bool:
    if not scope.names(action.resource_type, action.verb):
        return False
    if scope.context == "patient" and not _in_compartment(access, action, facts):
        return False
    return all(_meets(facts, name, text) for name, text in scope.criteria)


def _in_compartment(access: Access, action: Action, facts: Facts) -> bool:
    if access.patient_id is None:
        return False
    if facts.patient_id is not None:
        return facts.patient_id == access.patient_id
    # Whoever is named and not known here is not the patient in context.
    is_shared = action.resource_type in SHARED_TYPES and not facts.index.get("patient")
    return is_shared and action.verb in READING


def _meets(facts: Facts, name: str, text: str) -> bool:
    if name == "_id":
        return facts.resource_id in text.split(",")
    values = facts.index.get(name, frozenset())
    return any(_matches(value, wanted) for wanted in text.split(",") for value in values)


def _matches(value: Value, wanted: str) -> bool:
    left, right = value
    if "|" in wanted:
        system, _, code = wanted.partition("|")
        return system == left and code in {"", right}
    if "/" in wanted and ":" not in wanted:
        return f"{left}/{right}" == wanted
    return right == wanted
