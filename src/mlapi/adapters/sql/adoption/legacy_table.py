"""Check whether the structure of a legacy ``users`` table permits adoption. `Survey` checks the rows."""

import attrs
from sqlalchemy import Connection, inspect

from mlapi.adapters.sql.adoption.dialect import AdoptionDialect
from mlapi.adapters.sql.legacy import LATER_COLUMNS, LEGACY_COLUMNS


@attrs.frozen(kw_only=True)
class LegacyTable:
    """The structure of a legacy ``users`` table."""

    extra_columns: tuple[str, ...]
    """Columns that are not part of the legacy app's schema. Adoption keeps them."""
    references: tuple[str, ...]
    """Tables with foreign keys to this table. Adoption keeps them."""
    obstacles: tuple[str, ...]
    """Reasons why the table cannot be adopted yet. Each tells the operator what to do."""


def inspect_legacy_table(connection: Connection, dialect: AdoptionDialect) -> LegacyTable:
    """Describe the ``users`` table of a legacy database."""
    found = inspect(connection)
    columns = found.get_columns("users")
    obstacles = list(dialect.find_column_obstacles(columns))
    if found.get_pk_constraint("users")["constrained_columns"] != ["id"]:
        obstacles.append("the primary key must be id")
    extra = [column for column in columns if column["name"] not in LEGACY_COLUMNS]
    obstacles += [
        f"column {column['name']!r} needs a default or must allow NULL, because mlapi does not fill it"
        for column in extra
        if not column["nullable"] and column["default"] is None and "identity" not in column
    ]
    obstacles += [
        f"column {name!r} has the name of a column of mlapi: rename it, for example to legacy_{name}"
        for name in sorted(column["name"].lower() for column in extra)
        if name in LATER_COLUMNS
    ]
    obstacles += [f"{kind} {name!r} must be dropped" for kind, name in dialect.find_objects_to_drop()]
    return LegacyTable(
        extra_columns=tuple(column["name"] for column in extra),
        references=tuple(sorted(dialect.find_references())),
        obstacles=tuple(obstacles),
    )
