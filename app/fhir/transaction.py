"""Batch and transaction: many interactions by one request (https://hl7.org/fhir/R4/http.html#transaction).

A transaction is judged as a whole before the database is asked anything. Within one database transaction it then
deletes, finds what its conditions mean, writes everything at once, lets each write have its consequences, and reads.
The entries of a batch know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from sqlalchemy.engine import Connection

from app.audit import Outcome, Record
from app.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    IsocenterError,
    Issue,
    PreconditionFailed,
    TooLarge,
    Unavailable,
    Unprocessable,
)
from app.fhir import entries, http, interactions, links, outcome, resources
from app.fhir.calls import Call, Reply
from app.fhir.entries import VERBS, Entry
from app.fhir.interactions import Plan
from app.fhir.links import Addresses
from app.fhir.registry import offers
from app.fhir.resources import Draft
from app.fhir.routing import READERS
from app.fhir.validation import Json
from app.store import resources as rows
from app.store.database import limited, run
from app.store.resources import Stored

READ_SECONDS = 30
BATCH_SECONDS = 120
MAX_ANSWER = 64 * 1024 * 1024
CHUNK = 100
"""So many entries of a batch share one database transaction, in which each may fail for itself."""
_ORDER = {"delete": 0, "create": 1, "update": 2, "patch": 3}
Identity = tuple[str, str]
Answer = bytes
"""An entry of the response."""


def process(outer: Call) -> Reply:
    """`POST [base]` with a Bundle."""
    bundle = entries.read(outer)
    outer.about["detail"] = {"entries": len(bundle.entries)}
    if bundle.issues:
        raise Unprocessable(issues=bundle.issues)
    outer = replace(outer, interaction=bundle.kind)
    answers = (transaction if bundle.kind == "transaction" else batch)(outer, bundle.entries)
    joined = b",".join(answers)
    head = b'{"resourceType":"Bundle","type":"%s-response"' % bundle.kind.encode()
    return Reply(200, head + (b',"entry":[' + joined + b"]" if joined else b"") + b"}")


# --- batch -----------------------------------------------------------------------------------------------------


def batch(outer: Call, found: Sequence[Entry]) -> list[Answer]:
    """Each entry for itself: what happens to one is told in its own response."""
    answers: dict[int, Answer] = {}
    # An address of our own may be that of a resource which is here already.
    own = f"{outer.door.base}/"
    addresses = {entry.full_url for entry in found if entry.full_url and not entry.full_url.startswith(own)}
    runnable: list[Entry] = []
    for entry in found:
        refusal = _refusal(entry, addresses)
        if refusal is None:
            runnable.append(entry)
        else:
            answers[entry.index] = _failed(entry, refusal)
    writes = sorted((entry for entry in runnable if not entry.is_read), key=lambda one: _ORDER[one.call.interaction])
    for start in range(0, len(writes), CHUNK):
        answers |= _written(outer, writes[start : start + CHUNK])
    answers |= _looked_at([entry for entry in runnable if entry.is_read])
    outer.door.audit(outer.record("allowed"))
    return [answers[entry.index] for entry in found]


def _refusal(entry: Entry, addresses: set[str]) -> IsocenterError | None:
    """Why an entry of a batch is not carried out at all."""
    draft, refusal = entry.call.draft, entries.refusal([entry])
    if refusal is not None or draft is None:
        return refusal
    expression = f"{entry.expression}.resource"
    if _names_one(draft, addresses - {entry.full_url}):
        sentence = "the entries of a batch cannot refer to each other: send a transaction"
        return BadRequest(issues=(Issue("invalid", sentence, expression),))
    if any(_conditions(entry)):
        sentence = "a conditional reference is understood in a transaction only"
        return BadRequest(issues=(Issue("not-supported", sentence, expression),))
    return None


def _names_one(draft: Draft, addresses: set[str]) -> bool:
    met: list[str] = []

    def pick(_name: str, text: str) -> None:
        if text in addresses:
            met.append(text)

    links.rewritten(draft.body, draft.resource, pick)
    return bool(met)


def _written(outer: Call, found: Sequence[Entry]) -> dict[int, Answer]:
    """Some writes in one database transaction, each in a savepoint of its own."""

    def work(connection: Connection) -> dict[int, Answer | IsocenterError]:
        return {entry.index: _in_savepoint(connection, entry) for entry in found}

    try:
        answers = outer.door.store.transact(work)
    except IsocenterError as error:
        return {entry.index: _failed(entry, error) for entry in found}
    by_index = {entry.index: entry for entry in found}
    return {
        index: _failed(by_index[index], answer) if isinstance(answer, IsocenterError) else answer
        for index, answer in answers.items()
    }


def _in_savepoint(connection: Connection, entry: Entry) -> Answer | IsocenterError:
    run(connection, "SAVEPOINT entry")
    try:
        plan = interactions.planner(entry.call)(connection)
        interactions.carry_out(connection, [plan])
    except IsocenterError as error:
        run(connection, "ROLLBACK TO SAVEPOINT entry")
        found: Answer | IsocenterError = error
    else:
        _audit(connection, entry.call, [entry.call.record("allowed")])
        found = _answered(plan)
    run(connection, "RELEASE SAVEPOINT entry")
    return found


def _looked_at(found: Sequence[Entry]) -> dict[int, Answer]:
    """The reads of a batch, as long as there is time and room for their answers."""
    answers: dict[int, Answer] = {}
    until, size = monotonic() + BATCH_SECONDS, 0
    for entry in found:
        try:
            _require_room(size)
            if monotonic() > until:
                raise Unavailable("the entries before took too long: ask for less at once")
        except IsocenterError as error:
            answers[entry.index] = _failed(entry, error)
        else:
            answers[entry.index] = _looked(entry)
            size += len(answers[entry.index])
    return answers


def _looked(entry: Entry) -> Answer:
    try:
        with entry.call.door.store.read(seconds=READ_SECONDS) as connection:
            answer = _read(entry, connection)
    except IsocenterError as error:
        return _failed(entry, error)
    entry.call.door.audit(entry.call.record("allowed"))
    return answer


def _failed(entry: Entry, error: IsocenterError) -> Answer:
    if error.status >= 500 and error.status != HTTPStatus.SERVICE_UNAVAILABLE:
        raise error
    how: Outcome = "denied" if isinstance(error, Forbidden) else "failed"
    entry.call.door.audit(entry.call.record(how))
    told = outcome.outcome(entries.named(error, entry.index).issues, entry.call.request_id)
    return msgspec.json.encode({"response": {"status": _status(error.status), "outcome": told}})


# --- transaction -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Step:
    """One write of a transaction under way."""

    entry: Entry
    call: Call
    plan: Plan | None = None
    conditions: tuple[str, ...] = ()
    new_id: str = ""
    """That of a resource to be created: known before it is planned, so that others can refer to it."""

    @property
    def identity(self) -> Identity | None:
        """What it is about, as soon as that is known."""
        if self.plan is not None and self.plan.stored is not None:
            return self.plan.stored.resource_type, self.plan.stored.resource_id
        resource_id = self.new_id or self.call.resource_id
        return (self.call.resource_type, resource_id) if resource_id else None


@dataclass(slots=True)
class Run:
    """A transaction under way: its writes in the order of processing, and whose each resource is."""

    outer: Call
    connection: Connection
    steps: list[Step]
    claimed: dict[Identity, int] = field(default_factory=dict[Identity, int])
    awaited: dict[tuple[Any, ...], int] = field(default_factory=dict[tuple[Any, ...], int])
    """Conditions under which something is to be created, and the entry that does it."""


def transaction(outer: Call, found: Sequence[Entry]) -> list[Answer]:
    """All entries or none."""
    _permit(found)
    refusal = entries.refusal(found)
    if refusal is not None:
        raise refusal
    if all(entry.is_read for entry in found):
        with outer.door.store.read(seconds=READ_SECONDS) as connection:
            answers = _read_all(found, connection)
        for call in [*(entry.call for entry in found), outer]:
            outer.door.audit(call.record("allowed"))
        return [answers[entry.index] for entry in found]
    conditions = {entry.index: tuple(_conditions(entry)) for entry in found}

    def work(connection: Connection) -> list[Answer]:
        writes = [Step(one, one.call, conditions=conditions[one.index]) for one in found if not one.is_read]
        steps = sorted(writes, key=lambda step: _ORDER[step.call.interaction])
        return _carried_out(Run(outer, connection, steps), found)

    return outer.door.store.transact(work)


def _permit(found: Iterable[Entry]) -> None:
    for entry in found:
        verb = VERBS.get(entry.call.interaction)
        if verb is not None:
            with _naming(entry):
                entry.call.permit(verb)


def _conditions(entry: Entry) -> Iterator[str]:
    draft = entry.call.draft
    if draft is not None and b"?" in draft.body:
        yield from links.conditions(draft.resource)


@contextmanager
def _naming(entry: Entry) -> Generator[None]:
    """An error within is one of this entry."""
    try:
        yield
    except IsocenterError as error:
        if isinstance(error, Forbidden):
            entry.call.door.audit(entry.call.record("denied"))
        raise entries.named(error, entry.index) from None


def _carried_out(running: Run, found: Sequence[Entry]) -> list[Answer]:
    """Everything in its order: deletions, what conditions mean, writes, consequences, reads."""
    connection, steps = running.connection, running.steps
    direct = [step.identity for step in steps if step.identity]
    _refuse_twice(running)
    rows.currents(connection, direct, for_update=True)
    _delete(running, [step for step in steps if step.call.interaction == "delete"])
    rest = [step for step in steps if step.call.interaction != "delete"]
    for step in rest:
        with _naming(step.entry):
            _find(running, step)
    addresses = dict(_addresses(running.outer.door.base, rest))
    _write(running, [step for step in rest if not step.conditions], addresses)
    waiting = [step for step in rest if step.conditions]
    addresses |= _referred(running, waiting)
    _write(running, waiting, addresses)
    _conclude(running)
    answers = {step.entry.index: _answered(step.plan) for step in steps if step.plan}
    answers |= _read_all([entry for entry in found if entry.is_read], connection)
    calls = {step.entry.index: step.call for step in steps}
    told = [calls.get(entry.index, entry.call).record("allowed") for entry in found]
    _audit(connection, running.outer, [*told, running.outer.record("allowed")])
    return [answers[entry.index] for entry in found]


def _refuse_twice(running: Run) -> None:
    """A resource may be in a transaction once: nobody could say which of two versions is meant."""
    for step in running.steps:
        if step.identity is not None:
            _claim(running, step, step.identity)


def _claim(running: Run, step: Step, identity: Identity) -> None:
    first = running.claimed.setdefault(identity, step.entry.index)
    if first != step.entry.index:
        sentence = f"is the resource of {entries.place(first)} as well: a transaction may write it once"
        raise BadRequest(issues=(Issue("duplicate", sentence, step.entry.expression),))


def _delete(running: Run, steps: Sequence[Step]) -> None:
    """Delete in any order that works: what only another deletion of this transaction keeps alive goes after it."""
    waiting = list(steps)
    while waiting:
        refused: list[tuple[Step, Conflict]] = []
        for step in waiting:
            try:
                with _naming(step.entry):
                    _plan(running, step)
            except Conflict as error:
                refused.append((step, error))
        if len(refused) == len(waiting):
            raise refused[0][1]
        interactions.write(running.connection, [step.plan for step in waiting if step.plan])
        waiting = [step for step, _ in refused]


def _plan(running: Run, step: Step) -> None:
    plan = interactions.planner(step.call)(running.connection)
    if plan.resource_id:
        _claim(running, step, (step.call.resource_type, plan.resource_id))
    step.plan = plan


# --- conditions ------------------------------------------------------------------------------------------------


def _find(running: Run, step: Step) -> None:
    """Give the step the resource that it is about: a new id, or what its condition finds."""
    call = step.call
    if call.interaction == "create":
        criteria = call.headers.get("if-none-exist")
        pairs = None if criteria is None else parse_qsl(criteria.lstrip("?"), keep_blank_values=True)
        found = None if pairs is None else _match(running, step, pairs)
        if found is not None:
            step.plan = Plan(call, 200, stored=found)
            return
        step.new_id = resources.new_id()
    elif call.interaction == "update" and not call.resource_id:
        _find_updated(running, step)


def _find_updated(running: Run, step: Step) -> None:
    """The same of a conditional update, which others of this transaction may refer to."""
    call, draft = step.call, step.call.draft
    if draft is None:
        return
    found = _match(running, step, call.criteria)
    given = draft.resource.get("id")
    if found is not None and given not in {None, found.resource_id}:
        raise resources.bad(f"{call.resource_type}.id", "must be absent or the id of the resource that matches")
    if found is None and "if-match" in call.headers:
        raise PreconditionFailed("If-Match names a version, and nothing matches")
    if found is None and given is None:
        call.permit("c")
    if found is None and given:
        interactions.require_free(call, running.connection, given)
    identity = found.resource_id if found else given or resources.new_id()
    _claim(running, step, (call.resource_type, identity))
    step.call = replace(call, resource_id=identity, criteria=(), draft=resources.identified(draft, identity))


def _match(running: Run, step: Step, criteria: Sequence[tuple[str, str]]) -> Stored | None:
    """What a condition finds before this transaction writes; two entries cannot create what the same one describes."""
    kind = step.call.resource_type
    found = interactions.matches(step.call, running.connection, kind, criteria)
    if len(found) > 1:
        raise _several("the criteria match more than one resource")
    if found:
        return found[0]
    first = running.awaited.setdefault((kind, *sorted(criteria)), step.entry.index)
    if first != step.entry.index:
        sentence = f"has the condition of {entries.place(first)}: only one of them can create the resource"
        raise BadRequest(issues=(Issue("duplicate", sentence, f"{step.entry.expression}.request"),))
    return None


def _several(sentence: str) -> PreconditionFailed:
    return PreconditionFailed(issues=(Issue("multiple-matches", sentence),))


def _addresses(base: str, steps: Iterable[Step]) -> Iterator[tuple[str, str]]:
    """The full URLs of the entries, with what each turned out to be; none for those that stay what they were."""
    for step in steps:
        if step.entry.full_url and step.identity is not None:
            meant = "/".join(step.identity)
            if step.entry.full_url not in {f"{base}/{meant}", meant}:
                yield step.entry.full_url, meant


def _referred(running: Run, steps: Iterable[Step]) -> dict[str, str]:
    """The conditional references, with the one resource that each finds, new ones of this transaction among them."""
    found: dict[str, str] = {}
    for step in steps:
        for condition in step.conditions:
            if condition not in found:
                with _naming(step.entry):
                    found[condition] = _referred_to(running, step, condition)
    return found


def _referred_to(running: Run, step: Step, condition: str) -> str:
    kind, criteria = links.split(condition)
    if kind not in offers():
        sentence = "a conditional reference to a type that this server does not keep finds nothing"
        raise BadRequest(issues=(Issue("not-supported", sentence, step.entry.expression),))
    pairs = parse_qsl(criteria, keep_blank_values=True)
    matches = interactions.matches(step.call, running.connection, kind, pairs)
    if len(matches) > 1:
        raise _several(f"a conditional reference to a {kind} matches more than one resource")
    if not matches:
        sentence = f"a conditional reference to a {kind} matches nothing"
        raise PreconditionFailed(issues=(Issue("not-found", sentence),))
    return f"{kind}/{matches[0].resource_id}"


# --- writing ---------------------------------------------------------------------------------------------------


def _write(running: Run, steps: Sequence[Step], addresses: Mapping[str, str]) -> None:
    """Plan what is not decided yet, with its links rewritten, and write all of it at once."""
    known = Addresses(running.outer.door.base, addresses)
    undecided = [step for step in steps if step.plan is None]
    for step in undecided:
        with _naming(step.entry):
            step.call = _linked(step, known)
            _plan(running, step)
    interactions.write(running.connection, [step.plan for step in undecided if step.plan])


def _linked(step: Step, known: Addresses) -> Call:
    """The call with its links rewritten; of a create also with its new id, and without the condition that was met."""
    call, draft, pick = step.call, step.call.draft, known.pick(step.entry.full_url)
    if draft is None:
        return replace(call, body=links.listed(call.body, pick)) if call.interaction == "patch" else call
    body, resource = links.rewritten(draft.body, draft.resource, pick) if known.found else (draft.body, draft.resource)
    if call.interaction == "patch":
        return replace(call, body=body)
    linked = draft if body is draft.body else Draft(resource, body)
    if not step.new_id:
        return replace(call, draft=linked)
    headers = {name: value for name, value in call.headers.items() if name != "if-none-exist"}
    # Written out, since copying field by field takes ten times as long.
    return Call(
        call.door,
        call.access,
        call.interaction,
        call.resource_type,
        step.new_id,
        "",
        call.criteria,
        headers,
        draft=linked,
        request_id=call.request_id,
        about=call.about,
    )


def _conclude(running: Run) -> None:
    """Let every write have its consequences, now that all of them are there."""
    connection = running.connection
    written = [(step, step.plan) for step in running.steps if step.plan and step.plan.change]
    changed = {(plan.call.resource_type, plan.resource_id) for _, plan in written}
    for step, plan in written:
        with _naming(step.entry):
            interactions.require_unreferred(connection, plan)
            if plan.change and any((kind, one) in changed for _, kind, one in plan.change.index.references):
                _guard(connection, plan)
    hooks = list(running.outer.door.hooks)
    hooked = [(step, plan) for step, plan in written if plan.call.resource_type in hooks]
    for step, plan in sorted(hooked, key=lambda one: hooks.index(one[1].call.resource_type)):
        with _naming(step.entry):
            _refresh(connection, [plan])
            interactions.consequences(connection, plan)
    if hooked:
        _refresh(connection, [plan for _, plan in written if plan.call.offer.workflow])


def _guard(connection: Connection, plan: Plan) -> None:
    """Ask the guard again: what a resource refers to may have come with it."""
    guard, stored = plan.call.door.guards.get(plan.call.resource_type), plan.stored
    if guard is not None and stored is not None and not stored.deleted:
        guard(connection, plan.call.access, resources.loads(stored.body), plan.before)


def _refresh(connection: Connection, plans: Sequence[Plan]) -> None:
    """What the consequences of one write did to the resource of another."""
    pairs = [(plan.stored.resource_type, plan.stored.resource_id) for plan in plans if plan.stored]
    found = rows.currents(connection, pairs)
    for plan in plans:
        if plan.stored:
            plan.stored = found.get((plan.stored.resource_type, plan.stored.resource_id), plan.stored)


# --- answers ---------------------------------------------------------------------------------------------------


def _read_all(found: Sequence[Entry], connection: Connection) -> dict[int, Answer]:
    answers: dict[int, Answer] = {}
    size = 0
    with limited(connection, READ_SECONDS):
        for entry in found:
            with _naming(entry):
                answers[entry.index] = _read(entry, connection)
                size += len(answers[entry.index])
                _require_room(size)
    return answers


def _require_room(size: int) -> None:
    if size > MAX_ANSWER:
        raise TooLarge(f"the answer to a Bundle may have at most {MAX_ANSWER} bytes: ask for less at once")


def _read(entry: Entry, connection: Connection) -> Answer:
    """A read or a search, as it stands at the end."""
    reply = READERS[entry.call.interaction](entry.call, connection)
    response: dict[str, Any] = {"status": _status(reply.status)}
    if "ETag" in reply.headers:
        response["etag"] = reply.headers["ETag"]
        modified = parsedate_to_datetime(reply.headers["Last-Modified"])
        response["lastModified"] = resources.instant(int(modified.timestamp()) * 1000)
    return _joined(reply.body, response)


def _answered(plan: Plan) -> Answer:
    stored, call = plan.stored, plan.call
    response: dict[str, Any] = {"status": _status(plan.status)}
    if stored is None:
        return _joined(b"", response)
    path = f"{stored.resource_type}/{stored.resource_id}"
    call.about["target"] = path
    if plan.status != HTTPStatus.NO_CONTENT:
        response["location"] = f"{path}/_history/{stored.version}"
    response["etag"] = f'W/"{stored.version}"'
    response["lastModified"] = resources.instant(stored.updated)
    wanted = http.preferences(call.headers).get("return")
    if wanted == "OperationOutcome":
        told = Issue("informational", f"version {stored.version} is stored", severity="information")
        response["outcome"] = outcome.outcome([told], call.request_id)
    body = stored.body if wanted == "representation" and not stored.deleted else b""
    return _joined(body, response)


def _joined(body: bytes, response: Json) -> Answer:
    """Without a fullUrl: two entries may have come to the same resource, and a Bundle names each once (bdl-7)."""
    resource = b'"resource":' + body + b"," if body else b""
    return b"{" + resource + b'"response":' + msgspec.json.encode(response) + b"}"


def _status(status: int) -> str:
    return f"{status} {HTTPStatus(status).phrase}"


def _audit(connection: Connection, outer: Call, records: Sequence[Record]) -> None:
    """Keep the records with what they tell of."""
    interactions.keep(outer.door, connection, records)
