"""The definitions that clients may read, HL7's and ours, kept as ordinary resources (https://hl7.org/fhir/R4/conformance-module.html)."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from sqlalchemy.engine import Connection

from app.fhir import capability, guide, resources
from app.fhir.capability import Json
from app.fhir.registry import offers
from app.fhir.resources import Draft
from app.settings import Settings
from app.store import resources as rows

TYPES = (
    "CapabilityStatement",
    "CodeSystem",
    "ConceptMap",
    "ImplementationGuide",
    "OperationDefinition",
    "SearchParameter",
    "StructureDefinition",
    "ValueSet",
)
"""The types that only the server writes: what stands there and is not published any more is deleted."""
CAUSE = "definitions"
BUNDLED = guide.FOLDER / "served.ndjson.gz"
_GUIDE = ("ImplementationGuide", guide.RESOURCE_ID)
_AT_ONCE = 200


def seed(connection: Connection, settings: Settings) -> None:
    """Bring what is published up to date; nothing is done when nothing changed since the last time.

    HL7's definitions are not validated again here: the tests judge all of them.
    """
    drafts = [Draft(one, resources.dumps(one)) for one in guide.resources(settings)]
    # The statement tells where this installation is: another address alone makes no other definitions.
    statement = [draft for draft in drafts if draft.resource["resourceType"] == "CapabilityStatement"]
    own = [draft for draft in drafts if draft not in statement]
    last = guide.guide((draft.resource for draft in own), _digest(own))
    rows.lock(connection, CAUSE)
    wanted = _write(connection, statement)
    known = resources.read(connection, *_GUIDE)
    if known and known["version"] == last["version"]:
        return
    for some in _parts(chain(published(), own, [Draft(last, resources.dumps(last))])):
        wanted |= _write(connection, some)
    _withdraw(connection, wanted)


def published() -> Iterator[Draft]:
    """HL7's definitions as bundled, but for search parameters that are not served, one by one."""
    served = _served_parameters()
    with gzip.open(BUNDLED) as lines:
        for line in lines:
            resource = resources.loads(line)
            if resource["resourceType"] != "SearchParameter" or resource["url"] in served:
                yield Draft(resource, line.rstrip())


def _served_parameters() -> frozenset[str]:
    """The addresses of all search parameters that are served, and of the parts of composites."""
    all_ = [one for offer in offers().values() for one in offer.search.values()]
    parts = [part for one in all_ for part in one.components]
    return frozenset({one.url for one in (*all_, *parts)} | {row["url"] for _, row in capability.common()})


def _digest(own: Sequence[Draft]) -> str:
    """Of everything that is published."""
    found = hashlib.sha256(BUNDLED.read_bytes())
    for url in sorted(_served_parameters()):
        found.update(url.encode())
    for draft in own:
        found.update(draft.body)
    return found.hexdigest()


def _parts(drafts: Iterable[Draft]) -> Iterator[list[Draft]]:
    """A few at a time, so that memory never holds them all."""
    rest = iter(drafts)
    while some := list(islice(rest, _AT_ONCE)):
        yield some


def _write(connection: Connection, drafts: Sequence[Draft]) -> set[tuple[str, str]]:
    """Store those that are new or changed."""
    pairs = [_pair(draft.resource) for draft in drafts]
    known = rows.currents(connection, pairs, for_update=True)
    changes = [
        resources.replaced(known[pair], draft, cause=CAUSE, method="")
        if pair in known
        else resources.created(pair[0], draft, cause=CAUSE, resource_id=pair[1], method="")
        for pair, draft in zip(pairs, drafts, strict=True)
    ]
    rows.write(connection, [change for change in changes if change])
    return set(pairs)


def _withdraw(connection: Connection, wanted: set[tuple[str, str]]) -> None:
    for resource_type in TYPES:
        after = 0
        while found := rows.walk(connection, resource_type, after, _AT_ONCE):
            after = found[-1].rid
            gone = [one for one in found if (resource_type, one.resource_id) not in wanted]
            rows.write(connection, [resources.deleted(one, cause=CAUSE) for one in gone])


def _pair(resource: Json) -> tuple[str, str]:
    return resource["resourceType"], resource["id"]
