"""Create engines for PostgreSQL, detect lost servers, and commit."""

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

# SQLSTATEs (PostgreSQL 18, appendix A) of errors after which a retry may succeed.
_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED, _READ_ONLY = "40001", "40P01", "25006"
_RETRYABLE_STATES = {_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED, _READ_ONLY}


def create(
    url: URL, *, timeout_seconds: float, max_connections: int, connections: "WeakSet[psycopg.Connection]"
) -> Engine:
    """Create an engine.

    Args:
        url: must use the driver psycopg.
        timeout_seconds: for connecting, for waiting for a lock, and for waiting for a pooled connection.
        max_connections: size of the connection pool.
        connections: the engine adds every connection that it opens to this set.

    Raises:
        ConfigurationError: if psycopg is not installed or the URL has an unknown option. Connecting also raises it, if
            the encoding of the database is not UTF-8.
    """
    try:
        from psycopg import ProgrammingError  # noqa: PLC0415 - an optional dependency
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - as above
    except ImportError:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'psycopg[binary]'") from None

    # Detect a server that disappears silently: by unacknowledged data, or by keepalives while the connection is idle.
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
        raise ConfigurationError("database.url has an unknown PostgreSQL option") from None

    @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy's first queries
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        connections.add(connection)  # type: ignore[arg-type]  # it is a psycopg connection
        _configure_session(connection, timeout_seconds)

    return engine


def _configure_session(connection: DBAPIConnection, timeout_seconds: float) -> None:
    # Set these with a statement, because connection poolers reject them in the startup packet. Turn synchronous_commit
    # on only if it is off: a commit must be on disk when it returns. Keep other values, which also wait for standbys.
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


def _server_address(connection: Any) -> tuple[str, int]:  # noqa: ANN401 - SQLAlchemy does not type it
    return connection.info.hostaddr, connection.info.port


def commit(connection: "psycopg.Connection") -> None:
    """Commit, and raise an error if the outcome is unknown.

    Raises:
        RepositoryUnavailableError: with ``may_be_done`` set, if the connection was lost before the server responded, or
            if a DBA canceled the wait for a standby. In the latter case the transaction is committed on
            this server alone, and PostgreSQL only sends a warning.
    """
    from psycopg import Error  # noqa: PLC0415 - an optional dependency

    severities: list[str | None] = []

    def on_notice(notice: "psycopg.errors.Diagnostic") -> None:
        severities.append(notice.severity_nonlocalized)  # the notice itself becomes invalid after this call

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
        raise RepositoryUnavailableError("the wait for a standby was canceled while committing", may_be_done=True)


def is_transient(error: BaseException | None) -> bool:
    """Return True if a retry on a new connection may succeed."""
    from psycopg import Error  # noqa: PLC0415 - an optional dependency

    return isinstance(error, Error) and (_is_connection_lost(error) or error.sqlstate in _RETRYABLE_STATES)


def _is_connection_lost(error: "psycopg.Error") -> bool:
    from psycopg import OperationalError  # noqa: PLC0415 - an optional dependency

    if error.sqlstate is None:
        return isinstance(error, OperationalError)  # the server did not respond
    # 57P..: a DBA or a crash ended the session. The code for a statement timeout, 57014, does not match.
    return error.sqlstate.startswith("57P")
