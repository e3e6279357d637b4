"""What keeps in step with the archive: its change log as read, living workers, marks that wait, requests of people."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "inbox",
        sa.Column("epoch", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("resource", sa.String(), nullable=False),
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("epoch", "seq"),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("started", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "syncrequest",
        sa.Column("id", Number, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("asked", sa.BigInteger(), nullable=False),
        sa.Column("taken", sa.BigInteger(), nullable=True),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=True),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "expected",
        sa.Column("study_uid", sa.String(), nullable=False),
        sa.Column("sop_uid", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("study_uid", "sop_uid"),
    )
    op.add_column("dirtystudy", _number("priority", sa.Integer()))
    for name in ("latest", "since", "marked"):
        op.add_column("dirtystudy", _number(name, sa.BigInteger()))
    op.add_column("dirtystudy", _text("worker"))
    op.add_column("study", _number("series", sa.Integer()))
    op.add_column("study", _text("last_update"))
    op.add_column("study", sa.Column("accepted", sa.BigInteger(), nullable=True))
    op.add_column("study", _text("gone_reason"))
    op.add_column("instance", _text("file"))
    op.create_index("ix_dirty_due", "dirtystudy", ["priority", "due"])
    op.create_index("ix_dirty_since", "dirtystudy", ["since"])


def _number(name: str, kind: sa.Integer) -> sa.Column[int]:
    return sa.Column(name, kind, nullable=False, server_default="0")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False, server_default="")
