"""Create the tables for API keys and login attempts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "mlapi_api_keys",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column(
            "user_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("created_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_datetime", sa.DateTime(timezone=True)),
        sa.Column("last_used_datetime", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_mlapi_api_keys_user_id", "mlapi_api_keys", ["user_id"])
    op.create_table(
        "mlapi_attempts",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_mlapi_attempts_expires_at", "mlapi_attempts", ["expires_at"])


def downgrade() -> None:
    op.drop_table("mlapi_attempts")
    op.drop_table("mlapi_api_keys")
