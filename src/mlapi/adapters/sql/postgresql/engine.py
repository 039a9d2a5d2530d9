"""Create engines for PostgreSQL, drop connections to lost servers, and commit."""

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from socket import SHUT_RDWR, socket
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError

from mlapi.adapters.sql.closing_pool import ClosingPool
from mlapi.adapters.sql.postgresql.errors import RAISING_FUNCTIONS, has_lost_connection
from mlapi.adapters.sql.postgresql.namespaces import OPTION
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError

if TYPE_CHECKING:
    from weakref import WeakSet

    import psycopg

    from mlapi.adapters.sql.postgresql.session import BoundedConnection, Statement
    from mlapi.adapters.sql.row_readers import Row

_abandoned: list[object] = []
"""Keeps inherited connections from being finalized in a forked child."""


def create(
    url: URL,
    *,
    namespace: str | None,
    timeout_seconds: float,
    max_connections: int,
    connections: "WeakSet[BoundedConnection]",
) -> Engine:
    """Create an engine.

    Args:
        url: must use the driver psycopg.
        namespace: the PostgreSQL schema that contains the tables; None for the first one on the ``search_path``.
        timeout_seconds: for connecting, for waiting for a lock, and for waiting for a pooled connection.
            `BoundedConnection.open` limits the other waits.
        max_connections: size of the connection pool.
        connections: the engine adds every connection that it opens to this set.

    Raises:
        ConfigurationError: if psycopg is not installed or the URL has an unknown option. Connecting also raises it, if
            the encoding of the database is not UTF-8.
    """
    try:
        from psycopg import Error  # noqa: PLC0415 - an optional dependency

        from mlapi.adapters.sql.postgresql.session import BoundedConnection  # noqa: PLC0415 - as above
    except ImportError:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'mlapi-users[postgres]'") from None

    # Detect a server that disappears silently: by unacknowledged data, or by keepalives while the connection is idle.
    network_options = {
        "connect_timeout": max(2, round(timeout_seconds)),  # libpq rounds smaller values up to 2 seconds
        "tcp_user_timeout": round(timeout_seconds * 1000),
        "keepalives_idle": 10,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    _validate_option_names(url)
    try:
        engine = create_engine(
            url,
            connect_args={
                "client_encoding": "utf8",
                **{name: value for name, value in network_options.items() if name not in url.query},
            },
            execution_options={} if namespace is None else {OPTION: namespace},
            hide_parameters=True,
            poolclass=ClosingPool,
            pool_size=max_connections,
            max_overflow=0,
            pool_timeout=timeout_seconds,
            pool_use_lifo=True,
            use_native_hstore=False,  # saves queries on connecting
        )
    except ArgumentError:
        raise ConfigurationError("database.url: write several hosts as host=db1:5432&host=db2:5432") from None

    is_dialect_ready = False

    @event.listens_for(engine, "do_connect")
    def _connect(
        _dialect: object, _record: object, arguments: list[Any], keywords: dict[str, Any]
    ) -> BoundedConnection:
        # Set the connection up here, because SQLAlchemy calls the listeners for "connect" in one thread at a time.
        connection = BoundedConnection.open(
            *arguments, namespace=namespace, timeout_seconds=timeout_seconds, **keywords
        )
        connections.add(connection)
        with _closing_after_errors(connection):
            connection.set_up()
        return connection

    @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy's queries on the first connection
    def _begin_first_queries(connection: DBAPIConnection, _record: object) -> None:
        if not is_dialect_ready:
            driver = cast("BoundedConnection", connection)
            with _closing_after_errors(driver):
                driver.begin()

    @event.listens_for(engine, "connect")  # after SQLAlchemy's queries on the first connection
    def _end_first_queries(connection: DBAPIConnection, _record: object) -> None:
        nonlocal is_dialect_ready
        if not is_dialect_ready:
            driver = cast("BoundedConnection", connection)
            with _closing_after_errors(driver):
                driver.rollback()
            is_dialect_ready = True

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        try:
            driver_connection(connection).begin()
        except Error as error:
            connection.invalidate(error)
            raise

    return engine


def _validate_option_names(url: URL) -> None:
    """Check that libpq knows the options. Never show an unknown one: it may be a part of a password."""
    from psycopg.pq import Conninfo  # noqa: PLC0415 - an optional dependency

    known = [option.keyword.decode() for option in Conninfo.get_defaults()]
    for name in url.query:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "remove it, and write & in a value as %26"
            raise ConfigurationError(f"database.url has an unknown PostgreSQL option: {hint}")


@contextmanager
def _closing_after_errors(connection: "BoundedConnection") -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def driver_connection(connection: Connection) -> "BoundedConnection":
    return cast("BoundedConnection", connection.connection.driver_connection)


def drop_stale_connections(engine: Engine, connections: "WeakSet[BoundedConnection]") -> None:
    """Open a new connection, and break all connections to any other server.

    Call this when all connections are in use. A former primary can block them indefinitely if its process hangs while
    its operating system still responds.
    """
    from psycopg import Error  # noqa: PLC0415 - an optional dependency

    candidates = list(connections)
    pool = engine.pool.recreate()
    pooled = pool.connect()
    current_address = _server_address(pooled.driver_connection)
    pooled.close()
    pool.dispose()
    for connection in candidates:
        with suppress(Error, OSError):  # the connection was closed in the meantime
            address = _server_address(connection)
            with socket(fileno=os.dup(connection.fileno())) as connected:
                if address != current_address and connected.getpeername()[:2] == address:
                    connected.shutdown(SHUT_RDWR)  # the waiting thread gets an error


def abandon(engine: Engine, connections: "WeakSet[BoundedConnection]") -> None:
    """In a forked child, detach inherited connections from their sockets without sending data.

    Closing a connection would end its session, which the parent still uses.
    """
    from psycopg import Error  # noqa: PLC0415 - an optional dependency

    inherited = list(connections)
    connections.clear()
    null = os.open(os.devnull, os.O_RDWR)
    for connection in inherited:
        with suppress(Error, OSError):  # it is closed
            os.dup2(null, connection.fileno(), inheritable=False)
    os.close(null)
    _abandoned.append((engine, inherited))


def _server_address(connection: Any) -> tuple[str, int]:  # noqa: ANN401 - SQLAlchemy does not type it
    return connection.info.hostaddr, connection.info.port


def commit(connection: "BoundedConnection") -> None:
    """Commit, and raise an error if the outcome is unknown. See `commit_together`."""
    with _checking_commit(connection):
        connection.allow_waiting()  # for a standby
        connection.commit()
        connection.note_answer()


def commit_together(
    connection: "BoundedConnection", statements: "Sequence[Statement]", *, commit_by: float | None
) -> "Sequence[Row]":
    """Execute statements and commit them in a single round trip. Return the rows of the first.

    Args:
        connection: without a transaction.
        statements: each of them ends or fails within ``statement_timeout_seconds``.
        commit_by: see `BoundedConnection.find_latest_start`.

    Raises:
        RepositoryUnavailableError: with ``may_be_done`` set, if the connection was lost before the server responded, or
            if a DBA canceled the wait for a standby. In the latter case the transaction is committed on
            this server alone, and PostgreSQL only sends a warning.
    """
    connection.raise_if_lost()  # before the statements are sent, so that they can be sent again
    latest_start = connection.find_latest_start(commit_by)
    with _checking_commit(connection):
        return connection.commit_together(statements, latest_start)


@contextmanager
def _checking_commit(connection: "BoundedConnection") -> Iterator[None]:
    from psycopg import Error  # noqa: PLC0415 - an optional dependency

    from mlapi.adapters.sql.postgresql.session import NoAnswerError  # noqa: PLC0415 - as above

    warnings: list[str | None] = []

    def on_notice(notice: "psycopg.errors.Diagnostic") -> None:
        # The notice itself becomes invalid after this call. The statements may cause warnings of triggers.
        if notice.severity_nonlocalized == "WARNING" and notice.source_function not in RAISING_FUNCTIONS:
            warnings.append(notice.sqlstate)

    connection.add_notice_handler(on_notice)
    try:
        yield
    except NoAnswerError as error:
        raise RepositoryUnavailableError(str(error), may_be_done=True) from None
    except Error as error:
        if has_lost_connection(error):
            raise RepositoryUnavailableError("the connection was lost while committing", may_be_done=True) from None
        raise
    finally:
        connection.remove_notice_handler(on_notice)
    if warnings:
        raise RepositoryUnavailableError("the wait for a standby was canceled while committing", may_be_done=True)
