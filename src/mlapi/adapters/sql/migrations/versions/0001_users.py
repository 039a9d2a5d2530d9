"""Create the users table, and the table for the fingerprint of the key that encrypts their passwords."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("password", sa.String(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.Column("username_key", sa.String(), nullable=False),
        sa.Column("token_epoch", sa.String(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_users_username_key", "users", ["username_key"], unique=True)
    op.create_table(
        "mlapi_key_check",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("value", sa.String(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("mlapi_key_check")
    op.drop_index("uq_users_username_key", table_name="users")
    op.drop_table("users")
