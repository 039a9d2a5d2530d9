"""The tables in the newest schema revision. The migrations create them step by step.

`mlapi.adapters.sql.indexes` adds the indexes that differ between SQLite and PostgreSQL.
"""

import re
from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
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
    literal_column,
    text,
)

from mlapi.domain.actors import ANYONE


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
    Column("expires_datetime", UtcDateTime),
    Column("plan", String),
    Column("metadata", String),  # JSON
    Column("pending", String),
    Index("uq_users_username_key", "username_key", unique=True),
    Index("ix_users_created_datetime", "created_datetime", "id"),
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

FREQUENT_ACTORS = ("admin", ANYONE)
_FREQUENT_NAMES = ", ".join(f"'{name}'" for name in FREQUENT_ACTORS)
RARE_ACTORS_UNFOLDED = f"bulk_id = '' AND actor NOT IN ({_FREQUENT_NAMES})"
"""The entries in the index of actors. A query must contain the same text to use it."""

audit = Table(
    "mlapi_audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), Identity(), primary_key=True),
    Column("at", UtcDateTime, nullable=False, index=True),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("user_id", BigInteger),  # no foreign key: entries outlive their user
    Column("api_key_id", String),
    Column("outcome", String, nullable=False),
    Column("request_id", String),
    Column("changes", String),  # JSON
    Column("bulk_id", String, nullable=False, server_default=text("''")),
    Index("ix_mlapi_audit_bulk_id", "bulk_id", "action", "id"),
    sqlite_autoincrement=True,
)

AUDIT_BUCKET_BITS = 12
AUDIT_BUCKET = audit.c.id.bitwise_rshift(literal_column(str(AUDIT_BUCKET_BITS)))
"""The bucket of an audit entry: 4,096 consecutive entries.

The index of users is sorted by bucket first, so that new entries change only the few pages of the newest bucket. An
index of users alone would change a page for each entry, which may have to be read first. To find a user's entries, look
the user up in each bucket: 10,000,000 entries are in 2,500 buckets, which takes 7 to 34 ms."""
AUDIT_REMOVALS = "action = 'remove' AND outcome = 'done'"
"""The entries in the index of removed users. A query must contain the same text to use it."""

allowances = Table(
    "mlapi_allowances",
    metadata,
    Column("user_id", BigInteger, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("allowance", String, primary_key=True),  # for example "requests per minute"
    Column("starts_at", BigInteger, nullable=False),  # the start of the current window, in seconds since 1970
    Column("used", BigInteger, nullable=False),  # in the current window, including all leases
    sqlite_with_rowid=False,
)

usage = Table(
    "mlapi_usage",
    metadata,
    Column("day", Date, primary_key=True),
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),  # no foreign key: usage outlives its user
    Column("key_id", String, primary_key=True),  # "" for requests with a token
    Column("requests", BigInteger, nullable=False),
    Column("units", BigInteger, nullable=False),
    Column("seen_datetime", UtcDateTime, nullable=False),  # the latest request
    Index("ix_mlapi_usage_user_id", "user_id", "day"),
    sqlite_with_rowid=False,  # one tree instead of two: reads of many rows take half as long
)

managers = Table(
    "mlapi_managers",
    metadata,
    Column("name", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("token_id", String, nullable=False, unique=True),
    Column("digest", String, nullable=False),
    Column("created_datetime", UtcDateTime, nullable=False),
    Column("expires_datetime", UtcDateTime),
)

# The tables below have no foreign keys to users: an orphaned row grants nothing, and each foreign key would slow down
# the removal of every user.
sessions = Table(
    "mlapi_sessions",
    metadata,
    Column("id", String, primary_key=True),  # the SHA-256 of the secret in the cookie
    Column("manager", String, index=True),  # the name of a manager, "admin" for the admin token, or NULL
    Column("user_id", BigInteger, index=True),  # NULL for sessions of managers
    Column("epoch", String, nullable=False),  # the session ends when its manager or user gets a new one
    Column("created_datetime", UtcDateTime, nullable=False),
    Column("seen_datetime", UtcDateTime, nullable=False),
    Column("expires_datetime", UtcDateTime, nullable=False, index=True),
    Column("address", String, nullable=False),
    Column("browser", String, nullable=False),
)

links = Table(
    "mlapi_links",
    metadata,
    Column("id", String, primary_key=True),
    Column("user_id", BigInteger, nullable=False, index=True),
    Column("purpose", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("token_epoch", String, nullable=False),  # the link is valid only while these two values equal the user's
    Column("email", String, nullable=False),
    Column("new_email", String),
    Column("created_datetime", UtcDateTime, nullable=False),
    Column("expires_datetime", UtcDateTime, nullable=False, index=True),
)

outbox = Table(
    "mlapi_outbox",
    metadata,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), Identity(), primary_key=True),
    Column("kind", String, nullable=False),
    Column("user_id", BigInteger),
    Column("recipient", String),  # the name or address in a request for a new password, or a new address to verify
    Column("created_datetime", UtcDateTime, nullable=False),
    Column("due_datetime", UtcDateTime, index=True),  # NULL after the last attempt has failed
    Column("attempts", Integer, nullable=False),
    Column("error", String),
    sqlite_autoincrement=True,
)

logins = Table(
    "mlapi_logins",
    metadata,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, primary_key=True, index=True),
    Column("address", String, nullable=False),
    sqlite_with_rowid=False,
)

activity = Table(
    "mlapi_activity",
    metadata,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("seen_datetime", UtcDateTime, nullable=False),
    Column("month", Integer, nullable=False),  # 202611 is November 2026, UTC
    Column("requests", BigInteger, nullable=False),  # in this month
    Index("ix_mlapi_activity_seen_datetime", "seen_datetime", "user_id"),
    Index("ix_mlapi_activity_requests", "month", "requests", "user_id"),
    sqlite_with_rowid=False,
)

REMOVED_WITH_USER = (sessions, links, logins, activity)
"""The tables whose rows are deleted together with their user, in the same transaction, although they have no foreign
key."""

key_check = Table(
    "mlapi_key_check",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", String, nullable=False),
)


def find_table_name(message: str) -> str | None:
    """Return the table of this schema that a database's message names, in any language, or None."""
    return next((name for name in re.findall(r"\w+", message) if name in metadata.tables), None)
