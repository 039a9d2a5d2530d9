"""The SQLite dialect. See `mlapi.adapters.sql.dialect.Dialect`."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import URL, ColumnElement, Connection, Engine, Table, false, func, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.exc import DBAPIError, MultipleResultsFound, NoResultFound
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.sql.operators import custom_op

from mlapi.adapters.sql.existing import ConnectionPool, Purpose
from mlapi.adapters.sql.probes import write_probes
from mlapi.adapters.sql.sqlite import drawing, engine, execution, existing, files, reading, usage
from mlapi.adapters.sql.sqlite.errors import (
    DATA_ERRORS,
    describe_file_error,
    is_reference,
    is_rejection,
    primary_code,
)
from mlapi.adapters.sql.sqlite.files import FileChange
from mlapi.adapters.sql.tables import users
from mlapi.domain.allowances import Draw, Drawn
from mlapi.domain.attempts import WindowCount
from mlapi.domain.audit import AuditEntry
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.lists import StateCounts
from mlapi.domain.logins import Login
from mlapi.domain.managers import Manager, ManagerTokenId
from mlapi.domain.metadata import find_json_texts, is_key
from mlapi.domain.usage import UsageRow
from mlapi.domain.users import User, UsernameKey
from mlapi.interruption import Interruption

_WRITE_PROBES = write_probes(sqlite.dialect())
_MAX_DAMAGE_LINES = 20
_INSTRUCTIONS_PER_CHECK = 200_000
"""A search checks whether to end after this many instructions, which is about every 10 ms."""

T = TypeVar("T")


class SqliteDialect:
    """SQLite with a write-ahead log and explicit transactions. Writers lock the file when they begin."""

    supports_nowait: Final = True  # readers of the write-ahead log do not wait for the writer
    plans_by_order: Final = True
    supports_namespaces: Final = False
    # Take the write lock first: a transaction that has read an older state of the file can no longer get it.
    write_options: Final[Mapping[str, str]] = {engine.BEGIN_OPTION: "BEGIN IMMEDIATE"}
    # In a damaged file, a time may be invalid text, and a unique name may occur twice.
    data_errors: Final[tuple[type[Exception], ...]] = (*DATA_ERRORS, MultipleResultsFound, NoResultFound)

    def create_engine(self, url: URL, *, timeout_seconds: float, max_connections: int) -> Engine:
        files.validate_single_name(files.database_file(url))
        return engine.create(url, timeout_seconds=timeout_seconds, max_connections=max_connections)

    def files(self, url: URL) -> tuple[Path, ...]:
        return files.all_files(files.database_file(url))

    def create_file_change_check(self, url: URL) -> Callable[[], FileChange | None]:
        return files.FileChangeCheck(files.configured_file(url))

    def open_existing(self, pool: ConnectionPool, purpose: Purpose) -> AbstractContextManager[Connection]:
        file = files.database_file(pool.engine.url)
        return existing.open_existing(file, purpose, timeout_seconds=pool.timeout_seconds)

    def describe_backup_tools(self, url: URL) -> None:
        """Return None: mlapi copies the file."""

    def max_writers(self, max_connections: int) -> int:  # noqa: ARG002 - part of the protocol
        # SQLite lets waiting writers race for the lock, and some starve under load. Let the threads of this process
        # queue for the lock instead.
        return 1

    def insert(self, table: Table) -> Insert:
        return insert(table)

    def is_connection_lost(self, error: BaseException | None) -> bool:
        return self.is_transient(error)

    def is_transient(self, error: BaseException | None) -> bool:
        # A connection that was opened while the disk was read-only stays read-only. There is no reason to retry after
        # other errors: SQLite itself has already waited for the lock.
        return self.is_read_only(error)

    def is_rejection(self, error: BaseException | None) -> bool:
        return is_rejection(error)

    def is_reference(self, error: BaseException | None) -> bool:
        return is_reference(error)

    def is_read_only(self, error: BaseException | None) -> bool:
        return isinstance(error, sqlite3.Error) and primary_code(error) == sqlite3.SQLITE_READONLY

    def describe_error(self, error: BaseException | None) -> str:
        if isinstance(error, MultipleResultsFound | NoResultFound):
            return f"the database file contains unreadable data ({type(error).__name__}); run `mlapi doctor`"
        return describe_file_error(error)

    def is_interruption(self, error: BaseException | None) -> bool:
        return isinstance(error, sqlite3.Error) and primary_code(error) == sqlite3.SQLITE_INTERRUPT

    def drop_stale_connections(self, engine: Engine) -> None:
        """Do nothing: SQLite has no server."""

    def abandon(self, engine: Engine) -> None:
        """Close the idle connections. The fork hooks have closed them before the fork, unless they did not run."""
        engine.dispose()

    def begin(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")

    def commit(self, connection: sqlite3.Connection) -> None:
        connection.commit()

    def run_autocommit(self, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        return work(connection)  # connections from `engine.create` are always in autocommit mode

    def set_nowait(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA busy_timeout = 0")

    def apply(self, connection: sqlite3.Connection, commands: Sequence[Command]) -> list[Outcome]:
        return execution.apply(connection, commands)

    def apply_and_commit(
        self, connection: sqlite3.Connection, commands: Sequence[Command], *, commit_by: float | None
    ) -> None:
        """Return None: there are no round trips to save."""

    def add_audit_entries(self, connection: sqlite3.Connection, entries: Sequence[AuditEntry]) -> None:
        execution.add_audit_entries(connection, entries)

    def find_users(self, connection: sqlite3.Connection, keys: Sequence[UsernameKey]) -> dict[UsernameKey, User]:
        return execution.find_users(connection, keys)

    def find_principals(self, connection: sqlite3.Connection, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        return reading.find_principals(connection, ids)

    def supports_loops(self, connection: sqlite3.Connection) -> bool:  # noqa: ARG002 - part of the protocol
        return False

    def find_managers(self, connection: sqlite3.Connection, token_ids: Sequence[ManagerTokenId]) -> list[Manager]:
        return execution.find_managers(connection, token_ids)

    def read_counts(self, connection: sqlite3.Connection, keys: Sequence[str], *, now: float) -> dict[str, WindowCount]:
        return execution.read_counts(connection, keys, now=now)

    def add_counts(
        self, connection: sqlite3.Connection, events: Mapping[str, int], *, now: float, ends_at: float
    ) -> dict[str, WindowCount]:
        return execution.add_counts(connection, events, now=now, ends_at=ends_at)

    def add_logins(self, connection: sqlite3.Connection, logins: Sequence[Login]) -> None:
        execution.add_logins(connection, logins)

    def add_usage(self, connection: sqlite3.Connection, rows: Sequence[UsageRow]) -> None:
        usage.add_usage(connection, rows)

    def draw(
        self,
        connection: sqlite3.Connection,
        requests: Sequence[Draw],
        *,
        adds_rows: bool,  # noqa: ARG002 - part of the protocol
    ) -> list[Drawn | None]:
        return drawing.draw(connection, requests)

    def read_draws(self, connection: sqlite3.Connection, requests: Sequence[Draw]) -> list[Drawn | None]:
        return drawing.read(connection, requests)

    def check_writable(self, connection: sqlite3.Connection) -> None:
        # `begin` has taken the write lock. The probes fail if the file is new and empty.
        for probe in _WRITE_PROBES:
            connection.execute(probe)

    def disable_timeouts(self, connection: Connection) -> None:
        """Do nothing: statements have no timeout, and a write transaction already holds the only lock."""

    def lock_schema(self, connection: Connection) -> None:
        """Do nothing: a write transaction locks the whole file."""

    def create_namespace(self, connection: Connection) -> None:
        """Do nothing: SQLite has no namespaces."""

    def check_namespace(self, connection: Connection) -> None:
        """Do nothing: SQLite has no namespaces."""

    def find_other_namespaces(self, connection: Connection, table: str) -> tuple[str, ...]:  # noqa: ARG002 - part of the protocol
        return ()

    @contextmanager
    def interruptible(self, connection: Connection, interruption: Interruption) -> Iterator[None]:
        # `sqlite3.Connection.interrupt` would have no effect if called before the statement starts.
        driver_connection: Any = connection.connection.driver_connection
        driver_connection.set_progress_handler(lambda: interruption.is_due, _INSTRUCTIONS_PER_CHECK)
        try:
            yield
        finally:
            driver_connection.set_progress_handler(None, 0)

    def has_metadata(self, key: str, text: str) -> ColumnElement[bool]:
        # With two paths, ``json_extract`` returns a JSON array, in which numbers are written as stored. (``->`` needs
        # SQLite 3.38.) Keys contain no characters that would be escaped in the path.
        path = f'$."{key}"'
        values: ColumnElement[str] = func.json_extract(users.c.metadata, path, path)
        return values.in_([f"[{each},{each}]" for each in find_json_texts(text)]) if is_key(key) else false()

    def has_email(self, email: str) -> ColumnElement[bool]:
        return users.c.email.collate("NOCASE") == email

    def is_disabled(self, enabled: ColumnElement[bool]) -> ColumnElement[bool]:
        return enabled.is_(False)

    def without_index(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return UnaryExpression(column, operator=custom_op("+"), type_=column.type)

    def count_states(self, connection: Connection, *, at: datetime) -> StateCounts:
        has_expired = users.c.expires_datetime <= at
        total, not_enabled, expired, pending = connection.execute(
            select(
                select(func.count()).select_from(users).scalar_subquery(),
                *(
                    select(func.count()).select_from(users).where(*conditions).scalar_subquery()
                    for conditions in (
                        [users.c.enabled.is_(False)],
                        [has_expired, users.c.enabled.is_(True)],
                        [users.c.pending.is_not(None)],
                    )
                ),
            )
        ).one()
        return StateCounts(
            active=total - not_enabled - expired, disabled=not_enabled - pending, expired=expired, pending=pending
        )

    def create_text_index(self, connection: Connection) -> None:
        """Do nothing: an index of trigrams would slow down changes more than it speeds up searches."""

    def server_time(self, connection: Connection) -> None:
        """Return None: SQLite has no server."""

    def find_write_errors(self, connection: Connection) -> Iterator[str]:
        try:
            for probe in _WRITE_PROBES:
                connection.exec_driver_sql(probe)
        except DBAPIError as error:
            is_access_denied = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR) != sqlite3.SQLITE_ERROR
            solution = (
                "make the account that runs the service own the file and its folder, and stop other programs that use"
                " the file"
                if is_access_denied
                else "a table is missing or was changed by another program, so restore the database from a backup"
            )
            yield f"the database cannot be changed ({self.describe_error(error.orig)}): {solution}"

    def find_upgrade_errors(self, connection: Connection) -> Iterator[str]:  # noqa: ARG002 - part of the protocol
        """Yield nothing: an account that can change rows can change the schema."""
        yield from ()

    def find_damage(self, connection: Connection) -> list[str]:
        lines = connection.exec_driver_sql(f"PRAGMA quick_check({_MAX_DAMAGE_LINES})").scalars()
        return [line for line in lines if line != "ok"]
