"""The origin's ``users`` table: how it is known, and whether it can be adopted as it is, its rows apart.

The origin is the application that mlapi takes the place of. Its own ``alembic_version`` is not looked at: the columns
tell, however the table came to be.
"""

import re
from collections.abc import Iterator
from typing import Any

import attrs
from sqlalchemy import Boolean, Connection, DateTime, Integer, String, inspect, text
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.types import TypeEngine

_TYPES: dict[str, type[TypeEngine[Any]]] = {
    "id": Integer,
    "username": String,
    "password": String,
    "email": String,
    "enabled": Boolean,
    "created_datetime": DateTime,
    "updated_datetime": DateTime,
}
COLUMNS = tuple(_TYPES)
OURS = {"username_key", "token_epoch"}

# What would be lost, or would refuse what the service writes afterwards.
_SQLITE_HINDRANCES = text("""
    SELECT 'trigger', name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'users' COLLATE NOCASE
    UNION ALL SELECT 'unique index', name FROM pragma_index_list('users') WHERE "unique" AND origin <> 'pk'
    UNION ALL SELECT 'foreign key', "from" FROM pragma_foreign_key_list('users')
    UNION ALL SELECT 'generated column', name FROM pragma_table_xinfo('users') WHERE hidden > 1
""")
_POSTGRESQL_HINDRANCES = text("""
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
# What SQLite tells of nowhere but in the table's text, where comments and quoted words do not count. SQLAlchemy up to
# 1.3 wrote a check for every Boolean.
_NO_CODE = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^]]*\]|CHECK \(enabled IN \(0, 1\)\)", re.DOTALL
)
_UNTOLD = re.compile(r"\b(CHECK|COLLATE|CONFLICT)\b", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class LegacyTable:
    extra_columns: tuple[str, ...]
    """Of somebody else; they are kept."""
    references: tuple[str, ...]
    """Tables whose foreign keys point to it; they are kept."""
    hindrances: tuple[str, ...]
    """Why it cannot be adopted as it is, each with what to do."""


def is_legacy(connection: Connection) -> bool:
    """Whether there is a ``users`` table with the origin's columns and without ours."""
    found = inspect(connection)
    if not found.has_table("users"):
        return False
    names = {column["name"] for column in found.get_columns("users")}
    return names >= set(COLUMNS) and not names & OURS


def legacy_table(connection: Connection) -> LegacyTable:
    """Describe a table that `is_legacy`."""
    is_sqlite = connection.dialect.name == "sqlite"
    found = inspect(connection)
    columns = found.get_columns("users")
    if is_sqlite:
        hindrances = list(_of_sqlite(connection))
        foreign_keys = found.get_multi_foreign_keys()
        references = {
            table
            for (_, table), keys in foreign_keys.items()
            for key in keys
            if key["referred_table"].lower() == "users"
        }
    else:
        hindrances = list(_wrong_types(columns))
        references = set(connection.scalars(_POSTGRESQL_REFERENCES))
    if found.get_pk_constraint("users")["constrained_columns"] != ["id"]:
        hindrances.append("the primary key must be id")
    extra = [column for column in columns if column["name"] not in COLUMNS]
    hindrances += [
        f"column {column['name']!r}, which mlapi does not fill, needs a default or must allow NULL"
        for column in extra
        if not column["nullable"] and column["default"] is None and "identity" not in column
    ]
    catalog = connection.execute(_SQLITE_HINDRANCES if is_sqlite else _POSTGRESQL_HINDRANCES)
    hindrances += [f"{kind} {name!r} must be dropped" for kind, name in catalog]
    return LegacyTable(
        extra_columns=tuple(column["name"] for column in extra),
        references=tuple(sorted(references)),
        hindrances=tuple(hindrances),
    )


def _wrong_types(columns: list[ReflectedColumn]) -> Iterator[str]:
    for column in columns:
        expected, found = _TYPES.get(column["name"]), column["type"]
        if expected is not None and (not isinstance(found, expected) or getattr(found, "timezone", False)):
            yield f"column {column['name']!r} is {found}, which the origin's is not"


def _of_sqlite(connection: Connection) -> Iterator[str]:
    (declared,) = connection.scalars(text("SELECT type FROM pragma_table_info('users') WHERE name = 'id'"))
    if declared.upper() != "INTEGER":
        yield "column 'id' must be INTEGER, or SQLite does not number rows by it"
    written = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'users' COLLATE NOCASE"))
    for word in sorted({found.upper() for found in _UNTOLD.findall(_NO_CODE.sub("", written))}):
        yield f"{word} in its CREATE TABLE would be lost: make it without"
