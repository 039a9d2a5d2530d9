"""The SQLite part of adoption. See `mlapi.adapters.sql.adoption.dialect.AdoptionDialect`."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from typing import Any, final

from sqlalchemy import ColumnElement, Connection, func, inspect, text
from sqlalchemy.engine.interfaces import ReflectedColumn

from mlapi.adapters.sql.legacy import LEGACY_COLUMNS
from mlapi.adapters.sql.revisions import REVISIONS
from mlapi.adapters.sql.schema import migrate
from mlapi.adapters.sql.sqlite.times import encode_time

_OBJECTS = text("""
    SELECT 'trigger', name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'users' COLLATE NOCASE
    UNION ALL SELECT 'unique index', name FROM pragma_index_list('users') WHERE "unique" AND origin <> 'pk'
    UNION ALL SELECT 'foreign key', "from" FROM pragma_foreign_key_list('users')
    UNION ALL SELECT 'generated column', name FROM pragma_table_xinfo('users') WHERE hidden > 1
""")
# SQLite reveals some clauses only in the text of the CREATE TABLE statement. Skip comments, quoted words, and the check
# that SQLAlchemy before 1.4 added for each Boolean column.
_SKIPPED = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^]]*\]|CHECK \(enabled IN \(0, 1\)\)", re.DOTALL
)
_UNSUPPORTED_CLAUSE = re.compile(r"\b(CHECK|COLLATE|CONFLICT)\b", re.IGNORECASE)
_MOVE = """
    INSERT INTO users ({columns}, username_key, token_epoch)
    SELECT legacy.id, coalesce(note.new_username, legacy.username), coalesce(nullif(legacy.password, ''), :locked),
        coalesce(legacy.email, ''), coalesce(legacy.enabled, 1),
        coalesce(mlapi_utc(legacy.created_datetime), mlapi_utc(legacy.updated_datetime), :now),
        coalesce(mlapi_utc(legacy.updated_datetime), mlapi_utc(legacy.created_datetime), :now),
        {extra} coalesce(note.new_key, note."key", lower(legacy.username)), lower(hex(randomblob(8)))
    FROM mlapi_legacy_users AS legacy LEFT JOIN mlapi_adoption AS note ON note.id = legacy.id ORDER BY legacy.id
"""
_INDEXES = """
    SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'users' COLLATE NOCASE AND sql <> ''
"""


@final
class SqliteAdoption:
    """Adopt a table in an SQLite file by copying its rows into a new table."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def lock_table(self) -> None:
        """Do nothing: ``open_existing`` has locked the whole file."""

    def find_column_obstacles(self, columns: list[ReflectedColumn]) -> Iterator[str]:  # noqa: ARG002 - part of the protocol
        (id_type,) = self._connection.scalars(text("SELECT type FROM pragma_table_info('users') WHERE name = 'id'"))
        if id_type.upper() != "INTEGER":
            yield "column 'id' must have the type INTEGER, otherwise SQLite does not generate ids"
        written = self._connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'users' COLLATE NOCASE"))
        for clause in sorted({found.upper() for found in _UNSUPPORTED_CLAUSE.findall(_SKIPPED.sub("", written))}):
            yield f"{clause} in its CREATE TABLE statement would be lost: recreate the table without it"

    def find_objects_to_drop(self) -> list[tuple[str, str]]:
        return [(kind, name) for kind, name in self._connection.execute(_OBJECTS)]

    def find_references(self) -> set[str]:
        return {
            table
            for (_, table), keys in inspect(self._connection).get_multi_foreign_keys().items()
            for key in keys
            if key["referred_table"].lower() == "users"
        }

    def prepare_reading(self, zone: tzinfo | None) -> None:
        driver: Any = self._connection.connection.driver_connection
        driver.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        driver.create_function("mlapi_utc", 1, lambda stored: _to_utc(stored, zone or UTC), deterministic=True)

    def analyze_notes(self) -> None:
        """Do nothing: SQLite joins the notes by their primary key even without statistics."""

    def lower_ascii(self, value: ColumnElement[Any]) -> ColumnElement[str]:
        return func.lower(value)

    def is_invalid_time(self, stored: ColumnElement[datetime]) -> ColumnElement[bool]:
        return stored.is_not(None) & func.mlapi_utc(stored).is_(None)

    def convert_table(self, locked: str) -> None:
        """Copy the rows into a new table, because SQLite cannot alter the type of a column."""
        run = self._connection.exec_driver_sql
        legacy_indexes = run(_INDEXES).all()
        columns = run("SELECT name, type, \"notnull\", dflt_value FROM pragma_table_info('users')").all()
        largest = self._largest_id()
        run("ALTER TABLE users RENAME TO mlapi_legacy_users")
        migrate(self._connection, REVISIONS[0])
        own_indexes = run(_INDEXES).all()
        for index in own_indexes:  # creating an index after inserting the rows is faster
            run(f"DROP INDEX {index.name}")
        quote = self._connection.dialect.identifier_preparer.quote_identifier
        extra = [(quote(name), *definition) for name, *definition in columns if name not in LEGACY_COLUMNS]
        for name, kind, is_required, default in extra:
            clauses = " NOT NULL" * is_required + (f" DEFAULT ({default})" if default else "")
            run(f"ALTER TABLE users ADD COLUMN {name} {kind}{clauses}")
        names = [name for name, *_ in extra]
        move = _MOVE.format(
            columns=", ".join([*LEGACY_COLUMNS, *names]), extra="".join(f"legacy.{name}, " for name in names)
        )
        run(move, {"locked": locked, "now": encode_time(datetime.now(UTC))})
        run("DROP TABLE mlapi_legacy_users")
        for index in (*own_indexes, *legacy_indexes):
            run(index.sql)
        run("DELETE FROM sqlite_sequence WHERE name = 'users'")
        run("INSERT INTO sqlite_sequence (name, seq) VALUES ('users', ?)", (largest,))

    def _largest_id(self) -> int:
        """Return the largest id that was ever assigned, so that ids are not reused."""
        run = self._connection.exec_driver_sql
        assigned: list[int | None] = [run("SELECT max(id) FROM users").scalar()]
        if run("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").first() is not None:
            assigned.append(run("SELECT seq FROM sqlite_sequence WHERE name = 'users' COLLATE NOCASE").scalar())
        return max(found or 0 for found in assigned)


def _to_utc(stored: object, zone: tzinfo) -> str | None:
    """Convert a time from SQLite into UTC, in SQLAlchemy's text format. Return None if the time is invalid.

    For a local time that occurred twice or never, return the later instant, like PostgreSQL.
    """
    try:
        instant = datetime.fromisoformat(stored) if isinstance(stored, str) else None
        if instant is None:
            return None
        if instant.tzinfo is None:
            instant = max(instant.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        return encode_time(instant.astimezone(UTC))
    except (ValueError, OverflowError):
        return None
