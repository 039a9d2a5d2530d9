"""The SQL text of the statements in `mlapi.adapters.sql.postgresql.execution`.

Statements that write receive their rows as a single JSON parameter, which costs the client half as much time as one
array per column. They lock rows in a fixed order, so that concurrent batches do not deadlock within a statement.
"""

from collections.abc import Sequence
from typing import Any

import attrs
from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    BigInteger,
    ClauseElement,
    Column,
    ColumnElement,
    Dialect,
    Double,
    Integer,
    String,
    Table,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert

from mlapi.adapters.sql import statements
from mlapi.adapters.sql.rows import API_KEY_COLUMNS, LINK_COLUMNS, MANAGER_COLUMNS, USER_COLUMNS, inserted_columns
from mlapi.adapters.sql.statements import USER_UPDATES, Update
from mlapi.adapters.sql.tables import (
    REMOVED_WITH_USER,
    activity,
    allowances,
    api_keys,
    attempts,
    audit,
    links,
    logins,
    managers,
    outbox,
    usage,
    users,
)
from mlapi.domain.audit import AuditEntry
from mlapi.domain.commands import Register
from mlapi.domain.credentials import ApiKey
from mlapi.domain.links import Link
from mlapi.domain.outbox import QueuedMail
from mlapi.domain.usage import MAX_COUNT

_IDS = bindparam("ids", type_=ARRAY(BigInteger))
_DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy does not type it


def compile_statement(statement: ClauseElement) -> bytes:
    return statements.compile_statement(statement, _DIALECT).encode()


def rows_table(*columns: ColumnElement[Any], computed: Sequence[ColumnElement[Any]] = ()) -> CTE:
    """Return the rows in the JSON parameter as a table with these columns and the computed columns."""
    parsed = func.json_to_recordset(cast(bindparam("rows", type_=String), JSON)).table_valued(
        *(column(each.name, each.type) for each in columns)
    )
    return select(parsed.render_derived("parsed", with_types=True), *computed).cte("given")


