"""The protocol for what SQLite and PostgreSQL do differently. Everything else in this package serves both."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol, TypeVar

from sqlalchemy import URL, Connection, Engine, Table
from sqlalchemy.dialects import postgresql, sqlite

from mlapi.adapters.sql.postgresql import PostgresqlDialect
from mlapi.adapters.sql.sqlite import SqliteDialect
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import Principal, PrincipalId

DriverConnectionT_contra = TypeVar("DriverConnectionT_contra", contravariant=True)


class Dialect(Protocol[DriverConnectionT_contra]):
    """One kind of database. The type parameter is the connection class of its driver."""

    @property
    def supports_nowait(self) -> bool:
        """True if connections can read in microseconds, without waiting for locks. See `set_nowait`."""
        ...

    @property
    def write_options(self) -> Mapping[str, str]:
        """SQLAlchemy execution options for transactions that write."""
        ...

    @property
    def data_errors(self) -> tuple[type[Exception], ...]:
        """Exceptions, beside the driver's own, that reading damaged data can raise."""
        ...

    def create_engine(self, url: URL, *, timeout_seconds: float, max_connections: int) -> Engine:
        """Create an engine. Its connections are durable and wait for locks no longer than the timeout.

        Raises:
            ConfigurationError: if the driver is not installed or the URL has an unknown option.
        """
        ...

    def max_writers(self, max_connections: int) -> int:
        """Return how many threads may write at the same time."""
        ...

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """Return an INSERT statement that supports ON CONFLICT."""
        ...

    # --- errors

    def is_transient(self, error: BaseException | None) -> bool:
        """Return True if a retry on a new connection may succeed."""
        ...

    def describe_error(self, error: BaseException | None) -> str:
        """Describe a driver's error, or an error from `data_errors`, in one line without stored values."""
        ...

    def drop_stale_connections(self, engine: Engine) -> None:
        """Break connections that wait for a former primary."""
        ...

    # --- the driver's connection, for batches

    def begin(self, connection: DriverConnectionT_contra) -> None:
        """Begin a transaction that writes."""
        ...

    def commit(self, connection: DriverConnectionT_contra) -> None:
        """Commit durably.

        Raises:
            RepositoryUnavailableError: with ``may_be_done`` if the outcome of the commit is unknown.
        """
        ...

    def autocommit(self, connection: DriverConnectionT_contra) -> AbstractContextManager[None]:
        """Run each statement in a separate transaction."""
        ...

    def set_nowait(self, connection: DriverConnectionT_contra) -> None:
        """Make a connection raise instead of waiting for a lock. Called only if `supports_nowait`."""
        ...

    def apply(self, connection: DriverConnectionT_contra, commands: Sequence[Command]) -> list[Outcome]:
        """Apply commands in order in the current transaction, and write the audit entries."""
        ...

    def find_principals(
        self, connection: DriverConnectionT_contra, ids: Sequence[PrincipalId]
    ) -> list[Principal | None]:
        """Return the principal with each id, or None. Each statement sees everything that was committed before it."""
        ...

    def check_writable(self, connection: DriverConnectionT_contra) -> None:
        """Raise an error unless the current transaction can write."""
        ...

    # --- SQLAlchemy's connection, for everything else

    def disable_timeouts(self, connection: Connection) -> None:
        """Let the statements of the current transaction run, and wait for locks, indefinitely."""
        ...

    def lock_schema(self, connection: Connection) -> None:
        """Let no other process change the schema until the current transaction ends."""
        ...

    def allow_async_commit(self, connection: Connection) -> None:
        """Let the current transaction commit without waiting for the disk: a crash may lose it."""
        ...

    def server_time(self, connection: Connection) -> datetime | None:
        """Return the time of the server's clock, or None for a file."""
        ...

    def find_damage(self, connection: Connection) -> list[str]:
        """Check the integrity of a file and return a line for each fault. A server checks its own files."""
        ...


def dialect_for(backend: str) -> Dialect[Any]:
    """Return the dialect for a name of SQLAlchemy's: ``sqlite`` or ``postgresql``."""
    return SqliteDialect() if backend == "sqlite" else PostgresqlDialect()
