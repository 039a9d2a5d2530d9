"""The storage in SQLite or PostgreSQL."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Self

import attrs

from mlapi.adapters.sql import backups
from mlapi.adapters.sql.allowances import SqlAllowances
from mlapi.adapters.sql.attempts import SqlAttempts, SqliteAttempts
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.inspection import find_obstacles, inspect_database
from mlapi.adapters.sql.key_check import find_fingerprint, replace_fingerprint, store_fingerprint
from mlapi.adapters.sql.logins import SqlLogins
from mlapi.adapters.sql.managers import SqliteManagers, SqlManagers
from mlapi.adapters.sql.outbox import SqlOutbox
from mlapi.adapters.sql.repository import PostgresqlUserRepository, SqliteUserRepository
from mlapi.adapters.sql.revisions import HEAD
from mlapi.adapters.sql.schema import prepare_schema, upgrade
from mlapi.adapters.sql.sessions import SqlSessions
from mlapi.adapters.sql.urls import SCHEMES, database_url
from mlapi.adapters.sql.usage import SqlUsage
from mlapi.domain.backups import Restore
from mlapi.domain.inspection import Inspection


class SqlStorage:
    """A `Storage` in SQLite or PostgreSQL, and a `BackupStorage`.

    Args:
        database: the database to use. Closing the storage closes it.
    """

    SCHEMES: ClassVar[tuple[str, ...]] = SCHEMES
    """The URL schemes that `from_url` supports."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.users = (
            SqliteUserRepository(database) if database.dialect.supports_nowait else PostgresqlUserRepository(database)
        )
        self.managers = SqliteManagers(database) if database.dialect.supports_nowait else SqlManagers(database)
        self.attempts = SqliteAttempts(database) if database.dialect.supports_nowait else SqlAttempts(database)
        self.allowances = SqlAllowances(database)
        self.usage = SqlUsage(database)
        self.outbox = SqlOutbox(database)
        self.sessions = SqlSessions(database)
        self.logins = SqlLogins(database)
        self._files = database.dialect.files(database.engine.url)

    @classmethod
    def from_url(cls, url: str, *, namespace: str | None = None) -> Self:
        """Return a storage in the database with this URL. It connects on first use.

        Args:
            url: the URL.
            namespace: the PostgreSQL schema that contains the tables; None for the first one on the ``search_path``.

        Raises:
            ConfigurationError: see `database_url` and `Database`.
        """
        return cls(Database(database_url(url), namespace=namespace))

    @property
    def files(self) -> tuple[Path, ...]:
        """The SQLite file, its write-ahead log, the log's index, and the journal; empty for PostgreSQL."""
        return self._files

    @property
    def secrets_folder(self) -> Path:
        """The folder that contains the SQLite file; the folder of the configuration file for PostgreSQL."""
        return self._files[0].parent if self._files else Path()

    def find_fingerprint(self) -> str | None:
        return find_fingerprint(self.database)

    def store_fingerprint(self, fingerprint: str) -> str:
        return store_fingerprint(self.database, fingerprint)

    def replace_fingerprint(self, fingerprint: str) -> None:
        replace_fingerprint(self.database, fingerprint)

    def prepare(self, *, may_upgrade: bool) -> None:
        prepare_schema(self.database, may_upgrade=may_upgrade)

    def upgrade(self) -> tuple[str | None, str]:
        before, _ = upgrade(self.database)
        return before, HEAD

    def inspect(self, *, find_password_error: Callable[[str], str | None] | None) -> Inspection:
        with self.database.open_existing("read") as connection:
            found = inspect_database(connection, find_password_error=find_password_error)
        with self.database.open_existing("plan") as connection:
            obstacles = find_obstacles(connection, found)
            connection.rollback()
        return attrs.evolve(found, obstacles=obstacles)

    def find_file_error(self, file: Path) -> str | None:
        return backups.find_file_error(file)

    def back_up(self, file: Path) -> int:
        return backups.back_up(self.database, file)

    def open_restore(self, file: Path) -> AbstractContextManager[Restore]:
        return backups.open_restore(self.database, file)

    def close(self) -> None:
        self.database.close()
