"""Alembic's environment: migrations run on the connection that `ra_hmd.cases.database` hands over."""

from alembic import context

from ra_hmd.cases.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
