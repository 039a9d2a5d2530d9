"""SQLite: durable settings, explicit transactions, and changes applied one by one, which costs some 10 us each."""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, bindparam, create_engine, event, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine.interfaces import DBAPIConnection

from mlapi.adapters.sql import statements
from mlapi.adapters.sql.tables import users
from mlapi.domain.changes import Change, Outcome, Register, SetEnabled
from mlapi.domain.errors import UserExistsError, UserNotFoundError
from mlapi.domain.model import User, UserId

__all__ = ["BEGIN", "apply", "begin", "check", "insert", "is_passing", "make_engine"]

BEGIN = "mlapi_sqlite_begin"
"""Execution option: how a transaction begins. ``BEGIN IMMEDIATE`` for what will write: a transaction that reads first
and then asks for the lock can be refused."""

_DIALECT = sqlite.dialect(paramstyle="named")
_INSERT = statements.compiled(
    insert(users)
    .values(**statements.new_values(bindparam))
    .on_conflict_do_nothing(index_elements=["username_key"])
    .returning(users.c.id),
    _DIALECT,
)
_HOLDER = statements.compiled(statements.HOLDER, _DIALECT)
_SET_ENABLED = statements.compiled(
    update(users)
    .where(users.c.id == bindparam("id"))
    .values(**statements.flag_values(bindparam))
    .returning(*statements.COLUMNS),
    _DIALECT,
)
_REMOVE = statements.compiled(statements.REMOVE, _DIALECT)


def make_engine(url: URL, wait: float, connections: int) -> Engine:
    engine = create_engine(url, hide_parameters=True, pool_size=connections, max_overflow=0, pool_timeout=wait)

    @event.listens_for(engine, "do_connect")
    def _create_private(_dialect: object, _record: object, arguments: list[Any], _keywords: object) -> None:
        # Passwords are in it, if encrypted, so nobody else may read it. Only ever a file that is not there yet: to
        # close a file that SQLite has open would drop its locks.
        if not Path(arguments[0]).exists():
            with suppress(OSError):  # another process was first, or SQLite will say why not
                os.close(os.open(arguments[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        # None: the sqlite3 module begins and commits nothing by itself. Its legacy handling commits early.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {wait * 1000:.0f}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(BEGIN, "BEGIN"))

    return engine


def begin(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")


def check(connection: sqlite3.Connection) -> None:
    """A transaction that has begun could be committed: `begin` takes the lock, or raises what hinders it."""


def is_passing(_error: BaseException | None) -> bool:
    """Whether a new attempt would not meet the error. SQLite has waited for its lock already."""
    return False


def apply(connection: sqlite3.Connection, changes: Sequence[Change]) -> list[Outcome]:
    """Apply the changes in order in the transaction that has begun."""
    return [_apply(connection, change) for change in changes]


def _apply(connection: sqlite3.Connection, change: Change) -> Outcome:
    if isinstance(change, Register):
        return _register(connection, change)
    if not statements.can_exist(change.user_id):
        return UserNotFoundError(change.user_id)
    if isinstance(change, SetEnabled):
        values = {"id": change.user_id, "flag": change.enabled, "at": _text(change.at), "epoch": change.token_epoch}
        rows = connection.execute(_SET_ENABLED, values).fetchall()
    else:
        rows = connection.execute(_REMOVE, {"id": change.user_id}).fetchall()
    return _user(rows[0]) if rows else UserNotFoundError(change.user_id)


def _register(connection: sqlite3.Connection, change: Register) -> Outcome:
    values = {**statements.values_of(change), "at": _text(change.at)}
    rows = connection.execute(_INSERT, values).fetchall()
    if rows:
        return change.as_user(UserId(rows[0][0]))
    # There is one writer, so whoever holds the name still does.
    ((holder,),) = connection.execute(_HOLDER, {"username_key": change.username_key}).fetchall()
    return UserExistsError(holder)


def _text(instant: datetime) -> str:
    """As SQLAlchemy stores a time in SQLite: UTC, with microseconds and without a zone."""
    return instant.isoformat(" ", "microseconds")[:26]


def _user(row: Sequence[Any]) -> User:
    user_id, username, password, email, enabled, created, updated, epoch = row
    return statements.user_of(
        user_id, username, password, email, bool(enabled), _instant(created), _instant(updated), epoch
    )


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")
