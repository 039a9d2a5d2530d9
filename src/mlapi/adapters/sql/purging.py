"""The statements that delete old rows."""

from typing import Any

from sqlalchemy import ColumnElement, Delete, Table, bindparam, delete, select, tuple_


def purge_statement(table: Table, is_old: ColumnElement[bool], *order: ColumnElement[Any]) -> Delete:
    """Return a statement that deletes some of the old rows, the first ones in this order. ``limit`` is a parameter."""
    columns = table.primary_key.columns.values()
    key = columns[0] if len(columns) == 1 else tuple_(*columns)
    found = (
        select(*columns)
        .where(is_old)
        .order_by(*order)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True)  # another process may be purging too
    )
    return delete(table).where(key.in_(found))
