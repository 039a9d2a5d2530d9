"""Keep one pooled connection for queries that an event loop waits for, without a thread."""

from collections.abc import Callable
from typing import final

from sqlalchemy import PoolProxiedConnection

from mlapi.domain.errors import RepositoryUnavailableError


@final
class LoopConnection:
    """A connection for one query at a time, on an event loop. Only a thread can open it, because opening it waits.

    There is no lock, because each step is atomic.

    Args:
        open_connection: takes a connection from the pool. Returns None if the database does not support such queries.
    """

    def __init__(self, open_connection: Callable[[], PoolProxiedConnection | None]) -> None:
        self._open = open_connection
        self._idle: list[PoolProxiedConnection] = []
        self._is_wanted = False
        self._is_open = False
        self._is_closed = False

    def take(self) -> PoolProxiedConnection:
        """Return the connection for one query. Call `give_back` or `discard` afterwards.

        Raises:
            RepositoryUnavailableError: if it is in use or not open. The next call of `open_if_wanted` opens it.
        """
        try:
            return self._idle.pop()
        except IndexError:
            self._is_wanted = not self._is_open
            raise RepositoryUnavailableError("no connection for event loops is idle") from None

    def give_back(self, connection: PoolProxiedConnection) -> None:
        self._idle.append(connection)
        if self._is_closed:  # check this after adding the connection, so that `close` cannot miss it
            self.close()

    def discard(self, connection: PoolProxiedConnection) -> None:
        """Close a connection after an error: its query may be unfinished. The next `open_if_wanted` opens another."""
        connection.invalidate()
        self._is_open, self._is_wanted = False, True

    def open_if_wanted(self) -> None:
        """Open the connection if `take` was called in vain. The errors of the pool and the driver are raised."""
        if self._is_wanted:
            self._is_wanted, self._is_open = False, True
            try:
                connection = self._open()
            except BaseException:
                self._is_open = False
                raise
            if connection is not None:
                self.give_back(connection)

    def close(self) -> None:
        """Close the connection now, or when it is given back."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().invalidate()
