"""The audit trail read and searched as AuditEvents (https://hl7.org/fhir/R4/auditevent.html); nobody writes it here.

The events are rendered from the trail's rows when they are asked for. A search is the same search as of any other
type; its conditions become conditions on the rows, since there is no index beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from urllib.parse import urlencode

from sqlalchemy.engine import Connection

from app.access import Access, Action, bounds
from app.errors import BadRequest, Forbidden, NotFound
from app.fhir import bundle, granted, http, outcome, resources, search, shaping
from app.fhir.calls import Call, Reply
from app.fhir.conditions import refusal
from app.fhir.mapping import audit_event as mapping
from app.fhir.mapping.audit_event import Choice, Kind
from app.fhir.registry import Offer, offer, offers
from app.fhir.search import FORMATS, Search
from app.store import audit_search as trail
from app.store.audit_search import Row, Where
from app.store.query import Below, Clause, Condition, Date, Ids, Present, Query, Target, Text, Token
from app.store.resources import Stored

TYPE = "AuditEvent"
ACTIONS = "http://hl7.org/fhir/audit-event-action"
OUTCOMES = "http://terminology.hl7.org/CodeSystem/audit-event-outcome"
_GRANT = "urn:uuid:"
_LENIENT = re.compile(r"(?:^|[,;])\s*handling\s*=\s*\"?lenient\b")
_SECRET = frozenset({"string"})


# --- what the trail keeps of a question ------------------------------------------------------------------------


def asked(kind: Offer | None, criteria: Iterable[tuple[str, str]]) -> str:
    """A search as the trail may keep it: every word, and every value but those that may hold a name."""
    asked = (kind.resource_type if kind else "", tuple(criteria))
    return _remembered(*asked) if search.is_memorable(asked[1]) else _kept(*asked)


def _kept(resource_type: str, criteria: tuple[tuple[str, str], ...]) -> str:
    kind = offers().get(resource_type)
    return urlencode([(word, value if _is_plain(kind, word) else "") for word, value in criteria])


_remembered = lru_cache(maxsize=512)(_kept)


def _is_plain(kind: Offer | None, word: str) -> bool:
    name, _, modifier = word.partition(":")
    if name.startswith("_"):
        return name not in {"_has", bundle.PAGE}
    parameter = kind.parameter(name) if kind else None
    return parameter is not None and parameter.type not in _SECRET and "." not in word and modifier != "text"


# --- reading -------------------------------------------------------------------------------------------------


def read(call: Call, connection: Connection) -> Reply:
    """`GET [base]/AuditEvent/[id]`."""
    call.permit("r")
    found = trail.search(connection, _ids([call.resource_id]), limit=1)
    allowed = trail.every([_ids([call.resource_id]), _allowed(call.access, "r")])
    if not found or not trail.search(connection, allowed, limit=1):
        raise Forbidden if _is_bounded(call.access, "r") else NotFound
    call.about["patient_id"] = found[0].patient_id
    stored = _stored(call, found[0])
    headers = http.version_headers(stored)
    if http.is_known(call.headers, stored):
        return Reply(304, b"", headers)
    return Reply(200, shaping.shaped(stored.body, call.offer, call.criteria), headers)


def searched(call: Call, connection: Connection) -> Reply:
    """`GET [base]/AuditEvent?…` and the same by POST."""
    call.permit("s")
    lenient = _LENIENT.search(call.headers.get("prefer", "").lower()) is not None
    given = [(name, value) for name, value in call.criteria if name != bundle.PAGE]
    wanted = search.parse(call.offer, given, call.door.base, lenient=lenient)
    if wanted.include or wanted.revinclude:
        raise refusal("events are not joined to other resources", "_include")
    query = granted.confine(wanted.query, call.offer, call.access)
    call.about["patient_id"] = call.access.patient_id or granted.patient_of(wanted.query)
    where = trail.every([*map(_clause, wanted.query.clauses), _allowed(call.access, "s")])
    return _answered(call, connection, wanted, (where, _is_descending(query)))


def _answered(call: Call, connection: Connection, wanted: Search, plan: tuple[Where, bool]) -> Reply:
    where, descending = plan
    bound = (TYPE, [pair for pair in wanted.applied if pair[0] not in FORMATS], call.access)
    token = [(name, value) for name, value in call.criteria if name == bundle.PAGE]
    if len(token) > 1:
        raise refusal(f"{bundle.PAGE} must be given once", bundle.PAGE)
    after = bundle.unseal(call.door.key, bound, token[0][1]) if token else None
    limit = 0 if wanted.counts_only else wanted.count + 1
    found = trail.search(connection, where, limit=limit, after=after, descending=descending) if limit else []
    page, more = found[: wanted.count], len(found) > wanted.count
    links = [("self", bundle.address(call.door.base, TYPE, [*wanted.applied, *token]))]
    if more:
        following = (bundle.PAGE, bundle.seal(call.door.key, bound, (page[-1].at, page[-1].id)))
        links.append(("first", bundle.address(call.door.base, TYPE, wanted.applied)))
        links.append(("next", bundle.address(call.door.base, TYPE, [*wanted.applied, following])))
    known = None if more or after or wanted.counts_only else len(page)
    counted = wanted.counts_only or wanted.total in {"accurate", "estimate"}
    total = trail.count(connection, where) if known is None and counted else known
    return Reply(200, bundle.joined("searchset", _entries(call, wanted, page), links, total))


def _entries(call: Call, wanted: Search, page: Sequence[Row]) -> Iterator[bytes]:
    found = [_stored(call, row) for row in page]
    shown = [(TYPE, one.resource_id, shaping.cut(one.body, call.offer, wanted.shape)) for one in found]
    yield from bundle.entries(call.door.base, shown, "match")
    if wanted.ignored:
        yield bundle.remark(outcome.outcome(wanted.ignored, call.request_id))


def _stored(call: Call, row: Row) -> Stored:
    event = mapping.event(row, call.door.base)
    return Stored(TYPE, event["id"], 1, row.at, False, resources.dumps(event), patient_id=row.patient_id)


# --- whose events --------------------------------------------------------------------------------------------


def _allowed(access: Access, verb: str) -> Where:
    """What any scope of the caller leaves: under a patient's, the events about that patient."""
    scopes = bounds(access, Action(verb, TYPE))
    mine = {scope.context: _only(access) for scope in scopes if scope.context == "patient"}
    found = [
        trail.every([mine.get(scope.context, trail.ALL), *(_criterion(*one) for one in scope.criteria)])
        for scope in scopes
    ]
    if access.studies is None:
        return trail.some(found)
    own = trail.some([trail.no(trail.known("study_uid")), trail.among("study_uid", sorted(access.studies))])
    return trail.every([trail.some(found), own])


