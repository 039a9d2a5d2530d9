"""Implementations of `Managers` with one fault each. The contract suite must detect every fault."""

import time
from collections.abc import Sequence

import attrs

from mlapi.adapters.memory import InMemoryAuditTrail, InMemoryManagers
from mlapi.domain.managers import (
    AddManager,
    Manager,
    ManagerCommand,
    ManagerOutcome,
    ManagerTokenId,
    RotateManager,
    make_manager_entry,
)


class ReplacingManagers(InMemoryManagers):
    def _apply(self, command: ManagerCommand) -> ManagerOutcome:
        if isinstance(command, AddManager):
            self._managers.pop(command.manager.name, None)
        return super()._apply(command)


class RacingToAdd(InMemoryManagers):
    def apply(self, command: ManagerCommand) -> ManagerOutcome:
        if isinstance(command, AddManager) and self.find(command.manager.name) is None:
            time.sleep(0.01)
            self._managers.pop(command.manager.name, None)
        return super().apply(command)


class KeepingOldTokens(InMemoryManagers):
    """Finds managers by their previous tokens."""

    def __init__(self, audit: InMemoryAuditTrail) -> None:
        super().__init__(audit)
        self._known: dict[ManagerTokenId, Manager] = {}

    def find_many(self, token_ids: Sequence[ManagerTokenId]) -> list[Manager | None]:
        self._known |= {manager.token_id: manager for manager in self.list_all()}
        return [self._known.get(token_id) for token_id in token_ids]

    def apply(self, command: ManagerCommand) -> ManagerOutcome:
        self.find_many([])
        return super().apply(command)


class RotatingTheCreationTime(InMemoryManagers):
    def _apply(self, command: ManagerCommand) -> ManagerOutcome:
        outcome = super()._apply(command)
        if isinstance(command, RotateManager) and isinstance(outcome, Manager):
            outcome = self._managers[outcome.name] = attrs.evolve(outcome, created_datetime=command.at)
        return outcome


class AuditingOnlySuccesses(InMemoryManagers):
    def apply(self, command: ManagerCommand) -> ManagerOutcome:
        outcome = self._apply(command)
        if isinstance(outcome, Manager):
            self._audit.write(make_manager_entry(command, outcome))
        return outcome


class UnsortedManagers(InMemoryManagers):
    def list_all(self) -> list[Manager]:
        return list(self._managers.values())
