"""Register new users. The cheapest checks come first, so that rejected requests cost little."""

from collections.abc import Callable
from contextlib import suppress
from typing import Unpack, final

from mlapi.application.address_limits import AddressLimiter
from mlapi.application.command_factory import UserDetails
from mlapi.application.executors import Executor
from mlapi.application.lookups import UsernameLookup
from mlapi.application.users import Users
from mlapi.domain.errors import UserExistsError, UserNotFoundError
from mlapi.domain.ports import is_costly
from mlapi.domain.rules import canonical_username
from mlapi.domain.users import Pending, User


@final
class AsyncRegistration:
    """Registers users without blocking the event loop.

    Args:
        limiter: limits the registrations of clients without credentials. None for no limit.
        executor: encrypts the passwords and applies the commands.
        names: looks up usernames, so that a taken one costs a read instead of a hash, unless hashes are cheap. The
            repository still checks.
        pending: what users registered by a client without credentials wait for. None enables them at once.
        on_rejected: called for each registration of a taken username that is not recorded in the audit trail.
    """

    def __init__(
        self,
        limiter: AddressLimiter | None,
        executor: Executor,
        names: UsernameLookup,
        *,
        pending: Pending | None = None,
        on_rejected: Callable[[], None],
    ) -> None:
        self._limiter = limiter
        self._executor = executor
        self._names = names
        self._pending = pending
        self._on_rejected = on_rejected

    async def register(
        self, users: Users, *, username: str, password: str, email: str, address: str, **details: Unpack[UserDetails]
    ) -> User:
        """Register a user. See `Users.register`.

        Args:
            users: the users, with the actor. Clients without credentials wait until all other passwords are hashed.
            username: the new username.
            password: as typed.
            email: the new user's e-mail address.
            address: the client's address. Clients at different addresses take turns.
            **details: the new user's expiry, plan and metadata. Clients without credentials must not set them.

        Raises:
            TooManyAttemptsError: if a client without credentials exceeds the limit.
        """
        is_anonymous = users.actor.is_anonymous
        limiter = self._limiter if is_anonymous else None
        is_hash_costly = is_costly(users.cipher)
        executor = self._executor
        if limiter is not None or is_hash_costly:  # otherwise, no step waits, and validating twice would not pay
            executor = executor.for_client(address, is_urgent=not is_anonymous)
            users.validate_registration(username=username, password=password, email=email, **details)
        if limiter is not None:
            limiter.check(address)
            await executor.query(limiter.count, address)
        if is_hash_costly:
            taken_by = await self._names.find(canonical_username(username))
            if taken_by is not None:
                await self._reject(users, taken_by)
        command = await executor.hash(
            users.prepare_registration,
            username=username,
            password=password,
            email=email,
            pending=self._pending if is_anonymous else None,
            **details,
        )
        return await self._executor.apply(command)

    async def _reject(self, users: Users, taken_by: User) -> None:
        """Raise `UserExistsError`, unless the user has been removed."""
        try:
            command = users.reject_registration(taken_by)
        except UserExistsError:
            self._on_rejected()
            raise
        with suppress(UserNotFoundError):
            await self._executor.apply(command)

    def close(self) -> None:
        self._names.close()
