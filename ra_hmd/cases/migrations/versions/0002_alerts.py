"""Alerts that are raised, and cases by the time of their intake."""

import sqlalchemy as sa
from alembic import op

from ra_hmd.cases.tables import UTCDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("since", UTCDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("rule"),
    )
    op.create_index("cases_by_intake", "cases", ["created"], unique=False)
