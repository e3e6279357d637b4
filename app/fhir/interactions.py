"""What can be done with one resource, with its conditional forms (https://hl7.org/fhir/R4/http.html).

A write is planned and carried out in one transaction: `planner` parses and validates before it begins, the plan it
makes decides on the locked row, `carry_out` writes all plans of the transaction at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from sqlalchemy.engine import Connection

from app.access import Action, Facts, decide
from app.audit import Record
from app.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    Gone,
    IsocenterError,
    Issue,
    NotFound,
    PreconditionFailed,
    TooLarge,
    Unprocessable,
)
from app.fhir import audit_events, binary, granted, http, links, outcome, patch, resources, search, shaping
from app.fhir.calls import Call, Door, Reply
from app.fhir.registry import offers
from app.fhir.resources import Draft
from app.fhir.validation import Json
from app.store import resources as rows
from app.store.database import limited
from app.store.resources import Change, Stored


@dataclass(slots=True)
class Plan:
    """One write, decided but not yet carried out. Without a change `stored` stands as it is, if anything does."""

    call: Call
    status: int
    change: Change | None = None
    stored: Stored | None = None
    before: Json | None = None

    @property
    def resource_id(self) -> str:
        """The id of what is written, or of what stands."""
        known = self.change.new if self.change else self.stored
        return known.resource_id if known else self.call.resource_id


MAX_FORM = 1 << 20
MATCH_SECONDS = 10
"""So long may a write look for what its condition means: other writes wait for it."""
_PARTS = ("_summary", "_elements")
Planner = Callable[[Connection], Plan]
Work = Callable[[Connection], Reply]


# --- reading -------------------------------------------------------------------------------------------------


def read(call: Call, connection: Connection) -> Reply:
    """`GET [base]/[type]/[id]`."""
    call.permit("r")
    require_no_criteria(call)
    if call.offer.kept == "audit":
        return audit_events.read(call, connection)
    return _shown(call, visible(call, connection))


def vread(call: Call, connection: Connection) -> Reply:
    """`GET [base]/[type]/[id]/_history/[version]`: allowed who may read both this version and the current one."""
    call.permit("r")
    require_no_criteria(call)
    current = _readable(call, connection)
    if current is None:
        raise _absent(call, "r", None)
    number = call.version
    is_number = number.isdecimal() and number.isascii() and len(number) < 10
    stored = rows.version(connection, call.resource_type, call.resource_id, int(number)) if is_number else None
    if stored is None:
        raise NotFound("there is no such version of it")
    if stored.deleted:
        raise Gone("this version says that it was deleted")
    if stored.version != current.version and not granted.readable(call.access, stored):
        raise Forbidden
    return _shown(call, stored)


def visible(call: Call, connection: Connection) -> Stored:
    """The current version if the caller may read it. What it may not and what is not there look the same to it."""
    stored = _readable(call, connection)
    if stored is None or stored.deleted:
        raise _absent(call, "r", stored)
    return stored


def _readable(call: Call, connection: Connection) -> Stored | None:
    stored = rows.current(connection, call.resource_type, call.resource_id)
    if stored is None:
        return None
    call.tell(resources.facts_told(stored))
    is_hidden = stored.deleted and granted.is_bounded(call.access, Action("r", call.resource_type))
    if is_hidden or not (stored.deleted or granted.readable(call.access, stored)):
        raise Forbidden
    return stored


def _absent(call: Call, verb: str, stored: Stored | None) -> IsocenterError:
    if granted.is_bounded(call.access, Action(verb, call.resource_type)):
        return Forbidden()
    return Gone() if stored else NotFound()


def require_no_criteria(call: Call) -> None:
    """BadRequest for a parameter that one resource's interaction does not take: it was meant to change something."""
    known = {*http.FORMATS, *(_PARTS if call.interaction in {"read", "vread"} else ())}
    unknown = next((name for name, _ in call.criteria if name not in known), None)
    if unknown is not None:
        takes = ", ".join(sorted(known))
        raise search.refusal(f"{call.interaction} has no parameter of that name; it has {takes}", unknown)


def _shown(call: Call, stored: Stored) -> Reply:
    headers = http.version_headers(stored)
    if http.is_known(call.headers, stored):
        return Reply(304, b"", headers)
    headers["Content-Location"] = _address(call, stored)
    if stored.resource_type == "Binary" and (content := binary.content(stored.body, call.headers)):
        return Reply(200, content.body, {**headers, **content.headers})
    return Reply(200, shaping.shaped(stored.body, call.offer, call.criteria), headers)


