"""What a grant leaves of a search: the same answer as `access.decide`, as clauses (SMART App Launch 2.2, scopes)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, TypedDict

import msgspec
from msgspec.structs import replace

from app.access import READING, SHARED_TYPES, Access, Action, Scope, bounds, decide, permits
from app.errors import BadRequest, Forbidden
from app.fhir import criteria, index, resources
from app.fhir.registry import Offer, offer, offers
from app.fhir.resources import STUDY_UID
from app.fhir.site import here
from app.store.query import Clause, Condition, Ids, Link, Owner, Present, Query, Referred, Target, Token
from app.store.resources import Stored

_PATIENT_PARAMS = frozenset({"patient", "subject"})


def may_search(access: Access, resource_type: str) -> bool:
    """Whether any scope lets the caller search the type at all."""
    return permits(access, Action("s", resource_type))


def is_bounded(access: Access, action: Action) -> bool:
    """Whether there may be resources of this type that the grant does not cover."""
    if _is_bound_to_studies(access, action.resource_type):
        return True
    return not any(_is_free(scope, access, action) for scope in bounds(access, action))


def readable(access: Access, stored: Stored, verb: str = "r") -> bool:
    """The decision on one stored version, without reading more of it than the grant asks about.

    A deletion does not say whose it was: only who may see the whole type may see it.
    """
    action = Action(verb, stored.resource_type)
    if stored.deleted:
        return not is_bounded(access, action)
    scopes = bounds(access, action)
    if not _is_bound_to_studies(access, stored.resource_type):
        if any(_is_free(scope, access, action) for scope in scopes):
            return True
        plain = any(not scope.criteria for scope in scopes)
        if plain and access.patient_id is not None and _owner(stored) == access.patient_id:
            return True
        if all(not scope.criteria for scope in scopes) and stored.resource_type not in SHARED_TYPES:
            return False
    return decide(access, action, resources.facts_of(resources.loads(stored.body)))


def confine(query: Query, offer: Offer, access: Access) -> Query:
    """The query for this caller: what any of its scopes allows, and nothing else.

    What a chain or a `_has` asks of another resource is asked only of those that the caller may see.
    """
    scopes = bounds(access, Action("s", offer.resource_type))
    if all(scope.context == "patient" for scope in scopes):
        _refuse_other_patients(query, access)
    return _confined(query, offer, access, scopes)


def require_patient(access: Access, resource_types: Iterable[str], patient_id: str) -> None:
    """Forbidden for another patient's compartment when every scope is about the one in context."""
    scopes = [scope for kind in resource_types for scope in bounds(access, Action("s", kind))]
    if all(scope.context == "patient" for scope in scopes) and patient_id != access.patient_id:
        raise Forbidden("the grant is for another patient")


def patient_of(query: Query) -> str | None:
    """The patient that a search is about, when it is one: the audit trail names it."""
    for clause in query.clauses:
        match clause.any_of:
            case (Target(("patient" | "subject"), (None | "Patient"), patient_id),):
                return patient_id
            case _:
                continue
    return None


def _confined(query: Query, offer: Offer, access: Access, scopes: Iterable[Scope]) -> Query:
    clauses = tuple(_inward(clause, access) for clause in query.clauses)
    allowed = tuple(dict.fromkeys(found for scope in scopes for found in _allowances(scope, offer, access)))
    return Query(query.resource_type, clauses, ((),) if () in allowed else allowed, query.order, query.natural)


def _inward(clause: Clause, access: Access) -> Clause:
    if not any(isinstance(condition, Link | Referred) for condition in clause.any_of):
        return clause
    return replace(clause, any_of=tuple(_nested(condition, access) for condition in clause.any_of))


def _nested(condition: Condition, access: Access) -> Condition:
    if not isinstance(condition, Link | Referred):
        return condition
    inner = condition.query
    scopes = (scope for verb in "rs" for scope in bounds(access, Action(verb, inner.resource_type)))
    return replace(condition, query=_confined(inner, offers()[inner.resource_type], access, scopes))


def _is_bound_to_studies(access: Access, resource_type: str) -> bool:
    return access.studies is not None and resource_type == "ImagingStudy"


def _is_free(scope: Scope, access: Access, action: Action) -> bool:
    if scope.criteria:
        return False
    return scope.context != "patient" or (
        access.patient_id is not None
        and action.verb in READING
        and action.resource_type in SHARED_TYPES
        and not offer(action.resource_type).patient
    )


def _allowances(scope: Scope, offer: Offer, access: Access) -> list[tuple[Clause, ...]]:
    """What a scope demands; each alternative is enough, and without one it allows nothing."""
    demanded = _clauses(scope, offer, access)
    if demanded is None:
        return []
    return [(*owned, *demanded) for owned in _compartment(scope, offer, access)]


def _compartment(scope: Scope, offer: Offer, access: Access) -> list[tuple[Clause, ...]]:
    """Under a patient/ scope: what is the patient's, and of the shared types what is nobody's."""
    if scope.context != "patient":
        return [()]
    if access.patient_id is None:
        return []
    own = (Clause((Owner(access.patient_id),)),)
    if offer.resource_type not in SHARED_TYPES:
        return [own]
    return [own, (Clause((Present("patient", "reference"),), negated=True),)] if offer.patient else [()]


def _clauses(scope: Scope, offer: Offer, access: Access) -> tuple[Clause, ...] | None:
    """What a scope demands beside the compartment; None when it allows nothing."""
    clauses: list[Clause] = []
    if access.studies is not None and offer.resource_type == "ImagingStudy":
        uids = (Token("identifier", STUDY_UID, f"urn:oid:{uid}") for uid in sorted(access.studies))
        clauses.append(Clause(tuple(uids)))
    for name, value in scope.criteria:
        clause = _criterion(offer, name, value)
        if clause is None:
            return None
        clauses.append(clause)
    return tuple(clauses)


def _criterion(offer: Offer, name: str, value: str) -> Clause | None:
    """A granular criterion; None, so nothing, for one that `decide` does not know either."""
    parameter = offer.search.get(name)
    if name != "_id" and (parameter is None or parameter.type not in {"token", "uri", "reference"}):
        return None
    try:
        return criteria.clause(offer, name, value)
    except BadRequest:
        return None


def _refuse_other_patients(query: Query, access: Access) -> None:
    """A patient in the query who is not the one in context is refused, not answered with nothing."""
    for clause in query.clauses:
        for condition in clause.any_of:
            match condition:
                case Target(param, None | "Patient", patient_id) if param in _PATIENT_PARAMS:
                    is_other = patient_id != access.patient_id
                case Ids(values) if query.resource_type == "Patient":
                    is_other = values != frozenset({access.patient_id or ""})
                case _:
                    is_other = False
            if is_other:
                raise Forbidden("the grant is for another patient")


# --- whose a version is ---------------------------------------------------------------------------------------


def _owner(stored: Stored) -> str | None:
    """The patient that this very version is about: the row knows the current version's only."""
    known = offer(stored.resource_type)
    decoder = _decoder(stored.resource_type)
    return index.patient_id(decoder.decode(stored.body), known, here().base) if decoder else None


@cache
def _decoder(resource_type: str) -> msgspec.json.Decoder[Any] | None:
    """Reads the elements that name the patient, and passes over all others."""
    leaves = offer(resource_type).patient
    if not leaves:
        return None
    names = {"contained", *(leaf.steps[0].name for leaf in leaves)}
    return msgspec.json.Decoder(TypedDict("Owned", dict.fromkeys(names, Any), total=False))  # pyright: ignore[reportArgumentType]