def is_among(column: ColumnElement[Any], others: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return whether a column's value occurs in the column ``others`` of a CTE.

    The planner expects a CTE to have 100 rows, and would rather read a table of 10,000 rows than join them by an index.
    It expects only ten values in an array.
    """
    return column == any_(func.array(select(others).scalar_subquery()))


def is_given(column: ColumnElement[Any], parameter: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return whether a column's value occurs in an array parameter.

    The server plans a statement again for every execution if it sees that the array is short.
    """
    return is_among(column, func.unnest(parameter))


def lock_rows(table: Table, given: CTE) -> CTE:
    """Return a CTE that locks those of the given rows that exist, in the order of their ids, and selects the ids."""
    ids = select(table.c.id).where(is_among(table.c.id, given.c.id)).order_by(table.c.id).with_for_update()
    return ids.cte("locked").prefix_with("MATERIALIZED")


def _returned(table: Table) -> tuple[Column[Any], ...]:
    return USER_COLUMNS if table is users else API_KEY_COLUMNS


def _compile_update(template: Update) -> bytes:
    table = template.table
    given = rows_table(table.c.id, *(column(name, kind) for name, kind in template.parameters.items()))
    locked = lock_rows(table, given)
    return compile_statement(
        update(table)
        .where(is_among(table.c.id, locked.c.id), given.c.id == table.c.id)
        .values(**template.new_values(given.c.__getitem__))
        .returning(*_returned(table))
    )


def _compile_remove_users() -> bytes:
    locked = lock_rows(users, rows_table(users.c.id))
    return compile_statement(delete(users).where(is_among(users.c.id, locked.c.id)).returning(*USER_COLUMNS))


def _compile_remove_api_keys() -> bytes:
    given = rows_table(api_keys.c.id, column("owner", BigInteger()))
    locked = lock_rows(api_keys, given)
    is_owned = or_(given.c.owner.is_(None), given.c.owner == api_keys.c.user_id)
    return compile_statement(
        delete(api_keys)
        .where(is_among(api_keys.c.id, locked.c.id), given.c.id == api_keys.c.id, is_owned)
        .returning(*API_KEY_COLUMNS)
    )


def _compile_remove_rows_of_users() -> bytes:
    """Compile the statement that deletes the rows of removed users. Rows of users who still exist are kept."""
    deletions = [
        delete(table).where(
            is_given(table.c.user_id, _IDS), not_(select(users.c.id).where(users.c.id == table.c.user_id).exists())
        )
        for table in REMOVED_WITH_USER
    ]
    others = [deletion.cte(f"removed_{number}") for number, deletion in enumerate(deletions[:-1])]
    return compile_statement(deletions[-1].add_cte(*others))


def new_ids() -> ColumnElement[Any]:
    """Return a column with new user ids, in the order of the batch. Rows may be sorted by name afterwards."""
    sequence = select(func.pg_get_serial_sequence(literal_column("'users'"), literal_column("'id'"))).scalar_subquery()
    return func.nextval(sequence).label("id")


def _compile_register() -> bytes:
    given = rows_table(*inserted_columns(Register, users), computed=[new_ids()])
    return compile_statement(
        insert(users)
        .from_select(list(given.c.keys()), select(given).order_by(given.c.username_key))
        .on_conflict_do_nothing(index_elements=["username_key"])
        .returning(users.c.id, users.c.username_key)
    )


def _compile_ids_by_username_key() -> bytes:
    given = rows_table(users.c.username_key)
    is_given = is_among(users.c.username_key, given.c.username_key)
    return compile_statement(select(users.c.id, users.c.username_key).where(is_given))


def _compile_add_api_key() -> bytes:
    given = rows_table(*inserted_columns(ApiKey, api_keys))
    # The foreign key check locks the owners, too, but an owner could be removed before the check.
    owners = _locked_owners(given)
    return compile_statement(
        insert(api_keys)
        .from_select(list(given.c.keys()), select(given).join(owners, owners.c.id == given.c.user_id))
        .returning(api_keys.c.id)
    )


def _compile_add_logins() -> bytes:
    given = rows_table(*logins.c)
    # There is no foreign key: a transaction that removes an owner waits for this lock, and then removes the logins.
    owners = _locked_owners(given)
    statement = insert(logins).from_select(
        list(given.c.keys()), select(given).join(owners, owners.c.id == given.c.user_id)
    )
    return compile_statement(statement.on_conflict_do_nothing())


def _locked_owners(given: CTE) -> CTE:
    """Return a CTE that locks the users of the given rows as a foreign key check does, in the order of their ids."""
    return (
        select(users.c.id)
        .where(is_among(users.c.id, given.c.user_id))
        .order_by(users.c.id)
        .with_for_update(read=True, key_share=True)
        .cte("owners")
        .prefix_with("MATERIALIZED")
    )


def _compile_lock_users() -> bytes:
    return compile_statement(select(users.c.id).where(users.c.id == any_(_IDS)).order_by(users.c.id).with_for_update())


def _compile_insert(source: type[attrs.AttrsInstance], table: Table) -> bytes:
    given = rows_table(*inserted_columns(source, table))
    return compile_statement(insert(table).from_select(list(given.c.keys()), select(given)))


def _compile_add_counts() -> bytes:
    # Turn off synchronous_commit for this statement only: it is faster, and a crash loses only a few counts.
    setting = select(literal_column("set_config('synchronous_commit', 'off', true)").label("value")).cte("setting")
    events = (
        func.unnest(bindparam("keys", type_=ARRAY(String)), bindparam("events", type_=ARRAY(Integer)))
        .table_valued("key", "count")
        .render_derived("given")
    )
    given = select(events.c.key, events.c.count, bindparam("ends_at", type_=Double)).join_from(
        events, setting.prefix_with("MATERIALIZED"), true()
    )
    return compile_statement(statements.counts_upsert(insert, given))


def _compile_add_usage() -> bytes:
    given = rows_table(*usage.c)
    position = ["day", "user_id", "key_id"]
    statement = insert(usage).from_select(
        list(given.c.keys()), select(given).order_by(*(given.c[name] for name in position))
    )
    sums = {
        name: func.least(usage.c[name] + statement.excluded[name], literal_column(str(MAX_COUNT)))
        for name in ("requests", "units")
    }
    seen = func.greatest(usage.c.seen_datetime, statement.excluded.seen_datetime)
    return compile_statement(
        statement.on_conflict_do_update(index_elements=position, set_={**sums, "seen_datetime": seen})
    )


def _compile_add_activity() -> bytes:
    given = rows_table(*activity.c)
    statement = insert(activity).from_select(list(given.c.keys()), select(given).order_by(given.c.user_id))
    added, stored = statement.excluded, activity.c
    zero: ColumnElement[int] = literal_column("0")
    requests = case((stored.month > added.month, zero), else_=added.requests) + case(
        (stored.month < added.month, zero), else_=stored.requests
    )
    return compile_statement(
        statement.on_conflict_do_update(
            index_elements=["user_id"],
            set_={
                "seen_datetime": func.greatest(stored.seen_datetime, added.seen_datetime),
                "month": func.greatest(stored.month, added.month),
                "requests": func.least(requests, literal_column(str(MAX_COUNT))),
            },
        )
    )


def _given_keys(*columns: ColumnElement[Any]) -> CTE:
    return rows_table(allowances.c.user_id, allowances.c.allowance, *columns)


def _has_key_of(given: CTE) -> ColumnElement[bool]:
    return and_(allowances.c.user_id == given.c.user_id, allowances.c.allowance == given.c.allowance)


def _compile_lock_allowances() -> bytes:
    given = _given_keys()
    locked = (
        select(*USE_COLUMNS)
        .join_from(allowances, given, _has_key_of(given))
        .order_by(allowances.c.user_id, allowances.c.allowance)
        .with_for_update(key_share=True, of=allowances)
        .cte("locked")
        .prefix_with("MATERIALIZED")
    )
    return compile_statement(select(locked, _CLOCK))


def _compile_add_allowances() -> bytes:
    given = _given_keys()
    zero: ColumnElement[int] = literal_column("0")
    new_rows = select(given.c.user_id, given.c.allowance, zero, zero).where(
        select(users.c.id).where(users.c.id == given.c.user_id).exists()
    )
    return compile_statement(
        insert(allowances)
        .from_select([column.name for column in USE_COLUMNS], new_rows.order_by(given.c.user_id, given.c.allowance))
        .on_conflict_do_nothing()
    )


def _compile_set_allowances() -> bytes:
    given = _given_keys(allowances.c.starts_at, allowances.c.used)
    return compile_statement(
        update(allowances).where(_has_key_of(given)).values(starts_at=given.c.starts_at, used=given.c.used)
    )


def _compile_allowances() -> bytes:
    given = _given_keys()
    use = allowances.c.starts_at, allowances.c.used
    return compile_statement(
        select(given.c.user_id, given.c.allowance, *use, _CLOCK).join_from(
            given, allowances, _has_key_of(given), isouter=True
        )
    )


USE_COLUMNS = (allowances.c.user_id, allowances.c.allowance, allowances.c.starts_at, allowances.c.used)
_CLOCK = cast(func.extract("epoch", func.clock_timestamp()), Double)

UPDATE_USER = {command: _compile_update(template) for command, template in USER_UPDATES.items()}
REGISTER = _compile_register()
IDS_BY_USERNAME_KEY = _compile_ids_by_username_key()
LOCK_USERS = _compile_lock_users()
LOCKED_USERS = compile_statement(
    select(*USER_COLUMNS).where(users.c.id == any_(_IDS)).order_by(users.c.id).with_for_update()
)
CHANGE_USER = _compile_update(statements.CHANGE_USER)
REMOVE_USER = _compile_remove_users()
REMOVE_ROWS_OF_USERS = _compile_remove_rows_of_users()
ADD_LINK = _compile_insert(Link, links)
LINK_BY_ID = compile_statement(select(*LINK_COLUMNS).where(links.c.id == bindparam("id")))
REDEEM_LINK = _compile_update(statements.REDEEM_LINK)
REMOVE_LINKS = compile_statement(delete(links).where(links.c.user_id == any_(_IDS)))
USERS_BY_IDS = compile_statement(select(*USER_COLUMNS).where(users.c.id == any_(_IDS)))
USERS_BY_USERNAME_KEYS = compile_statement(
    select(users.c.username_key, *USER_COLUMNS).where(
        users.c.username_key == any_(bindparam("keys", type_=ARRAY(String)))
    )
)
ADD_API_KEY = _compile_add_api_key()
RECORD_USE = _compile_update(statements.RECORD_USE)
COUNT_API_KEYS = compile_statement(
    select(func.count()).select_from(api_keys).where(api_keys.c.user_id == bindparam("user_id", type_=BigInteger))
)
REMOVE_API_KEY = _compile_remove_api_keys()
PRINCIPALS_BY_KEY_IDS = compile_statement(
    select(*API_KEY_COLUMNS, *USER_COLUMNS)
    .join_from(api_keys, users)
    .where(api_keys.c.id == any_(bindparam("ids", type_=ARRAY(String))))
)
MANAGERS_BY_TOKEN_IDS = compile_statement(
    select(*MANAGER_COLUMNS).where(managers.c.token_id == any_(bindparam("ids", type_=ARRAY(String))))
)
INSERT_AUDIT = _compile_insert(AuditEntry, audit)
INSERT_MAIL = _compile_insert(QueuedMail, outbox)
LOCK_ALLOWANCES = _compile_lock_allowances()
ADD_ALLOWANCES = _compile_add_allowances()
SET_ALLOWANCES = _compile_set_allowances()
ALLOWANCES = _compile_allowances()
READ_COUNTS = compile_statement(
    select(*statements.COUNT_COLUMNS).where(
        attempts.c.id == any_(bindparam("keys", type_=ARRAY(String))), attempts.c.expires_at > bindparam("now")
    )
)
ADD_COUNTS = _compile_add_counts()
ADD_LOGINS = _compile_add_logins()
ADD_USAGE = _compile_add_usage()
ADD_ACTIVITY = _compile_add_activity()
