"""Store the fingerprint of the key that encrypts the passwords in a database."""

from sqlalchemy import Connection, inspect, select, update

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.tables import key_check


def find_fingerprint(database: Database) -> str | None:
    def find(connection: Connection) -> str | None:
        if not inspect(connection).has_table(key_check.name):
            return None
        return connection.scalar(select(key_check.c.value))

    return database.read(find)


def store_fingerprint(database: Database, fingerprint: str) -> str:
    """Store the fingerprint unless one is stored already; return the stored one."""

    def store(connection: Connection) -> str:
        connection.execute(
            database.dialect.insert(key_check)
            .values(id=1, value=fingerprint)
            .on_conflict_do_nothing(index_elements=["id"])
        )
        stored: str = connection.execute(select(key_check.c.value)).scalar_one()
        return stored

    return database.write(store)


def replace_fingerprint(database: Database, fingerprint: str) -> None:
    database.write(lambda connection: connection.execute(update(key_check).values(value=fingerprint)))
