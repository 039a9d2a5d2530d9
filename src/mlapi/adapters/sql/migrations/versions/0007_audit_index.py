"""Index the users of audit entries in buckets of consecutive entries, and their removals. See `AUDIT_BUCKET`."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.drop_index("ix_mlapi_audit_user_id", "mlapi_audit")
    op.create_index("ix_mlapi_audit_user", "mlapi_audit", [sa.text("(id >> 12)"), "user_id"])
    is_removal = sa.text("action = 'remove' AND outcome = 'done'")
    op.create_index(
        "ix_mlapi_audit_removed", "mlapi_audit", ["user_id"], postgresql_where=is_removal, sqlite_where=is_removal
    )


def downgrade() -> None:
    for name in ("removed", "user"):
        op.drop_index(f"ix_mlapi_audit_{name}", "mlapi_audit")
    op.create_index("ix_mlapi_audit_user_id", "mlapi_audit", ["user_id"])
