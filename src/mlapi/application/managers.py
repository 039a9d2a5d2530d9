"""Add, rotate and remove managers, and identify them by their tokens."""

from datetime import datetime

import attrs

from mlapi.application.lookups import Lookup
from mlapi.domain.actors import UNKNOWN_ACTOR, Actor
from mlapi.domain.errors import InvalidFieldsError, ManagerNotFoundError
from mlapi.domain.managers import (
    AddManager,
    Manager,
    ManagerCommand,
    Managers,
    ManagerTokenId,
    NonblockingManagers,
    RemoveManager,
    Role,
    RotateManager,
    authenticate_manager,
    find_manager_expiry_error,
    generate_manager_token,
    parse_manager_token,
    validate_manager_fields,
)
from mlapi.domain.ports import Clock
from mlapi.domain.users import utc_now


@attrs.frozen
class NewManagerToken:
    """A manager with a new token, which is shown only once."""

    manager: Manager
    token: str = attrs.field(repr=False)


@attrs.frozen
class ManagerRegistry:
    """The use cases for managers.

    Args:
        managers: stores the managers.
        clock: returns the current time.
        actor: the name in the audit trail.
    """

    managers: Managers
    clock: Clock = utc_now
    actor: Actor = UNKNOWN_ACTOR

    def as_actor(self, actor: Actor) -> "ManagerRegistry":
        return attrs.evolve(self, actor=actor)

    def add(
        self,
        *,
        name: str,
        role: Role,
        expires_datetime: datetime | None = None,
        token_id: ManagerTokenId | None = None,
    ) -> NewManagerToken:
        """Add a manager. The token is valid until ``expires_datetime``; None means that it does not expire.

        >>> from mlapi.adapters.memory import InMemoryAuditTrail, InMemoryManagers
        >>> registry = ManagerRegistry(InMemoryManagers(InMemoryAuditTrail()))
        >>> registry.add(name="alice", role="viewer").manager.identity.actor
        'manager alice'

        Args:
            name: the name in the audit trail.
            role: the permissions.
            expires_datetime: when the token expires.
            token_id: the id of the token, by which the caller can recognize it later; None for a random one.

        Raises:
            InvalidFieldsError: if a field is invalid. The error lists every invalid field.
            ManagerExistsError: if another manager has this name.
            RepositoryUnavailableError: if the database is unavailable.
        """
        now = self.clock()
        validate_manager_fields(name=name, role=role, expires_datetime=expires_datetime, now=now)
        token = generate_manager_token(token_id)
        presented = parse_manager_token(token)
        manager = Manager(
            name=name,
            role=role,
            token_id=presented.id,
            digest=presented.digest,
            created_datetime=now,
            expires_datetime=expires_datetime,
        )
        return NewManagerToken(self._apply(AddManager(manager=manager, at=now, actor=self.actor)), token)

    def rotate(self, name: str, *, expires_datetime: datetime | None = None) -> NewManagerToken:
        """Replace the token of a manager. The old one is rejected at the next request, and ends all their sessions.

        Args:
            name: the name of the manager.
            expires_datetime: when the new token expires; None keeps the expiry of the old one.

        Raises:
            InvalidFieldsError: if the expiry, new or kept, is not in the future.
            ManagerNotFoundError: if no manager has this name.
            RepositoryUnavailableError: if the database is unavailable.
        """
        now = self.clock()
        stored = self.managers.find(name)
        if stored is None:
            raise ManagerNotFoundError(name)
        expiry = expires_datetime or stored.expires_datetime
        InvalidFieldsError.raise_for([("expires_at", find_manager_expiry_error(expiry, now))])
        token = generate_manager_token()
        presented = parse_manager_token(token)
        command = RotateManager(
            name=name,
            token_id=presented.id,
            digest=presented.digest,
            expires_datetime=expiry,
            at=now,
            actor=self.actor,
        )
        return NewManagerToken(self._apply(command), token)

    def remove(self, name: str) -> Manager:
        """Remove a manager. The token is rejected at the next request, and all their sessions end.

        Raises:
            ManagerNotFoundError: if no manager has this name.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self._apply(RemoveManager(name=name, at=self.clock(), actor=self.actor))

    def list_all(self) -> list[Manager]:
        """Return all managers, sorted by name."""
        return self.managers.list_all()

    def _apply(self, command: ManagerCommand) -> Manager:
        outcome = self.managers.apply(command)
        if not isinstance(outcome, Manager):
            raise outcome
        return outcome


class AsyncManagers:
    """Identifies managers by their tokens. Concurrent requests share a query.

    Args:
        registry: the use cases for managers.
    """

    def __init__(self, registry: ManagerRegistry) -> None:
        managers = registry.managers
        nowait = managers.find_many_nowait if isinstance(managers, NonblockingManagers) else None
        self.registry = registry
        self._lookup: Lookup[ManagerTokenId, Manager | None] = Lookup(managers.find_many, nowait)

    async def identify(self, token: str) -> Manager:
        """Return the manager with this token.

        Raises:
            InvalidTokenError: if the token is unknown or has expired.
            ServiceUnavailableError, RepositoryUnavailableError: see `Lookup.find`.
        """
        presented = parse_manager_token(token)
        return authenticate_manager(presented, await self._lookup.find(presented.id), self.registry.clock())

    def close(self) -> None:
        self._lookup.close()
