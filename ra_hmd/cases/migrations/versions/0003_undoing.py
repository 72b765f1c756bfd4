"""Opinions that are being taken back."""

import sqlalchemy as sa
from alembic import op

from ra_hmd.cases.tables import UTCDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("opinions", sa.Column("undoing", UTCDateTime(timezone=True), nullable=True))
    op.create_index(op.f("ix_opinions_undoing"), "opinions", ["undoing"])
