"""PostgreSQL: noticing that it has gone, and changes applied in sets, one statement for each kind of change.

Rows travel as one JSON parameter, which costs the client half of what as many arrays do.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import starmap
from socket import SHUT_RDWR, socket
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import msgspec
from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    URL,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Dialect,
    Engine,
    String,
    Table,
    any_,
    bindparam,
    cast,
    column,
    create_engine,
    delete,
    event,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError

from mlapi.adapters.sql import statements
from mlapi.adapters.sql.postgresql.batches import Segment, segments
from mlapi.adapters.sql.tables import api_keys, audit, users
from mlapi.domain.commands import (
    AddApiKey,
    ApiKeyCommand,
    ChangePassword,
    Command,
    EndTokens,
    Outcome,
    RecordApiKeyUse,
    Reencrypt,
    Register,
    Remove,
    RemoveApiKey,
    SetEnabled,
    UserUpdate,
)
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    RepositoryUnavailableError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.users import User, UserId

if TYPE_CHECKING:
    import psycopg

__all__ = [
    "apply",
    "autocommitting",
    "begin",
    "check",
    "commit",
    "holders",
    "insert",
    "is_passing",
    "leave_others",
    "make_engine",
]

# SQLSTATEs (PostgreSQL 18, appendix A) that a new attempt may not meet.
_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED, _READ_ONLY = "40001", "40P01", "25006"
_REGISTER_ATTEMPTS = 5


def make_engine(url: URL, wait: float, connections: int) -> Engine:
    try:
        from psycopg import ProgrammingError  # noqa: PLC0415 - an extra
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - as above
    except ImportError:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'psycopg[binary]'") from None

    # A server that has gone without a word is noticed by what is sent to it, and by probes while nothing is.
    noticing = {
        "connect_timeout": max(2, round(wait)),  # libpq takes less than 2 seconds for 2
        "tcp_user_timeout": round(wait * 1000),
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
                **{name: value for name, value in noticing.items() if name not in url.query},
            },
            hide_parameters=True,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=wait,
            pool_use_lifo=True,
        )
    except (ProgrammingError, ArgumentError):
        raise ConfigurationError("database.url holds an option that PostgreSQL does not know") from None

    opened = _OPENED[engine] = WeakSet()

    @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy's own look at the server
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        opened.add(connection)  # type: ignore[arg-type]  # psycopg's
        # In a statement and not in the start-up packet, which poolers refuse. Acknowledged means on disk: a server that
        # does not wait for its disk is told to; one that waits for more (standbys) is left alone.
        cursor = connection.cursor()
        cursor.execute(
            "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false),"
            " set_config('TimeZone', 'UTC', false)",
            (f"{wait * 1000:.0f}ms", f"{(wait + 2) * 1000:.0f}ms"),
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
                f"the database's encoding is {encoding}, in which not every name can be stored: make one with"
                " CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8'"
            )

    return engine


_OPENED: "WeakKeyDictionary[Engine, WeakSet[psycopg.Connection]]" = WeakKeyDictionary()
"""The connections of each engine that may be open."""


def drop_stale_connections(engine: Engine) -> None:
    """Break connections to servers other than the one that a new connection finds.

    For when all are taken: an old primary that hangs, and whose system does not, would keep them for ever.
    """
    from psycopg import Error  # noqa: PLC0415 - an extra

    others = list(_OPENED[engine])
    pool = engine.pool.recreate()
    pooled = pool.connect()
    here = _address(pooled.driver_connection)
    pooled.close()
    pool.dispose()
    for other in others:
        with suppress(Error, OSError):  # closed meanwhile
            address = _address(other)
            with socket(fileno=os.dup(other.fileno())) as its_socket:
                if address != here and its_socket.getpeername()[:2] == address:
                    its_socket.shutdown(SHUT_RDWR)  # whoever waits for it is told that it is lost


def _address(connection: Any) -> tuple[str, int]:  # noqa: ANN401 - psycopg's, as the pool gives it
    return connection.info.hostaddr, connection.info.port


def begin(_connection: "psycopg.Connection") -> None:
    """Psycopg begins with the first statement."""


def commit(connection: "psycopg.Connection") -> None:
    """Commit, and say so if nobody knows whether that was done.

    Raises:
        RepositoryUnavailableError: with ``may_be_done``, if the connection was lost before the answer came, or somebody
            has cancelled the wait for a standby: then it is committed here alone, and PostgreSQL only warns.
    """
    from psycopg import Error  # noqa: PLC0415 - an extra

    said: list[str | None] = []

    def listen(notice: "psycopg.errors.Diagnostic") -> None:
        said.append(notice.severity_nonlocalized)  # which it has no longer afterwards

    connection.add_notice_handler(listen)
    try:
        connection.commit()
    except Error as error:
        if _is_lost(error):
            raise RepositoryUnavailableError("the connection was lost while committing", may_be_done=True) from error
        raise
    finally:
        connection.remove_notice_handler(listen)
    if "WARNING" in said:
        raise RepositoryUnavailableError("the wait for a standby was cancelled while committing", may_be_done=True)


@contextmanager
def autocommitting(connection: "psycopg.Connection") -> Iterator[None]:
    """Each statement is a transaction of its own, without a round trip to begin and one to end it."""
    connection.autocommit = True
    yield
    connection.autocommit = False


def check(connection: "psycopg.Connection") -> None:
    """Raise `RepositoryUnavailableError` unless a transaction could write: a standby answers too."""
    (read_only,) = connection.execute("SELECT current_setting('transaction_read_only') = 'on'").fetchone() or (True,)
    if read_only:
        raise RepositoryUnavailableError("the database is read-only")


def is_transient(error: BaseException | None) -> bool:
    """Whether a new attempt on a new connection may not meet the error."""
    from psycopg import Error  # noqa: PLC0415 - an extra

    passing = {_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED, _READ_ONLY}
    return isinstance(error, Error) and (_is_lost(error) or error.sqlstate in passing)


def _is_lost(error: "psycopg.Error") -> bool:
    """Whether an error is of a connection that is lost."""
    from psycopg import OperationalError  # noqa: PLC0415 - an extra

    if error.sqlstate is None:
        return isinstance(error, OperationalError)  # without a word from the server
    # Class 57: an administrator or a crash has ended the session. Not 57014, a statement that took too long.
    return error.sqlstate.startswith("57P")


def apply(connection: "psycopg.Connection", commands: Sequence[Command]) -> list[Outcome]:
    """Apply the changes in the transaction that begins with this, as if one by one in order; write the audit trail."""
    outcomes: dict[int, Outcome] = {}
    parts = list(segments(commands))
    if len(parts) > 1 or (parts[0].removes and (parts[0].updates or parts[0].api_keys)):
        _lock_users(connection, commands)
    for segment in parts:
        _apply(connection, segment, outcomes)
    in_order = [outcomes[place] for place in range(len(commands))]
    if rows := statements.audit_rows(commands, in_order):
        _sent(connection, _INSERT_AUDIT, rows)
    return in_order


def find_principals(connection: "psycopg.Connection", subjects: Sequence[PrincipalId]) -> list[Principal | None]:
    """Return who stands behind each subject, outside of any transaction: each sees all that is committed by then."""
    return statements.holders_of(
        subjects,
        lambda ids: starmap(_known_user, connection.execute(_BY_IDS, {"ids": ids}).fetchall()),
        lambda ids: starmap(_known_api_key_holder, connection.execute(_API_KEY_HOLDERS, {"ids": ids}).fetchall()),
    )


# Who is asked for is asked for again, and his row is as it was.
_known_user = lru_cache(statements.REMEMBERED)(statements.user_of)
_known_api_key_holder = lru_cache(statements.REMEMBERED)(statements.api_key_holder_of)


def _lock_users(connection: "psycopg.Connection", commands: Sequence[Command]) -> None:
    """Lock all whom a batch is about in the order of their ids, where its statements would lock some after others.

    Of two batches that wait for each other one is ended by the server, which takes a second (``deadlock_timeout``).
    """
    ids = {command.user_id for command in commands if isinstance(command, UserUpdate | Remove | AddApiKey)}
    connection.execute(_LOCK_USERS, {"ids": [user_id for user_id in ids if statements.can_exist(user_id)]})


def _apply(connection: "psycopg.Connection", segment: Segment, outcomes: dict[int, Outcome]) -> None:
    _update(connection, segment.updates, outcomes)
    _register(connection, segment.registers, outcomes)
    # Who has guessed the id of a user that is registered before him in this very segment was too early above.
    new = {outcome.id: place for place in segment.registers if isinstance(outcome := outcomes[place], User)}
    late = {place: command for place, command in segment.updates.items() if new.get(command.user_id, place) < place}
    _update(connection, late, outcomes)
    _change_api_keys(connection, segment.api_keys, new, outcomes)
    _remove(connection, segment.removes, outcomes)


# --- one statement for each kind. Each locks its rows in the order of their keys, so that of two batches none waits for
# what the other holds while it holds what the other waits for.


def _given(*columns: ColumnElement[Any], also: Sequence[ColumnElement[Any]] = ()) -> CTE:
    """The rows of the one parameter, a JSON array of objects, as a table: the columns by name, and others computed."""
    parsed = func.json_to_recordset(cast(bindparam("rows", type_=String), JSON)).table_valued(*columns)
    return select(parsed.render_derived("parsed", with_types=True), *also).cte("given")


def _locked(table: Table, given: CTE) -> CTE:
    ids = select(table.c.id).where(table.c.id.in_(select(given.c.id))).order_by(table.c.id).with_for_update()
    return ids.cte("locked").prefix_with("MATERIALIZED")


def _compiled_update(
    table: Table,
    values: Callable[[Callable[[str], ColumnElement[Any]]], dict[str, ColumnElement[Any]]],
    returned: Sequence[ColumnElement[Any]],
    *columns: ColumnElement[Any],
) -> str:
    given = _given(*columns)
    locked = _locked(table, given)
    statement = (
        update(table)
        .where(table.c.id == locked.c.id, given.c.id == locked.c.id)
        .values(**values(given.c.__getitem__))
        .returning(*returned)
    )
    return statements.compiled(statement, _DIALECT)


def _compiled_register() -> str:
    texts = [column(name, String) for name in ("username", "password", "email", "username_key", "epoch")]
    # Ids are taken in the order of the batch, before its rows are put into the order of their names.
    sequence = select(func.pg_get_serial_sequence(literal_column("'users'"), literal_column("'id'"))).scalar_subquery()
    given = _given(
        *texts,
        column("enabled", Boolean),
        column("at", _TIME),
        column("created", _TIME),
        also=[func.nextval(sequence).label("id")],
    )
    columns = {"id": given.c.id, **statements.new_values(given.c.__getitem__)}
    statement = (
        insert(users)
        .from_select(list(columns), select(*columns.values()).order_by(given.c.username_key))
        .on_conflict_do_nothing(index_elements=["username_key"])
        .returning(users.c.id, users.c.username_key)
    )
    return statements.compiled(statement, _DIALECT)


def _compiled_names() -> str:
    given = _given(column("username_key", String))
    statement = select(users.c.id, users.c.username_key).where(users.c.username_key == given.c.username_key)
    return statements.compiled(statement, _DIALECT)


def _compiled_remove(table: Table, key: ColumnElement[Any], returned: Sequence[ColumnElement[Any]]) -> str:
    locked = _locked(table, _given(key))
    statement = delete(table).where(table.c.id == locked.c.id).returning(*returned)
    return statements.compiled(statement, _DIALECT)


def _compiled_add_api_key() -> str:
    given = _given(*[column(each.name, each.type) for each in statements.API_KEY_COLUMNS])
    # Locked as the check of the foreign key will, so that none is removed before it.
    owners = (
        select(users.c.id)
        .where(users.c.id.in_(select(given.c.user_id)))
        .order_by(users.c.id)
        .with_for_update(read=True, key_share=True)
        .cte("owners")
        .prefix_with("MATERIALIZED")
    )
    statement = (
        insert(api_keys)
        .from_select(list(given.c.keys()), select(given).join(owners, owners.c.id == given.c.user_id))
        .returning(api_keys.c.id)
    )
    return statements.compiled(statement, _DIALECT)


def _compiled_lock_users() -> str:
    ids = bindparam("ids", type_=ARRAY(BigInteger))
    statement = select(users.c.id).where(users.c.id == any_(ids)).order_by(users.c.id).with_for_update()
    return statements.compiled(statement, _DIALECT)


def _compiled_insert_audit() -> str:
    given = _given(*[column(each.name, each.type) for each in statements.AUDIT_COLUMNS])
    return statements.compiled(insert(audit).from_select(list(given.c.keys()), select(given)), _DIALECT)


def _compiled_holders(*columns: ColumnElement[Any]) -> str:
    """Select by an array of what the first of the columns is compared with."""
    ids = bindparam("ids", type_=ARRAY(columns[0].type))
    statement = select(*columns).where(columns[0] == any_(ids))
    if columns[0].table is api_keys:
        statement = statement.join_from(api_keys, users)
    return statements.compiled(statement, _DIALECT)


_TIME = DateTime(timezone=True)
_DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # of SQLAlchemy
_ID, _KEY_ID, _AT, _EPOCH = column("id", BigInteger), column("id", String), column("at", _TIME), column("epoch", String)
_SET_FLAG = _compiled_update(
    users, statements.flag_values, statements.COLUMNS, _ID, column("flag", Boolean), _AT, _EPOCH
)
_SET_PASSWORD = _compiled_update(
    users,
    statements.password_values,
    statements.COLUMNS,
    _ID,
    column("password", String),
    column("replacing", String),
    _AT,
    _EPOCH,
)
_REGISTER = _compiled_register()
_NAMES = _compiled_names()
_LOCK_USERS = _compiled_lock_users().encode()
_REMOVE = _compiled_remove(users, _ID, statements.COLUMNS)
_ADD_API_KEY = _compiled_add_api_key()
_RECORD_USE = _compiled_update(
    api_keys, statements.use_values, statements.API_KEY_COLUMNS, _KEY_ID, _AT, column("unless_since", _TIME)
)
_REMOVE_API_KEY = _compiled_remove(api_keys, _KEY_ID, statements.API_KEY_COLUMNS)
_INSERT_AUDIT = _compiled_insert_audit()
_BY_IDS = _compiled_holders(*statements.COLUMNS).encode()
_API_KEY_HOLDERS = _compiled_holders(*statements.API_KEY_COLUMNS, *statements.COLUMNS).encode()


def _execute(connection: "psycopg.Connection", statement: str, rows: Sequence[Mapping[str, object]]) -> list[Any]:
    return _sent(connection, statement, rows).fetchall() if rows else []


def _sent(
    connection: "psycopg.Connection", statement: str, rows: Sequence[Mapping[str, object]]
) -> "psycopg.Cursor[Any]":
    return connection.execute(statement.encode(), {"rows": msgspec.json.encode(rows).decode()})


def _update(connection: "psycopg.Connection", updates: dict[int, UserUpdate], outcomes: dict[int, Outcome]) -> None:
    flags: dict[int, SetEnabled | EndTokens] = {}
    passwords: dict[int, ChangePassword | Reencrypt] = {}
    for place, command in updates.items():
        if isinstance(command, SetEnabled | EndTokens):
            flags[place] = command
        else:
            passwords[place] = command
    found = _users(connection, _SET_FLAG, [statements.flag_row(command) for command in flags.values()])
    found |= _users(connection, _SET_PASSWORD, [statements.password_row(command) for command in passwords.values()])
    for place, command in updates.items():
        user = found.get(command.user_id)
        outcomes[place] = UserNotFoundError(command.user_id) if user is None else statements.updated(command, user)


def _remove(connection: "psycopg.Connection", removes: dict[int, Remove], outcomes: dict[int, Outcome]) -> None:
    found = _users(connection, _REMOVE, [{"id": command.user_id} for command in removes.values()])
    for place, command in removes.items():
        outcomes[place] = found.get(command.user_id) or UserNotFoundError(command.user_id)


def _users(connection: "psycopg.Connection", statement: str, rows: list[dict[str, Any]]) -> dict[UserId, User]:
    """Execute a statement about users that are there, and return those by id."""
    possible = [row for row in rows if statements.can_exist(row["id"])]
    return {row[0]: statements.user_of(*row) for row in _execute(connection, statement, possible)}


def _change_api_keys(
    connection: "psycopg.Connection",
    commands: dict[int, ApiKeyCommand],
    new: Mapping[UserId, int],
    outcomes: dict[int, Outcome],
) -> None:
    """Apply changes of API keys, given the places of the users who are new in this segment."""
    added: list[dict[str, Any]] = []
    used: list[dict[str, Any]] = []
    removed: list[dict[str, Any]] = []
    for place, command in commands.items():
        if isinstance(command, RecordApiKeyUse):
            if statements.can_be_stored(command.key_id):
                used.append(statements.use_row(command))
        elif isinstance(command, RemoveApiKey):
            if statements.can_be_stored(command.key_id):
                removed.append({"id": command.key_id})
        elif statements.can_exist(command.user_id) and new.get(command.user_id, place) <= place:
            added.append(statements.api_key_row(command.key))
    owned = {key_id for (key_id,) in _execute(connection, _ADD_API_KEY, added)}
    rows = [*_execute(connection, _RECORD_USE, used), *_execute(connection, _REMOVE_API_KEY, removed)]
    found = {row[0]: statements.api_key_of(*row) for row in rows}
    for place, command in commands.items():
        if isinstance(command, AddApiKey):
            outcomes[place] = command.key if command.key.id in owned else UserNotFoundError(command.user_id)
        else:
            outcomes[place] = found.get(command.key_id) or ApiKeyNotFoundError(command.key_id)


def _register(connection: "psycopg.Connection", registers: dict[int, Register], outcomes: dict[int, Outcome]) -> None:
    # The unique index decides. Its word is about a user whom another process may have removed before we ask who he is:
    # then the name is free, and we try again.
    open_ = registers
    for _ in range(_REGISTER_ATTEMPTS):
        if not open_:
            return
        rows = [
            {**statements.values_of(command), "at": command.at, "created": command.created}
            for command in open_.values()
        ]
        new = {key: user_id for user_id, key in _execute(connection, _REGISTER, rows)}
        refused = [
            {"username_key": command.username_key} for command in open_.values() if command.username_key not in new
        ]
        find_principals = {key: user_id for user_id, key in _execute(connection, _NAMES, refused)}
        for place, command in open_.items():
            if command.username_key in new:
                outcomes[place] = command.as_user(new[command.username_key])
            elif command.username_key in find_principals:
                outcomes[place] = UserExistsError(find_principals[command.username_key])
        open_ = {place: command for place, command in open_.items() if place not in outcomes}
    raise RepositoryUnavailableError("a username is registered and removed too fast to follow")
