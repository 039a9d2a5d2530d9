"""Registration of new users: each step is cheaper than the next, so that rejected requests cost little."""

from collections.abc import Callable
from contextlib import suppress
from typing import final

from mlapi.application.authentication import Executor
from mlapi.application.lookups import UsernameLookup
from mlapi.application.users import Users
from mlapi.domain.errors import UserExistsError, UserNotFoundError
from mlapi.domain.rules import canonical_username
from mlapi.domain.users import User


@final
class AsyncRegistration:
    """Registers users without blocking the event loop.

    Args:
        executor: encrypts the passwords and applies the commands.
        names: looks up usernames, so that a taken one costs a read and no hash. The repository still decides.
        on_rejected: called for each registration of a taken username that is not recorded in the audit trail.
    """

    def __init__(self, executor: Executor, names: UsernameLookup, *, on_rejected: Callable[[], None]) -> None:
        self._executor = executor
        self._names = names
        self._on_rejected = on_rejected

    async def register(self, users: Users, *, username: str, password: str, email: str, address: str) -> User:
        """Register a user. See `Users.register`.

        Args:
            users: the users, with the actor. Registrations by clients without credentials wait for all other hashing.
            username: the new username.
            password: as typed.
            email: the new user's e-mail address.
            address: the client's address. Clients take turns.
        """
        users.validate_registration(username=username, password=password, email=email)
        taken_by = await self._names.find(canonical_username(username))
        if taken_by is not None:
            await self._reject(users, taken_by)
        executor = self._executor.for_client(address, is_urgent=not users.actor.is_anonymous)
        command = await executor.hash(users.prepare_registration, username=username, password=password, email=email)
        return await self._executor.apply(command)

    async def _reject(self, users: Users, taken_by: User) -> None:
        """Raise `UserExistsError`, unless the user was removed in the meantime."""
        try:
            command = users.reject_registration(taken_by)
        except UserExistsError:
            self._on_rejected()
            raise
        with suppress(UserNotFoundError):
            await self._executor.apply(command)

    def close(self) -> None:
        self._names.close()
