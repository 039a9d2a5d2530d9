"""SQLite: durable settings, explicit transactions, and changes applied one by one, which costs some 10 us each."""

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import URL, Connection, Engine, bindparam, create_engine, delete, event, func, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine.interfaces import DBAPIConnection

from mlapi.adapters.sql import statements
from mlapi.adapters.sql.tables import api_keys, audit, users
from mlapi.domain.commands import (
    AddApiKey,
    ApiKeyCommand,
    Command,
    EndTokens,
    Outcome,
    RecordApiKeyUse,
    Register,
    Remove,
    SetEnabled,
    UserCommand,
)
from mlapi.domain.credentials import ApiKey, ApiKeyPrincipal, Principal, PrincipalId
from mlapi.domain.errors import ApiKeyNotFoundError, UserExistsError, UserNotFoundError
from mlapi.domain.users import User, UserId

__all__ = [
    "BEGIN",
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

BEGIN = "mlapi_sqlite_begin"
"""Execution option: how a transaction begins. ``BEGIN IMMEDIATE`` for what will write: a transaction that reads first
and then asks for the lock can be refused."""

_PAUSE = 0.01  # seconds
_HELD = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL}
"""Primary codes of errors that pass when another process lets go."""
_NOT_WRITABLE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}

_DIALECT = sqlite.dialect(paramstyle="named")
_INSERT = statements.compiled(
    insert(users)
    .values(**statements.new_values(bindparam))
    .on_conflict_do_nothing(index_elements=["username_key"])
    .returning(users.c.id),
    _DIALECT,
)
_HOLDER = statements.compiled(statements.HOLDER, _DIALECT)
_UPDATE = update(users).where(users.c.id == bindparam("id")).returning(*statements.COLUMNS)
_SET_FLAG = statements.compiled(_UPDATE.values(**statements.flag_values(bindparam)), _DIALECT)
_SET_PASSWORD = statements.compiled(_UPDATE.values(**statements.password_values(bindparam)), _DIALECT)
_REMOVE = statements.compiled(statements.REMOVE, _DIALECT)
_GIVEN = select(func.json_each(bindparam("ids")).table_valued("value").c.value)
_USER = select(*statements.COLUMNS)
_BY_ID = statements.compiled(_USER.where(users.c.id == bindparam("id")), _DIALECT)
_BY_IDS = statements.compiled(_USER.where(users.c.id.in_(_GIVEN)), _DIALECT)
_INSERT_API_KEY = statements.compiled(
    insert(api_keys)
    .from_select(
        [column.name for column in statements.API_KEY_COLUMNS],
        select(*[bindparam(column.name) for column in statements.API_KEY_COLUMNS]).where(
            select(users.c.id).where(users.c.id == bindparam("user_id")).exists()
        ),
    )
    .returning(api_keys.c.id),
    _DIALECT,
)
_OF_KEY = api_keys.c.id == bindparam("id")
_RECORD_USE = statements.compiled(
    update(api_keys).where(_OF_KEY).values(**statements.use_values(bindparam)).returning(*statements.API_KEY_COLUMNS),
    _DIALECT,
)
_REMOVE_API_KEY = statements.compiled(delete(api_keys).where(_OF_KEY).returning(*statements.API_KEY_COLUMNS), _DIALECT)
_INSERT_AUDIT = statements.compiled(
    insert(audit).values(**{column.name: bindparam(column.name) for column in statements.AUDIT_COLUMNS}), _DIALECT
)
_HOLDER_OF_KEY = select(*statements.API_KEY_COLUMNS, *statements.COLUMNS).join_from(api_keys, users)
_API_KEY_HOLDER = statements.compiled(_HOLDER_OF_KEY.where(_OF_KEY), _DIALECT)
_API_KEY_HOLDERS = statements.compiled(_HOLDER_OF_KEY.where(api_keys.c.id.in_(_GIVEN)), _DIALECT)


