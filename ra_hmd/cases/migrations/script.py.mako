"""${message}"""

import sqlalchemy as sa
from alembic import op

from ra_hmd.cases.tables import UTCDateTime

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
