"""Store the fingerprint of the key that encrypts the passwords in a database."""

from sqlalchemy import inspect, select, update

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.tables import key_check


def find_fingerprint(database: Database) -> str | None:
    with database.reading() as connection:
        if not inspect(connection).has_table(key_check.name):
            return None
        return connection.scalar(select(key_check.c.value))


def store_fingerprint(database: Database, fingerprint: str) -> str:
    """Store the fingerprint unless one is stored already; return the stored one."""
    with database.writing() as connection:
        connection.execute(
            database.dialect.insert(key_check)
            .values(id=1, value=fingerprint)
            .on_conflict_do_nothing(index_elements=["id"])
        )
        stored: str = connection.execute(select(key_check.c.value)).scalar_one()
        return stored


def replace_fingerprint(database: Database, fingerprint: str) -> None:
    with database.writing() as connection:
        connection.execute(update(key_check).values(value=fingerprint))