def make_engine(url: URL, wait: float, connections: int) -> Engine:
    engine = create_engine(url, hide_parameters=True, pool_size=connections, max_overflow=0, pool_timeout=wait)

    @event.listens_for(engine, "do_connect")
    def _connect(
        _dialect: object, _record: object, arguments: list[Any], keywords: dict[str, Any]
    ) -> sqlite3.Connection:
        # Passwords are in it, if encrypted, so nobody else may read it. Only ever a file that is not there yet: to
        # close a file that SQLite has open would drop its locks.
        if not Path(arguments[0]).exists():
            with suppress(OSError):  # another process was first, or SQLite will say why not
                os.close(os.open(arguments[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        opened: list[sqlite3.Connection] = []

        def execute_anew(statement: str) -> None:
            connection = sqlite3.connect(*arguments, **{**keywords, "timeout": wait})
            try:
                # None: the sqlite3 module begins and commits nothing by itself. Its legacy handling commits early.
                connection.isolation_level = None
                connection.execute(statement).fetchall()  # all: a commit that fails shows at the end
                _empty_log(connection)
            except BaseException:
                connection.close()
                raise
            opened.append(connection)

        _write_ahead(execute_anew, time.monotonic() + wait)
        return opened[0]

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {wait * 1000:.0f}")
        # Acknowledged means on disk. With the write-ahead log the same as FULL; where a file system has no shared
        # memory for that, SQLite stays with its journal, whose end is not durable without this.
        cursor.execute("PRAGMA synchronous = EXTRA")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(BEGIN, "BEGIN"))

    return engine


def _write_ahead(execute: Callable[[str], object], until: float) -> None:
    """Turn the write-ahead log on; SQLite does not wait by itself for another process that is about to do the same.

    Args:
        execute: with a new connection each time. One whose attempt has failed to commit takes it for done ever after,
            and goes on with a journal.
        until: a time of `time.monotonic`.
    """
    while True:
        try:
            execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if time.monotonic() > until or _code(error) not in _HELD:
                raise
            time.sleep(_PAUSE)
        else:
            return


def _empty_log(connection: sqlite3.Connection) -> None:
    """Write back what a former process has left in the write-ahead log, and begin it anew, unless it is in use.

    If to sync the log has failed, parts of it may be on no disk although they can be read, and the system takes them
    for written. Of what is appended to them nothing would outlive a loss of power.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        if _code(error) not in _NOT_WRITABLE:  # then nothing is appended either, and what is there can be read
            raise


def _code(error: sqlite3.Error) -> int:
    """Return the primary code, without which of its kinds it is; 0 for an error of the module's own."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def begin(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")


def drop_stale_connections(_engine: Engine) -> None:
    """There is one file."""


def commit(connection: sqlite3.Connection) -> None:
    connection.commit()


def autocommitting(_connection: sqlite3.Connection) -> AbstractContextManager[None]:
    """It begins no transaction by itself."""
    return nullcontext()


def disable_waiting(connection: sqlite3.Connection) -> None:
    """Let a connection raise where it would have to wait for a lock."""
    connection.execute("PRAGMA busy_timeout = 0")


def check(connection: sqlite3.Connection) -> None:
    """Raise unless a transaction could write: `begin` has the lock, and here are the users, in no empty new file."""
    connection.execute("SELECT 1 FROM users LIMIT 1").fetchall()


def is_transient(_error: BaseException | None) -> bool:
    """Whether a new attempt would not meet the error. SQLite has waited for its lock already."""
    return False


def apply(connection: sqlite3.Connection, commands: Sequence[Command]) -> list[Outcome]:
    """Apply the changes in order in the transaction that has begun, and write what was done into the audit trail."""
    outcomes = [
        _apply(connection, command) if isinstance(command, UserCommand) else _apply_to_api_keys(connection, command)
        for command in commands
    ]
    entries = statements.audit_rows(commands, outcomes)
    connection.executemany(_INSERT_AUDIT, [{**entry, "at": _text(entry["at"])} for entry in entries])
    return outcomes


def find_principals(connection: sqlite3.Connection, subjects: Sequence[PrincipalId]) -> list[Principal | None]:
    """Return who stands behind each subject, outside of any transaction: each sees all that is committed by then."""
    return statements.holders_of(
        subjects,
        lambda ids: map(_known_user, _select(connection, _BY_ID, _BY_IDS, ids)),
        lambda ids: map(_known_api_key_holder, _select(connection, _API_KEY_HOLDER, _API_KEY_HOLDERS, ids)),
    )


def _select(
    connection: sqlite3.Connection, one: str, many: str, ids: Sequence[int] | Sequence[str]
) -> list[Sequence[Any]]:
    if len(ids) == 1:
        return connection.execute(one, {"id": ids[0]}).fetchall()
    return connection.execute(many, {"ids": msgspec.json.encode(ids).decode()}).fetchall()


def _apply(connection: sqlite3.Connection, command: UserCommand) -> Outcome:
    if isinstance(command, Register):
        return _register(connection, command)
    if not statements.can_exist(command.user_id):
        return UserNotFoundError(command.user_id)
    if isinstance(command, Remove):
        row = _one(connection, _REMOVE, {"id": command.user_id})
        return UserNotFoundError(command.user_id) if row is None else _user(row)
    if isinstance(command, SetEnabled | EndTokens):
        row = _one(connection, _SET_FLAG, _bound(statements.flag_row(command)))
    else:
        row = _one(connection, _SET_PASSWORD, _bound(statements.password_row(command)))
    return UserNotFoundError(command.user_id) if row is None else statements.updated(command, _user(row))


def _apply_to_api_keys(connection: sqlite3.Connection, command: ApiKeyCommand) -> Outcome:
    if isinstance(command, AddApiKey):
        if not statements.can_exist(command.user_id):
            return UserNotFoundError(command.user_id)
        row = _one(connection, _INSERT_API_KEY, _bound(statements.api_key_row(command.key)))
        return UserNotFoundError(command.user_id) if row is None else command.key
    if not statements.can_be_stored(command.key_id):
        return ApiKeyNotFoundError(command.key_id)
    if isinstance(command, RecordApiKeyUse):
        row = _one(connection, _RECORD_USE, _bound(statements.use_row(command)))
    else:
        row = _one(connection, _REMOVE_API_KEY, {"id": command.key_id})
    return ApiKeyNotFoundError(command.key_id) if row is None else _api_key(row)


def _register(connection: sqlite3.Connection, command: Register) -> Outcome:
    created = None if command.created is None else _text(command.created)
    values = {**statements.values_of(command), "at": _text(command.at), "created": created}
    row = _one(connection, _INSERT, values)
    if row is not None:
        return command.as_user(UserId(row[0]))
    # There is one writer, so whoever holds the name still does.
    ((holder,),) = connection.execute(_HOLDER, {"username_key": command.username_key}).fetchall()
    return UserExistsError(holder)


def _text(instant: datetime) -> str:
    """As SQLAlchemy stores a time in SQLite: UTC, with microseconds and without a zone."""
    return instant.isoformat(" ", "microseconds")[:26]


def _one(connection: sqlite3.Connection, statement: str, values: dict[str, Any]) -> Sequence[Any] | None:
    rows = connection.execute(statement, values).fetchall()  # all: a statement that is not done hinders the commit
    return rows[0] if rows else None


def _bound(row: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with their times as text."""
    return {name: _text(value) if isinstance(value, datetime) else value for name, value in row.items()}


def _api_key(row: Sequence[Any]) -> ApiKey:
    key_id, user_id, name, digest, created, expires, last_used = row
    return statements.api_key_of(
        key_id,
        user_id,
        name,
        digest,
        _instant(created),
        None if expires is None else _instant(expires),
        None if last_used is None else _instant(last_used),
    )


def _user(row: Sequence[Any]) -> User:
    user_id, username, password, email, enabled, created, updated, epoch = row
    return statements.user_of(
        user_id, username, password, email, bool(enabled), _instant(created), _instant(updated), epoch
    )


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")


def _api_key_holder(row: Sequence[Any]) -> ApiKeyPrincipal:
    width = len(statements.API_KEY_COLUMNS)
    return ApiKeyPrincipal(_api_key(row[:width]), _user(row[width:]))


# Who is asked for is asked for again, and his row is as it was: it needs not be read into times and fields once more.
_known_user = lru_cache(statements.REMEMBERED)(_user)
_known_api_key_holder = lru_cache(statements.REMEMBERED)(_api_key_holder)
