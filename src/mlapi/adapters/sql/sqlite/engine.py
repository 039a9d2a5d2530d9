"""Create engines for SQLite: durable settings, the write-ahead log and explicit transactions."""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection

BEGIN_OPTION = "mlapi_sqlite_begin"
"""Execution option with the statement that begins a transaction; ``BEGIN`` without it."""

_RETRY_SECONDS = 0.01
_LOCKED_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL}
_UNWRITABLE_CODES = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}


def create(url: URL, *, timeout_seconds: float, max_connections: int) -> Engine:
    """Create an engine. Its connections are durable and wait for locks no longer than the timeout."""
    engine = create_engine(
        url, hide_parameters=True, pool_size=max_connections, max_overflow=0, pool_timeout=timeout_seconds
    )

    @event.listens_for(engine, "do_connect")
    def _connect(
        _dialect: object, _record: object, arguments: list[Any], keywords: dict[str, Any]
    ) -> sqlite3.Connection:
        _create_private_file(Path(arguments[0]))
        opened: list[sqlite3.Connection] = []

        def connect_and_execute(statement: str) -> None:
            connection = sqlite3.connect(*arguments, **{**keywords, "timeout": timeout_seconds})
            try:
                # None turns off the sqlite3 module's own transactions, which commit too early.
                connection.isolation_level = None
                connection.execute(statement).fetchall()  # a failed commit shows only after the last row
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
        # A commit must be on disk when it returns. With the write-ahead log EXTRA equals FULL. Some file systems have
        # no shared memory for the log: SQLite then keeps its rollback journal, and only EXTRA makes that durable.
        cursor.execute("PRAGMA synchronous = EXTRA")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(BEGIN_OPTION, "BEGIN"))

    return engine


def enable_write_ahead_log(connect_and_execute: Callable[[str], object], *, deadline: float) -> None:
    """Turn on the write-ahead log. Retry while another process does the same: SQLite does not wait for it.

    Args:
        connect_and_execute: runs a statement on a new connection each time. If the commit fails on a
            connection, SQLite considers its log enabled but keeps using the rollback journal.
        deadline: a time of `time.monotonic` after which nothing is retried.
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


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, or 0 for an error of the sqlite3 module itself."""
    extended_code: int = getattr(error, "sqlite_errorcode", 0)
    return extended_code & 0xFF


def _create_private_file(path: Path) -> None:
    """Create a missing database file so that only its owner can read it: it will hold encrypted passwords.

    Never open a file that exists: closing it would release the locks that SQLite holds on it in this process.
    """
    if not path.exists():
        with suppress(OSError):  # another process was faster, or SQLite reports the cause
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _empty_log(connection: sqlite3.Connection) -> None:
    """Write back and truncate the write-ahead log of an earlier process, unless the log is in use.

    If an fsync of the log has failed, parts of it may be missing on disk although they can be read, and the system
    takes them for written. Entries appended to such a log would not survive a power failure.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        if primary_code(error) not in _UNWRITABLE_CODES:  # nothing can be appended to those, but they can be read
            raise
