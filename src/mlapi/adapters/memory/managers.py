"""Managers in memory."""

from collections.abc import Sequence

from mlapi.adapters.memory.users import InMemoryAuditTrail
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
from mlapi.forks import new_lock


class InMemoryManagers:
    """Thread-safe `Managers` in memory.

    Args:
        audit: receives the audit entries about the managers.
    """

    def __init__(self, audit: InMemoryAuditTrail) -> None:
        self._lock = new_lock()
        self._managers: dict[str, Manager] = {}
        self._audit = audit

    def apply(self, command: ManagerCommand) -> ManagerOutcome:
        with self._lock:
            outcome = self._apply(command)
            self._audit.write(make_manager_entry(command, outcome))
            return outcome

    def find_many(self, token_ids: Sequence[ManagerTokenId]) -> list[Manager | None]:
        with self._lock:
            by_token_id = {manager.token_id: manager for manager in self._managers.values()}
        return [by_token_id.get(token_id) for token_id in token_ids]

    def find_many_nowait(self, token_ids: Sequence[ManagerTokenId]) -> list[Manager | None]:
        return self.find_many(token_ids)

    def find(self, name: str) -> Manager | None:
        return self._managers.get(name)

    def list_all(self) -> list[Manager]:
        with self._lock:
            return sorted(self._managers.values(), key=lambda manager: manager.name)

    def _apply(self, command: ManagerCommand) -> ManagerOutcome:
        if isinstance(command, AddManager):
            if command.manager.name in self._managers:
                return ManagerExistsError(command.manager.name)
            self._managers[command.manager.name] = command.manager
            return command.manager
        stored = self._managers.get(command.name)
        if stored is None:
            return ManagerNotFoundError(command.name)
        if isinstance(command, RotateManager):
            self._managers[command.name] = command.apply_to(stored)
            return self._managers[command.name]
        return self._managers.pop(command.name)