def _only(access: Access) -> Where:
    return trail.among("patient_id", [access.patient_id] if access.patient_id else [])


def _criterion(name: str, value: str) -> Where:
    """A granular criterion of a scope; what is not understood allows nothing."""
    try:
        return _clause(search.clause(offer(TYPE), name, value))
    except BadRequest:
        return trail.NONE


def _is_bounded(access: Access, verb: str) -> bool:
    return access.studies is not None or granted.is_bounded(access, Action(verb, TYPE))


# --- from a search to conditions on rows -----------------------------------------------------------------------


def _clause(clause: Clause) -> Where:
    found = trail.some(map(_condition, clause.any_of))
    return trail.no(found) if clause.negated else found


def _condition(condition: Condition) -> Where:
    match condition:
        case Ids(values):
            return _ids(values)
        case Date():
            return _date(condition)
        case Present(param):
            return _PRESENT.get(param, trail.ALL)
        case Target(param, kind, identity):
            return _TARGETS[param](kind, identity)
        case Text(param, _, value):
            return _text(param, value)
        case _:
            return _token(condition)


def _token(condition: Condition) -> Where:
    match condition:
        case Token(param, system, value):
            return _TOKENS[param](system, value)
        case Below(param, value):
            return _TOKENS[param](None, value)
        case _:
            raise refusal("AuditEvent is searched by its own parameters, without chains and _has", TYPE)


