"""Keep connections to an SQLite file open between operations. Services and guards use this module."""

from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from mlapi.domain.errors import RepositoryUnavailableError

MAX_IDLE_CONNECTIONS = 8


class Closable(Protocol):
    """A connection."""

    def close(self) -> None: ...


ConnectionT = TypeVar("ConnectionT", bound=Closable)


class IdleConnections(Generic[ConnectionT]):
    """The idle connections to one version of a file.

    After the file was replaced, close this object and create another one. Connections that are in use at that moment
    still use the old file, so they are closed when they are given back.

    There is no lock, because every query passes through this object: list operations are atomic.
    """

    def __init__(self) -> None:
        self._idle: list[ConnectionT] = []
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> ConnectionT | None:
        """Return a connection for one operation, or None if none is idle."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def take_nowait(self) -> ConnectionT:
        """Return a connection for one operation.

        Raises:
            RepositoryUnavailableError: if none is idle. Opening a connection could wait.
        """
        connection = self.take()
        if connection is None:
            raise RepositoryUnavailableError("no nonblocking connection is idle")
        return connection

    def give_back(self, connection: ConnectionT) -> None:
        """Keep a connection for the next operation, or close it."""
        if len(self._idle) >= MAX_IDLE_CONNECTIONS:
            connection.close()
            return
        self._idle.append(connection)
        if self._is_closed:  # check this after adding the connection, so that `close` cannot miss it
            self.close()

    def close(self) -> None:
        """Close all idle connections now, and the others when they are given back."""
        self._is_closed = True
        with suppress(IndexError):
            while True:
                self._idle.pop().close()
