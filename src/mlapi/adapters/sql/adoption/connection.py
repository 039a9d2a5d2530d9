"""A database as it is found: opened so that nothing is made, and nothing is changed but what is asked for."""

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
from mlapi.adapters.sql.sqlite.dialect import UNDECODABLE
from mlapi.adapters.sql.urls import sqlite_file
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError

Purpose = Literal["read", "plan", "change"]
"""To plan needs temporary tables, which a server refuses to whoever only reads; to change needs the whole file."""

_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL 18, appendix A
_BEGIN = {"read": "BEGIN", "plan": "BEGIN", "change": "BEGIN EXCLUSIVE"}


@contextmanager
def opened(database: Database, purpose: Purpose) -> Iterator[Connection]:
    """A transaction in a database that is there, however long its statements take; undone if this is left by an error.

    An SQLite file keeps its journal mode, and foreign keys are not looked after: a table can be made anew.

    Raises:
        ConfigurationError: if there is no such file.
        RepositoryUnavailableError: if it is away, locked or not to be read.
    """
    file = sqlite_file(database.engine.url)
    if file is None:
        with database.writing() as connection, _translating():
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            if purpose != "change":  # every statement sees the same rows
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            if purpose == "read":
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            yield connection
        return
    if not file.exists():
        raise ConfigurationError(f"there is no database {str(file)!r}: see that database.url names the one you mean")
    with _translating(), _engine(file, database.timeout_seconds, purpose).connect() as connection, connection.begin():
        yield connection


def _engine(file: Path, wait: float, purpose: Purpose) -> Engine:
    def connect() -> sqlite3.Connection:
        # Not for reading alone: whoever comes after a crash has to undo first what was under way.
        return sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=wait, isolation_level=None)

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        for setting in (
            f"query_only = {'ON' if purpose == 'read' else 'OFF'}",
            "synchronous = EXTRA",  # the origin has no write-ahead log
            "foreign_keys = OFF",  # or to drop a table deletes its rows first, with all that refers to them
            "legacy_alter_table = ON",  # or to rename one renames it in whatever refers to it
        ):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(_BEGIN[purpose])

    return engine


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        cause = error.orig
        busy = getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
        if busy or getattr(cause, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
            reason = "something else uses the database: stop it, then run this again"
        elif str(cause).startswith(UNDECODABLE):
            reason = "the file is damaged: there is text in it that is no UTF-8"
        else:
            reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        raise RepositoryUnavailableError(reason) from error
