"""What lists and figures of many cases look at: the label of the verdict in a column of its own, and indexes."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_ROWS = 1000
_INDEXES = {
    "cases_by_age": ("open", "id"),
    "cases_by_similarity": ("open", "similarity", "id"),
    "cases_by_queue": ("open", "queue", "state", "created"),
    "cases_by_source": ("open", "source"),
    "cases_by_hash": ("open", "id", "picture_hash"),
    "cases_judged": ("id", "judged"),
    "cases_by_intake": ("created", "audited", "source", "open", "judged", "corrected", "similarity"),
}


def upgrade() -> None:
    op.add_column("cases", sa.Column("judged", sa.Text(), nullable=True))
    op.add_column("cases", sa.Column("corrected", sa.Boolean(), nullable=True))
    _fill()
    op.drop_index("cases_by_intake", "cases")
    for name, columns in _INDEXES.items():
        op.create_index(name, "cases", list(columns))


def _fill() -> None:
    """Fill the new columns of the cases that are there."""
    cases = sa.table("cases", sa.column("id"), sa.column("verdict", sa.JSON), sa.column("label", sa.JSON),
                     sa.column("judged", sa.Text), sa.column("corrected", sa.Boolean))  # fmt: skip
    change = cases.update().where(cases.c.id == sa.bindparam("name"))
    change = change.values(judged=sa.bindparam("of_model"), corrected=sa.bindparam("other"))
    connection, last = op.get_bind(), ""
    page = sa.select(cases.c.id, cases.c.verdict, cases.c.label).order_by(cases.c.id).limit(_ROWS)
    while rows := connection.execute(page.where(cases.c.id > last)).all():
        values = []
        for name, verdict, label in rows:
            judged = verdict.get("verdict")
            both = judged is not None and label is not None
            values.append({"name": name, "of_model": None if judged is None else json.dumps(judged),
                           "other": label != judged if both else None})  # fmt: skip
        connection.execute(change, values)
        last = rows[-1].id
