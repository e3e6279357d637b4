"""The studies of the archive that a search looks at, in its order, and no more of them than it takes."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from app.store import plan
from app.store.database import is_sqlite, run
from app.store.query import Place, Query
from app.store.studies import COLUMNS, HeldStudy


def page(
    connection: Connection, query: Query, *, limit: int, after: Place | None = None
) -> tuple[list[HeldStudy], Place | None]:
    """The studies that the archive holds among the next ImagingStudies of a query, in its order; and where to go on.

    No more is read of a resource than its id. Of two studies that one ImagingStudy tells of, the first stands for both.
    """
    planned = plan.page(query, limit, after, plan.Engine(is_sqlite(connection), lambda _: True))
    names = ", ".join(f"s.{column.name}" for column in COLUMNS)
    if is_sqlite(connection):
        sql = f"""SELECT {names}, page.* FROM ({planned.text}) page CROSS JOIN resource r
            LEFT JOIN study s ON s.imaging_study_id = r.resource_id AND s.missing_since IS NULL
            WHERE r.rid = page.rid"""  # noqa: S608 - our own names
    else:
        sql = f"""WITH page AS MATERIALIZED ({planned.text}) SELECT {names}, page.* FROM page
            JOIN resource r ON r.rid = page.rid
            LEFT JOIN study s ON s.imaging_study_id = r.resource_id AND s.missing_since IS NULL
            {plan.ordering(query.order, "page.")}, s.orthanc_id"""  # noqa: S608 - our own names
    rows = run(connection, sql, planned.values).fetchall()
    width = len(COLUMNS)
    found: dict[str, HeldStudy] = {}
    for row in rows:
        if row[0] is not None:
            one = HeldStudy(*row[:width])
            known = found.get(one.imaging_study_id, one)
            found[one.imaging_study_id] = min(known, one, key=lambda each: each.orthanc_id)
    told = len({row[-1] for row in rows})
    return list(found.values()), tuple(rows[-1][width:]) if told == limit else None
