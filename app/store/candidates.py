"""The studies of the archive that a search looks at, in its order, and no more of them than it takes."""

# ruff: noqa: S608 - SQL is put together from our own words; every value is bound

from __future__ import annotations

from collections.abc import Callable, Iterable

import orjson
from sqlalchemy.engine import Connection

from app.store import plan
from app.store.database import is_sqlite, run
from app.store.query import Place, Query, key
from app.store.studies import COLUMNS, HeldStudy

SCANNED = 100_000
"""More values of a parameter than these are not looked through."""


def values(
    connection: Connection, resource_type: str, param: str, fits: Callable[[str], bool], *, limit: int
) -> list[str] | None:
    """The values of a token parameter that fit, by whatever resource; None where there are more than a few."""
    sql = "SELECT DISTINCT value FROM indextoken WHERE param = ? LIMIT ?"
    known = run(connection, sql, (key(resource_type, param), SCANNED + 1)).fetchall()
    found = [row[0] for row in known if fits(row[0])]
    return found if len(found) <= limit and len(known) <= SCANNED else None


def page(
    connection: Connection, query: Query, *, limit: int, after: Place | None = None
) -> tuple[list[HeldStudy], Place | None]:
    """The studies that the archive holds among the next ImagingStudies of a query, in its order; and where to go on.

    No more is read of a resource than its id. Of two studies that one ImagingStudy tells of, the first stands for both.
    """
    planned = plan.page(query, limit, after, plan.Engine(is_sqlite(connection), lambda _: True))
    if is_sqlite(connection):
        sql = f"""SELECT page.*, r.resource_id FROM ({planned.text}) page CROSS JOIN resource r
            WHERE r.rid = page.rid"""
    else:
        sql = f"""WITH page AS MATERIALIZED ({planned.text}) SELECT page.*, r.resource_id FROM page
            JOIN resource r ON r.rid = page.rid {plan.ordering(query.order, "page.")}"""
    rows = run(connection, sql, planned.values).fetchall()
    held = _held(connection, [row[-1] for row in rows])
    return [held[row[-1]] for row in rows if row[-1] in held], tuple(rows[-1][:-1]) if len(rows) == limit else None


def ids(connection: Connection, study_uids: Iterable[str]) -> frozenset[str]:
    """The ids of the ImagingStudies that tell of these studies of the archive."""
    sql = f"SELECT imaging_study_id FROM study WHERE study_uid {_among(connection)} AND missing_since IS NULL"
    return frozenset(row[0] for row in run(connection, sql, (_listed(connection, sorted(study_uids)),)))


def _among(connection: Connection) -> str:
    return "IN (SELECT value FROM json_each(?))" if is_sqlite(connection) else "= ANY(?)"


def _listed(connection: Connection, texts: list[str]) -> object:
    return orjson.dumps(texts).decode() if is_sqlite(connection) else texts


def _held(connection: Connection, imaging_study_ids: list[str]) -> dict[str, HeldStudy]:
    """Asked apart: compared with another table's text, which sorts otherwise, PostgreSQL would use no index."""
    names = ", ".join(column.name for column in COLUMNS)
    sql = f"""SELECT {names} FROM study WHERE imaging_study_id {_among(connection)} AND missing_since IS NULL
        ORDER BY orthanc_id DESC"""
    found = run(connection, sql, (_listed(connection, imaging_study_ids),))
    return {one.imaging_study_id: one for one in (HeldStudy(*row) for row in found)}
