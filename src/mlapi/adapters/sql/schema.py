"""Check the revision of the database schema, and upgrade the schema with alembic.

Importing alembic takes 0.4 seconds, so it is only imported when the schema must change.
"""

import logging
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.dialect import dialect_for
from mlapi.adapters.sql.legacy import is_legacy
from mlapi.adapters.sql.revisions import HEAD, MIGRATIONS, VERSION_TABLE, require_head, require_known
from mlapi.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from alembic.config import Config

_OWN_NAMESPACE = ", or set database.schema to create mlapi's tables in a PostgreSQL schema of their own"

_logger = logging.getLogger("mlapi")


def prepare_schema(database: Database, *, may_upgrade: bool) -> None:
    """Upgrade the schema to `HEAD` if it is older.

    Raises:
        ConfigurationError: if it must change and ``may_upgrade`` is False, if it belongs to a newer mlapi, or if the
            database contains another program's ``users`` table.
        RepositoryUnavailableError: if the database is unavailable.
    """
    revision = database.read(current_revision)
    if revision == HEAD:
        return
    if may_upgrade:
        upgrade(database)
    else:
        require_head(revision, hint="" if revision else database.read(_hint_at_other_namespaces))


def upgrade(database: Database, revision: str = "head") -> tuple[str | None, str | None]:
    """Upgrade the schema in one transaction, one process at a time. Return the revisions before and after.

    Raises:
        ConfigurationError: if the schema belongs to a newer mlapi, or the database contains another program's ``users``
            table.
        RepositoryUnavailableError: if the database is unavailable.
    """
    import alembic.command  # noqa: F401, PLC0415 - slow, so import it before locking out other processes

    def run(connection: Connection) -> tuple[str | None, str | None]:
        _lock(database, connection)  # on SQLite, the write transaction has already locked the schema
        before = current_revision(connection)
        _check_ownership(connection, before)
        if before != HEAD and (errors := list(database.dialect.find_upgrade_errors(connection))):
            raise ConfigurationError("; ".join(errors))
        if before is None:
            _warn_about_other_namespaces(connection)
            database.dialect.create_namespace(connection)
        migrate(connection, revision)
        return before, current_revision(connection)

    return database.write(run)


def downgrade(database: Database, revision: str) -> None:
    """Downgrade the schema to a revision, or to ``base`` to remove it.

    Data that the older schema cannot store is lost.
    """
    from alembic import command  # noqa: PLC0415 - slow

    def run(connection: Connection) -> None:
        _lock(database, connection)
        command.downgrade(_alembic_config(connection), revision)

    database.write(run)


def migrate(connection: Connection, revision: str) -> None:
    """Upgrade the schema to a revision in the current transaction.

    Upgrading to the newest also creates optional indexes, if the database supports them by now.
    """
    from alembic import command  # noqa: PLC0415 - slow

    command.upgrade(_alembic_config(connection), revision)
    if revision == "head":
        dialect_for(connection.dialect.name).create_text_index(connection)


def stamp(connection: Connection, revision: str) -> None:
    """Record that the schema is at a revision, in the current transaction, without running migrations."""
    from alembic import command  # noqa: PLC0415 - slow

    command.stamp(_alembic_config(connection), revision)


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the schema, or None if the database has no mlapi schema.

    Raises:
        ConfigurationError: if the role may not use the PostgreSQL schema ``database.schema``.
    """
    if not inspect(connection).has_table(VERSION_TABLE):
        dialect_for(connection.dialect.name).check_namespace(connection)
        return None
    revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - a constant
    return revision


def _hint_at_other_namespaces(connection: Connection) -> str:
    """Return the end of an error message that names the PostgreSQL schemas in which the missing tables may be."""
    names = dialect_for(connection.dialect.name).find_other_namespaces(connection, VERSION_TABLE)
    return "" if not names else f"; to use the tables of mlapi in the schema {' or '.join(names)}, set database.schema"


def _warn_about_other_namespaces(connection: Connection) -> None:
    """Log a warning if this database already has tables of mlapi in another PostgreSQL schema."""
    names = dialect_for(connection.dialect.name).find_other_namespaces(connection, VERSION_TABLE)
    if names:
        _logger.warning(
            "creating empty tables, although this database also contains tables of mlapi in the schema %s: to use those"
            " instead, change database.schema",
            " or ".join(names),
        )


def _lock(database: Database, connection: Connection) -> None:
    database.dialect.disable_timeouts(connection)  # waiting for another process or changing a large table can be slow
    database.dialect.lock_schema(connection)


def _check_ownership(connection: Connection, revision: str | None) -> None:
    """Raise `ConfigurationError` unless this version of mlapi can upgrade the database."""
    if revision is None:
        if is_legacy(connection):
            raise ConfigurationError(
                "the database has the table `users` of the legacy app: run `mlapi db adopt` to keep its users, or point"
                " database.url at an empty database"
            )
        if inspect(connection).has_table("users"):
            raise ConfigurationError(
                "the database has a table `users` that mlapi did not create: point database.url at an empty database"
                f"{_OWN_NAMESPACE if dialect_for(connection.dialect.name).supports_namespaces else ''}"
                f"{_hint_at_other_namespaces(connection)}"
            )
    else:
        require_known(revision)


def _alembic_config(connection: Connection) -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - slow

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
