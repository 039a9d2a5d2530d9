"""Transactions of one database, and the translation of its errors."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar

from sqlalchemy import URL, Connection, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mlapi.adapters.sql.dialect import Dialect, dialect_for
from mlapi.adapters.sql.urls import sqlite_file
from mlapi.domain.errors import RepositoryUnavailableError

TIMEOUT_SECONDS = 2.0
"""How long to wait for a connection, for a lock, and for a free connection of the pool: each. A batch that waits for a
second such timeout must fail before its clients give up."""
MAX_CONNECTIONS = 8
"""One for each thread of the service that uses the database."""
_MAX_ATTEMPTS = 4

T = TypeVar("T")


class Database:
    """An engine, and transactions that raise `RepositoryUnavailableError` for every fault of the database.

    Connects on first use. Use it as a context manager, or call `close`. Other code that reads tables, such as pandas,
    can use ``engine``.

    Args:
        url: from `mlapi.adapters.sql.urls.database_url`.
        timeout_seconds: see `TIMEOUT_SECONDS`.
        max_connections: size of the pool.

    Raises:
        ConfigurationError: if the URL has an unknown option, or psycopg is not installed.
    """

    def __init__(
        self, url: URL, *, timeout_seconds: float = TIMEOUT_SECONDS, max_connections: int = MAX_CONNECTIONS
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self.dialect: Dialect[Any] = dialect_for(url.get_backend_name())
        self.engine = self.dialect.create_engine(url, timeout_seconds=timeout_seconds, max_connections=max_connections)
        self._driver_error: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        self._file = sqlite_file(url)
        self._file_identity: tuple[int, int] | None = None
        """Device and inode of the file that is open."""
        self._nonblocking: list[PoolProxiedConnection] = []
        """Idle connections for `read_nowait`: as many as were ever in use at the same time."""
        self._writers = threading.BoundedSemaphore(self.dialect.max_writers(max_connections))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that reads."""
        self._check_file_identity()
        with self._translating_errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that is durable after the block, or rolled back if the block raises an error."""
        self._check_file_identity()
        with self._write_slot(), self._translating_errors(), self.engine.connect() as connection:
            connection.execution_options(**self.dialect.write_options)
            with connection.begin():
                yield connection

    def read(self, work: Callable[[Connection], T]) -> T:
        """Call ``work`` in a transaction and return its result. Retries if the pooled connection was lost."""

        def attempt() -> T:
            with self.engine.connect() as connection, connection.begin():
                return work(connection)

        self._check_file_identity()
        with self._translating_errors():
            return self._retrying(attempt)

    def read_batch(self, work: Callable[[Any], T]) -> T:
        """Call ``work`` with the driver's own connection and return its result. Each statement is a transaction."""

        def attempt() -> T:
            pooled = self.engine.raw_connection()
            with _invalidated_by_errors(pooled), self.dialect.autocommit(pooled.driver_connection):
                result = work(pooled.driver_connection)
            pooled.close()
            return result

        self._check_file_identity()
        with self._translating_errors():
            result = self._retrying(attempt)
            if self.dialect.supports_nowait and not self._nonblocking:
                self._nonblocking.append(self._open_nonblocking())
        return result

    def read_nowait(self, work: Callable[[Any], T]) -> T:
        """Call ``work`` with a driver's connection that raises an error instead of waiting for a lock.

        Readers of SQLite's write-ahead log wait only for a process that locks the whole file. Opening a connection may
        wait too, so this raises an error unless one is idle. `read_batch` opens the first.
        """
        self._check_file_identity()
        try:
            pooled = self._nonblocking.pop()
        except IndexError:
            raise RepositoryUnavailableError("no nonblocking connection is open") from None
        try:
            result = work(pooled.dbapi_connection)
        except BaseException as error:
            pooled.close()
            if isinstance(error, (self._driver_error, *self.dialect.data_errors)):
                raise self._unavailable(error) from error
            raise
        self._nonblocking.append(pooled)
        return result

    def write_batch(self, work: Callable[[Any], T], *, commit_by: float | None = None) -> T:
        """Call ``work`` with the driver's own connection, and return its result when that is durable.

        Calls ``work`` again after a lost connection, a deadlock or another transient error before the commit.

        Args:
            work: executes statements in the transaction.
            commit_by: a time of `time.monotonic`. A transaction that is not ready to commit by then is rolled back.

        Raises:
            RepositoryUnavailableError: also if it is too late to commit.
        """

        def attempt() -> tuple[PoolProxiedConnection, T]:
            pooled = self.engine.raw_connection()
            with _invalidated_by_errors(pooled):
                self.dialect.begin(pooled.driver_connection)
                return pooled, work(pooled.driver_connection)

        self._check_file_identity()
        with self._write_slot(), self._translating_errors():
            pooled, result = self._retrying(attempt)
            with _invalidated_by_errors(pooled):
                if commit_by is not None and time.monotonic() > commit_by:
                    raise RepositoryUnavailableError("too late to commit")
                # Do not retry a failed commit: it may have succeeded.
                self.dialect.commit(pooled.driver_connection)
            pooled.close()
            return result

    def close(self) -> None:
        """Close all connections. The next use opens new ones."""
        while self._nonblocking:
            self._nonblocking.pop().close()
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _open_nonblocking(self) -> PoolProxiedConnection:
        pooled: PoolProxiedConnection = self.engine.raw_connection()
        connection = pooled.driver_connection
        pooled.detach()  # it no longer counts against the size of the pool
        self.dialect.set_nowait(connection)
        return pooled

    def _check_file_identity(self) -> None:
        """Raise an error if the file of an SQLite database was removed or replaced, and use the new file afterwards.

        Open connections would still use the old file, and no other process would see their writes.
        """
        if self._file is None:
            return
        try:
            status = self._file.stat()
        except OSError:
            identity = None  # it does not exist yet, or no longer
        else:
            identity = status.st_dev, status.st_ino
        previous, self._file_identity = self._file_identity, identity
        if previous is not None and identity != previous:
            self.close()
            raise RepositoryUnavailableError("the database file was removed or replaced")

    @contextmanager
    def _write_slot(self) -> Iterator[None]:
        """Limit the number of threads that write at the same time, see `Dialect.max_writers`."""
        if not self._writers.acquire(timeout=self.timeout_seconds):
            self._drop_stale_connections()
            raise RepositoryUnavailableError("the database is busy: too many threads are writing")
        try:
            yield
        finally:
            self._writers.release()

    @contextmanager
    def _translating_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._unavailable(error.orig) from error
        except (self._driver_error, *self.dialect.data_errors) as error:
            raise self._unavailable(error) from error
        except PoolTimeoutError as error:
            self._drop_stale_connections()
            raise RepositoryUnavailableError("the database is busy: no free connection") from error

    def _unavailable(self, error: BaseException | None) -> RepositoryUnavailableError:
        return RepositoryUnavailableError(self.dialect.describe_error(error))

    def _drop_stale_connections(self) -> None:
        """Free connections that wait for a former primary, after the pool has run out."""
        with suppress(DBAPIError, self._driver_error):  # no primary is available yet
            self.dialect.drop_stale_connections(self.engine)

    def _retrying(self, attempt: Callable[[], T]) -> T:
        """Call ``attempt`` and return its result. Retry immediately after a transient error."""
        for _ in range(_MAX_ATTEMPTS - 1):
            try:
                return attempt()
            except (DBAPIError, self._driver_error) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                if not self.dialect.is_transient(cause):
                    raise
                self.engine.dispose()  # the idle connections of the pool are probably lost, too
        return attempt()


@contextmanager
def _invalidated_by_errors(pooled: PoolProxiedConnection) -> Iterator[None]:
    """Close a connection after an error: it may be lost, in a transaction, or read-only since a failover."""
    try:
        yield
    except BaseException:
        pooled.invalidate()
        raise