def _ids(values: Iterable[str]) -> Where:
    numbers = [int(value) for value in values if value.isdecimal() and value.isascii() and len(value) < 18]
    return trail.among("id", numbers)


def _date(date: Date) -> Where:
    """Moments of one millisecond against the interval."""
    since_lo, since_hi = trail.since(date.lo), trail.since(date.hi)
    before_lo, before_hi = trail.before(date.lo), trail.before(date.hi)
    match date.prefix:
        case "eq" | "ap":
            return trail.every([since_lo, before_hi])
        case "ne":
            return trail.some([before_lo, since_hi])
        case "gt" | "sa":
            return since_hi
        case "ge":
            return since_lo
        case "lt" | "eb":
            return before_lo
        case _:
            return before_hi


def _chosen(found: Iterable[Choice]) -> Where:
    return trail.some(_choice(one) for one in found)


def _choice(choice: Choice) -> Where:
    door, actions = trail.among("door", [choice.door]), trail.among("action", sorted(choice.actions))
    return trail.every([door, trail.no(actions) if choice.excluded else actions])


def _action(system: str | None, code: str | None) -> Where:
    if system not in {None, ACTIONS}:
        return trail.NONE
    return _chosen(mapping.choices(lambda kind: code in {None, kind.letter}))


def _outcome(system: str | None, code: str | None) -> Where:
    if system not in {None, OUTCOMES}:
        return trail.NONE
    return trail.among("outcome", [name for name, known in mapping.OUTCOMES.items() if code in {None, known}])


def _entity_type(system: str | None, code: str | None) -> Where:
    found: list[Where] = []
    if system in {None, mapping.ENTITY_TYPES}:
        found += [where for known, where in (("1", trail.known("patient_id")), ("2", _OBJECT)) if code in {None, known}]
    if system in {None, mapping.REQUEST["system"]} and code in {None, mapping.REQUEST["code"]}:
        found.append(trail.known("request_id"))
    return trail.some(found)


def _text(param: str, value: str) -> Where:
    """Only types have words beside their codes."""
    if param != "type:text":
        return trail.NONE
    return _chosen(mapping.choices(lambda kind: kind.type[2].lower().startswith(value)))


def _own(column: trail.Column, system: str, prefix: str = "") -> Callable[[str | None, str | None], Where]:
    """A token that is a column's value, in one system only, perhaps behind a prefix."""

    def where(asked_system: str | None, value: str | None) -> Where:
        if asked_system not in {None, system}:
            return trail.NONE
        if value is None:
            return trail.known(column)
        return trail.among(column, [value.removeprefix(prefix)] if value.startswith(prefix) else [])

    return where


def _profile(system: str | None, value: str | None) -> Where:
    """The claim of a profile, by the same rule as the rendering."""
    del system
    name = (value or "").removeprefix(mapping.PROFILE)
    shape = name.removeprefix("Patient")
    if not (value or "").startswith(mapping.PROFILE) or shape not in mapping.SHAPES:
        return trail.NONE
    about = trail.known("patient_id")
    asks = trail.tells(mapping.QUERY)
    return trail.every(
        [
            _chosen(mapping.choices(lambda kind: kind.shape == shape)),
            trail.among("outcome", ["allowed"]),
            trail.known("client_id"),
            trail.tells(mapping.ADDRESS),
            about if name != shape else trail.no(about),
            asks if shape == "Query" else trail.every([trail.no(asks), _LOCAL_TARGET]),
        ]
    )


