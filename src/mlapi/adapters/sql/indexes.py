"""The indexes that differ between SQLite and PostgreSQL. Only alembic needs them.

They have a module of their own because SQLAlchemy loads its PostgreSQL dialects for them, which takes 30 ms.
"""

from sqlalchemy import Index, Integer, cast, func, text
from sqlalchemy.dialects.postgresql import JSONB

from mlapi.adapters.sql.tables import AUDIT_BUCKET, AUDIT_REMOVALS, RARE_ACTORS_UNFOLDED, audit, metadata, users

__all__ = ["metadata"]

Index(
    "ix_users_expires_datetime",
    users.c.expires_datetime,
    users.c.id,
    postgresql_where=text("expires_datetime IS NOT NULL"),
    sqlite_where=text("expires_datetime IS NOT NULL"),
)
Index(
    "ix_users_plan",
    users.c.plan,
    users.c.created_datetime,
    users.c.id,
    postgresql_where=text("plan IS NOT NULL"),
    sqlite_where=text("plan IS NOT NULL"),
)
Index(
    "ix_users_pending",
    users.c.created_datetime,
    users.c.id,
    postgresql_where=text("pending IS NOT NULL"),
    sqlite_where=text("pending IS NOT NULL"),
)
Index(
    "ix_users_metadata",
    cast(users.c.metadata, JSONB).label("object"),
    postgresql_using="gin",
    postgresql_ops={"object": "jsonb_path_ops"},
    postgresql_where=users.c.metadata.is_not(None),
).ddl_if(dialect="postgresql")

Index("ix_users_email", func.lower(users.c.email)).ddl_if(dialect="postgresql")
Index("ix_users_email_nocase", users.c.email.collate("NOCASE")).ddl_if(dialect="sqlite")
Index("ix_users_disabled", users.c.created_datetime, users.c.id, sqlite_where=users.c.enabled.is_(False)).ddl_if(
    dialect="sqlite"
)
# BRIN, because any other kind of index on `enabled` would prevent in-place (HOT) updates.
Index(
    "ix_users_enabled",
    cast(users.c.enabled, Integer).label("enabled"),
    postgresql_using="brin",
    postgresql_with={"pages_per_range": 4},  # about 100 users, so that few pages are read for a few disabled users
).ddl_if(dialect="postgresql")

# The actors of most requests are left out, so that frequent changes do not pay for this index.
Index(
    "ix_mlapi_audit_actor",
    audit.c.actor,
    audit.c.id,
    postgresql_where=text(RARE_ACTORS_UNFOLDED),
    sqlite_where=text(RARE_ACTORS_UNFOLDED),
)
Index("ix_mlapi_audit_user", AUDIT_BUCKET, audit.c.user_id)
Index(
    "ix_mlapi_audit_removed",
    audit.c.user_id,
    postgresql_where=text(AUDIT_REMOVALS),
    sqlite_where=text(AUDIT_REMOVALS),
)
