"""The interface to everything that differs between SQLite and PostgreSQL when a legacy table is adopted."""

from collections.abc import Iterable
from datetime import datetime, tzinfo
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection
from sqlalchemy.engine.interfaces import ReflectedColumn

from mlapi.adapters.sql.adoption.postgresql import PostgresqlAdoption
from mlapi.adapters.sql.adoption.sqlite import SqliteAdoption


class AdoptionDialect(Protocol):
    """The part of adoption that depends on the database. Every method uses the current transaction."""

    def lock_table(self) -> None:
        """Keep other programs from using the table until the transaction ends."""
        ...

    def find_column_obstacles(self, columns: list[ReflectedColumn]) -> Iterable[str]:
        """Return the reasons why columns of the table prevent adoption, such as a wrong type."""
        ...

    def find_objects_to_drop(self) -> Iterable[tuple[str, str]]:
        """Return the kind and name of each object that adoption would lose or that could make writes fail later."""
        ...

    def find_references(self) -> set[str]:
        """Return the names of the tables that have foreign keys to this table."""
        ...

    def prepare_reading(self, zone: tzinfo | None) -> None:
        """Make all rows readable, and interpret stored times in this time zone. None means UTC."""
        ...

    def analyze_notes(self) -> None:
        """Update the statistics of the notes table, so that the database chooses good plans for queries on it."""
        ...

    def lower_ascii(self, value: ColumnElement[Any]) -> ColumnElement[str]:
        """Return an SQL expression for the text with its ASCII letters in lower case."""
        ...

    def is_invalid_time(self, stored: ColumnElement[datetime]) -> ColumnElement[bool]:
        """Return an SQL condition that is true if a stored time is invalid. NULL is valid."""
        ...

    def convert_table(self, locked: str) -> None:
        """Give the table the schema of the first migration, and apply the new usernames in the notes.

        Args:
            locked: the stored password for users without one.
        """
        ...


def adoption_dialect_for(connection: Connection) -> AdoptionDialect:
    """Return the dialect for the database of a connection."""
    return SqliteAdoption(connection) if connection.dialect.name == "sqlite" else PostgresqlAdoption(connection)
