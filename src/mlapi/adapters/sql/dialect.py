"""The interface to everything that differs between SQLite and PostgreSQL. Other modules here work with both."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy import URL, ColumnElement, Connection, Engine, Table

from mlapi.adapters.sql.existing import ConnectionPool, Purpose
from mlapi.adapters.sql.sqlite.dialect import SqliteDialect
from mlapi.adapters.sql.sqlite.files import FileChange
from mlapi.domain.allowances import Draw, Drawn
from mlapi.domain.attempts import WindowCount
from mlapi.domain.audit import AuditEntry
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.lists import StateCounts
from mlapi.domain.logins import Login
from mlapi.domain.managers import Manager, ManagerTokenId
from mlapi.domain.usage import UsageRow
from mlapi.domain.users import User, UsernameKey
from mlapi.interruption import Interruption

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

DriverConnectionT = TypeVar("DriverConnectionT")
T = TypeVar("T")


class Dialect(Protocol[DriverConnectionT]):
    """A kind of database: SQLite or PostgreSQL. The type parameter is the driver's connection class."""

    @property
    def supports_nowait(self) -> bool:
        """True if a read takes microseconds and `set_nowait` can keep it from waiting for locks."""
        ...

    @property
    def plans_by_order(self) -> bool:
        """True if queries must choose the index, because the database does not know the number of rows."""
        ...

    @property
    def supports_namespaces(self) -> bool:
        """True if a database can contain several PostgreSQL schemas."""
        ...

    @property
    def write_options(self) -> Mapping[str, str]:
        """SQLAlchemy execution options for write transactions."""
        ...

    @property
    def data_errors(self) -> tuple[type[Exception], ...]:
        """Exceptions that reading damaged data can raise, besides the driver's own."""
        ...

    def create_engine(self, url: URL, *, timeout_seconds: float, max_connections: int) -> Engine:
        """Create an engine whose connections commit durably and wait for locks no longer than the timeout.

        Raises:
            ConfigurationError: if the driver is not installed or the URL has an unknown option.
        """
        ...

    def files(self, url: URL) -> tuple[Path, ...]:
        """Return the absolute paths of the local files that hold the database, the main file first."""
        ...

    def create_file_change_check(self, url: URL) -> Callable[[], FileChange | None]:
        """Return a function that returns whether the database file was removed or replaced since the last call."""
        ...

    def open_existing(self, pool: ConnectionPool, purpose: Purpose) -> AbstractContextManager[Connection]:
        """See `mlapi.adapters.sql.database.Database.open_existing`."""
        ...

    def describe_backup_tools(self, url: URL) -> str | None:
        """Return how to back up a database with its own programs; None for a file that mlapi can copy."""
        ...

    def max_writers(self, max_connections: int) -> int:
        """Return how many threads may write at the same time."""
        ...

    def insert(self, table: Table) -> "sqlite.Insert | postgresql.Insert":
        """Return an INSERT statement that supports ON CONFLICT."""
        ...

    # --- errors

    def is_connection_lost(self, error: BaseException | None) -> bool:
        """Return True if the connection cannot be used anymore, and others may have been lost with it."""
        ...

    def is_transient(self, error: BaseException | None) -> bool:
        """Return True if a retry on a new connection may succeed."""
        ...

    def is_rejection(self, error: BaseException | None) -> bool:
        """Return True if a constraint or a trigger rejected a change. The same change would be rejected again."""
        ...

    def is_reference(self, error: BaseException | None) -> bool:
        """Return True for a rejection because of a foreign key."""
        ...

    def is_read_only(self, error: BaseException | None) -> bool:
        """Return True if the account may not write, or the database is read-only."""
        ...

    def describe_error(self, error: BaseException | None) -> str:
        """Describe a driver error, or an error in `data_errors`, in one line without stored values."""
        ...

    def is_interruption(self, error: BaseException | None) -> bool:
        """Return True if an `Interruption` or a time limit ended the statement."""
        ...

    def drop_stale_connections(self, engine: Engine) -> None:
        """Break connections that are stuck on a former primary."""
        ...

    def abandon(self, engine: Engine) -> None:
        """In a forked child, drop the connections that were inherited from the parent. Its sessions continue."""
        ...

    # --- methods that take a driver connection, for batches

    def begin(self, connection: DriverConnectionT) -> None:
        """Begin a write transaction."""
        ...

    def commit(self, connection: DriverConnectionT) -> None:
        """Commit durably.

        Raises:
            RepositoryUnavailableError: with ``may_be_done`` set, if it is unknown whether the commit succeeded.
        """
        ...

    def run_autocommit(self, connection: DriverConnectionT, work: Callable[[DriverConnectionT], T]) -> T:
        """Call ``work`` with each statement in its own transaction, and return its result."""
        ...

    def set_nowait(self, connection: DriverConnectionT) -> None:
        """Make a connection raise an error instead of waiting for a lock. Only called if `supports_nowait` is True."""
        ...

    def supports_loops(self, connection: DriverConnectionT) -> bool:
        """Return whether an event loop can wait for the answers on this connection."""
        ...

    def apply(self, connection: DriverConnectionT, commands: Sequence[Command]) -> list[Outcome]:
        """Apply commands in order in the current transaction, and write the audit entries."""
        ...

    def apply_and_commit(
        self, connection: DriverConnectionT, commands: Sequence[Command], *, commit_by: float | None
    ) -> list[Outcome] | None:
        """Apply commands like `apply`, in a transaction of their own, and commit it like `commit`.

        Return None, and change nothing, if these commands need `begin`, `apply` and `commit`.
        """
        ...

    def add_audit_entries(self, connection: DriverConnectionT, entries: Sequence[AuditEntry]) -> None:
        """Write audit entries in the current transaction."""
        ...

    def find_users(self, connection: DriverConnectionT, keys: Sequence[UsernameKey]) -> dict[UsernameKey, User]:
        """Return the users with these canonical usernames. Names of unknown users are omitted."""
        ...

    def find_principals(self, connection: DriverConnectionT, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        """Return the principal for each id, or None. Every earlier commit is visible."""
        ...

    def find_managers(self, connection: DriverConnectionT, token_ids: Sequence[ManagerTokenId]) -> list[Manager]:
        """Return the managers with these token ids, in any order. Every earlier commit is visible."""
        ...

    def read_counts(self, connection: DriverConnectionT, keys: Sequence[str], *, now: float) -> dict[str, WindowCount]:
        """Return the counts of login attempts by key. Windows that ended at ``now`` or earlier are omitted."""
        ...

    def add_counts(
        self, connection: DriverConnectionT, events: Mapping[str, int], *, now: float, ends_at: float
    ) -> dict[str, WindowCount]:
        """Add a number of events to the count for each key, in one statement. If possible, do not wait for the disk.

        Rows are locked in the order of the keys. Return the new counts by key. A count whose window ended at ``now`` or
        earlier starts again, with a window until ``ends_at``.
        """
        ...

    def add_logins(self, connection: DriverConnectionT, logins: Sequence[Login]) -> None:
        """Add the logins of users who exist, in one statement. See `mlapi.domain.logins.Logins.add`."""
        ...

    def add_usage(self, connection: DriverConnectionT, rows: Sequence[UsageRow]) -> None:
        """Add rows in one statement. See `mlapi.domain.usage.UsageRepository.add`."""
        ...

    def draw(
        self, connection: DriverConnectionT, requests: Sequence[Draw], *, adds_rows: bool
    ) -> list[Drawn | None] | None:
        """Apply draws of allowances in order in the current transaction.

        Return None, and change nothing, if rows have to be added and ``adds_rows`` is False. Rows must be added before
        any is locked: adding one locks its user, and a transaction that removes a user locks the user first. If a user
        is removed while a row is added, the transaction fails with a rejection.
        """
        ...

    def read_draws(self, connection: DriverConnectionT, requests: Sequence[Draw]) -> list[Drawn | None]:
        """Return the result of each draw as if its ``wanted`` were 0, without waiting for writers."""
        ...

    def check_writable(self, connection: DriverConnectionT) -> None:
        """Raise an error unless the current transaction can write."""
        ...

    # --- methods that take an SQLAlchemy connection, for everything else

    def disable_timeouts(self, connection: Connection) -> None:
        """Remove the time limits on statements and locks for the current transaction."""
        ...

    def lock_schema(self, connection: Connection) -> None:
        """Keep other processes from changing the schema until the current transaction ends."""
        ...

    def create_namespace(self, connection: Connection) -> None:
        """Create the PostgreSQL schema ``database.schema`` unless it exists."""
        ...

    def check_namespace(self, connection: Connection) -> None:
        """Check that the role can see the tables in the PostgreSQL schema ``database.schema``.

        Raises:
            ConfigurationError: if the role lacks the privilege.
        """
        ...

    def find_other_namespaces(self, connection: Connection, table: str) -> tuple[str, ...]:
        """Return the other PostgreSQL schemas of the database that contain a table with this name."""
        ...

    def interruptible(self, connection: Connection, interruption: Interruption) -> AbstractContextManager[None]:
        """During the block, end the running statement when the interruption is due."""
        ...

    def has_metadata(self, key: str, text: str) -> ColumnElement[bool]:
        """Return an SQL condition that is true for users whose metadata has this value. See `Metadata.has`."""
        ...

    def has_email(self, email: str) -> ColumnElement[bool]:
        """Return an indexed SQL condition that is true for users with this address. Ignore ASCII case."""
        ...

    def is_disabled(self, enabled: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return an indexed SQL condition that is true for users who are not enabled."""
        ...

    def without_index(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the column in a form that no index matches if `plans_by_order` is True."""
        ...

    def count_states(self, connection: Connection, *, at: datetime) -> StateCounts:
        """Return the number of users in each state."""
        ...

    def create_text_index(self, connection: Connection) -> None:
        """Create an index for searches for part of a username or e-mail address, if the database supports it."""
        ...

    def server_time(self, connection: Connection) -> datetime | None:
        """Return the database server's current time, or None if there is no server."""
        ...

    def find_write_errors(self, connection: Connection) -> Iterator[str]:
        """Yield why the current transaction could not change rows. Each message includes a solution."""
        ...

    def find_upgrade_errors(self, connection: Connection) -> Iterator[str]:
        """Yield why the current transaction could not create and change tables. Each message includes a solution."""
        ...

    def find_damage(self, connection: Connection) -> list[str]:
        """Check the integrity of an SQLite file and return a line for each fault. PostgreSQL checks its own files."""
        ...


def dialect_for(backend: str, namespace: str | None = None) -> Dialect[Any]:
    """Return the dialect for an SQLAlchemy backend name: ``sqlite`` or ``postgresql``.

    Args:
        backend: the name.
        namespace: the PostgreSQL schema that contains the tables; None for the first one on the ``search_path``.

    Raises:
        ConfigurationError: if there is a namespace and the backend is SQLite.
    """
    if backend != "sqlite":
        from mlapi.adapters.sql.postgresql import PostgresqlDialect  # noqa: PLC0415 - takes 80 ms, which SQLite saves

        return PostgresqlDialect(namespace)
    if namespace is not None:
        raise namespace_error()
    return SqliteDialect()


def namespace_error() -> ConfigurationError:
    """Return the error for ``database.schema`` together with a database other than PostgreSQL."""
    return ConfigurationError(
        "database.schema needs PostgreSQL: remove it, or set database.url to a PostgreSQL database"
    )
