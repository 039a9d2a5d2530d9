"""Create databases in the legacy app's format, and read databases without mlapi's code."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import URL, Connection, NullPool, create_engine, inspect, text

# Created for tests in the legacy app's format; the key is used nowhere else.
LEGACY: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "legacy_users.json").read_text("utf-8"))
ROWS: list[dict[str, Any]] = [
    {name: value for name, value in row.items() if name != "plaintext"} for row in LEGACY["rows"]
]
STORED: str = ROWS[0]["password"]
AT = "2022-01-02 14:04:26.751085"
CREATE = {
    "sqlite": (
        "CREATE TABLE users (id INTEGER NOT NULL, username VARCHAR, password VARCHAR, email VARCHAR,"
        " created_datetime DATETIME, updated_datetime DATETIME, PRIMARY KEY (id))"
    ),
    "postgresql": (
        "CREATE TABLE users (id SERIAL NOT NULL, username VARCHAR, password VARCHAR, email VARCHAR,"
        " created_datetime TIMESTAMP, updated_datetime TIMESTAMP, PRIMARY KEY (id))"
    ),
}
TIMES = ("created_datetime", "updated_datetime")
Row: TypeAlias = Mapping[str, Any]


@contextmanager
def connected(url: URL) -> Iterator[Connection]:
    """Open a transaction without using mlapi's code."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        yield connection


def execute(url: URL, *statements: str) -> None:
    with connected(url) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def row(user_id: int, username: str | bytes | None, **other: Any) -> dict[str, Any]:
    times = {"created_datetime": AT, "updated_datetime": AT}
    return {
        "id": user_id,
        "username": username,
        "password": STORED,
        "email": "a@example.com",
        "enabled": True,
        **times,
        **other,
    }


def create_legacy_database(url: URL, rows: Sequence[Row] = ROWS) -> None:
    """Create the database that the legacy app's two migrations and its requests would create."""
    kind = url.get_backend_name()
    with connected(url) as connection:
        for statement in (
            CREATE[kind],
            "ALTER TABLE users ADD COLUMN enabled BOOLEAN",
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
            "INSERT INTO alembic_version VALUES ('f03cfd316fe4')",
        ):
            connection.exec_driver_sql(statement)
        add(connection, rows)
        if kind == "postgresql" and rows:
            connection.exec_driver_sql("SELECT setval('users_id_seq', max(id)) FROM users")


def add(connection: Connection, rows: Sequence[Row]) -> None:
    for each in rows:
        values = dict(each)
        if connection.dialect.name == "sqlite":
            values |= {name: at.replace("T", " ") for name in TIMES if isinstance(at := each[name], str)}
        marks = ", ".join(f":{name}" for name in values)
        connection.execute(text(f"INSERT INTO users ({', '.join(values)}) VALUES ({marks})"), values)


def snapshot(url: URL) -> object:
    """Return the contents of a database: the bytes of an SQLite file, or the schema and rows of PostgreSQL."""
    if url.database is not None and url.get_backend_name() == "sqlite":
        file = Path(url.database)
        return [(each.name, each.read_bytes()) for each in sorted(file.parent.glob(f"{file.name}*"))]
    with connected(url) as connection:
        tables = sorted(inspect(connection).get_table_names())
        rows = [connection.execute(text(f"SELECT * FROM {table}")).all() for table in tables]
        return describe_schema(connection), tables, rows


def _describe_index(index: Any) -> dict[str, Any]:
    """Return an index without SQL expressions, which are equal only to themselves."""
    return {**index, "dialect_options": {name: str(value) for name, value in index["dialect_options"].items()}}


def describe_schema(connection: Connection) -> dict[str, Any]:
    """Return the schema in a form that can be compared. Columns are unordered, because PostgreSQL appends new ones."""
    found = inspect(connection)
    schema: dict[str, Any] = {
        table: {
            "columns": {column["name"]: {**column, "type": repr(column["type"])} for column in columns},
            "key": found.get_pk_constraint(table),
            "indexes": sorted(map(_describe_index, found.get_indexes(table)), key=str),
            "unique": found.get_unique_constraints(table),
            "foreign": found.get_foreign_keys(table),
            "checks": found.get_check_constraints(table),
        }
        for (_, table), columns in found.get_multi_columns().items()
    }
    if connection.dialect.name == "sqlite":
        objects = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master")
        return schema | {f"{kind} {name}": sql for kind, name, sql in objects}
    return schema | {"sequences": sorted(found.get_sequence_names())}
