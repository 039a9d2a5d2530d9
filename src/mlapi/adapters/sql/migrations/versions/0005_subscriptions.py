"""Add expiry, plan and metadata to users, changes to audit entries, and the tables for limits and usage."""

import sqlalchemy as sa
from alembic import op

from mlapi.adapters.sql.legacy import LATER_COLUMNS
from mlapi.domain.errors import ConfigurationError

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    _check_columns()
    # Nullable columns without a default: neither database rewrites the table.
    op.add_column("users", sa.Column("expires_datetime", sa.DateTime(timezone=True)))
    op.add_column("users", sa.Column("plan", sa.String()))
    op.add_column("users", sa.Column("metadata", sa.String()))
    expires = sa.text("expires_datetime IS NOT NULL")
    op.create_index(
        "ix_users_expires_datetime", "users", ["expires_datetime"], postgresql_where=expires, sqlite_where=expires
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE INDEX ix_users_metadata ON users USING gin ((metadata::jsonb) jsonb_path_ops)"
            " WHERE metadata IS NOT NULL"
        )
    op.add_column("mlapi_audit", sa.Column("changes", sa.String()))
    op.create_table(
        "mlapi_allowances",
        sa.Column("user_id", sa.BigInteger(), sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("allowance", sa.String(), primary_key=True),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "mlapi_usage",
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("user_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.String(), primary_key=True),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("seen_datetime", sa.DateTime(timezone=True), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_mlapi_usage_user_id", "mlapi_usage", ["user_id", "day"])


def _check_columns() -> None:
    """Raise an error if the adopted table has its own columns with these names. Adoption keeps unknown columns."""
    found = {column["name"].lower() for column in sa.inspect(op.get_bind()).get_columns("users")}
    if taken := sorted(found & LATER_COLUMNS):
        raise ConfigurationError(
            f"mlapi needs columns that the table `users` already has for another program: {', '.join(taken)}: rename"
            f" them, for example to legacy_{taken[0]}, then run `mlapi db upgrade`"
        )


def downgrade() -> None:
    op.drop_table("mlapi_usage")
    op.drop_table("mlapi_allowances")
    op.drop_column("mlapi_audit", "changes")
    op.drop_index("ix_users_expires_datetime", "users")
    for name in ("metadata", "plan", "expires_datetime"):
        op.drop_column("users", name)
