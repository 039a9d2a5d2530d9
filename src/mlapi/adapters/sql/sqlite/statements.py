"""The SQL text of the statements in `mlapi.adapters.sql.sqlite.execution`."""

from functools import lru_cache
from typing import Any

import attrs
from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    Dialect,
    Table,
    TableValuedAlias,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import Insert, insert

from mlapi.adapters.sql import statements
from mlapi.adapters.sql.rows import API_KEY_COLUMNS, LINK_COLUMNS, MANAGER_COLUMNS, USER_COLUMNS, inserted_columns
from mlapi.adapters.sql.statements import USER_UPDATES, Update
from mlapi.adapters.sql.tables import (
    REMOVED_WITH_USER,
    api_keys,
    attempts,
    audit,
    links,
    logins,
    managers,
    outbox,
    users,
)
from mlapi.domain.audit import AuditEntry
from mlapi.domain.commands import Register
from mlapi.domain.credentials import ApiKey
from mlapi.domain.links import Link
from mlapi.domain.outbox import QueuedMail

_NAMED = sqlite.dialect(paramstyle="named")
_POSITIONAL = sqlite.dialect(paramstyle="qmark")  # faster to bind


def _compile(statement: ClauseElement, dialect: Dialect = _NAMED) -> str:
    return statements.compile_statement(statement, dialect)


def _insert(source: type[attrs.AttrsInstance], table: Table) -> Insert:
    """Return an INSERT of the `inserted_columns`, in the order of the table."""
    return insert(table).values({column.name: bindparam(column.name) for column in inserted_columns(source, table)})


def _given_rows(column_count: int) -> tuple[TableValuedAlias, list[ColumnElement[Any]]]:
    """Return the rows in the JSON parameter, an array of arrays, and their columns."""
    given = func.json_each(bindparam("rows")).table_valued("value")
    return given, [func.json_extract(given.c.value, literal_column(f"'$[{index}]'")) for index in range(column_count)]


def _insert_all(source: type[attrs.AttrsInstance], table: Table) -> Insert:
    """Return an INSERT of several rows, which are lists of the `inserted_columns` in a JSON array.

    A thread that executes it lets other threads run until all rows are inserted.
    """
    columns = inserted_columns(source, table)
    _, values = _given_rows(len(columns))
    # Without WHERE, SQLite would parse ON CONFLICT as a part of a join.
    return insert(table).from_select([column.name for column in columns], select(*values).where(true()))


def _compile_add_logins() -> str:
    given, (user_id, at, address) = _given_rows(3)
    owner = select(users.c.id).where(users.c.id == user_id)
    existing = select(user_id, at, address).select_from(given).where(owner.correlate(given).exists())
    return _compile(insert(logins).from_select(["user_id", "at", "address"], existing).on_conflict_do_nothing())


def _compile_update(template: Update) -> str:
    statement = update(template.table).where(template.table.c.id == bindparam("id"))
    return _compile(statement.values(**template.new_values(bindparam)))


@lru_cache
def change_user(columns: tuple[str, ...]) -> str:
    """Return the statement for an `UpdateUser` that sets these columns. `change_row` returns the parameters.

    SQLite writes every index with a column in the statement, even if its value stays the same.
    """
    names = ["updated_datetime", *columns, *(["username_key"] if "username" in columns else [])]
    return _compile(update(users).where(_WITH_ID).values({name: bindparam(name) for name in names}))


_KEYS = select(func.json_each(bindparam("keys")).table_valued("value").c.value)
_GIVEN = func.json_each(bindparam("counts")).table_valued("key", "value")
_WITH_ID = users.c.id == bindparam("id")
_WITH_KEY_ID = api_keys.c.id == bindparam("id")

INSERT_USER = _compile(
    _insert(Register, users).on_conflict_do_nothing(index_elements=["username_key"]).returning(users.c.id), _POSITIONAL
)
INSERT_USERS = _compile(
    _insert_all(Register, users)
    .on_conflict_do_nothing(index_elements=["username_key"])
    .returning(users.c.username_key, users.c.id)
)
IDS_BY_USERNAME_KEYS = _compile(select(users.c.username_key, users.c.id).where(users.c.username_key.in_(_KEYS)))
ID_BY_USERNAME_KEY = _compile(select(users.c.id).where(users.c.username_key == bindparam("username_key")))
UPDATE_USER = {command: _compile_update(template) for command, template in USER_UPDATES.items()}
REMOVE_USER = _compile(delete(users).where(_WITH_ID), _POSITIONAL)
REMOVE_ROWS_OF_USERS = [_compile(delete(table).where(table.c.user_id.in_(_KEYS))) for table in REMOVED_WITH_USER]
USERS_BY_USERNAME_KEYS = _compile(select(users.c.username_key, *USER_COLUMNS).where(users.c.username_key.in_(_KEYS)))

INSERT_API_KEY = _compile(
    insert(api_keys)
    .from_select(
        [column.name for column in inserted_columns(ApiKey, api_keys)],
        select(*[bindparam(column.name) for column in inserted_columns(ApiKey, api_keys)]).where(
            select(users.c.id).where(users.c.id == bindparam("user_id")).exists()
        ),
    )
    .returning(api_keys.c.id)
)
COUNT_API_KEYS = _compile(select(func.count()).select_from(api_keys).where(api_keys.c.user_id == bindparam("user_id")))
REMOVE_API_KEY = _compile(
    delete(api_keys)
    .where(_WITH_KEY_ID, or_(bindparam("owner").is_(None), api_keys.c.user_id == bindparam("owner")))
    .returning(*API_KEY_COLUMNS)
)

MANAGERS_BY_TOKEN_IDS = _compile(select(*MANAGER_COLUMNS).where(managers.c.token_id.in_(_KEYS)))
INSERT_LINK = _compile(_insert(Link, links), _POSITIONAL)
LINK_BY_ID = _compile(select(*LINK_COLUMNS).where(links.c.id == bindparam("id")))
REDEEM_LINK = _compile_update(statements.REDEEM_LINK)
REMOVE_LINKS = _compile(delete(links).where(links.c.user_id == bindparam("id")))

INSERT_AUDIT = _compile(_insert(AuditEntry, audit), _POSITIONAL)
INSERT_AUDIT_ENTRIES = _compile(_insert_all(AuditEntry, audit))
ADD_LOGINS = _compile_add_logins()
INSERT_MAIL = _compile(_insert(QueuedMail, outbox), _POSITIONAL)

READ_COUNTS = _compile(
    select(*statements.COUNT_COLUMNS).where(attempts.c.id.in_(_KEYS), attempts.c.expires_at > bindparam("now"))
)
ADD_COUNTS = _compile(
    # Without WHERE, SQLite would parse ON CONFLICT as a part of a join.
    statements.counts_upsert(insert, select(_GIVEN.c.key, _GIVEN.c.value, bindparam("ends_at")).where(true()))
)
