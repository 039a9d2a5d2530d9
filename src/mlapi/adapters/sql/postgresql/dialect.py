"""The PostgreSQL dialect. See `mlapi.adapters.sql.dialect.Dialect`."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    String,
    Table,
    and_,
    cast,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import Insert, insert

from mlapi.adapters.sql.existing import IN_USE, ConnectionPool, Purpose, translating_errors
from mlapi.adapters.sql.postgresql import drawing, engine, errors, execution, namespaces, privileges, tools
from mlapi.adapters.sql.postgresql.uniform_batches import find_uniform_batch
from mlapi.adapters.sql.probes import write_probes
from mlapi.adapters.sql.tables import users
from mlapi.domain.allowances import Draw, Drawn
from mlapi.domain.attempts import WindowCount
from mlapi.domain.audit import AuditEntry
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.lists import StateCounts
from mlapi.domain.logins import Login
from mlapi.domain.managers import Manager, ManagerTokenId
from mlapi.domain.metadata import find_json_texts
from mlapi.domain.usage import UsageRow
from mlapi.domain.users import User, UsernameKey
from mlapi.interruption import Interruption

if TYPE_CHECKING:
    from mlapi.adapters.sql.postgresql.session import BoundedConnection

T = TypeVar("T")

_WRITE_PROBES = write_probes(postgresql.dialect())  # type: ignore[no-untyped-call]  # SQLAlchemy does not type it
_WRITE_PROBE = "; ".join([*_WRITE_PROBES, privileges.HAS_FURTHER_PRIVILEGES]).encode()
# The operator class is in the schema of the extension, which need not be on the search path.
_TRIGRAM_SCHEMA = """
    SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    WHERE extname = 'pg_trgm' AND has_schema_privilege(extnamespace, 'USAGE')
"""
_CREATE_TRIGRAM_INDEX = """
    CREATE INDEX IF NOT EXISTS ix_users_trigrams ON users
    USING gin (username_key {schema}.gin_trgm_ops, lower(email) {schema}.gin_trgm_ops)
