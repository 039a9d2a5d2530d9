"""The statements of the hot path: built with Core, compiled once for each database, executed by the driver itself.

Core's own execution costs 30 to 60 us a statement, the driver's 2 to 10.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import ClauseElement, Dialect, Table, bindparam, case, delete, select, true, update

from mlapi.adapters.sql.tables import users
from mlapi.domain.changes import Register
from mlapi.domain.model import UserId

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
SET_ENABLED = (
    update(users)
    .where(users.c.id == bindparam("id"))
    .values(
        enabled=bindparam("flag"),
        updated_datetime=bindparam("at"),
        token_epoch=case((users.c.enabled == bindparam("flag"), users.c.token_epoch), else_=bindparam("epoch")),
    )
    .returning(*COLUMNS)
)
REMOVE = delete(users).where(users.c.id == bindparam("id")).returning(*COLUMNS)


def register(insert: Callable[[Table], Any]) -> ClauseElement:
    """Return the INSERT of one user, which gives his id, or nothing if the name is taken: the unique index decides."""
    statement: ClauseElement = (
        insert(users)
        .values(
            username=bindparam("username"),
            password=bindparam("password"),
            email=bindparam("email"),
            enabled=true(),
            created_datetime=bindparam("at"),
            updated_datetime=bindparam("at"),
            username_key=bindparam("username_key"),
            token_epoch=bindparam("epoch"),
        )
        .on_conflict_do_nothing(index_elements=["username_key"])
        .returning(users.c.id)
    )
    return statement


def compiled(statement: ClauseElement, dialect: Dialect) -> str:
    """Return the SQL, with named parameters as the dialect writes them."""
    return str(statement.compile(dialect=dialect))


def values_of(change: Register) -> dict[str, str]:
    """Return the parameters of `register` but for the time, which each driver wants in its own form."""
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
