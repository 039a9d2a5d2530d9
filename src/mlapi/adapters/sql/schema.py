"""The schema: which revision the database is at, and how it gets to ours."""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from mlapi.adapters.sql.adoption.legacy_table import is_legacy
from mlapi.adapters.sql.database import Database
from mlapi.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0003"
"""The newest revision. Held here as well as in the files, for alembic takes 0.4 s to import; a test compares them."""
VERSION_TABLE = "mlapi_alembic_version"
"""Our own: the origin's ``alembic_version`` may be in the same database and stays as it is."""


def prepare_schema(database: Database, *, may_upgrade: bool) -> None:
    """Return when the database is at `HEAD`, having brought it there if that is allowed.

    Raises:
        ConfigurationError: if it may not be upgraded here, is newer than this mlapi, or has tables that are not ours.
        RepositoryUnavailableError: if the database is away.
    """
    with database.reading() as connection:
        revision = current_revision(connection)
    if revision == HEAD:
        return
    if not may_upgrade:
        raise ConfigurationError(
            f"the database's schema is at revision {revision or 'none'} and must be at {HEAD}: run `mlapi db upgrade`"
        )
    upgrade(database)


def upgrade(database: Database, revision: str = "head") -> tuple[str | None, str | None]:
    """Bring the schema to a revision in one transaction, one process at a time. Return the revisions before and after.

    Raises:
        ConfigurationError: if it is newer than this mlapi, or has tables that are not ours.
        RepositoryUnavailableError: if the database is away.
    """
    import alembic.command  # noqa: F401, PLC0415 - takes 0.4 s, and not while others wait for the lock

    with database.writing() as connection:  # on SQLite this is the lock already
        _lock(database, connection)
        before = current_revision(connection)
        _refuse_strange(connection, before)
        migrate(connection, revision)
        return before, current_revision(connection)


def downgrade(database: Database, revision: str) -> None:
    """Take the schema back to a revision, ``base`` for none of it. What only the newer one can hold is lost."""
    from alembic import command  # noqa: PLC0415 - takes 0.4 s

    with database.writing() as connection:
        _lock(database, connection)
        command.downgrade(_alembic(connection), revision)


def migrate(connection: Connection, revision: str) -> None:
    """Bring the schema up to a revision in the transaction that has begun."""
    from alembic import command  # noqa: PLC0415 - takes 0.4 s

    command.upgrade(_alembic(connection), revision)


def stamp(connection: Connection, revision: str) -> None:
    """Say that the schema is at a revision, in the transaction that has begun."""
    from alembic import command  # noqa: PLC0415 - takes 0.4 s

    command.stamp(_alembic(connection), revision)


def current_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - our name
    return revision


def _lock(database: Database, connection: Connection) -> None:
    database.dialect.disable_timeouts(connection)  # another process, or a large table, may take long
    database.dialect.lock_schema(connection)


def _refuse_strange(connection: Connection, revision: str | None) -> None:
    if revision is None:
        if is_legacy(connection):
            raise ConfigurationError(
                "the database has the table `users` of the application that mlapi takes the place of: run"
                " `mlapi db adopt` to keep its users, or point database.url at an empty database"
            )
        if inspect(connection).has_table("users"):
            raise ConfigurationError(
                "the database has a table `users` that mlapi did not make: point database.url at an empty database"
            )
        return
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - takes 0.4 s

    known = {script.revision for script in ScriptDirectory.from_config(_alembic(connection)).walk_revisions()}
    if revision not in known:
        raise ConfigurationError(
            f"the database's schema is at revision {revision}, which this version of mlapi does not know: upgrade mlapi"
        )


def _alembic(connection: Connection) -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - takes 0.4 s

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config
