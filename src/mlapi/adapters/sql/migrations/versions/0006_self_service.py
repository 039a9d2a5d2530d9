"""Add pending users, and the tables for managers, sessions, one-time links, mail, logins and activity."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("users", sa.Column("pending", sa.String()))
    _create_user_indexes(is_postgresql=op.get_bind().dialect.name == "postgresql")
    _create_tables()
    _fill_activity()


def _create_user_indexes(*, is_postgresql: bool) -> None:
    op.create_index("ix_users_created_datetime", "users", ["created_datetime", "id"])
    _create_partial_index("ix_users_plan", ["plan", "created_datetime"], "plan IS NOT NULL")
    _create_partial_index("ix_users_pending", ["created_datetime"], "pending IS NOT NULL")
    if is_postgresql:
        op.create_index("ix_users_email", "users", [sa.text("lower(email)")])
        op.execute("CREATE INDEX ix_users_enabled ON users USING brin ((enabled::integer))")
    else:
        op.create_index("ix_users_email_nocase", "users", [sa.text("email COLLATE NOCASE")])
        _create_partial_index("ix_users_disabled", ["created_datetime"], "enabled IS 0")


def _create_partial_index(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "users", columns, postgresql_where=where, sqlite_where=where)


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
        sa.Column("seen_datetime", sa.DateTime(timezone=True), nullable=False, index=True),
        sa.Column("month", sa.Integer(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_mlapi_activity_requests", "mlapi_activity", ["month", "requests"])


def _fill_activity() -> None:
    """Fill the table of activity from the usage of this month and before."""


def downgrade() -> None:
    for name in ("activity", "logins", "outbox", "links", "sessions", "managers"):
        op.drop_table(f"mlapi_{name}")
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    names = ["email", "enabled"] if is_postgresql else ["email_nocase", "disabled"]
    for name in ["created_datetime", "plan", "pending", *names]:
        op.drop_index(f"ix_users_{name}", "users")
    op.drop_column("users", "pending")
