"""Check whether a legacy ``users`` table can be adopted, judging by its structure. `Survey` checks the rows."""

import re
from collections.abc import Iterator
from typing import Any

import attrs
from sqlalchemy import Boolean, Connection, DateTime, Integer, String, inspect, text
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.types import TypeEngine

from mlapi.adapters.sql.legacy import LEGACY_COLUMNS

_TYPES: dict[str, type[TypeEngine[Any]]] = {
    "id": Integer,
    "username": String,
    "password": String,
    "email": String,
    "enabled": Boolean,
    "created_datetime": DateTime,
    "updated_datetime": DateTime,
}

# Objects that adoption would lose, or that could make the service's writes fail later.
_SQLITE_OBSTACLES = text("""
    SELECT 'trigger', name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'users' COLLATE NOCASE
    UNION ALL SELECT 'unique index', name FROM pragma_index_list('users') WHERE "unique" AND origin <> 'pk'
    UNION ALL SELECT 'foreign key', "from" FROM pragma_foreign_key_list('users')
    UNION ALL SELECT 'generated column', name FROM pragma_table_xinfo('users') WHERE hidden > 1
""")
_POSTGRESQL_OBSTACLES = text("""
    SELECT 'trigger', tgname::text FROM pg_trigger WHERE tgrelid = 'users'::regclass AND NOT tgisinternal
    UNION ALL SELECT DISTINCT CASE WHEN ev_class = 'users'::regclass THEN 'rule' ELSE 'view' END,
        CASE WHEN ev_class = 'users'::regclass THEN rulename::text ELSE ev_class::regclass::text END
        FROM pg_depend JOIN pg_rewrite ON pg_rewrite.oid = objid
        WHERE classid = 'pg_rewrite'::regclass AND refobjid = 'users'::regclass
    UNION ALL SELECT 'row security of', relname::text FROM pg_class WHERE oid = 'users'::regclass AND relrowsecurity
    UNION ALL SELECT 'unique index', indexrelid::regclass::text FROM pg_index
        WHERE indrelid = 'users'::regclass AND indisunique AND NOT indisprimary
    UNION ALL SELECT 'constraint', conname::text FROM pg_constraint
        WHERE conrelid = 'users'::regclass AND contype IN ('c', 'x')
    UNION ALL SELECT 'generated column', attname::text FROM pg_attribute
        WHERE attrelid = 'users'::regclass AND attgenerated <> ''
    UNION ALL SELECT 'inheritance of', inhrelid::regclass::text FROM pg_inherits
        WHERE 'users'::regclass IN (inhrelid, inhparent)
""")
_POSTGRESQL_REFERENCES = text(
    "SELECT conrelid::regclass::text FROM pg_constraint WHERE contype = 'f' AND confrelid = 'users'::regclass"
)
# SQLite reveals some clauses only in the text of the CREATE TABLE statement. Skip comments, quoted words, and the check
# that SQLAlchemy before 1.4 added for each Boolean column.
_SKIPPED = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^]]*\]|CHECK \(enabled IN \(0, 1\)\)", re.DOTALL
)
_UNSUPPORTED_CLAUSE = re.compile(r"\b(CHECK|COLLATE|CONFLICT)\b", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class LegacyTable:
    """The structure of a legacy ``users`` table."""

    extra_columns: tuple[str, ...]
    """Columns that the legacy app does not have. Adoption keeps them."""
    references: tuple[str, ...]
    """Tables with foreign keys to this table. Adoption keeps them."""
    obstacles: tuple[str, ...]
    """Reasons why the table cannot be adopted yet. Each tells the operator what to do."""


def inspect_legacy_table(connection: Connection) -> LegacyTable:
    """Describe the ``users`` table of a legacy database."""
    is_sqlite = connection.dialect.name == "sqlite"
    found = inspect(connection)
    columns = found.get_columns("users")
    if is_sqlite:
        obstacles = list(_sqlite_obstacles(connection))
        references = {
            table
            for (_, table), keys in found.get_multi_foreign_keys().items()
            for key in keys
            if key["referred_table"].lower() == "users"
        }
    else:
        obstacles = list(_wrong_types(columns))
        references = set(connection.scalars(_POSTGRESQL_REFERENCES))
    if found.get_pk_constraint("users")["constrained_columns"] != ["id"]:
        obstacles.append("the primary key must be id")
    extra = [column for column in columns if column["name"] not in LEGACY_COLUMNS]
    obstacles += [
        f"column {column['name']!r} needs a default or must allow NULL, because mlapi does not fill it"
        for column in extra
        if not column["nullable"] and column["default"] is None and "identity" not in column
    ]
    objects = connection.execute(_SQLITE_OBSTACLES if is_sqlite else _POSTGRESQL_OBSTACLES)
    obstacles += [f"{kind} {name!r} must be dropped" for kind, name in objects]
    return LegacyTable(
        extra_columns=tuple(column["name"] for column in extra),
        references=tuple(sorted(references)),
        obstacles=tuple(obstacles),
    )


def _wrong_types(columns: list[ReflectedColumn]) -> Iterator[str]:
    for column in columns:
        expected, found = _TYPES.get(column["name"]), column["type"]
        if expected is not None and (not isinstance(found, expected) or getattr(found, "timezone", False)):
            yield f"column {column['name']!r} has the type {found}, which differs from the legacy app's"


def _sqlite_obstacles(connection: Connection) -> Iterator[str]:
    (id_type,) = connection.scalars(text("SELECT type FROM pragma_table_info('users') WHERE name = 'id'"))
    if id_type.upper() != "INTEGER":
        yield "column 'id' must have the type INTEGER, otherwise SQLite does not generate ids"
    written = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'users' COLLATE NOCASE"))
    for clause in sorted({found.upper() for found in _UNSUPPORTED_CLAUSE.findall(_SKIPPED.sub("", written))}):
        yield f"{clause} in its CREATE TABLE statement would be lost: recreate the table without it"
