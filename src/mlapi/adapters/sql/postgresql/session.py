"""Connections whose behavior does not depend on settings of the server, the database, the role or a connection pooler.

A direct connection gets all settings once. Behind a pooler, a session serves several clients in turn. Each transaction
therefore sets its own values, which end with it. Import this module only if psycopg is installed.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Final, Self, TypeVar

import psycopg

from mlapi.adapters.sql.postgresql.namespaces import quote
from mlapi.domain.errors import ConfigurationError

T = TypeVar("T")

Statement = tuple[bytes, Mapping[str, Any]]
"""The text of a statement and its parameters."""

_UNLIMITED: Final = float("inf")

# Every value is PostgreSQL's default, except for the time zone. The comments name what another value would break.
_SETTINGS: Final = {
    "client_encoding": "UTF8",  # names
    "DateStyle": "ISO, MDY",  # times
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",  # times, and the days of the audit trail
    "bytea_output": "hex",
    "extra_float_digits": "1",  # the end of a window in which attempts are counted
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",  # names of database objects
    "gin_fuzzy_search_limit": "0",  # searches, which would miss rows
    "row_security": "on",  # reading a table with policies, which would fail
    "client_min_messages": "notice",  # the detection of warnings at a commit
    "idle_in_transaction_session_timeout": "0",
}
_SETTINGS_SINCE: Final = {170000: {"transaction_timeout": "0"}}
_SESSION_SETTINGS: Final = {"default_transaction_isolation": "read committed", "default_transaction_deferrable": "off"}
_SESSION_SETTINGS_SINCE: Final = {140000: {"idle_session_timeout": "0"}}

_LISTS_OF_NAMES: Final = {"search_path"}
"""Settings whose value SET takes for one name, but set_config for a list of names."""
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_SYNCHRONOUS: Final = (
    "set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), true)"
)
"""Turns synchronous_commit on if it is off, as `BoundedConnection.begin` does. No other value contains ``off``."""
_READ_CLOCK: Final = b"SELECT extract(epoch FROM clock_timestamp())::float8"
_CHECK_CLOCK: Final = b"SELECT 1 / (extract(epoch FROM clock_timestamp()) < %s)::int"
"""Fails with a division by zero after a time of the server's clock."""
_CLOCK_SECONDS: Final = 60.0
"""How long to rely on the difference between the clocks of this machine and the server."""
IDLE_SECONDS = 10.0
"""After this time without an answer, a firewall or a load balancer may have dropped the connection."""
_PREPARE_THRESHOLD: Final = 5  # psycopg's default
_CANCEL_SECONDS: Final = 2.0
_WAIT_TIMEOUT: Final[Any] = getattr(psycopg.errors, "_WaitTimeout", None)
"""What psycopg's own wait raises after its timeout. None if this version of psycopg has no timeout."""


NO_ANSWER: Final = "the server may be overloaded or may hang, or a connection pooler may have no free server connection"


