"""Create the table for audit entries."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "mlapi_audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("user_id", sa.BigInteger()),
        sa.Column("api_key_id", sa.String()),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("request_id", sa.String()),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_mlapi_audit_at", "mlapi_audit", ["at"])
    op.create_index("ix_mlapi_audit_user_id", "mlapi_audit", ["user_id"])


def downgrade() -> None:
    op.drop_table("mlapi_audit")