def _agent(kind: str | None, identity: str) -> Where:
    if kind == "":
        return trail.among("fhir_user", [identity])
    return trail.among("fhir_user", [f"{kind}/{identity}"]) if kind else trail.ends("fhir_user", f"/{identity}")


def _entity(kind: str | None, identity: str) -> Where:
    if kind == "":
        return trail.NONE
    target = trail.among("target", [f"{kind}/{identity}"]) if kind else _any_local(identity)
    about = [trail.among("patient_id", [identity])] if kind in {None, "Patient"} else []
    return trail.some([*about, trail.every([_NOT_ASKED, target])])


def _any_local(identity: str) -> Where:
    return trail.every([trail.ends("target", f"/{identity}"), _LOCAL_TARGET])


def _patient_is(kind: str | None, identity: str) -> Where:
    if kind not in {None, "Patient"}:
        return trail.NONE
    return trail.some([_entity("Patient", identity), trail.among("fhir_user", [f"Patient/{identity}"])])


def _is_descending(query: Query) -> bool:
    match query.order:
        case (key,) if key.by in {"sort", "updated"}:
            return key.descending
        case _:
            raise refusal("AuditEvent is sorted by date or _lastUpdated", "_sort")


def _shows_no_target(kind: Kind) -> bool:
    return kind.shape == "Query"


_LOCAL_TARGET = trail.every([trail.among("door", ["fhir"]), trail.contains("target", "/")])
_NOT_ASKED = trail.no(_chosen(mapping.choices(_shows_no_target)))
_OBJECT = trail.some(
    [trail.known("target"), trail.known("study_uid"), _chosen(mapping.choices(_shows_no_target)), trail.tells("query")]
)
_NEVER: Callable[[str | None, str | None], Where] = lambda _system, _value: trail.NONE  # noqa: E731 - one of a table
_TOKENS: Mapping[str, Callable[[str | None, str | None], Where]] = {
    "action": _action,
    "outcome": _outcome,
    "type": lambda system, code: _chosen(mapping.typed(system, code)),
    "subtype": lambda system, code: _chosen(mapping.named(system, code)),
    "entity-type": _entity_type,
    "altid": _own("client_id", ""),
    "policy": _own("grant_id", "", _GRANT),
    "agent:identifier": _own("client_id", mapping.CLIENT),
    "entity:identifier": lambda system, value: trail.some(
        [
            trail.every([_own("study_uid", resources.STUDY_UID, "urn:oid:")(system, value), _NOT_ASKED]),
            _own("request_id", "")(system, value),
        ]
    ),
    "_profile": _profile,
    **dict.fromkeys(("_tag", "_security", "_source", "patient:identifier"), _NEVER),
}
_TARGETS: Mapping[str, Callable[[str | None, str], Where]] = {
    "agent": _agent,
    "entity": _entity,
    "patient": _patient_is,
}
_PRESENT: Mapping[str, Where] = {
    "altid": trail.known("client_id"),
    "policy": trail.known("grant_id"),
    "patient": trail.some(
        [
            trail.known("patient_id"),
            trail.begins("fhir_user", "Patient/"),
            trail.every([_NOT_ASKED, trail.begins("target", "Patient/")]),
        ]
    ),
    "entity": trail.some(
        [trail.known(name) for name in ("patient_id", "request_id")]
        + [trail.every([_NOT_ASKED, trail.some([trail.known("study_uid"), _LOCAL_TARGET])])]
    ),
    "entity-type": trail.some([trail.known("patient_id"), trail.known("request_id"), _OBJECT]),
    "_profile": trail.some(
        partial(_profile, None)(f"{mapping.PROFILE}{about}{shape}")
        for about in ("", "Patient")
        for shape in sorted(mapping.SHAPES)
    ),
    **dict.fromkeys(("_tag", "_security", "_source"), trail.NONE),
}
"""Whether there is a value at all; the other parameters always have one."""
