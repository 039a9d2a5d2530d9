"""The SQL text of statements that apply commands of one kind and write their audit entries.

Each row of the JSON parameter has the values of a command, and those of the audit entry for its rejection.
`mlapi.adapters.sql.postgresql.uniform_batches` executes the statements.
"""

from typing import Any, Final

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Integer,
    Select,
    String,
    and_,
    case,
    cast,
    column,
    delete,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from mlapi.adapters.sql.postgresql.statements import compile_statement, is_among, lock_rows, new_ids, rows_table
from mlapi.adapters.sql.rows import USER_COLUMNS, inserted_columns
from mlapi.adapters.sql.statements import USER_UPDATES
from mlapi.adapters.sql.tables import audit, users
from mlapi.domain.audit import AuditEntry
from mlapi.domain.commands import Register, SetEnabled

_ENTRY_COLUMNS: Final = inserted_columns(AuditEntry, audit)
_DONE: Final[ColumnElement[str]] = literal_column("'done'", String)


def _entries(given: CTE, **values: ColumnElement[Any]) -> Select[Any]:
    """Select the audit entries in the given rows, with other values for some columns."""
    return select(*(values.get(each.name, given.c[each.name]).label(each.name) for each in _ENTRY_COLUMNS))


def _insert(entries: Select[Any]) -> CTE:
    return insert(audit).from_select([each.name for each in _ENTRY_COLUMNS], entries).cte("audited")


def _compile_set_enabled() -> bytes:
    template = USER_UPDATES[SetEnabled]
    parameters = [column(name, kind) for name, kind in template.parameters.items() if name not in audit.c]
    given = rows_table(users.c.id, *parameters, *_ENTRY_COLUMNS)
    locked = lock_rows(users, given)
    updated = (
        update(users)
        .where(is_among(users.c.id, locked.c.id), given.c.id == users.c.id)
        .values(**template.new_values(given.c.__getitem__))
        .returning(*USER_COLUMNS)
        .cte("updated")
    )
    outcome = case((given.c.id.in_(select(updated.c.id)), _DONE), else_=given.c.outcome)
    return compile_statement(select(updated).add_cte(_insert(_entries(given, outcome=outcome))))


def _compile_remove() -> bytes:
    given = rows_table(users.c.id, column("position", Integer), column("keeps_name", Boolean), *_ENTRY_COLUMNS)
    locked = lock_rows(users, given)
    removed = delete(users).where(is_among(users.c.id, locked.c.id)).returning(*USER_COLUMNS).cte("removed")
    is_removed = removed.c.id.is_not(None)
    name = cast(func.to_json(removed.c.username), String)  # the same text as from `mlapi.domain.audit`
    changes = literal_column("'{\"username\": ['", String).concat(name).concat(literal_column("', null]}'", String))
    entries = _entries(
        given,
        outcome=case((is_removed, _DONE), else_=given.c.outcome),
        changes=case((and_(is_removed, given.c.keeps_name), changes), else_=null()),
    ).join_from(given, removed, removed.c.id == given.c.id, isouter=True)
    return compile_statement(select(removed).add_cte(_insert(entries.order_by(given.c.position))))


def _compile_register() -> bytes:
    columns = inserted_columns(Register, users)
    given = rows_table(*columns, column("is_anonymous", Boolean), *_ENTRY_COLUMNS, computed=[new_ids()])
    new_rows = select(given.c.id, *(given.c[each.name] for each in columns)).order_by(given.c.username_key)
    inserted = (
        insert(users)
        .from_select(["id", *(each.name for each in columns)], new_rows)
        .on_conflict_do_nothing(index_elements=["username_key"])
        .returning(users.c.id)
        .cte("inserted")
    )
    is_new = given.c.id.in_(select(inserted.c.id))
    taken = select(given.c.username_key).where(not_(is_new)).cte("taken")
    existing = (
        select(users.c.id, users.c.username_key)
        .where(is_among(users.c.username_key, taken.c.username_key))
        .cte("existing")
    )
    # The outcome is NULL if another transaction has only now taken the name. The column rejects NULL, so nothing is
    # applied.
    outcome = case((is_new, _DONE), (existing.c.id.is_not(None), literal_column("'user_exists'", String)))
    is_audited = or_(is_new, existing.c.id.is_(None), not_(given.c.is_anonymous))
    entries = (
        _entries(
            given,
            user_id=case((is_new, given.c.id), else_=existing.c.id),
            outcome=outcome,
            changes=case((is_new, given.c.changes), else_=null()),
        )
        .join_from(given, existing, existing.c.username_key == given.c.username_key, isouter=True)
        .where(is_audited)
        .order_by(given.c.id)
    )
    results = union_all(
        select(given.c.id, given.c.username_key, literal_column("true")).where(is_new),
        select(existing.c.id, existing.c.username_key, literal_column("false")),
    )
    return compile_statement(results.add_cte(_insert(entries)))


SET_ENABLED: Final = _compile_set_enabled()
"""Returns the users."""
REMOVE: Final = _compile_remove()
"""Returns the removed users."""
REGISTER: Final = _compile_register()
"""Returns an id, the username key, and whether the user is new, for each user with a given name."""
