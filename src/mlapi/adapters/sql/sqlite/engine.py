"""Create engines for SQLite, with durable settings, the write-ahead log and explicit transactions."""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection

from mlapi.adapters.sql.sqlite import files
from mlapi.adapters.sql.sqlite.errors import primary_code
from mlapi.adapters.sql.sqlite.temporary_files import configure_temporary_files

BEGIN_OPTION = "mlapi_sqlite_begin"
"""Execution option for the statement that begins a transaction. The default is ``BEGIN``."""

_RETRY_SECONDS = 0.01
_LOCKED_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL}
_UNWRITABLE_CODES = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}


def create(url: URL, *, timeout_seconds: float, max_connections: int) -> Engine:
    """Create an engine whose connections commit durably and wait for locks no longer than the timeout."""
    engine = create_engine(
        url, hide_parameters=True, pool_size=max_connections, max_overflow=0, pool_timeout=timeout_seconds
    )

    configured_file = files.configured_file(url)

    @event.listens_for(engine, "do_connect")
    def _connect(
        _dialect: object, _record: object, arguments: list[Any], keywords: dict[str, Any]
    ) -> sqlite3.Connection:
        file = configured_file.resolve()
        _create_private_file(file)
        opened: list[sqlite3.Connection] = []

        def connect_and_execute(statement: str) -> None:
            connection = sqlite3.connect(file, *arguments[1:], **{**keywords, "timeout": timeout_seconds})
            try:
                # None keeps the sqlite3 module from opening transactions itself and committing them too early.
                connection.isolation_level = None
                connection.execute(statement).fetchall()  # a failed commit raises only after the last row is read
                _empty_log(connection)
            except BaseException:
                connection.close()
                raise
            opened.append(connection)

        enable_write_ahead_log(connect_and_execute, deadline=time.monotonic() + timeout_seconds)
        return opened[0]

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {timeout_seconds * 1000:.0f}")
        # A commit must be on disk when it returns. With the write-ahead log, EXTRA equals FULL. On file systems without
        # shared memory, SQLite keeps using its rollback journal, which is durable only with EXTRA.
        cursor.execute("PRAGMA synchronous = EXTRA")
        cursor.execute("PRAGMA foreign_keys = ON")
        configure_temporary_files(cursor)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(BEGIN_OPTION, "BEGIN"))

    return engine


def enable_write_ahead_log(connect_and_execute: Callable[[str], object], *, deadline: float) -> None:
    """Turn on the write-ahead log. Retry while another process is doing the same, because SQLite itself does not wait.

    Args:
        connect_and_execute: executes a statement on a new connection each time. After a failed commit, the connection
            cannot be used again: SQLite considers the log enabled but keeps using the rollback journal.
        deadline: when to stop retrying, on the clock of `time.monotonic`.
    """
    while True:
        try:
            connect_and_execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if time.monotonic() > deadline or primary_code(error) not in _LOCKED_CODES:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _create_private_file(path: Path) -> None:
    """Create the database file, readable only by its owner, unless it exists. It will hold encrypted passwords.

    Never open an existing file: closing it would release the locks that SQLite holds on it in this process.
    """
    if not path.exists():
        with suppress(OSError):  # another process got there first, or SQLite will report the cause
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _empty_log(connection: sqlite3.Connection) -> None:
    """Write an earlier process's write-ahead log back to the database and truncate it, unless it is in use.

    After a failed fsync, parts of the log may be missing on disk although they can still be read, and the system
    considers them written. Entries appended to that log would not survive a power failure.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        if primary_code(error) not in _UNWRITABLE_CODES:  # nothing will be appended to an unwritable log
            raise
