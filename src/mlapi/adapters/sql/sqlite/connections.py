"""Open connections to an SQLite file, with durable settings and the write-ahead log."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlapi.adapters.sql.sqlite.errors import LOCKED_CODES, primary_code
from mlapi.adapters.sql.sqlite.temporary_files import configure_temporary_files

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection

_RETRY_SECONDS = 0.01
_UNWRITABLE_CODES = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}


def connect(database: Path | str, *, timeout_seconds: float, **options: Any) -> sqlite3.Connection:  # noqa: ANN401 - of sqlite3
    """Return a connection in autocommit mode, with the write-ahead log enabled.

    Args:
        database: the file, or its URI.
        timeout_seconds: how long to wait for a lock.
        options: other arguments of `sqlite3.connect`.
    """
    opened: list[sqlite3.Connection] = []

    def connect_and_execute(statement: str) -> None:
        connection = sqlite3.connect(database, timeout=timeout_seconds, **options)
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


def configure(connection: "sqlite3.Connection | DBAPIConnection", *, timeout_seconds: float) -> None:
    """Make commits durable, and wait for locks no longer than the timeout."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {timeout_seconds * 1000:.0f}")
    # A commit must be on disk when it returns. With the write-ahead log, EXTRA equals FULL. On file systems without
    # shared memory, SQLite keeps using its rollback journal, which is durable only with EXTRA.
    cursor.execute("PRAGMA synchronous = EXTRA")
    cursor.execute("PRAGMA foreign_keys = ON")
    configure_temporary_files(cursor)
    cursor.close()


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
            if time.monotonic() > deadline or primary_code(error) not in LOCKED_CODES:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


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