class NoAnswerError(psycopg.OperationalError):
    """The database did not answer in time. The connection is closed, because the answer could still arrive."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the database did not answer within {seconds:g} s: {NO_ANSWER}")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection in autocommit mode that waits for each answer for a limited time. `begin` begins a transaction."""

    max_wait_seconds: float = _UNLIMITED
    """How long to wait if nothing arrives."""
    is_pooled: bool = True
    """Whether the session may serve other clients between two transactions."""

    prepared_names: set[bytes]
    """The names of the statements that `loop_queries` has prepared."""

    _clock_offset_seconds: float = 0.0
    """What to add to a `time.monotonic` time to get the server's time, in seconds since 1970, or a little less."""
    _clock_expires_monotonic: float = 0.0

    _answered_monotonic: float = 0.0
    _is_interrupted: bool = False
    _awaits_commit: bool = False
    """Whether the first answer comes before the commit, and the last one after it."""

    @classmethod
    def open(
        cls,
        conninfo: str = "",
        *,
        namespace: str | None,
        timeout_seconds: float,
        **keywords: Any,  # noqa: ANN401 - passed on
    ) -> Self:
        """Connect. `set_up` must follow.

        Args:
            conninfo: the connection string for libpq. The keywords are other parameters for libpq.
            namespace: the only PostgreSQL schema on the ``search_path``; None to keep the server's ``search_path``.
            timeout_seconds: for waiting for a lock. An answer may take 1 second longer, a statement 2 seconds longer.
        """
        connection = cls.connect(conninfo, autocommit=True, prepare_threshold=None, **keywords)
        connection.prepared_names = set()
        connection.note_answer()
        connection.answer_seconds = timeout_seconds + 1
        connection.statement_timeout_seconds = timeout_seconds + 2
        connection.statement_seconds = timeout_seconds + 3  # the server's own timeout should come first
        connection.settings = {
            # First: the statements before it could exceed a timeout that another client left in a pooled session.
            "statement_timeout": f"{connection.statement_timeout_seconds * 1000:.0f}",
            "lock_timeout": f"{timeout_seconds * 1000:.0f}",
            **_known(connection, _SETTINGS, _SETTINGS_SINCE),
            **({} if namespace is None else {"search_path": namespace}),
        }
        connection.set_timeout_sql = (
            f"SET LOCAL statement_timeout = {connection.settings['statement_timeout']}".encode()
        )
        connection.set_local_sql = f"SELECT {_local_configs(connection.settings)}, {_SYNCHRONOUS}".encode()
        connection.begin_sql = (
            f"{_BEGIN}; {_assignments('SET LOCAL', connection.settings)}; SHOW synchronous_commit".encode()
        )
        return connection

    answer_seconds: float
    statement_seconds: float
    statement_timeout_seconds: float
    settings: Mapping[str, str]
    begin_sql: bytes
    set_timeout_sql: bytes
    """Comes before all others: they could exceed a timeout that another client left in a pooled session."""
    set_local_sql: bytes

    def begin(self) -> None:
        """Begin a transaction. If synchronous_commit is off, turn it on, so that a commit waits for the disk.

        Keep the other values of synchronous_commit, which wait for the disk or for standbys.
        """
        self.limit_waiting()
        if not self.is_pooled:
            with self.lock:
                self.wait(self._exec_command(self.begin_sql))  # in a tenth of the time that a cursor takes
            self.max_wait_seconds = self.statement_seconds
            return
        synchronous_commit = self.fetch_last(self.begin_sql)
        self.max_wait_seconds = self.statement_seconds
        if synchronous_commit == ("off",):
            self.execute(b"SET LOCAL synchronous_commit = on")

    def fetch_last(self, statements: bytes) -> tuple[Any, ...] | None:
        """Execute statements that are separated by semicolons, and return the first row of the last one."""
        cursor = self.execute(statements)
        while cursor.nextset():
            pass
        return cursor.fetchone()

    def find_latest_start(self, commit_by: float | None) -> float:
        """Return the server's time at which it must have started `commit_together`, in seconds since 1970.

        If it starts later, this client may not wait for the answer any more. A statement after the first one may take
        as long again, but cannot start without the first.

        Args:
            commit_by: the `time.monotonic` time at which the statements must be done, or None.
        """
        now = time.monotonic()
        if now > self._clock_expires_monotonic:
            self.begin()
            ((server_time,),) = self.execute(_READ_CLOCK).fetchall()
            now = time.monotonic()
            self._clock_offset_seconds, self._clock_expires_monotonic = server_time - now, now + _CLOCK_SECONDS
            self.rollback()
        latest = now + self.statement_seconds - self.statement_timeout_seconds
        if commit_by is not None:
            latest = min(latest, commit_by - self.statement_timeout_seconds)
        return latest + self._clock_offset_seconds

    def forget_clock(self) -> None:
        """Read the server's clock again before the next `find_latest_start` returns."""
        self._clock_expires_monotonic = 0.0

    def commit_together(self, statements: Sequence[Statement], latest_start: float) -> list[Any]:
        """Execute statements in a transaction of their own, and commit it, in a single round trip.

        Return the rows of the first statement. Only the wait for the commit has no limit, because a standby may be
        unavailable. A server that hangs finds all statements when it continues, also the COMMIT. If it is later than
        ``latest_start`` then, its own clock makes the transaction fail.
        """
        self.max_wait_seconds = self.statement_seconds
        self._awaits_commit = True
        try:
            with self.pipeline():
                self.execute(_BEGIN)  # an implicit transaction has no statement that could report a failed commit
                if self.is_pooled:
                    self.execute(self.set_timeout_sql)
                    self.execute(self.set_local_sql)
                self.execute(_CHECK_CLOCK, [latest_start])
                first, *_ = [self.execute(statement, parameters, binary=True) for statement, parameters in statements]
                self.pgconn.send_flush_request()  # let the server send its answer before it commits
                self.execute("COMMIT")
        finally:
            self._awaits_commit = False
        self.note_answer()
        return first.fetchall()

    @property
    def was_idle(self) -> bool:
        """Whether the connection may be lost without a sign. Unlike `commit_together`, `begin` can then be repeated."""
        return time.monotonic() - self._answered_monotonic > IDLE_SECONDS

    def note_answer(self) -> None:
        """Note that the server has just answered, for `was_idle`."""
        self._answered_monotonic = time.monotonic()

    def raise_if_lost(self) -> None:
        """Raise an error if the server has closed the connection, or ended the session, while it was idle."""
        with DefaultSelector() as selector:
            selector.register(self.fileno(), EVENT_READ)
            if selector.select(0):
                raise psycopg.OperationalError("the connection was lost")

    def allow_waiting(self, max_seconds: float = _UNLIMITED) -> None:
        """Wait longer for answers until the next `begin` or `limit_waiting`, by default without a limit."""
        self.max_wait_seconds = max_seconds

    def limit_waiting(self) -> None:
        """Limit the wait for each answer outside of transactions."""
        self.max_wait_seconds = self.answer_seconds

    def interrupt(self) -> None:
        """End the statement that another thread waits for. Do not use the connection again.

        Behind a pooler, only end the wait; the statement's own timeout ends the statement. A request to cancel it could
        reach the statement of another client, and PgBouncer 1.18 crashes if a client gives up on such a request.
        """
        if self.is_pooled:
            self._is_interrupted = True
        else:
            self.cancel_safe(timeout=_CANCEL_SECONDS)

    def set_up(self) -> None:
        """Check the encoding of the database. A direct connection gets its settings, and may prepare statements.

        Raises:
            ConfigurationError: if it is not UTF-8.
        """
        self.begin()
        ((encoding, pid),) = self.execute(
            "SELECT current_setting('server_encoding'), pg_catalog.pg_backend_pid()"
        ).fetchall()
        self.is_pooled = self.info.backend_pid != pid  # poolers report an invented process id
        if encoding != "UTF8":
            raise ConfigurationError(
                f"the database's encoding is {encoding}, which cannot store every name: create a database with"
                " CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8'"
            )
        self.rollback()
        if self.is_pooled:
            return
        settings = {**self.settings, **_known(self, _SESSION_SETTINGS, _SESSION_SETTINGS_SINCE)}
        if self.fetch_last(f"{_assignments('SET', settings)}; SHOW synchronous_commit".encode()) == ("off",):
            self.execute(b"SET synchronous_commit = on")
        self.begin_sql = _BEGIN.encode()
        self.prepare_threshold = _PREPARE_THRESHOLD

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **keywords: Any) -> T:  # noqa: ANN401 - passed on
        """Run a psycopg generator, which communicates with the server. See `psycopg.Connection.wait`.

        Raises:
            NoAnswerError: if no complete answer arrives within `max_wait_seconds`; behind a pooler, if nothing arrives.
        """
        # psycopg's own wait is faster, but cannot be interrupted, and has the same timeout for all answers.
        if self.is_pooled or self._awaits_commit or _WAIT_TIMEOUT is None:
            return super().wait(self._bounded(gen), *arguments, **keywords)
        try:
            seconds = None if self.max_wait_seconds == _UNLIMITED else self.max_wait_seconds
            return super().wait(gen, *arguments, **{"timeout": seconds, **keywords})
        except _WAIT_TIMEOUT:
            self.close()
            raise NoAnswerError(self.max_wait_seconds) from None

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """Wrap a generator with a timeout. psycopg resumes it at least every 0.1 seconds."""
        ready = None
        deadline = time.monotonic() + self.max_wait_seconds
        while True:
            try:
                awaited = gen.send(ready)
            except StopIteration as stop:
                result: T = stop.value
                return result
            ready = yield awaited
            if ready:
                if self._awaits_commit and ready & psycopg.waiting.Ready.R:
                    self.allow_waiting()
                deadline = time.monotonic() + self.max_wait_seconds
            elif self._is_interrupted:
                self.close()
                raise psycopg.errors.QueryCanceled("the wait for the answer was interrupted")
            elif time.monotonic() > deadline:
                self.close()  # the statement's own timeout ends it; `interrupt` explains why it is not canceled
                raise NoAnswerError(self.max_wait_seconds)


def _known(
    connection: "psycopg.Connection[Any]", settings: Mapping[str, str], since: Mapping[int, Mapping[str, str]]
) -> dict[str, str]:
    """Return the settings that the server's version of PostgreSQL supports, including those in ``since``."""
    newer = (each for version, each in since.items() if connection.info.server_version >= version)
    return {name: value for each in (settings, *newer) for name, value in each.items()}


def _assignments(command: str, settings: Mapping[str, str]) -> str:
    return "; ".join(f"{command} {name} = {_literal(value)}" for name, value in settings.items())


def _local_configs(settings: Mapping[str, str]) -> str:
    """Return calls that have the effect of ``SET LOCAL``, in a single statement."""
    values = {**settings, **{name: quote(settings[name]) for name in _LISTS_OF_NAMES & settings.keys()}}
    return ", ".join(f"set_config({_literal(name)}, {_literal(value)}, true)" for name, value in values.items())


def _literal(value: str) -> str:
    escaped = value.replace("'", "''")
    return f"'{escaped}'"
