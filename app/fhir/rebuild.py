"""The search index made anew from the stored bytes, beside a running server (https://hl7.org/fhir/R4/search.html)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy.engine import Connection

from app.errors import ConfigurationError
from app.fhir import conformance, index, registry, resources, site
from app.settings import Settings
from app.store import resources as rows
from app.store import schema
from app.store.database import Store

BATCH = 200
"""Resources of one transaction: others write between two of them."""

Progress = Callable[[str, int], None]
"""(resource type, resources done so far)"""


def require_current(store: Store) -> None:
    """ConfigurationError when the index was built for other parameters: searches would miss resources."""
    with store.read() as connection:
        known = rows.index_digest(connection)
    if known != registry.digest():
        raise ConfigurationError("the search index was built for other parameters: run `isocenter index rebuild`")


def upgrade(settings: Settings, progress: Progress = lambda _kind, _done: None) -> None:
    """Bring the database to head, its index too when it was built for other parameters, and what is published."""
    site.settle(settings.fhir_base, settings.zone)
    store = Store(settings.database)
    try:
        schema.migrate(store)
        with store.read() as connection:
            fits = is_current(connection)
        if not fits:
            rebuild(store, progress)
        # Each start looks at it; here it is written, so that a process begins to serve sooner.
        store.transact(lambda connection: conformance.seed(connection, settings))
    finally:
        store.close()


def require_served(settings: Settings) -> None:
    """ConfigurationError unless this installation's schema is at head and its index fits."""
    site.settle(settings.fhir_base, settings.zone)
    store = Store(settings.database)
    try:
        schema.require_current(store)
        require_current(store)
    finally:
        store.close()


def is_current(connection: Connection) -> bool:
    """Whether the index holds what this release searches by."""
    return rows.index_digest(connection) == registry.digest()


def rebuild(store: Store, progress: Progress = lambda _kind, _done: None) -> int:
    """Index every resource again and return how many there are; safe to repeat, and to run while others write."""
    done = 0
    for kind in registry.offers():
        for number in _of_type(store, kind):
            done += number
            progress(kind, done)
    store.transact(lambda connection: rows.set_index_digest(connection, registry.digest()))
    return done


def _of_type(store: Store, kind: str) -> Iterator[int]:
    known = registry.offer(kind)
    after: int | None = 0
    while after is not None:
        number, after = store.transact(lambda connection, place=after: _batch(connection, known, place))
        yield number


def _batch(connection: Connection, known: registry.Offer, after: int) -> tuple[int, int | None]:
    """Index the next resources; how many they were, and the last one's number unless it was the end."""
    found = rows.walk(connection, known.resource_type, after, BATCH)
    rows.reindex(connection, [(one, index.extract(resources.loads(one.body), known)) for one in found])
    return len(found), found[-1].rid if len(found) == BATCH else None
