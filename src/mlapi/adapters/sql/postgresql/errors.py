"""Classify errors of PostgreSQL, and describe them without their messages.

A message may contain stored values, or parts of the database URL. Therefore the description depends only on the
SQLSTATE or, if the connection failed, on well-known words in the message.
"""

from typing import TYPE_CHECKING

from mlapi.adapters.sql.tables import find_table_name

if TYPE_CHECKING:
    import psycopg

# SQLSTATEs: PostgreSQL 18, appendix A.
LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"
_DIVISION_BY_ZERO = "22012"
_DUPLICATE_TABLE = "42P07"
_INSUFFICIENT_PRIVILEGE = "42501"
_READ_ONLY_TRANSACTION = "25006"
_RETRYABLE_STATES = {"40001", "40P01", _READ_ONLY_TRANSACTION}
"""A serialization failure, a deadlock, and a read-only transaction: the server may have become a standby."""

_REFERENCE_STATES = {"23001", "23503"}
_REJECTION_CLASSES = {"23", "27", "44", "P0"}
"""The classes of SQLSTATEs for constraints, changes in triggers, WITH CHECK OPTION, and RAISE in PL/pgSQL."""
RAISING_FUNCTIONS = {"exec_stmt_assert", "exec_stmt_raise"}
"""The functions in the server's source code that execute RAISE and ASSERT. RAISE may use any SQLSTATE."""

_PROTOCOL_VIOLATION = "08P01"  # of all errors that PgBouncer itself reports

_TABLE_PRIVILEGES = (
    "permission denied: as the owner of the tables, run `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA"
    " <schema> TO <user>` and `GRANT USAGE ON ALL SEQUENCES IN SCHEMA <schema> TO <user>` for the user in database.url."
    " A guard only needs `GRANT SELECT ON users, mlapi_api_keys, mlapi_alembic_version TO <user>`, and for usage also"
    " `GRANT SELECT, INSERT, UPDATE ON mlapi_usage, mlapi_activity TO <user>` (SQLSTATE 42501)"
)

_BY_STATE = {
    "08": "the connection was lost",
    "22": "a stored or sent value is invalid",
    "23": "a constraint was violated",
    "25006": "the database is read-only",
    "28": "the server rejected the user or the password",
    "3D000": "the database does not exist: check database.url",
    "40": "the transaction was rolled back because of other transactions",
    "42501": "permission denied: run `mlapi doctor` to see which privilege the user in database.url lacks",
    "42P01": "a table is missing: run `mlapi db upgrade`",
    "53100": "the server's disk is full",
    "53200": "the server is out of memory",
    "53300": "the server has no free connection",
    "55P03": "a row or table is locked",
    "57014": "the statement took too long",
    "57P": "the server ended the session",
    "58": "the server reports a system error",
    "P0": "a trigger rejected the change",
    "XX": "the server reports an internal error or damaged data",
}
"""Descriptions by SQLSTATE (PostgreSQL 18, appendix A) or its beginning."""

_BY_WORDS = (
    (
        ("password authentication failed", "sasl", "authentication failed"),
        "the server rejected the user or the password",
    ),
    (("no password supplied",), "the server asks for a password: add it to database.url"),
    (("pg_hba.conf",), "the server does not accept this user, database or address: check its pg_hba.conf"),
    (
        ("too many", "remaining connection slots", "no more connections", "query_wait_timeout"),
        "the server or a connection pooler has no free connection",
    ),
    (
        ("statement pooling mode",),
        "the connection pooler allows no transactions: set its pool_mode to transaction or session",
    ),
    (
        ("unsupported startup parameter",),
        "the connection pooler rejects a startup parameter: remove `options` from database.url and PGOPTIONS",
    ),
    (
        ("server login", "login failed", "cannot connect to server", "server conn crashed"),
        "the connection pooler cannot connect to the server: check its log",
    ),
    ((' value: "', "invalid value for"), "an option in database.url has an invalid value"),
    (("starting up", "shutting down", "recovery mode", "not yet accepting"), "the server is starting or stopping"),
    (("read-only", "hot standby", "standby mode"), "no server has the required target_session_attrs"),
    (
        ("closed", "eof detected", "reset by peer", "broken pipe", "connection lost", "consuming input failed"),
        "the connection was lost",
    ),
    (("certificate", "ssl", "tls", "gss"), "the encrypted connection failed: check sslmode and the certificates"),
    (
        ("resolve", "translate host name", "name or service not known", "no address associated"),
        "the host name was not found: check the host in database.url",
    ),
    (
        ("connection refused", "no such file or directory"),
        "the connection was refused: check the host and port in database.url",
    ),
    (("timeout", "timed out"), "the server did not answer in time"),
    (("unreachable", "no route to host"), "the host cannot be reached"),
    (("does not exist", "no such database"), "the user or the database does not exist: check database.url"),
)
"""Descriptions by words in the messages of libpq, psycopg and PgBouncer, which have no SQLSTATE while connecting."""


