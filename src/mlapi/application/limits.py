"""Enforce the limits of plans: draw requests from allowances in advance, and serve them from memory."""

from mlapi.domain.plans import AllowanceState
from mlapi.domain.users import User


class Limiter:
    """Admits the requests of users within the limits of their plans. Thread-safe."""

    def admit(self, user: User, cost: int = 1) -> tuple[AllowanceState, ...]:
        """Count a request, and return the states of all allowances of the user's plan: none if there are no limits.

        If several requests of a user have to wait for the database, they are served in order.

        Args:
            user: as the database has it now.
            cost: how much the request counts in each window. 0 counts nothing, but raises the same errors as 1.

        Raises:
            RequestLimitReachedError: if an allowance is used up. The request then counts in no window.
            ConfigurationError: if the configuration does not contain the user's plan, and has no default plan.
            InvalidTokenError: if the user was removed.
            RepositoryUnavailableError: if the database is unavailable and the request needs it.
        """
        raise NotImplementedError

    def charge(self, user: User, units: int) -> None:
        """Count units, for example the tokens of an answer. Return when they are durable.

        They may exceed the limit; the next request is then refused. Do nothing if the user's plan does not limit units.

        Raises:
            ConfigurationError, RepositoryUnavailableError: see `admit`.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give unused requests back to the allowances. Nothing may be admitted afterwards."""
        raise NotImplementedError


class AsyncLimiter:
    """An asynchronous wrapper around a `Limiter`, for any number of event loops.

    Args:
        limiter: holds the drawn requests.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    async def admit(self, user: User, cost: int = 1) -> tuple[AllowanceState, ...]:
        """Count a request. See `Limiter.admit`. Canceling this coroutine before it returns counts nothing."""
        raise NotImplementedError

    async def charge(self, user: User, units: int) -> None:
        """Count units. See `Limiter.charge`."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the thread that draws for event loops. The limiter stays open."""
        raise NotImplementedError