def _address(call: Call, stored: Stored) -> str:
    return f"{call.door.base}/{stored.resource_type}/{stored.resource_id}/_history/{stored.version}"


# --- planning a write ----------------------------------------------------------------------------------------


def planner(call: Call) -> Planner:
    """What decides the call's write in its transaction; the body is judged here, before the transaction begins."""
    if call.resource_id or call.interaction == "create":
        require_no_criteria(call)
    return _PLANNERS[call.interaction](call)


def prepare(call: Call) -> Work:
    """The whole write as the work of one transaction."""
    return following(planner(call))


def following(decided: Planner) -> Work:
    """Decide, and carry it out."""
    return lambda connection: carry_out(connection, [decided(connection)])[0]


def is_free(call: Call) -> bool:
    """Whether no other write can be meant by this one, nor it by any other: a new resource under an id of ours."""
    is_new = call.interaction == "create" and "if-none-exist" not in call.headers
    return is_new and call.resource_type not in call.door.hooks


def _create(call: Call) -> Planner:
    """`POST [base]/[type]`, with If-None-Exist only when nothing matches."""
    call.permit("c")
    draft = _draft(call)
    condition = call.headers.get("if-none-exist")
    criteria = None if condition is None else parse_qsl(condition.lstrip("?"), keep_blank_values=True)

    def decided(connection: Connection) -> Plan:
        if criteria is not None and (found := _match(call, connection, criteria)):
            return Plan(call, 200, stored=found)
        return _first(call, connection, draft, call.resource_id or None)

    return decided


def _update(call: Call) -> Planner:
    """`PUT [base]/[type]/[id]`, which creates what is not there, and `PUT [base]/[type]?criteria`."""
    call.permit("u")
    http.if_match(call.headers)
    draft = _draft(call)
    given = draft.resource.get("id")
    if call.resource_id and given != call.resource_id:
        raise resources.bad(f"{call.resource_type}.id", "must be there and equal the id in the address")

    def decided(connection: Connection) -> Plan:
        if call.resource_id:
            return _put(call, connection, draft, call.resource_id)
        found = _match(call, connection, _criteria(call))
        if found is None:
            return _put_unmatched(call, connection, draft)
        if given not in {None, found.resource_id}:
            raise resources.bad(f"{call.resource_type}.id", "must be absent or the id of the resource that matches")
        return _put(call, connection, draft, found.resource_id)

    return decided


def _put_unmatched(call: Call, connection: Connection, draft: Draft) -> Plan:
    given = draft.resource.get("id")
    if "if-match" in call.headers:
        raise PreconditionFailed("If-Match names a version, and nothing matches")
    if given is None:
        call.permit("c")
        return _first(call, connection, draft, None)
    require_free(call, connection, given)
    return _put(call, connection, draft, given)


def require_free(call: Call, connection: Connection, resource_id: str) -> None:
    """Conflict when an id is taken; who may not see all resources of the type does not hear of it."""
    if granted.is_bounded(call.access, Action("u", call.resource_type)):
        raise Forbidden
    if rows.current(connection, call.resource_type, resource_id) is not None:
        raise Conflict("the criteria match nothing, and the id of the body is another resource's")


def _put(call: Call, connection: Connection, draft: Draft, resource_id: str) -> Plan:
    known = rows.current(connection, call.resource_type, resource_id, for_update=True)
    before = _reached(call, "u", known)
    _require_version(call, known)
    if known is None:
        return _first(call, connection, draft, resource_id, "u")
    return _next(call, connection, (known, before), draft)


def _reached(call: Call, verb: str, known: Stored | None) -> Json | None:
    """What is there now. Whether it meets the caller's conditions is for those to know who may change it."""
    if known is None or known.deleted:
        if granted.is_bounded(call.access, Action(verb, call.resource_type)):
            raise Forbidden
        return None
    before = resources.loads(known.body)
    _allow(call, verb, resources.facts_of(before))
    return before


def _patch(call: Call) -> Planner:
    """`PATCH [base]/[type]/[id]` or `?criteria`, by JSON Patch or FHIRPath Patch."""
    call.permit("u")
    http.if_match(call.headers)
    change = patch.read(call.headers.get("content-type", ""), call.body)

    def decided(connection: Connection) -> Plan:
        resource_id = call.resource_id
        if not resource_id:
            found = _match(call, connection, _criteria(call))
            if found is None:
                raise NotFound("nothing matches")
            resource_id = found.resource_id
        known = rows.current(connection, call.resource_type, resource_id, for_update=True)
        before = _reached(call, "u", known)
        _require_version(call, known)
        if known is None or before is None:
            raise _absent(call, "u", known)
        draft = resources.accepted(call.resource_type, resources.dumps(change(before)))
        return _next(call, connection, (known, before), draft)

    return decided


