"""Open an existing database. Opening it creates and changes nothing."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.errors import error_summary
from mlapi.adapters.sql.sqlite.dialect import UNDECODABLE
from mlapi.adapters.sql.urls import sqlite_file
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError

Purpose = Literal["read", "plan", "change"]
"""``plan`` is like ``read``, but allows temporary tables on PostgreSQL. ``change`` locks an SQLite file exclusively."""

_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL 18, appendix A
_BEGIN = {"read": "BEGIN", "plan": "BEGIN", "change": "BEGIN EXCLUSIVE"}


@contextmanager
def open_existing(database: Database, purpose: Purpose) -> Iterator[Connection]:
    """Open a transaction in an existing database, without a statement timeout.

    The transaction is committed after the block, or rolled back if the block raises. An SQLite file keeps its journal
    mode. On SQLite, foreign keys are not enforced, so that a table can be replaced.

    Raises:
        ConfigurationError: if the file does not exist.
        RepositoryUnavailableError: if the database is unavailable, locked or unreadable.
    """
    file = sqlite_file(database.engine.url)
    if file is None:
        with database.writing() as connection, _translating_errors():
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            if purpose != "change":  # let all statements see the same rows
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            if purpose == "read":
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            yield connection
        return
    if not file.exists():
        raise ConfigurationError(f"the database {str(file)!r} does not exist: check database.url")
    engine = _create_engine(file, database.timeout_seconds, purpose)
    with _translating_errors(), engine.connect() as connection, connection.begin():
        yield connection


def _create_engine(file: Path, timeout_seconds: float, purpose: Purpose) -> Engine:
    def connect() -> sqlite3.Connection:
        # Not mode=ro: after a crash, the first connection must be able to roll back the unfinished transaction.
        uri = f"file:{quote(str(file))}?mode=rw"
        return sqlite3.connect(uri, uri=True, timeout=timeout_seconds, isolation_level=None)

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
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(_BEGIN[purpose])

    return engine


@contextmanager
def _translating_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        cause = error.orig
        is_busy = getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
        if is_busy or getattr(cause, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
            reason = "another program is using the database: stop it, then run this again"
        elif str(cause).startswith(UNDECODABLE):
            reason = "the file is damaged: it contains text that is not UTF-8"
        else:
            reason = error_summary(cause)
        raise RepositoryUnavailableError(reason) from error
