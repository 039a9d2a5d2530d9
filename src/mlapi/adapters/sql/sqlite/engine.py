"""Create engines for SQLite, with durable settings, the write-ahead log and explicit transactions."""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection

from mlapi.adapters.sql.closing_pool import ClosingPool
from mlapi.adapters.sql.sqlite import connections, files

BEGIN_OPTION = "mlapi_sqlite_begin"
"""Execution option for the statement that begins a transaction. The default is ``BEGIN``."""


def create(url: URL, *, timeout_seconds: float, max_connections: int) -> Engine:
    """Create an engine whose connections commit durably and wait for locks no longer than the timeout."""
    engine = create_engine(
        url,
        hide_parameters=True,
        poolclass=ClosingPool,
        pool_size=max_connections,
        max_overflow=0,
        pool_timeout=timeout_seconds,
    )

    configured_file = files.configured_file(url)

    @event.listens_for(engine, "do_connect")
    def _connect(
        _dialect: object, _record: object, _arguments: list[Any], keywords: dict[str, Any]
    ) -> sqlite3.Connection:
        file = configured_file.resolve()
        _create_private_file(file)
        return connections.connect(file, timeout_seconds=timeout_seconds, **keywords)

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        connections.configure(connection, timeout_seconds=timeout_seconds)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(BEGIN_OPTION, "BEGIN"))

    return engine


def _create_private_file(path: Path) -> None:
    """Create the database file, readable only by its owner, unless it exists. It will hold encrypted passwords.

    Never open an existing file: closing it would release the locks that SQLite holds on it in this process.
    """
    if not path.exists():
        with suppress(OSError):  # another process got there first, or SQLite will report the cause
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
