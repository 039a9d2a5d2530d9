"""The statements of the hot path: built with Core, compiled once for each database, executed by the driver itself.

Core's own execution costs 30 to 60 us a statement, the driver's 2 to 10.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import ClauseElement, ColumnElement, Dialect, bindparam, case, delete, select, true

from mlapi.adapters.sql.tables import users
from mlapi.domain.changes import Register
from mlapi.domain.model import EncryptedPassword, User, UserId

_LARGEST_ID = 2**63 - 1  # a signed 64-bit integer, in SQLite as in PostgreSQL

COLUMNS = (
    users.c.id,
    users.c.username,
    users.c.password,
    users.c.email,
    users.c.enabled,
    users.c.created_datetime,
    users.c.updated_datetime,
    users.c.token_epoch,
)
"""Of a row that becomes a `mlapi.domain.model.User`, in this order."""

HOLDER = select(users.c.id).where(users.c.username_key == bindparam("username_key"))
REMOVE = delete(users).where(users.c.id == bindparam("id")).returning(*COLUMNS)


def new_values(source: Callable[[str], ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
    """Return what each column of a new user gets; the source gives what `values_of` names, and ``at``."""
    return {
        "username": source("username"),
        "password": source("password"),
        "email": source("email"),
        "enabled": true(),
        "created_datetime": source("at"),
        "updated_datetime": source("at"),
        "username_key": source("username_key"),
        "token_epoch": source("epoch"),
    }


def flag_values(source: Callable[[str], ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
    """Return what the columns of a user get whose flag is set: the epoch turns over only when the flag does."""
    flag = source("flag")
    return {
        "enabled": flag,
        "updated_datetime": source("at"),
        "token_epoch": case((users.c.enabled == flag, users.c.token_epoch), else_=source("epoch")),
    }


def compiled(statement: ClauseElement, dialect: Dialect) -> str:
    """Return the SQL, with named parameters as the dialect writes them."""
    return str(statement.compile(dialect=dialect))


def values_of(change: Register) -> dict[str, str]:
    """Return the values of a new user but for the time, which each driver wants in its own form."""
    return {
        "username": change.username,
        "password": change.password.value,
        "email": change.email,
        "username_key": change.username_key,
        "epoch": change.token_epoch,
    }


def can_exist(user_id: UserId) -> bool:
    """Whether a database can hold the id at all; drivers raise for one that it cannot."""
    return 0 < user_id <= _LARGEST_ID


def user_of(  # noqa: PLR0917 - as many as the columns of a row
    user_id: int,
    username: str,
    password: str,
    email: str,
    enabled: bool,  # noqa: FBT001 - of a row
    created: datetime,
    updated: datetime,
    epoch: str,
) -> User:
    """Return the user of a row of `COLUMNS`."""
    return User(
        id=UserId(user_id),
        username=username,
        password=EncryptedPassword(password),
        email=email,
        enabled=enabled,
        created_datetime=created,
        updated_datetime=updated,
        token_epoch=epoch,
    )
