"""Check whether the role and the server allow mlapi to change rows and upgrade the schema."""

from collections.abc import Iterator

from sqlalchemy import Connection, text

from mlapi.adapters.sql.postgresql.namespaces import configured_namespace, find_creation_error, quote
from mlapi.adapters.sql.probes import WRITES
from mlapi.adapters.sql.tables import metadata

_READ_ONLY = text("SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', current_user")
_HAS_PRIVILEGE = text("SELECT coalesce(has_table_privilege(to_regclass(:table), :privilege), false)")
_ID_SEQUENCE = text(
    "SELECT sequence, has_sequence_privilege(sequence, 'USAGE') FROM pg_get_serial_sequence('users', 'id') AS sequence"
)
_FILTERED_TABLES = text(
    "SELECT relname FROM pg_class WHERE oid IN (SELECT to_regclass(name) FROM unnest(CAST(:names AS text[])) AS name)"
    " AND row_security_active(oid) ORDER BY relname"
)
_SCHEMA = text("SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE'), current_user")
_FOREIGN_TABLES = text(
    "SELECT relname FROM pg_class WHERE oid IN (SELECT to_regclass(name) FROM unnest(CAST(:names AS text[])) AS name)"
    " AND NOT pg_has_role(relowner, 'USAGE') ORDER BY relname"
)

# The probes change no rows, so they reveal neither a missing sequence privilege nor row-level security.
HAS_FURTHER_PRIVILEGES = " AND ".join(
    [
        "SELECT coalesce(has_sequence_privilege(pg_get_serial_sequence('users', 'id'), 'USAGE'), false)",
        *(f"NOT row_security_active('{name}')" for name in metadata.tables),
    ]
)
"""A query that returns whether the role has the privileges that `mlapi.adapters.sql.probes` cannot test."""


def find_write_errors(connection: Connection) -> Iterator[str]:
    """Yield why the current transaction could not change rows. Each message includes a solution."""
    is_standby, is_read_only, role = connection.execute(_READ_ONLY).one()
    if is_standby:
        yield "the server is a standby, which is read-only: connect to the primary (target_session_attrs=read-write)"
        return
    if is_read_only:
        yield (
            "default_transaction_read_only is on, so nothing can be changed: turn it off for the server, the database"
            f" and the role {role}"
        )
    missing = [
        (table.name, kind)
        for table, kinds in WRITES.items()
        for kind in ("SELECT", *kinds)
        if not connection.scalar(_HAS_PRIVILEGE, {"table": table.name, "privilege": kind})
    ]
    if missing:
        kinds = ", ".join(dict.fromkeys(kind for _, kind in missing))
        namespace = configured_namespace(connection)
        prefix = "" if namespace is None else f"{quote(namespace)}."
        tables = ", ".join(dict.fromkeys(f"{prefix}{name}" for name, _ in missing))
        yield f"the role may not change all tables: as their owner, run `GRANT {kinds} ON {tables} TO {quote(role)}`"
    sequence, may_create_ids = connection.execute(_ID_SEQUENCE).one()
    if sequence is None:
        yield "users.id has no sequence that creates ids: restore the table from a backup"
    elif not may_create_ids:
        grant = f"GRANT USAGE ON SEQUENCE {sequence} TO {quote(role)}"
        yield f"the role may not create ids for new users: as the owner of the tables, run `{grant}`"
    filtered = connection.scalars(_FILTERED_TABLES, {"names": list(metadata.tables)}).all()
    if filtered:
        yield (
            f"row-level security may hide rows of {', '.join(filtered)} and reject changes: as a superuser, run"
            f" `ALTER ROLE {quote(role)} BYPASSRLS`, or turn it off for these tables"
        )


def find_upgrade_errors(connection: Connection) -> Iterator[str]:
    """Yield why the role could not create or change tables. Each message includes a solution."""
    schema, may_create, role = connection.execute(_SCHEMA).one()
    namespace = configured_namespace(connection)
    if schema is None and namespace is not None:
        if (error := find_creation_error(connection, namespace)) is not None:
            yield error
        return
    if schema is None:
        yield "no schema of the search_path exists: create one, or change the search_path of the role or database.url"
        return
    if not may_create:
        grant = f"GRANT CREATE ON SCHEMA {quote(schema)} TO {quote(role)}"
        yield f"the role may not create tables: as the owner of the schema, run `{grant}` or `mlapi db upgrade`"
    foreign = connection.scalars(_FOREIGN_TABLES, {"names": list(metadata.tables)}).all()
    if foreign:
        yield f"only the owner of {', '.join(foreign)} can change their columns: run `mlapi db upgrade` as that role"
