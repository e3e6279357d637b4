"""The audit trail is read: by time, and of one patient by time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KNOWN = sa.text("patient_id IS NOT NULL")


def upgrade() -> None:
    op.create_index("ix_audit_time", "auditrow", ["at", "id"])
    op.create_index(
        "ix_audit_patient", "auditrow", ["patient_id", "at", "id"], sqlite_where=KNOWN, postgresql_where=KNOWN
    )