def _delete(call: Call) -> Planner:
    """`DELETE [base]/[type]/[id]` or `?criteria`: what is gone already is no fault, what others refer to stays."""
    call.permit("d")
    http.if_match(call.headers)

    def decided(connection: Connection) -> Plan:
        resource_id = call.resource_id
        if not resource_id:
            found = _match(call, connection, _criteria(call))
            if found is None:
                return Plan(call, 204)
            resource_id = found.resource_id
        known = rows.current(connection, call.resource_type, resource_id, for_update=True)
        before = _reached(call, "d", known)
        _require_version(call, known)
        if known is None or before is None:
            return Plan(call, 204, stored=known)
        guard = call.door.delete_guards.get(call.resource_type)
        if guard:
            guard(connection, call.access, before)
        return Plan(call, 204, resources.deleted(known, cause=call.cause), known, before)

    return decided


_PLANNERS: dict[str, Callable[[Call], Planner]] = {
    "create": _create,
    "update": _update,
    "patch": _patch,
    "delete": _delete,
}


def _refuse_conditions(draft: Draft) -> None:
    """A reference by search criteria is resolved in a transaction; kept as it stands it would lead nowhere."""
    if b"?" in draft.body and any(links.conditions(draft.resource)):
        told = "a conditional reference is resolved in a transaction only"
        raise Unprocessable(issues=(Issue("not-supported", told, draft.resource["resourceType"]),))


def _draft(call: Call) -> Draft:
    if call.draft is not None:
        draft = call.draft
    elif call.resource_type == "Binary" and not http.is_json(call.headers):
        draft = resources.accepted("Binary", binary.wrapped(call.headers, call.body, call.resource_id))
    else:
        http.require_json(call.headers)
        draft = resources.accepted(call.resource_type, call.body)
        _refuse_conditions(draft)
    shaping.check_whole(draft.resource)
    return draft


def _first(call: Call, connection: Connection, draft: Draft, resource_id: str | None, verb: str = "c") -> Plan:
    method = "POST" if call.interaction == "create" else "PUT"
    change = resources.created(call.resource_type, draft, cause=call.cause, resource_id=resource_id, method=method)
    _allow(call, verb, resources.facts_in(call.resource_type, resource_id, change.index))
    wanted = {name: value for name, value in draft.resource.items() if name != "id"}
    if resource_id and call.interaction != "create":
        # Of an id of ours there is no past that a guard could look for.
        wanted["id"] = resource_id
    _guard(call, connection, wanted, None)
    return Plan(call, 201, change)


def _next(call: Call, connection: Connection, reached: tuple[Stored, Json | None], draft: Draft) -> Plan:
    known, before = reached
    method = "PATCH" if call.interaction == "patch" else "PUT"
    change = resources.replaced(known, draft, cause=call.cause, method=method)
    if change is None:
        facts = resources.facts_of({**draft.resource, "id": known.resource_id})
    else:
        facts = resources.facts_in(call.resource_type, known.resource_id, change.index)
    _allow(call, "u", facts)
    _guard(call, connection, draft.resource, before)
    return Plan(call, 201 if known.deleted else 200, change, known, before)


def _require_version(call: Call, known: Stored | None) -> None:
    wanted = http.if_match(call.headers)
    if wanted is not None and (known is None or known.version != wanted):
        raise PreconditionFailed("If-Match names another version than the current one")
    if call.headers.get("if-none-match", "").strip() == "*" and known is not None and not known.deleted:
        raise PreconditionFailed("If-None-Match: * asks for a resource that is not there yet")


def _allow(call: Call, verb: str, facts: Facts) -> None:
    call.tell(facts)
    if not decide(call.access, Action(verb, call.resource_type), facts):
        raise Forbidden


def _guard(call: Call, connection: Connection, wanted: Json, before: Json | None) -> None:
    guard = call.door.guards.get(call.resource_type)
    if guard:
        guard(connection, call.access, wanted, before)


# --- conditions ----------------------------------------------------------------------------------------------


def _criteria(call: Call) -> list[tuple[str, str]]:
    return [(name, value) for name, value in call.criteria if name not in http.FORMATS]


