"""Add pending users, bulk changes, and the tables for managers, sessions, links, mail, logins and activity."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("users", sa.Column("pending", sa.String()))
    _create_user_indexes(is_postgresql=op.get_bind().dialect.name == "postgresql")
    _extend_audit()
    _create_tables()
    _fill_activity()


def _create_user_indexes(*, is_postgresql: bool) -> None:
    # Each index ends with the id: a page after users with equal values then reads no more users than it shows.
    op.create_index("ix_users_created_datetime", "users", ["created_datetime", "id"])
    op.drop_index("ix_users_expires_datetime", "users")
    _create_partial_index("ix_users_expires_datetime", ["expires_datetime", "id"], "expires_datetime IS NOT NULL")
    _create_partial_index("ix_users_plan", ["plan", "created_datetime", "id"], "plan IS NOT NULL")
    _create_partial_index("ix_users_pending", ["created_datetime", "id"], "pending IS NOT NULL")
    if is_postgresql:
        op.create_index("ix_users_email", "users", [sa.text("lower(email)")])
        op.execute("CREATE INDEX ix_users_enabled ON users USING brin ((enabled::integer)) WITH (pages_per_range = 4)")
    else:
        op.create_index("ix_users_email_nocase", "users", [sa.text("email COLLATE NOCASE")])
        _create_partial_index("ix_users_disabled", ["created_datetime", "id"], "enabled IS 0")


def _create_partial_index(name: str, columns: list[str], condition: str, table: str = "users") -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, postgresql_where=where, sqlite_where=where)


def _extend_audit() -> None:
    op.add_column("mlapi_audit", sa.Column("bulk_id", sa.String(), nullable=False, server_default=sa.text("''")))
    op.create_index("ix_mlapi_audit_bulk_id", "mlapi_audit", ["bulk_id", "action", "id"])
    condition = "bulk_id = '' AND actor NOT IN ('admin', 'anyone')"
    _create_partial_index("ix_mlapi_audit_actor", ["actor", "id"], condition, "mlapi_audit")


def _create_tables() -> None:
    op.create_table(
        "mlapi_managers",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("token_id", sa.String(), nullable=False, unique=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("created_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_datetime", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "mlapi_sessions",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("manager", sa.String(), index=True),
        sa.Column("user_id", sa.BigInteger(), index=True),
        sa.Column("epoch", sa.String(), nullable=False),
        sa.Column("created_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_datetime", sa.DateTime(timezone=True), nullable=False, index=True),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("browser", sa.String(), nullable=False),
    )
    op.create_table(
        "mlapi_links",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("user_id", sa.BigInteger(), nullable=False, index=True),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("token_epoch", sa.String(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("new_email", sa.String()),
        sa.Column("created_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_datetime", sa.DateTime(timezone=True), nullable=False, index=True),
    )
    op.create_table(
        "mlapi_outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("user_id", sa.BigInteger()),
        sa.Column("recipient", sa.String()),
        sa.Column("created_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_datetime", sa.DateTime(timezone=True), index=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.String()),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "mlapi_logins",
        sa.Column("user_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True, index=True),
        sa.Column("address", sa.String(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "mlapi_activity",
        sa.Column("user_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("seen_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.Column("month", sa.Integer(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )


def _fill_activity() -> None:
    """Fill the activity table from the existing usage: the latest request, and the requests in its month."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    month = "to_char(day, 'YYYYMM')::integer" if is_postgresql else "CAST(strftime('%Y%m', day) AS INTEGER)"
    requests = "least(sum(requests), 9007199254740991)" if is_postgresql else "min(sum(requests), 9007199254740991)"
    op.execute(f"""
        INSERT INTO mlapi_activity (user_id, seen_datetime, month, requests)
        SELECT user_id, max(seen_datetime), month, {requests}
        FROM (
            SELECT user_id, seen_datetime, requests, {month} AS month,
                max({month}) OVER (PARTITION BY user_id) AS latest
            FROM mlapi_usage
        ) AS monthly
        WHERE month = latest
        GROUP BY user_id, month
    """)  # noqa: S608 - only constants
    op.create_index("ix_mlapi_activity_seen_datetime", "mlapi_activity", ["seen_datetime", "user_id"])
    op.create_index("ix_mlapi_activity_requests", "mlapi_activity", ["month", "requests", "user_id"])


def downgrade() -> None:
    for name in ("activity", "logins", "outbox", "links", "sessions", "managers"):
        op.drop_table(f"mlapi_{name}")
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    names = ["email", "enabled"] if is_postgresql else ["email_nocase", "disabled"]
    for name in ["created_datetime", "plan", "pending", *names]:
        op.drop_index(f"ix_users_{name}", "users")
    op.drop_column("users", "pending")
    op.drop_index("ix_users_expires_datetime", "users")
    _create_partial_index("ix_users_expires_datetime", ["expires_datetime"], "expires_datetime IS NOT NULL")
    for name in ("bulk_id", "actor"):
        op.drop_index(f"ix_mlapi_audit_{name}", "mlapi_audit")
    op.drop_column("mlapi_audit", "bulk_id")
