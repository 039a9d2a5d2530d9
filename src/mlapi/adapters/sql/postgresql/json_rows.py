"""Execute statements whose rows are a single JSON parameter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from mlapi.adapters.sql.row_readers import Row

if TYPE_CHECKING:
    import psycopg

    from mlapi.adapters.sql.postgresql.session import BoundedConnection


def fetch(connection: "BoundedConnection", statement: bytes, parameters: Sequence[object]) -> list[Row]:
    """Execute a statement for several rows and return its result. Do nothing if there are no rows."""
    return execute(connection, statement, parameters).fetchall() if parameters else []


def execute(connection: "BoundedConnection", statement: bytes, parameters: Sequence[object]) -> "psycopg.Cursor[Any]":
    """Execute a statement for several rows: mappings, or entities with a field for each column."""
    return connection.execute(statement, encode(parameters), binary=True)


def encode(parameters: Sequence[object]) -> dict[str, str]:
    """Return the JSON parameter for several rows: mappings, or entities with a field for each column."""
    return {"rows": msgspec.json.encode(parameters).decode()}
