"""One database: its URL, its engine, and transactions that raise our errors."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from sqlalchemy import URL, Connection, Engine, PoolProxiedConnection, Table, make_url
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import ArgumentError, DBAPIError, MultipleResultsFound, NoResultFound
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mlapi.adapters.sql import postgresql, sqlite
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError

_EXAMPLES = "write sqlite:///mlapi.db or postgresql://user:password@host:5432/database"
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
WAIT = 2.0
"""Seconds to wait for a connection, for a lock, and for a free place in the pool: each. Of two batches that wait for a
lock one after the other, the second must fail before whoever waits for it gives up."""
CONNECTIONS = 8
"""As many threads as ask the database at once."""
_ATTEMPTS = 4
_UNREADABLE = (ValueError, TypeError, MultipleResultsFound, NoResultFound)
"""What a damaged SQLite file leads to beside SQLite's own errors: text that is no time, say, or one name twice."""
UNDECODABLE = "Could not decode to UTF-8"
"""How sqlite3 begins to tell of text that is none, before it shows it."""
_ASK_THE_DOCTOR = "`mlapi doctor` looks at it"

T = TypeVar("T")


def database_url(text: str) -> URL:
    """Return the URL of a database that mlapi runs on.

    Raises:
        ConfigurationError: if it cannot be read, or names another kind. Never repeats it: it may hold a password.
    """
    try:
        url = make_url(text)
        (url.host or "").encode("idna")  # as the look-up of its address will
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"database.url cannot be read: {_EXAMPLES}") from None
    if url.drivername not in _DRIVERS:
        raise ConfigurationError(f"database.url names {url.drivername}, which mlapi does not run on: {_EXAMPLES}")
    url = url.set(drivername=_DRIVERS[url.drivername])
    if url.drivername == "sqlite":
        if url.host or url.query or not url.database or url.database == ":memory:":
            raise ConfigurationError(
                "database.url for SQLite must be three slashes and the path of a file, and no more: sqlite:///mlapi.db"
            )
        path = Path(url.database).absolute()
        try:
            usable = path.parent.is_dir() and not path.is_dir()
        except (OSError, ValueError):  # too long a name, a NUL, a folder that is closed to us
            usable = False
        if not usable:
            raise ConfigurationError(f"database.url: there is no folder for {url.database!r}; make it first")
    elif url.port == 0:
        raise ConfigurationError(f"database.url: 0 is no port: {_EXAMPLES}")
    return url


def connection_url(*, username: str, password: str, host: str, port: int, database: str) -> URL:
    """Return the URL of a PostgreSQL database given in parts, whatever characters they hold."""
    return URL.create(_DRIVERS["postgresql"], username, password, host, port, database)


def sqlite_file(url: URL) -> Path | None:
    """Return the absolute path of an SQLite database, or None for a server's."""
    return Path(url.database or "").absolute() if url.drivername == "sqlite" else None


class _Dialect(Protocol):
    """What `sqlite` and `postgresql` have in common."""

    def make_engine(self, url: URL, wait: float, connections: int) -> Engine: ...
    def insert(self, table: Table) -> sqlite_dialect.Insert | postgresql_dialect.Insert: ...
    def find_principals(self, connection: Any, subjects: Sequence[PrincipalId]) -> list[Principal | None]: ...  # noqa: ANN401 - as below
    def autocommitting(self, connection: Any) -> AbstractContextManager[None]: ...  # noqa: ANN401 - as below
    def begin(self, connection: Any) -> None: ...  # noqa: ANN401 - each has its driver's own
    def apply(self, connection: Any, commands: Sequence[Command]) -> list[Outcome]: ...  # noqa: ANN401 - as above
    def commit(self, connection: Any) -> None: ...  # noqa: ANN401 - as above
    def check(self, connection: Any) -> None: ...  # noqa: ANN401 - as above
    def is_transient(self, error: BaseException | None) -> bool: ...
    def drop_stale_connections(self, engine: Engine) -> None: ...


