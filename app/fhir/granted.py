"""What a grant leaves of a search: the same answer as `access.decide`, as clauses (SMART App Launch 2.2, scopes)."""

from __future__ import annotations

from dataclasses import replace

from app.access import SHARED_TYPES, Access, Action, Scope, bounds
from app.errors import BadRequest, Forbidden
from app.fhir import search
from app.fhir.registry import Offer
from app.fhir.resources import STUDY_UID
from app.store.resources import Clause, Ids, Owner, Query, Target, Token

_PATIENT_PARAMS = frozenset({"patient", "subject"})


def is_bounded(access: Access, action: Action) -> bool:
    """Whether there may be resources of this type that the grant does not cover."""
    if access.studies is not None and action.resource_type == "ImagingStudy":
        return True
    return not any(
        not scope.criteria and (scope.context != "patient" or _is_shared(access, action.resource_type))
        for scope in bounds(access, action)
    )


def confine(query: Query, offer: Offer, access: Access) -> Query:
    """The query for this caller: what any of its scopes allows, and nothing else."""
    scopes = bounds(access, Action("s", offer.resource_type))
    if all(scope.context == "patient" for scope in scopes):
        _refuse_other_patients(query, access)
    found = (_clauses(scope, offer, access) for scope in scopes)
    return replace(query, allowed=tuple(clauses for clauses in found if clauses is not None))


def _is_shared(access: Access, resource_type: str) -> bool:
    return access.patient_id is not None and resource_type in SHARED_TYPES


def _clauses(scope: Scope, offer: Offer, access: Access) -> tuple[Clause, ...] | None:
    """What a scope demands; None when it allows nothing."""
    clauses: list[Clause] = []
    if scope.context == "patient" and not _is_shared(access, offer.resource_type):
        if access.patient_id is None:
            return None
        clauses.append(Clause((Owner(access.patient_id),)))
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
        return search.clause(offer, name, value)
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
