"""The tables in the newest schema revision. The migrations create them step by step."""

import re
from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC. PostgreSQL stores it as a ``timestamptz``, SQLite as text without the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - overridden
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - overridden
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


metadata = MetaData()

users = Table(
    "users",
    metadata,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), Identity(), primary_key=True),
    Column("username", String, nullable=False),
    Column("password", String, nullable=False),
    Column("email", String, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("created_datetime", UtcDateTime, nullable=False),
    Column("updated_datetime", UtcDateTime, nullable=False),
    # Sorted by code point, so that the index finds prefixes. This is SQLite's default.
    Column("username_key", String().with_variant(String(collation="C"), "postgresql"), nullable=False),
    Column("token_epoch", String, nullable=False),
    Index("uq_users_username_key", "username_key", unique=True),
    sqlite_autoincrement=True,  # otherwise SQLite would reuse the id of the newest user after their removal
)

api_keys = Table(
    "mlapi_api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("created_datetime", UtcDateTime, nullable=False),
    Column("expires_datetime", UtcDateTime),
    Column("last_used_datetime", UtcDateTime),
)

attempts = Table(
    "mlapi_attempts",
    metadata,
    Column("id", String, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),  # seconds since 1970
)

audit = Table(
    "mlapi_audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), Identity(), primary_key=True),
    Column("at", UtcDateTime, nullable=False, index=True),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("user_id", BigInteger, index=True),  # no foreign key: entries outlive their user
    Column("api_key_id", String),
    Column("outcome", String, nullable=False),
    Column("request_id", String),
    sqlite_autoincrement=True,
)

key_check = Table(
    "mlapi_key_check",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", String, nullable=False),
)


def find_table_name(message: str) -> str | None:
    """Return the table of this schema that a database's message names, in any language, or None."""
    return next((name for name in re.findall(r"\w+", message) if name in metadata.tables), None)
