"""A database knows the keys that its passwords were encrypted with, so that a start with others can be refused."""

from collections.abc import Sequence

from sqlalchemy import inspect, select, update

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.tables import key_check
from mlapi.domain.errors import ConfigurationError


def check_key(database: Database, fingerprints: Sequence[str]) -> None:
    """Return if one of the fingerprints is the database's own. A database that has none takes the first.

    After a key was turned over `set_own_fingerprint` says so.

    Raises:
        ConfigurationError: if it has another one.
        RepositoryUnavailableError: if the database is away.
    """
    own = own_fingerprint(database)
    if own is None:
        own = _introduce(database, fingerprints[0])
    if own not in fingerprints:
        raise ConfigurationError(
            "secrets.key or secrets.salt is not the one that this database's passwords were encrypted with:"
            " give it those, or point database.url at another database"
        )


def own_fingerprint(database: Database) -> str | None:
    """Return the fingerprint of the key that the database is used with, or None before its first use."""
    with database.reading() as connection:
        if not inspect(connection).has_table(key_check.name):
            return None
        return connection.scalar(select(key_check.c.value))


def set_own_fingerprint(database: Database, fingerprint: str) -> None:
    """Store another fingerprint: every password of the database is encrypted with its key."""
    with database.writing() as connection:
        connection.execute(update(key_check).values(value=fingerprint))


def _introduce(database: Database, fingerprint: str) -> str:
    """Store the fingerprint unless another process was first; return the one that is stored."""
    with database.writing() as connection:
        connection.execute(
            database.dialect.insert(key_check)
            .values(id=1, value=fingerprint)
            .on_conflict_do_nothing(index_elements=["id"])
        )
        stored: str = connection.execute(select(key_check.c.value)).scalar_one()
        return stored
