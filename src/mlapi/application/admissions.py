"""The result of admitting a request: its user, API key and limits."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

import attrs

from mlapi.domain.credentials import ApiKeyId
from mlapi.domain.plans import AllowanceState
from mlapi.domain.usage import MAX_COUNT
from mlapi.domain.users import User

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlapi.application.charges import ChargeBatch


@final
@attrs.define(eq=False)
class Admission:
    """A request that the guard has admitted.

    Attributes:
        user: the authenticated user. ``user.plan`` is the plan whose limits apply.
        key_id: the id of the API key that the request presented; None if it presented a token.
        limits: the state of each allowance of the plan. Empty if there are no limits.
    """

    user: User
    key_id: ApiKeyId | None
    limits: tuple[AllowanceState, ...]
    _charge: "Callable[[Admission, int], None]" = attrs.field(repr=False)
    pending: "ChargeBatch | None" = attrs.field(default=None, init=False, repr=False)
    """The units that are being stored. None if there are none."""

    def charge(self, units: int) -> None:
        """Count units of the request, such as generated tokens. Can be called repeatedly, and from any thread.

        For the admission of a `Guard`, this returns when the units are stored. For the admission of an `AsyncGuard`, it
        returns immediately: `GuardMiddleware` stores the units before the end of the response, and the guard stores
        units that are charged later within a second. If the plan does not limit units, they are only recorded as usage.

        Raises:
            ValueError: unless ``units`` is a whole number from 0 to 2**53 - 1.
            RepositoryUnavailableError: see `Guard.charge`. The admission of an `AsyncGuard` never raises it.
        """
        self._charge(self, units)

    async def settle(self) -> None:
        """Wait until the units that were charged so far are stored.

        Return after a few seconds while the database is unavailable. The units are then stored later.
        """
        if self.pending is not None:
            await self.pending.settle()


def limits_units(limits: Iterable[AllowanceState]) -> bool:
    """Return whether units are limited."""
    return any(state.allowance.measure == "units" for state in limits)


def validate_count(name: str, count: object) -> None:
    """Raise `ValueError` unless databases can store this number of requests or units."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_COUNT:
        raise ValueError(f"{name} must be a whole number from 0 to 2**53 - 1")
