"""Run by alembic, in the transaction that `mlapi.adapters.sql.schema` has begun and will end."""

from alembic import context

from mlapi.adapters.sql.schema import VERSION_TABLE
from mlapi.adapters.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