"""
_MAX_DISABLED = 5_000
"""Lists do not use the index of disabled users if it contains more users than this."""
_SCHEMA_LOCK = 0x6D6C6170  # "mlap" in ASCII


class PostgresqlDialect:
    """PostgreSQL, through psycopg. Use one instance per `mlapi.adapters.sql.database.Database`.

    Args:
        namespace: the PostgreSQL schema that contains the tables; None for the first one on the ``search_path``. Only
            `create_engine` uses it. Other methods use the namespace of their connection.
    """

    supports_nowait: Final = False
    plans_by_order: Final = False
    supports_namespaces: Final = True
    write_options: Final[Mapping[str, str]] = {}
    data_errors: Final[tuple[type[Exception], ...]] = ()

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = namespace
        self._disabled: float = math.inf
        """The number of users who were not enabled at the last count."""
        self._connections: WeakSet[BoundedConnection] = WeakSet()

    def create_engine(self, url: URL, *, timeout_seconds: float, max_connections: int) -> Engine:
        return engine.create(
            url,
            namespace=self._namespace,
            timeout_seconds=timeout_seconds,
            max_connections=max_connections,
            connections=self._connections,
        )

    def files(self, url: URL) -> tuple[Path, ...]:  # noqa: ARG002 - part of the protocol
        return ()

    def create_file_change_check(self, url: URL) -> Callable[[], None]:  # noqa: ARG002 - part of the protocol
        return lambda: None

    @contextmanager
    def open_existing(self, pool: ConnectionPool, purpose: Purpose) -> Iterator[Connection]:
        with pool.writing() as connection, translating_errors(_describe_existing_error):
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            engine.driver_connection(connection).allow_waiting()
            if purpose != "change":  # let all statements see the same rows
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            if purpose == "read":
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            yield connection

    def describe_backup_tools(self, url: URL) -> str:
        return tools.describe_backup_tools(url, self._namespace)

    def max_writers(self, max_connections: int) -> int:
        # Commits hang while a synchronous standby is unavailable. Keep half of the connections free for reads, which
        # do not wait for a standby.
        return max(1, max_connections // 2)

    def insert(self, table: Table) -> Insert:
        return insert(table)

    def is_connection_lost(self, error: BaseException | None) -> bool:
        return errors.must_reconnect(error)

    def is_transient(self, error: BaseException | None) -> bool:
        return errors.is_transient(error)

    def is_rejection(self, error: BaseException | None) -> bool:
        return errors.is_rejection(error)

    def is_reference(self, error: BaseException | None) -> bool:
        return errors.is_reference(error)

    def is_read_only(self, error: BaseException | None) -> bool:
        return errors.is_read_only(error)

    def describe_error(self, error: BaseException | None) -> str:
        return errors.describe_error(error)

    def is_interruption(self, error: BaseException | None) -> bool:
        return getattr(error, "sqlstate", None) == errors.QUERY_CANCELED

    def drop_stale_connections(self, engine_: Engine) -> None:
        engine.drop_stale_connections(engine_, self._connections)

    def abandon(self, engine_: Engine) -> None:
        engine.abandon(engine_, self._connections)

    def begin(self, connection: "BoundedConnection") -> None:
        connection.begin()

    def commit(self, connection: "BoundedConnection") -> None:
        engine.commit(connection)

    def run_autocommit(self, connection: "BoundedConnection", work: Callable[["BoundedConnection"], T]) -> T:
        """Run each statement in its own transaction. This saves the round trips for BEGIN and COMMIT.

        Behind a pooler, use one transaction instead, because the settings apply only within it.
        """
        if not connection.is_pooled:
            connection.limit_waiting()
            return work(connection)
        connection.begin()
        result = work(connection)
        engine.commit(connection)
        return result

    def set_nowait(self, connection: "BoundedConnection") -> None:
        """Do nothing. This is never called, because `supports_nowait` is False."""

    def apply(self, connection: "BoundedConnection", commands: Sequence[Command]) -> list[Outcome]:
        return execution.apply(connection, commands)

    def apply_and_commit(
        self, connection: "BoundedConnection", commands: Sequence[Command], *, commit_by: float | None
    ) -> list[Outcome] | None:
        """Apply a batch of one kind in a single round trip, unless its statements could take longer than allowed."""
        if connection.was_idle:
            return None
        if commit_by is not None and time.monotonic() + connection.statement_timeout_seconds > commit_by:
            return None
        batch = find_uniform_batch(commands)
        if batch is None:
            return None
        try:
            found = engine.commit_together(connection, batch.statements, commit_by=commit_by)
        except Exception as error:
            if errors.has_started_too_late(error):
                connection.forget_clock()  # the server's clock may have been set
            elif not errors.is_rejection(error):
                raise
            connection.rollback()
            return None  # with a transaction, the caller finds the commands that are rejected
        return batch.read_outcomes(found)

    def add_audit_entries(self, connection: "BoundedConnection", entries: Sequence[AuditEntry]) -> None:
        execution.add_audit_entries(connection, entries)

    def find_users(self, connection: "BoundedConnection", keys: Sequence[UsernameKey]) -> dict[UsernameKey, User]:
        return execution.find_users(connection, keys)

    def find_principals(self, connection: "BoundedConnection", ids: Sequence[PrincipalId]) -> list[Principal | None]:
        return execution.find_principals(connection, ids)

    def supports_loops(self, connection: "BoundedConnection") -> bool:
        return not connection.is_pooled  # behind a pooler, each query needs a transaction with its own settings

    def find_managers(self, connection: "BoundedConnection", token_ids: Sequence[ManagerTokenId]) -> list[Manager]:
        return execution.find_managers(connection, token_ids)

    def read_counts(
        self, connection: "BoundedConnection", keys: Sequence[str], *, now: float
    ) -> dict[str, WindowCount]:
        return execution.read_counts(connection, keys, now=now)

    def add_counts(
        self, connection: "BoundedConnection", events: Mapping[str, int], *, now: float, ends_at: float
    ) -> dict[str, WindowCount]:
        return execution.add_counts(connection, events, now=now, ends_at=ends_at)

    def add_logins(self, connection: "BoundedConnection", logins: Sequence[Login]) -> None:
        execution.add_logins(connection, logins)

    def add_usage(self, connection: "BoundedConnection", rows: Sequence[UsageRow]) -> None:
        execution.add_usage(connection, rows)

    def draw(
        self, connection: "BoundedConnection", requests: Sequence[Draw], *, adds_rows: bool
    ) -> list[Drawn | None] | None:
        return drawing.draw(connection, requests, adds_rows=adds_rows)

    def read_draws(self, connection: "BoundedConnection", requests: Sequence[Draw]) -> list[Drawn | None]:
        return drawing.read_draws(connection, requests)

    def check_writable(self, connection: "BoundedConnection") -> None:
        if connection.fetch_last(_WRITE_PROBE) != (True,):
            raise RepositoryUnavailableError(
                "the user in database.url lacks a privilege, or row-level security hides rows: run `mlapi doctor`"
            )

    def disable_timeouts(self, connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0")
        engine.driver_connection(connection).allow_waiting()

    def lock_schema(self, connection: Connection) -> None:
        name = func.coalesce(func.current_schema(), namespaces.configured_namespace(connection) or "")
        connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK, func.hashtext(name))))

    def create_namespace(self, connection: Connection) -> None:
        namespaces.create_namespace(connection)

    def check_namespace(self, connection: Connection) -> None:
        namespaces.check_namespace(connection)

    def find_other_namespaces(self, connection: Connection, table: str) -> tuple[str, ...]:
        return namespaces.find_other_namespaces(connection, table)

    @contextmanager
    def interruptible(self, connection: Connection, interruption: Interruption) -> Iterator[None]:
        from psycopg import Error  # noqa: PLC0415 - an optional dependency

        interruption.raise_if_due()
        timeout = f"{math.ceil(interruption.remaining_seconds * 1000)}ms"
        connection.execute(select(func.set_config("statement_timeout", timeout, True)))  # noqa: FBT003 - only for this transaction
        driver_connection = engine.driver_connection(connection)
        driver_connection.allow_waiting(interruption.remaining_seconds + 1)  # the server's timeout should come first
        was_canceled = False

        def cancel() -> None:
            nonlocal was_canceled
            was_canceled = True
            with suppress(Error):  # if the server is unreachable, the time limit ends the statement
                driver_connection.interrupt()

        try:
            with interruption.calling(cancel):
                yield
        finally:
            if was_canceled:  # the server may handle the request late, and cancel a later statement
                connection.invalidate()

    def has_metadata(self, key: str, text: str) -> ColumnElement[bool]:
        texts, quoted_key = find_json_texts(text), json.dumps(key)
        objects = [cast(literal(f"{{{quoted_key}:{each}}}", String), postgresql.JSONB) for each in texts]
        as_jsonb = cast(users.c.metadata, postgresql.JSONB)
        value = cast(cast(users.c.metadata, postgresql.JSON)[key], String)
        # The first condition uses the index. The second also compares how numbers are written: 1 and 1.0 differ.
        return and_(or_(*[as_jsonb.contains(each) for each in objects]), value.in_(texts))

    def has_email(self, email: str) -> ColumnElement[bool]:
        return func.lower(users.c.email) == func.lower(email)

    def is_disabled(self, enabled: ColumnElement[bool]) -> ColumnElement[bool]:
        # Use the index for few disabled users only: for many, the server would read nearly the whole table through it.
        return cast(enabled, Integer) == 0 if self._disabled <= _MAX_DISABLED else enabled.is_(False)

    def without_index(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the column itself: PostgreSQL knows which index to use."""
        return column

    def count_states(self, connection: Connection, *, at: datetime) -> StateCounts:
        enabled, end, is_pending = users.c.enabled, users.c.expires_datetime, users.c.pending.is_not(None)
        total, not_enabled, expired, pending = connection.execute(
            select(
                func.count(),
                func.count().filter(~enabled),
                func.count().filter(and_(enabled, end <= at)),
                func.count().filter(and_(~enabled, is_pending)),
            ).select_from(users)
        ).one()
        self._disabled = not_enabled
        return StateCounts(
            active=total - not_enabled - expired, disabled=not_enabled - pending, expired=expired, pending=pending
        )

    def create_text_index(self, connection: Connection) -> None:
        """Create a trigram index if the extension pg_trgm is installed in the database."""
        schema = connection.exec_driver_sql(_TRIGRAM_SCHEMA).scalar()
        if schema is not None:
            connection.exec_driver_sql(_CREATE_TRIGRAM_INDEX.format(schema=schema))

    def server_time(self, connection: Connection) -> datetime:
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return now

    def find_write_errors(self, connection: Connection) -> Iterator[str]:
        return privileges.find_write_errors(connection)

    def find_upgrade_errors(self, connection: Connection) -> Iterator[str]:
        return privileges.find_upgrade_errors(connection)

    def find_damage(self, connection: Connection) -> list[str]:  # noqa: ARG002 - part of the protocol
        return []


def _describe_existing_error(error: BaseException | None) -> str:
    return IN_USE if getattr(error, "sqlstate", None) == errors.LOCK_NOT_AVAILABLE else errors.describe_error(error)
