"""Register new users. The cheapest checks come first, so that rejected requests cost little."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Unpack, final

from mlapi.application.command_factory import UserDetails
from mlapi.application.executors import Executor
from mlapi.application.lookups import UsernameLookup
from mlapi.application.repeated_warnings import RepeatedWarnings
from mlapi.application.users import Users
from mlapi.application.window_counts import WINDOW_SECONDS, count_key, digest, seconds_until
from mlapi.domain.addresses import rate_limit_key
from mlapi.domain.errors import TooManyAttemptsError, UserExistsError, UserNotFoundError
from mlapi.domain.ports import AttemptCounts, is_costly
from mlapi.domain.rules import canonical_username
from mlapi.domain.users import User

_MAX_CACHED_REJECTIONS = 10_000


@final
class RegistrationLimiter:
    """Limits how many registrations each address may send, in fixed windows. Taken usernames count too.

    Args:
        counts: stores the counts, which all processes share.
        per_address: maximum number of registrations in a window from an IPv4 address or IPv6 /64 network.
        window_seconds: the length of a window.
    """

    def __init__(self, counts: AttemptCounts, *, per_address: int, window_seconds: int = WINDOW_SECONDS) -> None:
        self._counts = counts
        self._per_address = per_address
        self._window_seconds = window_seconds
        self._rejections = RepeatedWarnings(interval_seconds=window_seconds)
        self._rejected_until: dict[str, float] = {}
        """The end of the window (`time.time`), by key, for the keys that have exceeded the limit.

        This cache rejects a flood from one address without asking the database."""

    def check(self, address: str) -> None:
        """Raise an error if this process knows that the limit is exceeded. Does not wait or count.

        Raises:
            TooManyAttemptsError: if the limit is exceeded.
        """
        until = self._rejected_until.get(self._key(address), 0.0)
        if until > time.time():
            raise TooManyAttemptsError(seconds_until(until))

    def count(self, address: str) -> None:
        """Count a registration. Waits for the database.

        Raises:
            TooManyAttemptsError: if the limit is exceeded.
            RepositoryUnavailableError: if the database is unavailable.
        """
        self.check(address)
        key = self._key(address)
        (count,) = self._counts.add([key], window_seconds=self._window_seconds)
        if count.count > self._per_address:
            if len(self._rejected_until) >= _MAX_CACHED_REJECTIONS:
                self._rejected_until.clear()
            self._rejected_until[key] = count.ends_at_timestamp
            self._rejections.log(
                f"registration from {address}: too many in {self._window_seconds} seconds: if it is a proxy, add it to"
                " http.trusted_proxies; otherwise, registrations.per_address sets the limit"
            )
            raise TooManyAttemptsError(seconds_until(count.ends_at_timestamp))

    def _key(self, address: str) -> str:
        return count_key("registration", digest(rate_limit_key(address)), self._per_address, self._window_seconds)


@final
class AsyncRegistration:
    """Registers users without blocking the event loop.

    Args:
        limiter: limits the registrations of clients without credentials. None for no limit.
        executor: encrypts the passwords and applies the commands.
        names: looks up usernames, so that a taken one costs a read instead of a hash, unless hashes are cheap. The
            repository still checks.
        on_rejected: called for each registration of a taken username that is not recorded in the audit trail.
    """

    def __init__(
        self,
        limiter: RegistrationLimiter | None,
        executor: Executor,
        names: UsernameLookup,
        *,
        on_rejected: Callable[[], None],
    ) -> None:
        self._limiter = limiter
        self._executor = executor
        self._names = names
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
        executor = self._executor.for_client(address, is_urgent=not is_anonymous)
        if limiter is not None or is_hash_costly:  # otherwise, validating twice would cost more than it saves
            users.validate_registration(username=username, password=password, email=email, **details)
        if limiter is not None:
            limiter.check(address)
            await executor.query(limiter.count, address)
        if is_hash_costly:
            taken_by = await self._names.find(canonical_username(username))
            if taken_by is not None:
                await self._reject(users, taken_by)
        command = await executor.hash(
            users.prepare_registration, username=username, password=password, email=email, **details
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
