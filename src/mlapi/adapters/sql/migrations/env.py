"""Alembic runs this file in a transaction that `mlapi.adapters.sql.schema` begins and ends."""

from alembic import context

from mlapi.adapters.sql.indexes import metadata
from mlapi.adapters.sql.revisions import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite's ALTER TABLE is limited, so let alembic copy the table
)
with context.begin_transaction():
    context.run_migrations()
