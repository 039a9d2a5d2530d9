"""Keep an application's own Alembic migrations away from mlapi's tables in the same database.

``mlapi db upgrade`` migrates these tables. This module imports no other part of mlapi's service, so it loads quickly.
"""

from typing import Any

_TABLES = frozenset(
    {"mlapi_alembic_version", "mlapi_allowances", "mlapi_api_keys", "mlapi_attempts", "mlapi_audit"}
    | {"mlapi_key_check", "mlapi_usage", "mlapi_managers", "mlapi_sessions", "mlapi_links", "mlapi_outbox"}
    | {"mlapi_logins", "mlapi_activity"}
)
_USER_COLUMNS = frozenset({"username_key", "token_epoch"})
"""Columns that only mlapi's table ``users`` has."""


def include_object(item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:  # noqa: ANN401, ARG001, FBT001 - alembic calls it by position
    """Return False for mlapi's tables, so that ``alembic revision --autogenerate`` ignores them.

    Pass this function to ``context.configure`` in the ``env.py`` of your application. It recognizes mlapi's tables in
    every PostgreSQL schema, and in SQLite. For your own table ``users`` in another schema, it returns True. To combine
    it with a function of your own, call both: ``lambda *each: include_object(*each) and my_function(*each)``.

    Args:
        item: a table, column, index or constraint of SQLAlchemy.
        name: its name.
        type_: its type, such as ``table``. Alembic only asks for the parts of tables that are included.
        reflected: True if the item was read from the database.
        compare_to: for a table of the application, the table in the database that alembic compares it with, or None.
    """
    return type_ != "table" or not any(_belongs_to_mlapi(table) for table in (item, compare_to) if table is not None)


def _belongs_to_mlapi(table: Any) -> bool:  # noqa: ANN401 - an SQLAlchemy table, which this module does not import
    return table.name in _TABLES or (table.name == "users" and set(table.columns.keys()) >= _USER_COLUMNS)
