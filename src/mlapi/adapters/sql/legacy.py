"""Recognize a database of the legacy app, the application that mlapi replaces.

Its ``users`` table has the columns below. Its ``alembic_version`` table is ignored, because the database may have
been created without alembic.
"""

from sqlalchemy import BigInteger, Connection, DateTime, String, column, inspect, table

legacy_users = table(
    "users",
    column("id", BigInteger),
    column("username", String),
    column("password", String),
    column("email", String),
    column("enabled"),
    column("created_datetime", DateTime),
    column("updated_datetime", DateTime),
)
LEGACY_COLUMNS = tuple(found.name for found in legacy_users.columns)
ADDED_COLUMNS = frozenset({"username_key", "token_epoch"})
"""Columns that only mlapi's ``users`` table has."""
LATER_COLUMNS = frozenset({"expires_datetime", "plan", "metadata", "pending"})
"""Columns that later migrations add. A legacy table may have its own columns with these names."""


def is_legacy(connection: Connection) -> bool:
    """Return whether there is a ``users`` table with the legacy app's columns and without `ADDED_COLUMNS`."""
    found = inspect(connection)
    if not found.has_table("users"):
        return False
    names = {each["name"] for each in found.get_columns("users")}
    return names >= set(LEGACY_COLUMNS) and not names & ADDED_COLUMNS
