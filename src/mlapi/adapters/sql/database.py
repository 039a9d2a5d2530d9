"""Run transactions in a database, and translate its errors."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Self, TypeVar

from sqlalchemy import URL, Connection, Engine, PoolProxiedConnection, UpdateBase
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mlapi.adapters.sql.dialect import Dialect, dialect_for
from mlapi.adapters.sql.existing import Purpose
from mlapi.adapters.sql.pools import ConnectionPools
from mlapi.domain.errors import ReadOnlyRepositoryError, RepositoryUnavailableError
from mlapi.forks import notice_fork
from mlapi.interruption import current_interruption, took_too_long

TIMEOUT_SECONDS = 2.0
"""Timeout for connecting, for waiting for a lock, and for waiting for a pooled connection. A batch may run into two of
these timeouts, and must still fail before its clients give up."""
MAX_CONNECTIONS = 8
"""One for each thread of the service that uses the database."""
_MAX_ATTEMPTS = 4

T = TypeVar("T")


class BatchRejectedError(Exception):
    """A constraint or a trigger rejected a batch, which was rolled back.

    Args:
        reason: describes the error, without stored values.
        is_reference: whether the constraint is a foreign key.
    """

    def __init__(self, reason: str, *, is_reference: bool) -> None:
        super().__init__(reason)
        self.is_reference = is_reference


class Database:
    """Runs transactions, which raise `RepositoryUnavailableError` for every database fault.

    The errors hide the driver's own errors, whose messages may contain stored values or parts of the URL.

    It connects on first use. Use it as a context manager, or call `close`. Other code that reads tables, such as
    pandas, can use ``engine``.

    Args:
        url: from `mlapi.adapters.sql.urls.database_url`.
        namespace: the PostgreSQL schema that contains the tables; None for the first one on the ``search_path``.
        timeout_seconds: see `TIMEOUT_SECONDS`.
        max_connections: size of the connection pool.

    Raises:
        ConfigurationError: if the URL has an unknown option, psycopg is needed and not installed, or there is a
            namespace and the database is not PostgreSQL.
    """

    def __init__(
        self,
        url: URL,
        *,
        namespace: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self.dialect: Dialect[Any] = dialect_for(url.get_backend_name(), namespace)
        self.pools = ConnectionPools(
            url, self.dialect, timeout_seconds=timeout_seconds, max_connections=max_connections
        )
        self._driver_error: type[Exception] = self.engine.dialect.loaded_dbapi.Error

    @property
    def engine(self) -> Engine:
        """The engine of all transactions except those of `browse`. A forked child has another one."""
        return self.pools.engine

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read transaction. `read` can also repeat the reads if the connection is lost during them."""
        with self._operation():
            stack, connection = self._retrying(self._begin)
            with stack:
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a write transaction. It is committed durably after the block, or rolled back if the block raises.

        `write` can also repeat the changes if the connection is lost before the commit.
        """
        with self._operation(writes=True):
            stack, connection = self._retrying(partial(self._begin, **self.dialect.write_options))
            with stack:
                yield connection
                self._commit_sqlalchemy(connection)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Call ``work`` in a transaction and return its result. Retry after a transient error."""

        def attempt() -> T:
            with self.engine.connect() as connection, connection.begin():
                return work(connection)

        with self._operation():
            return self._retrying(attempt)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Call ``work`` in a write transaction, commit durably, and return its result.

        After a transient error before the commit, ``work`` is called again. A failed commit is never repeated, because
        it may have succeeded.

        Raises:
            RepositoryUnavailableError: if the database is unavailable.
        """

        def attempt() -> T:
            with self.engine.connect() as connection:
                connection.execution_options(**self.dialect.write_options)
                with connection.begin():
                    result = work(connection)
                    self._commit_sqlalchemy(connection)
            return result

        with self._operation(writes=True):
            return self._retrying(attempt)

    def execute(
        self, statement: UpdateBase, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> int:
        """Execute a statement like `write`, for one or several rows. Return the number of rows that it changed."""
        return self.write(lambda connection: connection.execute(statement, parameters).rowcount)

    def browse(self, work: Callable[[Connection], T]) -> T:
        """Like `read`, but for pages and searches by admins: use separate connections, and allow interruptions.

        Raises:
            SearchUnavailableError: if the current `Interruption` ended the read.
        """
        interruption = current_interruption()

        def attempt() -> T:
            with self.pools.browsing.connect() as connection, connection.begin():
                if interruption is None:
                    return work(connection)
                with self.dialect.interruptible(connection, interruption):
                    return work(connection)

        with self._operation():
            try:
                return self._retrying(attempt)
            except DBAPIError as error:
                if interruption is not None and self.dialect.is_interruption(error.orig):
                    raise took_too_long() from None
                raise

    def read_batch(self, work: Callable[[Any], T]) -> T:
        """Call ``work`` with a driver connection in autocommit mode and return its result."""
        with self._operation():
            result = self._retrying(partial(self._run_autocommit, work))
            if self.dialect.supports_nowait:
                self.pools.keep_nonblocking()
            with suppress(DBAPIError, self._driver_error, PoolTimeoutError):  # the result is there without it
                self.pools.for_loop.open_if_wanted()
        return result

    def read_nowait(self, work: Callable[[Any], T]) -> T:
        """Call ``work`` with a driver connection that raises an error instead of waiting for a lock.

        Readers of SQLite's write-ahead log wait only for a process that locks the whole file. Opening a connection
        could wait too, so this only uses idle connections and raises an error if there is none. `read_batch` opens one.
        """
        pools = self.pools
        if pools.operations.is_closed:
            raise RepositoryUnavailableError("the process is forking")
        with pools.operations:
            pools.check_not_replaced()
            idle = pools.nonblocking
            pooled = idle.take_nowait()
            try:
                result = work(pooled.dbapi_connection)
            except BaseException as error:
                pooled.close()
                if isinstance(error, (self._driver_error, *self.dialect.data_errors)):
                    raise self._unavailable(error) from None
                raise
            idle.give_back(pooled)
        return result

    async def read_async(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Call ``work`` with a driver connection in autocommit mode, on the running event loop, without a thread.

        Raises:
            RepositoryUnavailableError: if no connection is open for this, or after any fault. Call `read_batch` in a
                thread then: it retries, and opens the connection.
        """
        notice_fork()
        connection = self.pools.for_loop
        pooled = connection.take()
        try:
            result = await work(pooled.driver_connection)
        except BaseException as error:
            connection.discard(pooled)
            if isinstance(error, self._driver_error):
                raise self._unavailable(error) from None
            raise
        connection.give_back(pooled)
        return result

    def write_repeatable(self, work: Callable[[Any], T]) -> T:
        """Call ``work`` with a driver connection in autocommit mode and return its result.

        After a transient error, such as a lost connection, ``work`` is called again. Its statement may then take effect
        twice: the connection can be lost after the statement was committed.
        """
        with self._operation(writes=True):
            return self._retrying(partial(self._run_autocommit, work))

    def write_batch(self, work: Callable[[Any], T], *, commit_by: float | None = None) -> T:
        """Call ``work`` with a driver connection in a write transaction, commit durably, and return its result.

        After a transient error before the commit, such as a lost connection or a deadlock, ``work`` is called again.

        Args:
            work: executes statements in the transaction.
            commit_by: a deadline, on the clock of `time.monotonic`. If it has passed, roll back instead of committing.

        Raises:
            RepositoryUnavailableError: if the database is unavailable, or ``commit_by`` has passed.
        """
        try:
            return self.apply_batch(work, commit_by=commit_by)
        except BatchRejectedError as rejected:
            raise RepositoryUnavailableError(str(rejected)) from None

    def apply_batch(
        self,
        work: Callable[[Any], T],
        *,
        commit_by: float | None = None,
        write_and_commit: Callable[[Any], T | None] = lambda _connection: None,
    ) -> T:
        """Write a batch like `write_batch`, but raise `BatchRejectedError` if a constraint or trigger rejects it.

        Args:
            work: see `write_batch`.
            commit_by: see `write_batch`.
            write_and_commit: called first, without a transaction. If it returns None, it has done nothing.

        Raises:
            RepositoryUnavailableError: see `write_batch`.
            BatchRejectedError: if a constraint or a trigger rejects a change, immediately or at the commit.
        """

        def attempt() -> T:
            pooled = self.engine.raw_connection()
            with self._invalidated_by_errors(pooled):
                result = write_and_commit(pooled.driver_connection)
                if result is None:
                    self.dialect.begin(pooled.driver_connection)
                    result = work(pooled.driver_connection)
                    if commit_by is not None and time.monotonic() > commit_by:
                        raise RepositoryUnavailableError("too late to commit")
                    self._commit(pooled.driver_connection)
            pooled.close()
            return result

        with self._operation(writes=True):
            try:
                return self._retrying(attempt)
            except self._driver_error as error:
                if not self.dialect.is_rejection(error):
                    raise
                is_reference = self.dialect.is_reference(error)
                raise BatchRejectedError(self.dialect.describe_error(error), is_reference=is_reference) from None

    @contextmanager
    def open_existing(self, purpose: Purpose) -> Iterator[Connection]:
        """Open a transaction in an existing database, without a statement timeout. This creates and changes nothing.

        The transaction is committed after the block, or rolled back if the block raises. An SQLite file keeps its
        journal mode. On SQLite, foreign keys are not enforced, so that a table can be replaced.

        Raises:
            ConfigurationError: if the SQLite file does not exist.
            RepositoryUnavailableError: if the database is unavailable, locked or unreadable.
        """
        with self.pools.operations, self.dialect.open_existing(self, purpose) as connection:
            yield connection

    def close(self) -> None:
        """Close all connections. The database can still be used; it then connects again."""
        self.pools.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _run_autocommit(self, work: Callable[[Any], T]) -> T:
        pooled = self.engine.raw_connection()
        with self._invalidated_by_errors(pooled):
            result = self.dialect.run_autocommit(pooled.driver_connection, work)
        pooled.close()
        return result

    def _begin(self, **options: str) -> tuple[ExitStack, Connection]:
        """Begin a transaction on a working connection. Return the connection, and a stack that ends both."""
        with ExitStack() as stack:
            connection = stack.enter_context(self.engine.connect())
            connection.execution_options(**options)
            stack.enter_context(connection.begin())  # raises an error if the connection is lost
            return stack.pop_all(), connection

    def _commit(self, connection: Any) -> None:  # noqa: ANN401 - a connection of the driver
        """Commit. If the commit fails, raise an error that `_retrying` does not catch, except for a rejection.

        Any other failed commit may have succeeded.
        """
        try:
            self.dialect.commit(connection)
        except self._driver_error as error:
            if self.dialect.is_rejection(error):
                raise
            raise self._unavailable(error) from None

    def _commit_sqlalchemy(self, connection: Connection) -> None:
        try:
            self._commit(connection.connection.driver_connection)
        except RepositoryUnavailableError:
            connection.invalidate()  # SQLAlchemy would use it for a rollback
            raise

    @contextmanager
    def _operation(self, *, writes: bool = False) -> Iterator[None]:
        """Keep the process from forking during the block, limit the number of writers, and translate the errors."""
        with self.pools.operations, self.pools.write_slot() if writes else nullcontext():
            try:
                self.pools.check_not_replaced()
                yield
            except DBAPIError as error:
                raise self._unavailable(error.orig, writes=writes) from None
            except (self._driver_error, *self.dialect.data_errors) as error:
                raise self._unavailable(error, writes=writes) from None
            except PoolTimeoutError:
                self.pools.drop_stale_connections()
                raise RepositoryUnavailableError("the database is busy: no free connection") from None

    @contextmanager
    def _invalidated_by_errors(self, pooled: PoolProxiedConnection) -> Iterator[None]:
        """Close a connection after an error: it may be broken, still in a transaction, or read-only after a failover.

        After a rejected change, it works, and the pool rolls the transaction back.
        """
        try:
            yield
        except BaseException as error:
            if self.dialect.is_rejection(error):
                pooled.close()
            else:
                pooled.invalidate()
            raise

    def _unavailable(self, error: BaseException | None, *, writes: bool = False) -> RepositoryUnavailableError:
        is_read_only = writes and self.dialect.is_read_only(error)
        kind = ReadOnlyRepositoryError if is_read_only else RepositoryUnavailableError
        return kind(self.dialect.describe_error(error))

    def _retrying(self, attempt: Callable[[], T]) -> T:
        """Call ``attempt`` and return its result. After a transient error, retry immediately on a new connection.

        The first attempt is always repeated. It can be slow, because its connection may have been cut silently.
        """
        last_start = time.monotonic() + 2 * self.timeout_seconds
        attempts = 0
        while True:
            attempts += 1
            try:
                return attempt()
            except (DBAPIError, self._driver_error) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                if self.dialect.is_connection_lost(cause):  # the idle connections in the pools are probably lost, too
                    self.pools.dispose()
                if not self.dialect.is_transient(cause):
                    raise
                if attempts == _MAX_ATTEMPTS or (attempts > 1 and time.monotonic() > last_start):
                    raise
