"""Managers in SQLite or PostgreSQL."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.principals import is_storable_key_id, is_storable_text
from mlapi.adapters.sql.rows import MANAGER_COLUMNS, dict_writer, read_manager
from mlapi.adapters.sql.tables import audit, managers
from mlapi.domain.audit import AuditEntry
from mlapi.domain.errors import ManagerExistsError, ManagerNotFoundError
from mlapi.domain.managers import (
    AddManager,
    Manager,
    ManagerCommand,
    ManagerOutcome,
    ManagerTokenId,
    RotateManager,
    make_manager_entry,
)

_WITH_NAME = managers.c.name == bindparam("by_name")
_SELECT = select(*MANAGER_COLUMNS)
_FIND = _SELECT.where(_WITH_NAME)
_REMOVE = delete(managers).where(_WITH_NAME).returning(*MANAGER_COLUMNS)
_ROTATED = ("token_id", "digest", "expires_datetime")
_ROTATE = (
    update(managers)
    .where(_WITH_NAME)
    .values({name: bindparam(f"new_{name}") for name in _ROTATED})
    .returning(*MANAGER_COLUMNS)
)

_audit_row = dict_writer(AuditEntry, audit)


class SqlManagers:
    """`Managers` in SQLite or PostgreSQL.

    Args:
        database: contains the tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def apply(self, command: ManagerCommand) -> ManagerOutcome:
        def work(connection: Connection) -> ManagerOutcome:
            outcome = self._apply(connection, command)
            connection.execute(insert(audit), _audit_row(make_manager_entry(command, outcome)))
            return outcome

        return self._database.write(work)

    def find_many(self, token_ids: Sequence[ManagerTokenId]) -> list[Manager | None]:
        return self._find_many(token_ids, self._database.read_batch)

    def find(self, name: str) -> Manager | None:
        if not is_storable_text(name):
            return None
        row = self._database.read(lambda connection: connection.execute(_FIND, {"by_name": name}).one_or_none())
        return None if row is None else read_manager(row)

    def list_all(self) -> list[Manager]:
        return list(self._database.read(list_managers))

    def _find_many(
        self, token_ids: Sequence[ManagerTokenId], read: Callable[[Callable[[Any], list[Manager]]], list[Manager]]
    ) -> list[Manager | None]:
        storable = [token_id for token_id in token_ids if is_storable_key_id(token_id)]
        found = read(partial(self._database.dialect.find_managers, token_ids=storable))
        by_token_id = {manager.token_id: manager for manager in found}
        return [by_token_id.get(token_id) for token_id in token_ids]

    def _apply(self, connection: Connection, command: ManagerCommand) -> ManagerOutcome:
        if isinstance(command, AddManager):
            adding = self._database.dialect.insert(managers).values(attrs.asdict(command.manager))
            adding = adding.on_conflict_do_nothing(index_elements=["name"])
            is_new = connection.execute(adding.returning(managers.c.name)).first() is not None
            return command.manager if is_new else ManagerExistsError(command.manager.name)
        if not is_storable_text(command.name):
            return ManagerNotFoundError(command.name)
        parameters = {"by_name": command.name}
        if isinstance(command, RotateManager):
            parameters |= {f"new_{name}": getattr(command, name) for name in _ROTATED}
            row = connection.execute(_ROTATE, parameters).one_or_none()
        else:
            row = connection.execute(_REMOVE, parameters).one_or_none()
        return ManagerNotFoundError(command.name) if row is None else read_manager(row)


class SqliteManagers(SqlManagers):
    """`Managers` in SQLite. They are also `NonblockingManagers`: reads are fast enough for an event loop."""

    def find_many_nowait(self, token_ids: Sequence[ManagerTokenId]) -> list[Manager | None]:
        return self._find_many(token_ids, self._database.read_nowait)


def list_managers(connection: Connection) -> tuple[Manager, ...]:
    """Return all managers, sorted by name, regardless of the collation of the database."""
    return tuple(sorted(map(read_manager, connection.execute(_SELECT)), key=lambda manager: manager.name))
