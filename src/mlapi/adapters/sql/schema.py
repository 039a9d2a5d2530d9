"""Check the revision of the database schema, and upgrade the schema with alembic.

Importing alembic takes 0.4 seconds, so it is only imported when the schema must change.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.dialect import dialect_for
from mlapi.adapters.sql.legacy import is_legacy
from mlapi.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).with_name("migrations")
REVISIONS = tuple(sorted(path.name.partition("_")[0] for path in _MIGRATIONS.glob("versions/[0-9]*_*.py")))
"""All revisions, oldest first. Each migration's file name begins with its revision."""
HEAD = REVISIONS[-1]
VERSION_TABLE = "mlapi_alembic_version"
"""Not alembic's default name, because the legacy app's ``alembic_version`` may be in the same database."""


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
    elif revision is None:
        raise ConfigurationError(
            "the database contains no tables of mlapi: check database.url (MLAPI_DATABASE__URL), or run"
            " `mlapi db upgrade` to create them"
        )
    elif revision not in REVISIONS:
        raise _unknown_revision_error(revision)
    else:
        raise ConfigurationError(
            f"the database's schema is at revision {revision} and must be at {HEAD}: run `mlapi db upgrade`"
        )


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
    """Return the revision of the schema, or None if the database has no mlapi schema."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - a constant
    return revision


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
            )
    elif revision not in REVISIONS:
        raise _unknown_revision_error(revision)


def _unknown_revision_error(revision: str) -> ConfigurationError:
    return ConfigurationError(
        f"the database's schema is at revision {revision}, which this version of mlapi does not know: upgrade mlapi"
    )


def _alembic_config(connection: Connection) -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - slow

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config
