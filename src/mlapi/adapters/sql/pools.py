"""The connection pools of a database. They reconnect after a failover, a fork, and if an SQLite file was replaced."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import URL, Engine, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from mlapi import forks
from mlapi.adapters.sql.dialect import Dialect
from mlapi.adapters.sql.fork_gate import ForkGate
from mlapi.adapters.sql.idle_connections import IdleConnections
from mlapi.adapters.sql.loop_connection import LoopConnection
from mlapi.domain.errors import RepositoryUnavailableError

MAX_BROWSING_CONNECTIONS = 4
"""For pages and searches by admins, so that they never use the connections of logins, changes or the guard."""
_FORK_TIMEOUT_SECONDS = 10.0
"""How long a fork waits for transactions in an SQLite file."""
_SERVER_FORK_TIMEOUT_SECONDS = 1.0
"""How long a fork waits for transactions in PostgreSQL, which can also continue during the fork."""


class ConnectionPools:
    """The connection pools of a database. They connect on first use, and again in a forked child.

    Args:
        url: from `mlapi.adapters.sql.urls.database_url`.
        dialect: the dialect for this URL.
        timeout_seconds: for connecting, for waiting for a lock, and for waiting for a connection or a turn to write.
        max_connections: size of the pool ``engine``.

    Raises:
        ConfigurationError: see `Dialect.create_engine`.
    """

    def __init__(self, url: URL, dialect: Dialect[Any], *, timeout_seconds: float, max_connections: int) -> None:
        self._url = url
        self._dialect = dialect
        self._timeout_seconds = timeout_seconds
        self._max_connections = max_connections
        self._inherited: list[LoopConnection] = []
        self._is_file = bool(dialect.files(url))
        self.operations = ForkGate()
        """Every use of a connection happens inside of this."""
        self._create()
        forks.call_in_children(self._restart)
        forks.pause_during_forks(self)
        self._find_file_change = dialect.create_file_change_check(url)

    def _create(self) -> None:
        self.engine = self._create_engine(self._max_connections)
        self.browsing = self._create_engine(MAX_BROWSING_CONNECTIONS)
        """For pages and searches by admins."""
        self.nonblocking = IdleConnections[PoolProxiedConnection]()
        """Connections that raise an error instead of waiting for a lock."""
        self.for_loop = LoopConnection(self._open_for_loop)
        """For queries on an event loop. Its place in the pool is the one of the thread that it replaces."""
        self._writers = threading.BoundedSemaphore(self._dialect.max_writers(self._max_connections))

    def _create_engine(self, max_connections: int) -> Engine:
        return self._dialect.create_engine(
            self._url, timeout_seconds=self._timeout_seconds, max_connections=max_connections
        )

    @contextmanager
    def write_slot(self) -> Iterator[None]:
        """Limit the number of threads that write at the same time to `Dialect.max_writers`."""
        if not self._writers.acquire(timeout=self._timeout_seconds):
            self.drop_stale_connections()
            raise RepositoryUnavailableError("the database is busy: too many threads are writing")
        try:
            yield
        finally:
            self._writers.release()

    def keep_nonblocking(self) -> None:
        """Open a nonblocking connection, unless one is idle."""
        idle = self.nonblocking
        if not idle:
            pooled: PoolProxiedConnection = self.engine.raw_connection()
            connection = pooled.driver_connection
            pooled.detach()  # it no longer counts against the size of the pool
            self._dialect.set_nowait(connection)
            idle.give_back(pooled)

    def _open_for_loop(self) -> PoolProxiedConnection | None:
        pooled = self.engine.raw_connection()
        if self._dialect.supports_loops(pooled.driver_connection):
            return pooled
        pooled.close()
        return None

    def check_not_replaced(self) -> None:
        """Reconnect if an SQLite file was replaced since the last call, and raise an error if it was removed.

        Connections that are open still use the old file, so no other process would see what they write.
        """
        if self._is_file and self.operations.is_torn:
            raise RepositoryUnavailableError("this process was forked during a transaction: fork before or after it")
        change = self._find_file_change()
        if change is not None:
            self.close()
        if change == "removed":
            raise RepositoryUnavailableError("the database file was removed")

    def drop_stale_connections(self) -> None:
        """Break connections that are stuck on a former primary and may have exhausted the pool."""
        with suppress(DBAPIError, self.engine.dialect.loaded_dbapi.Error):  # raised while no primary is available
            self._dialect.drop_stale_connections(self.engine)

    def dispose(self) -> None:
        """Close the idle connections of the pools."""
        for_loop, self.for_loop = self.for_loop, LoopConnection(self._open_for_loop)
        for_loop.close()
        self.engine.dispose()
        self.browsing.dispose()

    def close(self) -> None:
        """Close all idle connections."""
        idle, self.nonblocking = self.nonblocking, IdleConnections()
        idle.close()
        self.dispose()

    def pause(self) -> None:
        """Before a fork, wait for the transactions of other threads. Close the connections to an SQLite file.

        The locks of SQLite's connections belong to the process that opened them. SQLite does not notice in a child
        that it has lost them, so no connection may be open there.
        """
        timeout_seconds = _FORK_TIMEOUT_SECONDS if self._is_file else _SERVER_FORK_TIMEOUT_SECONDS
        if self.operations.close(timeout_seconds=timeout_seconds) and self._is_file:
            self.close()

    def resume(self) -> None:
        """Continue after a fork."""
        self.operations.open()

    def _restart(self) -> None:
        """In a forked child, drop the connections of the parent without using them, and connect again on first use."""
        self._dialect.abandon(self.engine)
        self._dialect.abandon(self.browsing)
        self._inherited.append(self.for_loop)  # the pool would reset its connection
        self._create()
