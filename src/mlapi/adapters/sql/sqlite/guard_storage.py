"""Read users and draw from allowances in an existing SQLite file, for guards.

This does without SQLAlchemy, which takes 20 MB of memory.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from mlapi import forks
from mlapi.adapters.sql.fork_gate import ForkGate
from mlapi.adapters.sql.idle_connections import IdleConnections
from mlapi.adapters.sql.revisions import VERSION_TABLE, require_head
from mlapi.adapters.sql.sqlite import connections, drawing, files, reading
from mlapi.adapters.sql.sqlite import usage as usage_statements
from mlapi.adapters.sql.sqlite.errors import DATA_ERRORS, describe_file_error, primary_code
from mlapi.domain.allowances import Allowances, Draw, Drawn
from mlapi.domain.commands import Outcome, RecordApiKeyUse
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    ReadOnlyRepositoryError,
    RepositoryUnavailableError,
)
from mlapi.domain.usage import UsageRow, UsageWriter

TIMEOUT_SECONDS = 2.0
_FORK_TIMEOUT_SECONDS = 10.0
_FIND_VERSION_TABLE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
_SELECT_REVISION = f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608 - a constant
_ERRORS: tuple[type[Exception], ...] = (sqlite3.Error, *DATA_ERRORS)
_ACCESS_CODES = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY}

T = TypeVar("T")


class SqliteGuardStorage:
    """The part of a `Storage` that a guard needs, in an existing SQLite file. It is a `PrincipalRepository` itself.

    The account only needs permission to read the file, its write-ahead log and the log's index. To limit requests, it
    also needs permission to write them.

    Args:
        file: the absolute path, which may be a symbolic link.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._operations = ForkGate()
        self._find_file_change = files.FileChangeCheck(file)
        self._write_slot = forks.new_lock()
        """Make threads queue for SQLite's write lock. If they waited in SQLite, some would starve."""
        self._create_pools()
        # In a child, drop the parent's connections. `pause` closed them, except while another thread used the file.
        forks.call_in_children(self._create_pools)
        forks.pause_during_forks(self)

    def _create_pools(self) -> None:
        self._idle = IdleConnections[sqlite3.Connection]()
        self._idle_nowait = IdleConnections[sqlite3.Connection]()
        """Connections that raise an error instead of waiting for a lock."""

    @classmethod
    def from_file(cls, file: Path) -> Self:
        """Return the storage in a file.

        Raises:
            ConfigurationError: if the file has several names (hard links).
        """
        files.validate_single_name(file.resolve())
        return cls(file)

    @property
    def files(self) -> tuple[Path, ...]:
        """The database file, its write-ahead log, the log's index, and the journal."""
        return files.all_files(self._file.resolve())

    @property
    def secrets_folder(self) -> Path:
        """The folder that contains the file."""
        return self._file.resolve().parent

    def prepare(self, *, may_upgrade: bool) -> None:
        """Check the revision of the schema.

        Raises:
            ConfigurationError: if it is not the newest, or ``may_upgrade`` is set: a guard changes no schema.
            RepositoryUnavailableError: if the file cannot be read.
        """
        if may_upgrade:
            raise ConfigurationError("a guard cannot change the schema: run `mlapi db upgrade`")
        require_head(self.read(_find_revision))

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        """See `PrincipalRepository`."""
        found = self.read(lambda connection: reading.find_principals(connection, ids))
        idle = self._idle_nowait
        if not idle:
            with self._operations, suppress(*_ERRORS):
                connection = self._connect()
                connection.execute("PRAGMA busy_timeout = 0")
                idle.give_back(connection)
        return found

    def find_principals_nowait(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        """See `NonblockingPrincipalLookup`. Only an idle connection is used: opening one could wait."""
        if self._operations.is_closed:
            raise RepositoryUnavailableError("the process is forking")
        with self._operations:
            self._check_not_replaced()
            idle = self._idle_nowait
            return self._use(idle, idle.take_nowait(), lambda connection: reading.find_principals(connection, ids))

    def apply(self, commands: Sequence[RecordApiKeyUse]) -> list[Outcome]:
        """See `PrincipalRepository`."""

        def record(connection: sqlite3.Connection) -> list[Outcome]:
            return [
                reading.record_use(connection, command) or ApiKeyNotFoundError(command.key_id) for command in commands
            ]

        return self.write(record)

    @property
    def allowances(self) -> Allowances:
        """Counts what users have used of their allowances, in the file."""
        return _GuardAllowances(self)

    @property
    def usage(self) -> UsageWriter:
        """Stores usage in the file."""
        return _GuardUsage(self)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call ``work`` with an idle or new connection, and return its result."""
        with self._operations:
            self._check_not_replaced()
            idle = self._idle
            return self._use(idle, idle.take() or self._open(), work)

    def write(self, work: Callable[[sqlite3.Connection], T], *, commit_by: float | None = None) -> T:
        """Call ``work`` in a write transaction, commit durably, and return its result.

        Args:
            work: executes statements in the transaction.
            commit_by: a deadline, on the clock of `time.monotonic`. If it has passed, roll back instead of committing.

        Raises:
            ReadOnlyRepositoryError: if the account may only read the file.
            RepositoryUnavailableError: if the file cannot be written for another reason, or ``commit_by`` has passed.
        """

        def run(connection: sqlite3.Connection) -> T:
            try:
                connection.execute("BEGIN IMMEDIATE")
                result = work(connection)
                if commit_by is not None and time.monotonic() > commit_by:
                    raise RepositoryUnavailableError("too late to commit")
                connection.commit()
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY:
                    raise ReadOnlyRepositoryError(_describe_error(error)) from None
                raise
            return result

        if not self._write_slot.acquire(timeout=TIMEOUT_SECONDS):
            raise RepositoryUnavailableError("the database is busy: too many threads are writing")
        try:
            return self.read(run)
        finally:
            self._write_slot.release()

    def close(self) -> None:
        """Close all idle connections."""
        pools = self._idle, self._idle_nowait
        self._create_pools()
        for idle in pools:
            idle.close()

    def pause(self) -> None:
        """Before a fork, wait for other threads and close all connections: SQLite's locks are lost in a child."""
        if self._operations.close(timeout_seconds=_FORK_TIMEOUT_SECONDS):
            self.close()

    def resume(self) -> None:
        """Continue after a fork."""
        self._operations.open()

    def _use(
        self,
        idle: IdleConnections[sqlite3.Connection],
        connection: sqlite3.Connection,
        work: Callable[[sqlite3.Connection], T],
    ) -> T:
        try:
            result = work(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, _ERRORS):
                raise RepositoryUnavailableError(_describe_error(error)) from None
            raise
        idle.give_back(connection)
        return result

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.Error as error:
            raise RepositoryUnavailableError(_describe_error(error)) from None

    def _connect(self) -> sqlite3.Connection:
        uri = files.existing_uri(self._file.resolve())
        connection = connections.connect(uri, timeout_seconds=TIMEOUT_SECONDS, uri=True, check_same_thread=False)
        connections.configure(connection, timeout_seconds=TIMEOUT_SECONDS)
        return connection

    def _check_not_replaced(self) -> None:
        """Reconnect if the file was replaced since the last call, and raise an error if it was removed."""
        if self._operations.is_torn:  # SQLite's state in this process is undefined
            raise RepositoryUnavailableError("this process was forked during a query: fork before or after it")
        change = self._find_file_change()
        if change is not None:
            self.close()
        if change == "removed":
            raise RepositoryUnavailableError("the database file was removed")


def _find_revision(connection: sqlite3.Connection) -> str | None:
    if not connection.execute(_FIND_VERSION_TABLE, (VERSION_TABLE,)).fetchall():
        return None
    ((revision,),) = connection.execute(_SELECT_REVISION).fetchall()
    return str(revision)


class _GuardAllowances:
    """The `Allowances` of a `SqliteGuardStorage`."""

    def __init__(self, storage: SqliteGuardStorage) -> None:
        self._storage = storage

    def draw(self, requests: Sequence[Draw], *, commit_by: float | None = None) -> list[Drawn | None]:
        if not requests:
            return []
        return self._storage.write(lambda connection: drawing.draw(connection, requests), commit_by=commit_by)

    def read(self, requests: Sequence[Draw]) -> list[Drawn | None]:
        return self._storage.read(lambda connection: drawing.read(connection, requests))


class _GuardUsage:
    """The `UsageWriter` of a `SqliteGuardStorage`."""

    def __init__(self, storage: SqliteGuardStorage) -> None:
        self._storage = storage

    def add(self, rows: Sequence[UsageRow]) -> None:
        self._storage.write(lambda connection: usage_statements.add_usage(connection, rows))


def _describe_error(error: BaseException) -> str:
    """Describe an error of SQLite for an account that may not own the file."""
    if not isinstance(error, sqlite3.Error) or primary_code(error) not in _ACCESS_CODES:
        return describe_file_error(error)
    if error.sqlite_errorcode == sqlite3.SQLITE_READONLY:
        return "this account may only read the database (SQLITE_READONLY)"
    return (
        "the database file cannot be opened: check that it exists, and that this account may read it and its folder. If"
        f" the account may only read, also start the service ({error.sqlite_errorname})"
    )
