"""Create engines for PostgreSQL, notice lost servers, and commit."""

import os
from contextlib import suppress
from socket import SHUT_RDWR, socket
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError

from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError

if TYPE_CHECKING:
    from weakref import WeakSet

    import psycopg

# SQLSTATEs (PostgreSQL 18, appendix A) of errors that a retry may not meet.
_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED, _READ_ONLY = "40001", "40P01", "25006"
_RETRYABLE_STATES = {_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED, _READ_ONLY}


def create(
    url: URL, *, timeout_seconds: float, max_connections: int, connections: "WeakSet[psycopg.Connection]"
) -> Engine:
    """Create an engine.

    Args:
        url: with the driver psycopg.
        timeout_seconds: to wait for a connection, a lock or a free connection of the pool.
        max_connections: size of the pool.
        connections: the engine adds every connection that it opens.

    Raises:
        ConfigurationError: if psycopg is not installed or the URL has an unknown option. Connections raise it, too, for
            a database with another encoding than UTF-8.
    """
    try:
        from psycopg import ProgrammingError  # noqa: PLC0415 - an optional dependency
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - as above
    except ImportError:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'psycopg[binary]'") from None

    # Notice a server that disappeared silently: by unacknowledged data, or by keepalives while the connection is idle.
    network_options = {
        "connect_timeout": max(2, round(timeout_seconds)),  # libpq rounds smaller values up to 2 seconds
        "tcp_user_timeout": round(timeout_seconds * 1000),
        "keepalives_idle": 10,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    try:
        make_conninfo(**dict.fromkeys(url.query, ""))
        engine = create_engine(
            url,
            connect_args={
                "client_encoding": "utf8",
                **{name: value for name, value in network_options.items() if name not in url.query},
            },
            hide_parameters=True,
            pool_size=max_connections,
            max_overflow=0,
            pool_timeout=timeout_seconds,
            pool_use_lifo=True,
        )
    except (ProgrammingError, ArgumentError):
        raise ConfigurationError("database.url has an option that PostgreSQL does not know") from None

    @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy's first queries
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        connections.add(connection)  # type: ignore[arg-type]  # psycopg's
        _configure_session(connection, timeout_seconds)

    return engine


def _configure_session(connection: DBAPIConnection, timeout_seconds: float) -> None:
    # Poolers reject these settings in the start-up packet, so send them in a statement. Turn synchronous_commit on if
    # it is off, because a commit must be on disk when it returns. Other values wait for standbys too: keep them.
    cursor = connection.cursor()
    cursor.execute(
        "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false),"
        " set_config('TimeZone', 'UTC', false)",
        (f"{timeout_seconds * 1000:.0f}ms", f"{(timeout_seconds + 2) * 1000:.0f}ms"),
    )
    cursor.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    cursor.execute("SHOW server_encoding")
    ((encoding,),) = cursor.fetchall()
    cursor.close()
    connection.commit()
    if encoding != "UTF8":
        raise ConfigurationError(
            f"the database's encoding is {encoding}, which cannot store every name: create a database with"
            " CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8'"
        )


def drop_stale_connections(engine: Engine, connections: "WeakSet[psycopg.Connection]") -> None:
    """Open a new connection and break those to any other server.

    Call this when all connections are in use. A former primary can hold them indefinitely if its process hangs while
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
        with suppress(Error, OSError):  # closed in the meantime
            address = _server_address(connection)
            with socket(fileno=os.dup(connection.fileno())) as connected:
                if address != current_address and connected.getpeername()[:2] == address:
                    connected.shutdown(SHUT_RDWR)  # the waiting thread gets an error


def _server_address(connection: Any) -> tuple[str, int]:  # noqa: ANN401 - SQLAlchemy does not type it
    return connection.info.hostaddr, connection.info.port


def commit(connection: "psycopg.Connection") -> None:
    """Commit, and report an unknown outcome.

    Raises:
        RepositoryUnavailableError: with ``may_be_done``, if the connection was lost before the server responded. Also
            if an administrator cancelled the wait for a standby: the transaction is then committed on this server
            alone, and PostgreSQL only warns.
    """
    from psycopg import Error  # noqa: PLC0415 - an optional dependency

    severities: list[str | None] = []

    def on_notice(notice: "psycopg.errors.Diagnostic") -> None:
        severities.append(notice.severity_nonlocalized)  # the notice is valid only during this call

    connection.add_notice_handler(on_notice)
    try:
        connection.commit()
    except Error as error:
        if _is_connection_lost(error):
            raise RepositoryUnavailableError("the connection was lost while committing", may_be_done=True) from error
        raise
    finally:
        connection.remove_notice_handler(on_notice)
    if "WARNING" in severities:
        raise RepositoryUnavailableError("the wait for a standby was cancelled while committing", may_be_done=True)


def is_transient(error: BaseException | None) -> bool:
    """Return True if a retry on a new connection may succeed."""
    from psycopg import Error  # noqa: PLC0415 - an optional dependency

    return isinstance(error, Error) and (_is_connection_lost(error) or error.sqlstate in _RETRYABLE_STATES)


def _is_connection_lost(error: "psycopg.Error") -> bool:
    from psycopg import OperationalError  # noqa: PLC0415 - an optional dependency

    if error.sqlstate is None:
        return isinstance(error, OperationalError)  # the server did not respond
    # Class 57P: an administrator or a crash ended the session. 57014, a statement timeout, is not among them.
    return error.sqlstate.startswith("57P")