def describe_error(error: BaseException | None) -> str:
    """Describe an error by its SQLSTATE, or a failed connection by well-known words in the message."""
    from psycopg.errors import ConnectionTimeout, DataError  # noqa: PLC0415 - an optional dependency

    from mlapi.adapters.sql.postgresql.session import NO_ANSWER, NoAnswerError  # noqa: PLC0415 - as above

    if isinstance(error, NoAnswerError):
        return str(error)
    if isinstance(error, ConnectionTimeout):
        return f"no connection to the database in time: {NO_ANSWER}"
    state = getattr(error, "sqlstate", None)
    if state in {None, _PROTOCOL_VIOLATION}:
        message = str(error).casefold()
        for words, description in _BY_WORDS:
            if any(word in message for word in words):
                return description
    if state is None and isinstance(error, DataError):  # psycopg's own error
        return "a stored time is too early or too late"
    if state is None:
        return f"the connection failed ({type(error).__name__})"
    return _describe_statement_error(error, state)


def _describe_statement_error(error: BaseException | None, state: str) -> str:
    table = find_table_name(str(error))
    if state == _DUPLICATE_TABLE and table:
        return f"the table {table} exists already: rename it (SQLSTATE {state})"
    if state == _INSUFFICIENT_PRIVILEGE and "for table" in str(error):
        return _TABLE_PRIVILEGES
    for beginning in (state, state[:3], state[:2]):
        if beginning in _BY_STATE:
            return f"{_BY_STATE[beginning]} (SQLSTATE {state})"
    return f"a statement failed ({type(error).__name__}, SQLSTATE {state})"


def is_transient(error: BaseException | None) -> bool:
    """Return True if a retry on a new connection may succeed. After a timeout, there is no time for a retry."""
    from psycopg.errors import ConnectionTimeout  # noqa: PLC0415 - an optional dependency

    from mlapi.adapters.sql.postgresql.session import NoAnswerError  # noqa: PLC0415 - as above

    return must_reconnect(error) and not isinstance(error, NoAnswerError | ConnectionTimeout)


def must_reconnect(error: BaseException | None) -> bool:
    """Return True after a lost connection or a timeout, or if the server has become read-only."""
    from psycopg import Error  # noqa: PLC0415 - an optional dependency

    return isinstance(error, Error) and (has_lost_connection(error) or error.sqlstate in _RETRYABLE_STATES)


def is_rejection(error: BaseException | None) -> bool:
    """Return True if a constraint or a trigger rejected a change."""
    from psycopg import Error  # noqa: PLC0415 - an optional dependency

    if not isinstance(error, Error) or error.sqlstate is None:
        return False
    return error.sqlstate[:2] in _REJECTION_CLASSES or error.diag.source_function in RAISING_FUNCTIONS


def has_started_too_late(error: BaseException | None) -> bool:
    """Return True if the server started `BoundedConnection.commit_together` too late: its check divides by zero."""
    return getattr(error, "sqlstate", None) == _DIVISION_BY_ZERO


def is_reference(error: BaseException | None) -> bool:
    """Return True for a rejection because of a foreign key."""
    return getattr(error, "sqlstate", None) in _REFERENCE_STATES


def is_read_only(error: BaseException | None) -> bool:
    """Return True if the role lacks a privilege, or the transaction is read-only."""
    return getattr(error, "sqlstate", None) in {_INSUFFICIENT_PRIVILEGE, _READ_ONLY_TRANSACTION}


def has_lost_connection(error: "psycopg.Error") -> bool:
    from psycopg import OperationalError  # noqa: PLC0415 - an optional dependency

    if error.sqlstate is None:
        return isinstance(error, OperationalError)  # the server did not respond
    # 57P..: a DBA or a crash ended the session. The code for a statement timeout, 57014, does not match.
    # 08...: a connection pooler lost the server.
    return error.sqlstate.startswith(("57P", "08"))