def _match(call: Call, connection: Connection, criteria: Sequence[tuple[str, str]]) -> Stored | None:
    """The one resource that the criteria find; equal criteria of two callers wait for each other."""
    found = matches(call, connection, call.resource_type, criteria)
    if len(found) > 1:
        raise PreconditionFailed(issues=(Issue("multiple-matches", "the criteria match more than one resource"),))
    return found[0] if found else None


def matches(
    call: Call, connection: Connection, resource_type: str, criteria: Sequence[tuple[str, str]]
) -> list[Stored]:
    """At most two resources that the criteria find and the caller may find; never all for want of criteria."""
    if not granted.may_search(call.access, resource_type):
        raise Forbidden
    offer = offers()[resource_type]
    wanted = search.parse(offer, criteria, call.door.base)
    if not search.has_criteria(wanted):
        raise PreconditionFailed("a condition needs at least one search criterion")
    rows.lock(connection, f"{resource_type}?{sorted(wanted.applied)}")
    query = granted.confine(wanted.query, offer, call.access)
    with limited(connection, MATCH_SECONDS):
        return [hit.stored for hit in rows.search(connection, query, limit=2)]


# --- carrying out --------------------------------------------------------------------------------------------


def carry_out(connection: Connection, plans: Sequence[Plan]) -> list[Reply]:
    """Write all changes at once, then let each have its consequences; the replies in the order of the plans."""
    write(connection, plans)
    for plan in plans:
        require_unreferred(connection, plan)
    for plan in plans:
        consequences(connection, plan)
    return [reply(plan) for plan in plans]


def write(connection: Connection, plans: Sequence[Plan]) -> None:
    """Write all changes at once; what they cause is still to come."""
    written = iter(rows.write(connection, [plan.change for plan in plans if plan.change]))
    for plan in plans:
        if plan.change:
            plan.stored = next(written)


def require_unreferred(connection: Connection, plan: Plan) -> None:
    """Conflict when something still refers to what the plan has deleted."""
    stored = plan.stored
    if plan.change is None or stored is None or not stored.deleted:
        return
    kinds = rows.referring_types(connection, _pointing_to(stored.resource_type), stored)
    if kinds:
        raise Conflict(f"it is referred to by {', '.join(kinds)}: delete those, or their references, first")


def consequences(connection: Connection, plan: Plan) -> None:
    """What the arrival of a resource causes may change the resource itself."""
    hook = plan.call.door.hooks.get(plan.call.resource_type)
    stored = plan.stored
    if hook is None or stored is None or stored.deleted or plan.change is None:
        return
    hook(connection, plan.call.access, resources.loads(stored.body), plan.before)
    plan.stored = rows.current(connection, stored.resource_type, stored.resource_id) or stored


def keep(door: Door, connection: Connection, records: Sequence[Record]) -> None:
    """Keep audit records in the transaction of what they tell of, where they are kept there."""
    if door.audit_in is not None:
        door.audit_in(connection, records)
        return
    for record in records:
        door.audit(record)


def _pointing_to(resource_type: str) -> list[tuple[str, str]]:
    """(type, parameter) of the references that may lead to this type."""
    return [
        (offer.resource_type, name)
        for offer in offers().values()
        for name, parameter in offer.search.items()
        if parameter.type == "reference" and (not parameter.targets or resource_type in parameter.targets)
    ]


def reply(plan: Plan) -> Reply:
    """What the client hears of a write, as long as it likes to hear it."""
    call, stored = plan.call, plan.stored
    if stored is None:
        return Reply(plan.status)
    call.about["target"] = f"{stored.resource_type}/{stored.resource_id}"
    headers = http.version_headers(stored)
    if plan.status == 204:
        return Reply(204, b"", headers)
    headers["Location"] = _address(call, stored)
    match http.preferences(call.headers).get("return"):
        case "minimal":
            return Reply(plan.status, b"", headers)
        case "OperationOutcome":
            told = Issue("informational", f"version {stored.version} is stored", severity="information")
            return Reply(plan.status, resources.dumps(outcome.outcome([told], call.request_id)), headers)
        case _:
            return Reply(plan.status, stored.body, {**headers, "Content-Location": headers["Location"]})


def require_form(call: Call) -> list[tuple[str, str]]:
    """The criteria of `POST …/_search`: those of the address, then those of the form."""
    http.require_form(call.headers)
    if len(call.body) > MAX_FORM:
        raise TooLarge(f"a search may have at most {MAX_FORM} bytes")
    try:
        form = parse_qsl(call.body.decode(), keep_blank_values=True, max_num_fields=1000)
    except (UnicodeDecodeError, ValueError) as error:
        raise BadRequest("the form is not UTF-8, or has too many fields") from error
    return [*call.criteria, *form]
