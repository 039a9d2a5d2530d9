"""Turn a legacy ``users`` table into mlapi's, in one transaction. Keep all rows, ids, times and stored passwords.

On SQLite, the rows are copied into the table that the first migration creates. On PostgreSQL, the table is altered in
place, so that foreign keys and grants that refer to it stay valid. Then the later migrations run, as in any upgrade.
"""

from collections.abc import Callable, Sequence
from typing import final
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, insert, inspect

from mlapi.adapters.sql.adoption.dialect import adoption_dialect_for
from mlapi.adapters.sql.adoption.findings import Choice
from mlapi.adapters.sql.adoption.legacy_table import LegacyTable, inspect_legacy_table
from mlapi.adapters.sql.adoption.survey import Survey
from mlapi.adapters.sql.dialect import dialect_for
from mlapi.adapters.sql.legacy import ADDED_COLUMNS, LEGACY_COLUMNS, is_legacy
from mlapi.adapters.sql.schema import current_revision, migrate
from mlapi.adapters.sql.tables import key_check
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.users import EncryptedPassword


@final
class Adoption:
    """A plan for adopting a legacy table, and its execution by `carry_out`.

    The caller must commit the transaction after `carry_out`.

    Args:
        connection: must be in a transaction of `mlapi.adapters.sql.database.Database.open_existing`.
        zone: the time zone of the times in the table; None for UTC.
        find_password_error: returns why a stored password cannot be used, or None if it can.
        locked: the value to store for users without a password. No password matches it.
        fingerprint: the fingerprint of the key that encrypts the passwords. It is stored in the database.
        plan_only: True if `carry_out` will not be called. Other programs can then continue to use the table.

    Raises:
        ConfigurationError: if the table is not the legacy app's, or its structure prevents adoption.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        zone: ZoneInfo | None,
        find_password_error: Callable[[str], str | None],
        locked: EncryptedPassword,
        fingerprint: str,
        plan_only: bool,
    ) -> None:
        self._connection = connection
        self._locked = locked.value
        self._fingerprint = fingerprint
        self._dialect = adoption_dialect_for(connection)
        if not plan_only:
            dialect_for(connection.dialect.name).lock_schema(connection)
        self.revision = current_revision(connection)
        """The schema revision if the database already belongs to mlapi. ``table`` and ``survey`` are then unset."""
        if self.revision is not None:
            return
        _require_legacy_table(connection)
        if not plan_only:
            self._dialect.lock_table()
        self.table: LegacyTable = inspect_legacy_table(connection, self._dialect)
        if self.table.obstacles:
            raise ConfigurationError(f"the table `users` cannot be adopted yet: {'; '.join(self.table.obstacles)}")
        self.survey = Survey(connection, self._dialect, zone=zone, find_password_error=find_password_error)

    @property
    def obstacles(self) -> list[str]:
        """Problems in the rows or the configuration that the operator must fix before adoption."""
        return [f"{each.title}: {each.effect}" for each in self.survey.findings if each.is_obstacle]

    def find_undecided(self, choices: Sequence[Choice]) -> list[Choice]:
        """Return the choices that the findings need, except for those already made."""
        return [each.choice for each in self.survey.findings if each.choice is not None and each.choice not in choices]

    def carry_out(self) -> str | None:
        """Adopt the table, upgrade the schema to the newest revision, and return that revision."""
        self._dialect.convert_table(self._locked)
        migrate(self._connection, "head")
        self._connection.execute(insert(key_check).values(id=1, value=self._fingerprint))
        return current_revision(self._connection)


def _require_legacy_table(connection: Connection) -> None:
    found = inspect(connection)
    if not found.has_table("users"):
        namespaces = dialect_for(connection.dialect.name).find_other_namespaces(connection, "users")
        place = (
            f", but the schema {' or '.join(namespaces)} has one: move it, or set database.schema" if namespaces else ""
        )
        raise ConfigurationError(
            f"the database has no table `users` to adopt{place}; `mlapi db upgrade` creates an empty one"
        )
    if not is_legacy(connection):
        names = {column["name"] for column in found.get_columns("users")}
        missing = [f"no column {name!r}" for name in LEGACY_COLUMNS if name not in names]
        added = [f"a column {name!r}" for name in sorted(names & ADDED_COLUMNS)]
        raise ConfigurationError(
            f"the table `users` belongs to another program (it has {', '.join([*missing, *added])}): check database.url"
        )
