"""Sort the canonical usernames by code point on PostgreSQL, as SQLite does, so that the index finds prefixes."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    _set_collation("C")


def downgrade() -> None:
    _set_collation("default")


def _set_collation(name: str) -> None:
    if op.get_bind().dialect.name == "postgresql":  # this rebuilds the index, but does not rewrite the table
        op.alter_column("users", "username_key", type_=sa.String(collation=name), existing_nullable=False)
