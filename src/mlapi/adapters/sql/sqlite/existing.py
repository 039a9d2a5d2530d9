"""Open an existing SQLite file without creating or changing anything."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection

from mlapi.adapters.sql.existing import IN_USE, Purpose, translating_errors
from mlapi.adapters.sql.sqlite.errors import UNDECODABLE, describe_error
from mlapi.adapters.sql.sqlite.files import existing_uri
from mlapi.adapters.sql.sqlite.temporary_files import configure_temporary_files
from mlapi.domain.errors import ConfigurationError

_BEGIN = {"read": "BEGIN", "plan": "BEGIN", "change": "BEGIN EXCLUSIVE"}


@contextmanager
def open_existing(file: Path, purpose: Purpose, *, timeout_seconds: float) -> Iterator[Connection]:
    """Open a transaction in an existing file. See `mlapi.adapters.sql.database.Database.open_existing`."""
    if not file.exists():
        raise ConfigurationError(f"the database {str(file)!r} does not exist: check database.url")
    engine = _create_engine(file, timeout_seconds, purpose)
    with translating_errors(_describe_error), engine.connect() as connection, connection.begin():
        yield connection


def _create_engine(file: Path, timeout_seconds: float, purpose: Purpose) -> Engine:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(existing_uri(file), uri=True, timeout=timeout_seconds, isolation_level=None)

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        for setting in (
            f"query_only = {'ON' if purpose == 'read' else 'OFF'}",
            "synchronous = EXTRA",  # the legacy app does not use a write-ahead log
            "foreign_keys = OFF",  # if ON, dropping a table would delete rows that refer to it
            "legacy_alter_table = ON",  # if OFF, renaming a table would change the foreign keys that refer to it
        ):
            cursor.execute(f"PRAGMA {setting}")
        configure_temporary_files(cursor)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(_BEGIN[purpose])

    return engine


def _describe_error(error: BaseException | None) -> str:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
        return IN_USE
    if str(error).startswith(UNDECODABLE):
        return "the file is damaged: it contains text that is not UTF-8"
    return describe_error(error)
