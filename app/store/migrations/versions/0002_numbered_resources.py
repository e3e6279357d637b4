"""Resources get numbers, the current version stands in one table, and the index knows resources by number.

The index comes out empty: values are taken from the bodies again by the next rebuild.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Bytewise = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LIVE = sa.text("NOT deleted")
APART = sa.text("apart")


def upgrade() -> None:
    for table in ("indextoken", "indexreference", "indexdate", "indexstring"):
        op.drop_table(table)
    for table in ("resource", "resourceversion"):
        op.execute(f"CREATE TABLE old_{table} AS SELECT * FROM {table}")  # noqa: S608 - our own names
        op.drop_table(table)
    _rows()
    _index()
    _move()
    for table in ("old_resource", "old_resourceversion"):
        op.drop_table(table)


def _rows() -> None:
    op.create_table(
        "resource",
        sa.Column("rid", Number, nullable=False),
        sa.Column("resource_type", Bytewise, nullable=False),
        sa.Column("resource_id", Bytewise, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("patient_id", Bytewise, nullable=True),
        sa.Column("sort", sa.BigInteger(), nullable=False),
        sa.Column("natural_key", sa.String(), nullable=True),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("rid"),
        sa.UniqueConstraint("resource_type", "resource_id", name="uq_resource_id"),
        sa.UniqueConstraint("natural_key", name="uq_resource_natural_key"),
    )
    for name, columns in (
        ("patient", ["resource_type", "patient_id", "sort", "rid"]),
        ("sort", ["resource_type", "sort", "rid"]),
    ):
        op.create_index(f"ix_resource_{name}", "resource", columns, sqlite_where=LIVE, postgresql_where=LIVE)
    op.create_index("ix_resource_updated", "resource", ["resource_type", "updated", "rid", "deleted"])
    op.create_index("ix_resource_latest", "resource", ["updated", "rid"])
    op.create_table(
        "resourceversion",
        sa.Column("rid", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("resource_type", Bytewise, nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("rid", "version"),
    )
    op.create_index("ix_version_updated", "resourceversion", ["resource_type", "updated", "rid", "version"])
    op.create_index("ix_version_latest", "resourceversion", ["updated", "rid", "version"])


def _index() -> None:
    tables = {
        "token": (
            ("param", sa.BigInteger()),
            ("value", Bytewise),
            ("sort", sa.BigInteger()),
            ("rid", sa.BigInteger()),
            ("system", Bytewise),
        ),
        "reference": (
            ("param", sa.BigInteger()),
            ("target_id", Bytewise),
            ("sort", sa.BigInteger()),
            ("rid", sa.BigInteger()),
            ("target_type", Bytewise),
        ),
        "date": (
            ("param", sa.BigInteger()),
            ("lo", sa.BigInteger()),
            ("rid", sa.BigInteger()),
            ("hi", sa.BigInteger()),
        ),
        "string": (("param", sa.BigInteger()), ("folded", Bytewise), ("rid", sa.BigInteger()), ("exact", Bytewise)),
        "number": (
            ("param", sa.BigInteger()),
            ("lo", sa.Double()),
            ("rid", sa.BigInteger()),
            ("hi", sa.Double()),
            ("system", Bytewise),
            ("code", Bytewise),
        ),
    }
    for name, columns in tables.items():
        apart = [sa.Column("apart", sa.Boolean(), nullable=False)] if name == "date" else []
        op.create_table(
            f"index{name}",
            *(sa.Column(column, kind, nullable=False) for column, kind in columns),
            *apart,
            sa.PrimaryKeyConstraint(*(column for column, _ in columns)),
            sqlite_with_rowid=False,
        )
        op.create_index(f"ix_{name}_owner", f"index{name}", ["rid", "param"])
    op.create_index("ix_date_apart", "indexdate", ["param", "lo", "hi"], sqlite_where=APART, postgresql_where=APART)


def _move() -> None:
    method = """CASE WHEN v.deleted THEN 'DELETE' WHEN v.cause LIKE 'create%' THEN 'POST'
        WHEN v.cause LIKE 'update%' THEN 'PUT' ELSE '' END"""
    op.execute(
        f"""INSERT INTO resource (resource_type, resource_id, version, updated, deleted, patient_id, sort, natural_key,
            cause, method, body)
        SELECT r.resource_type, r.resource_id, r.version, r.updated, r.deleted, r.patient_id, r.sort, r.natural_key,
            v.cause, {method}, r.body
        FROM old_resource r JOIN old_resourceversion v ON v.resource_type = r.resource_type
            AND v.resource_id = r.resource_id AND v.version = r.version
        ORDER BY r.updated, r.resource_type, r.resource_id"""  # noqa: S608 - no value of anybody
    )
    op.execute(
        f"""INSERT INTO resourceversion (rid, version, resource_type, updated, until, deleted, cause, method, body)
        SELECT r.rid, v.version, v.resource_type, v.updated, v.until, v.deleted, v.cause, {method}, v.body
        FROM (
            SELECT o.*, lead(o.updated) OVER (PARTITION BY o.resource_type, o.resource_id ORDER BY o.version) AS until
            FROM old_resourceversion o
        ) v JOIN resource r ON r.resource_type = v.resource_type AND r.resource_id = v.resource_id
        WHERE v.version < r.version"""  # noqa: S608 - no value of anybody
    )