class Database:
    """An engine, and transactions that raise `RepositoryUnavailableError` for whatever goes wrong in them.

    Opens nothing until it is used; leaving it as a context closes it. ``engine`` may be given to whoever reads tables:
    pandas, say.

    Args:
        url: as `database_url` gives it.
        wait: seconds, see `WAIT`.
        connections: at most, see `CONNECTIONS`.

    Raises:
        ConfigurationError: if the URL is not for us, or psycopg is not installed.
    """

    def __init__(self, url: URL, *, wait: float = WAIT, connections: int = CONNECTIONS) -> None:
        self.wait = wait
        self.is_sqlite = url.drivername == "sqlite"
        self.dialect: _Dialect = sqlite if self.is_sqlite else postgresql
        self.engine = self.dialect.make_engine(url, wait, connections)
        self._driver_error: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        self._file = sqlite_file(url)
        self._identity: tuple[int, int] | None = None
        """Device and number of the file that is open."""
        self._nonblocking: list[PoolProxiedConnection] = []
        """Connections for `read_nowait` that nobody uses: as many as ever read at the same time."""
        # SQLite has one writer at a time, and lets the waiting ones race for the next turn: under load some starve. So
        # the threads of this process queue here, in order. On PostgreSQL a commit can hang for as long as a standby is
        # away: half of the connections are for reading, which goes on.
        self._writers = threading.BoundedSemaphore(1 if self.is_sqlite else max(1, connections // 2))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads."""
        self._refuse_another_file()
        with self._translating(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is durable when this is left, and undone when it is left by an error."""
        self._refuse_another_file()
        with self._turn(), self._translating(), self.engine.connect() as connection:
            options = {sqlite.BEGIN: "BEGIN IMMEDIATE"} if self.is_sqlite else {}
            with connection.execution_options(**options).begin():
                yield connection

    def read(self, work: Callable[[Connection], T]) -> T:
        """Return what ``work`` reads. A connection that was lost since its last use does not show."""

        def attempt() -> T:
            with self.engine.connect() as connection, connection.begin():
                return work(connection)

        self._refuse_another_file()
        with self._translating():
            return self._repeating(attempt)

    def read_batch(self, work: Callable[[Any], T]) -> T:
        """Return what ``work`` reads with the driver's own connection, each of its statements for itself."""

        def attempt() -> T:
            pooled = self.engine.raw_connection()
            with _invalidated_by_errors(pooled), self.dialect.autocommitting(pooled.driver_connection):
                result = work(pooled.driver_connection)
            pooled.close()
            return result

        self._refuse_another_file()
        with self._translating():
            result = self._repeating(attempt)
            if self.is_sqlite and not self._nonblocking:
                self._nonblocking.append(self._new_nonblocking())
        return result

    def read_nowait(self, work: Callable[[Any], T]) -> T:
        """Return what ``work`` reads of SQLite, with a connection that waits for no lock, and raises instead.

        Readers of its write-ahead log wait for nobody but whoever has the whole database for himself. Where there is no
        such connection it raises too, as opening one may wait: `read_batch` does that.
        """
        self._refuse_another_file()
        try:
            pooled = self._nonblocking.pop()
        except IndexError:
            raise RepositoryUnavailableError("no connection that waits for nobody") from None
        try:
            result = work(pooled.dbapi_connection)
        except BaseException as error:
            pooled.close()
            if isinstance(error, (self._driver_error, *_UNREADABLE)):
                raise _unavailable(error) from error
            raise
        self._nonblocking.append(pooled)
        return result

    def write_batch(self, work: Callable[[Any], T], *, commit_by: float | None = None) -> T:
        """Return what ``work`` has made of the driver's own connection, once that is durable.

        What could only be committed after ``commit_by``, a time of `time.monotonic`, is undone and raises.
        ``work`` is called again if it met a lost connection, a deadlock or the like before it ended.
        """

        def attempt() -> tuple[PoolProxiedConnection, T]:
            pooled = self.engine.raw_connection()
            with _invalidated_by_errors(pooled):
                self.dialect.begin(pooled.driver_connection)
                return pooled, work(pooled.driver_connection)

        self._refuse_another_file()
        with self._turn(), self._translating():
            pooled, result = self._repeating(attempt)
            with _invalidated_by_errors(pooled):
                if commit_by is not None and time.monotonic() > commit_by:
                    raise RepositoryUnavailableError("too late to commit")
                # Not repeated: if this fails, it may have been done all the same.
                self.dialect.commit(pooled.driver_connection)
            pooled.close()
            return result

    def close(self) -> None:
        while self._nonblocking:
            self._nonblocking.pop().close()
        self.engine.dispose()

    def _new_nonblocking(self) -> PoolProxiedConnection:
        pooled: PoolProxiedConnection = self.engine.raw_connection()
        connection = pooled.driver_connection
        assert isinstance(connection, sqlite3.Connection)  # noqa: S101 - `is_sqlite` says so
        pooled.detach()  # its place in the pool is free again
        sqlite.disable_waiting(connection)
        return pooled

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _refuse_another_file(self) -> None:
        """Raise if the file of an SQLite database was removed or replaced since it was opened; what is next opens anew.

        The connections would go on with the file that was there before, and nobody else would see it.
        """
        if self._file is None:
            return
        try:
            status = self._file.stat()
        except OSError:
            identity = None  # not made yet, or gone
        else:
            identity = status.st_dev, status.st_ino
        before, self._identity = self._identity, identity
        if before is not None and identity != before:
            self.close()
            raise RepositoryUnavailableError("the database file was removed or replaced")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._writers.acquire(timeout=self.wait):
            self._drop_stale_connections()
            raise RepositoryUnavailableError("the database is busy: no turn to write")
        try:
            yield
        finally:
            self._writers.release()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise _unavailable(error.orig) from error
        except self._driver_error as error:
            raise _unavailable(error) from error
        except _UNREADABLE as error:
            if not self.is_sqlite:
                raise
            raise _unavailable(error) from error
        except PoolTimeoutError as error:
            self._drop_stale_connections()
            raise RepositoryUnavailableError("the database is busy: no free connection") from error

    def _drop_stale_connections(self) -> None:
        """Where all connections are taken: free those that wait for a server which is not the primary any more."""
        with suppress(DBAPIError, self._driver_error):  # no primary yet
            self.dialect.drop_stale_connections(self.engine)

    def _repeating(self, attempt: Callable[[], T]) -> T:
        """Call an attempt again, at once, while it fails for a reason that a new one does not meet."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return attempt()
            except (DBAPIError, self._driver_error) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                if not self.dialect.is_transient(cause):
                    raise
                self.engine.dispose()  # the other connections that wait in the pool are no better
        return attempt()


@contextmanager
def _invalidated_by_errors(pooled: PoolProxiedConnection) -> Iterator[None]:
    """Close a connection that met an error: it may be lost, within something, or read-only since a failover."""
    try:
        yield
    except BaseException:
        pooled.invalidate()
        raise


def _unavailable(cause: BaseException | None) -> RepositoryUnavailableError:
    kind = type(cause).__name__
    # Of these the words may show a value, and that may be anything.
    if isinstance(cause, _UNREADABLE) or str(cause).startswith(UNDECODABLE):
        return RepositoryUnavailableError(f"the file holds what cannot be read ({kind}); {_ASK_THE_DOCTOR}")
    first_line = str(cause).strip().partition("\n")[0]
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the primary one
    advice = f"; {_ASK_THE_DOCTOR}" if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} else ""
    return RepositoryUnavailableError(f"{kind}: {first_line}{advice}")
