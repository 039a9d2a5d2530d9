"""The revisions of the schema, and the errors about another revision."""

from pathlib import Path

from mlapi.domain.errors import ConfigurationError

MIGRATIONS = Path(__file__).with_name("migrations")
REVISIONS = tuple(sorted(path.name.partition("_")[0] for path in MIGRATIONS.glob("versions/[0-9]*_*.py")))
"""All revisions, oldest first. Each migration's file name begins with its revision."""
HEAD = REVISIONS[-1]
VERSION_TABLE = "mlapi_alembic_version"
"""Differs from alembic's default, because the database may contain another program's ``alembic_version``."""


def require_head(revision: str | None, *, hint: str = "") -> None:
    """Check that a schema is at the newest revision.

    Args:
        revision: the revision of the schema; None if there is no schema.
        hint: the end of the message if there is no schema.

    Raises:
        ConfigurationError: if the schema is at another revision, or does not exist.
    """
    if revision == HEAD:
        return
    if revision is None:
        raise ConfigurationError(
            "the database contains no tables of mlapi: check database.url (MLAPI_DATABASE__URL), or run"
            f" `mlapi db upgrade` to create them{hint}"
        )
    require_known(revision)
    raise ConfigurationError(
        f"the database's schema is at revision {revision} and must be at {HEAD}: run `mlapi db upgrade`"
    )


def require_known(revision: str) -> None:
    """Raise `ConfigurationError` if a newer version of mlapi has created the schema."""
    if revision not in REVISIONS:
        raise ConfigurationError(
            f"the database's schema is at revision {revision}, which this version of mlapi does not know: upgrade mlapi"
        )
