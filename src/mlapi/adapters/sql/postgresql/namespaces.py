"""The PostgreSQL schema ``database.schema``, here called namespace, that contains the tables.

`BoundedConnection` sets the ``search_path`` to this schema only: in each transaction behind a connection pooler, and
once on a direct connection. Therefore, statements do not name the schema.
"""

from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import dialect

from mlapi.domain.errors import ConfigurationError

OPTION = "mlapi_namespace"
"""The SQLAlchemy execution option with the name of the namespace, if one is configured."""

_preparer = dialect().identifier_preparer  # type: ignore[no-untyped-call]  # SQLAlchemy does not type it
quote = _preparer.quote_identifier
quote_if_needed = _preparer.quote

_FIND = text("SELECT has_schema_privilege(oid, 'USAGE'), current_user FROM pg_namespace WHERE nspname = :name")
_FIND_OTHERS = text(
    "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
    " WHERE relname = :table AND relkind = 'r' AND nspname IS DISTINCT FROM current_schema()"
    " AND NOT pg_is_other_temp_schema(pg_namespace.oid) ORDER BY nspname"
)
_MAY_CREATE = text("SELECT has_database_privilege(current_database(), 'CREATE'), current_user")


def configured_namespace(connection: Connection) -> str | None:
    """Return ``database.schema``, or None if the first existing schema on the ``search_path`` contains the tables."""
    name: str | None = connection.get_execution_options().get(OPTION)
    return name


def check_namespace(connection: Connection) -> None:
    """Check that the role can use the configured namespace, if it exists.

    Raises:
        ConfigurationError: if the role lacks the privilege. The tables would otherwise appear to be missing.
    """
    name = configured_namespace(connection)
    found = None if name is None else connection.execute(_FIND, {"name": name}).one_or_none()
    if name is not None and found is not None and not found[0]:
        raise ConfigurationError(
            f"the role may not use the schema {name}: as its owner, run"
            f" `GRANT USAGE ON SCHEMA {quote(name)} TO {quote(found[1])}`"
        )


def create_namespace(connection: Connection) -> None:
    """Create the configured namespace unless it exists. `find_creation_error` explains a failure."""
    name = configured_namespace(connection)
    if name is not None and connection.execute(_FIND, {"name": name}).one_or_none() is None:
        connection.exec_driver_sql(f"CREATE SCHEMA {quote(name)}")


def find_creation_error(connection: Connection, name: str) -> str | None:
    """Return why the role could not create a namespace, with a solution, or None."""
    may_create, role = connection.execute(_MAY_CREATE).one()
    if may_create:
        return None
    statement = f"CREATE SCHEMA {quote(name)} AUTHORIZATION {quote(role)}"
    return f"the role may not create the schema {name}: as the owner of the database, run `{statement}`"


def find_other_namespaces(connection: Connection, table: str) -> tuple[str, ...]:
    """Return the other namespaces of the database that contain a table with this name."""
    return tuple(connection.scalars(_FIND_OTHERS, {"table": table}))
