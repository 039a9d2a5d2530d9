"""Statements of every kind that the service executes, in a form that changes no row.

Even for these, a database checks privileges and whether it is writable.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import ClauseElement, Dialect, Table, delete, false, insert, select, update

from mlapi.adapters.sql.statements import compile_statement
from mlapi.adapters.sql.tables import (
    activity,
    allowances,
    api_keys,
    attempts,
    audit,
    links,
    logins,
    managers,
    outbox,
    sessions,
    usage,
    users,
)

WRITES: Mapping[Table, Sequence[str]] = {
    users: ("INSERT", "UPDATE", "DELETE"),
    api_keys: ("INSERT", "UPDATE", "DELETE"),
    managers: ("INSERT", "UPDATE", "DELETE"),
    sessions: ("INSERT", "UPDATE", "DELETE"),
    links: ("INSERT", "DELETE"),
    logins: ("INSERT", "DELETE"),
    attempts: ("INSERT", "UPDATE", "DELETE"),
    audit: ("INSERT",),  # entries are deleted only if `audit.days` is set
    allowances: ("INSERT", "UPDATE"),  # rows are deleted together with their user
    outbox: ("INSERT", "UPDATE", "DELETE"),
    usage: ("INSERT", "UPDATE", "DELETE"),
    activity: ("INSERT", "UPDATE", "DELETE"),
}
"""The kinds of changes that the service makes to each table."""


def write_probes(dialect: Dialect) -> list[str]:
    """Return one SQL statement for each kind of change to each table."""
    return [compile_statement(_probe(table, kind), dialect) for table, kinds in WRITES.items() for kind in kinds]


def _probe(table: Table, kind: str) -> ClauseElement:
    columns = [column for column in table.columns if column.identity is None]
    if kind == "INSERT":
        return insert(table).from_select(columns, select(*columns).where(false()))
    if kind == "UPDATE":
        return update(table).values({columns[0]: columns[0]}).where(false())
    return delete(table).where(false())
