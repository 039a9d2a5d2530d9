"""Plans: how many requests and units the users of a plan may use in each minute, hour, day and month.

An `Allowance` is one limit of a plan: the number of requests or units that a user may use in a calendar window, in UTC.
`mlapi.domain.allowances` counts what users have used.
"""

import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import attrs

from mlapi.domain.errors import ConfigurationError, MlapiError

Measure = Literal["requests", "units"]

NO_PLAN = "none"
"""In commands and queries, this name means users without a plan of their own, so no plan may have it."""
LEASES_PER_ALLOWANCE = 20
"""A lease is an allowance divided by this number. See `mlapi.domain.allowances`."""


class Window(enum.Enum):
    """A calendar window in UTC. The value is its name in messages and settings."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"

    def start_of(self, timestamp: float) -> int:
        """Return the start of the window that contains a timestamp. Both are in seconds since 1970."""
        if self is Window.MONTH:
            at = datetime.fromtimestamp(timestamp, UTC)
            return int(datetime(at.year, at.month, 1, tzinfo=UTC).timestamp())
        seconds = _SECONDS[self]
        return int(timestamp // seconds) * seconds

    def end_of(self, starts_at: int) -> int:
        """Return the end of the window that starts at ``starts_at``. Both are in seconds since 1970."""
        if self is Window.MONTH:
            at = datetime.fromtimestamp(starts_at, UTC)
            return int(datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC).timestamp())
        return starts_at + _SECONDS[self]


_SECONDS = {Window.MINUTE: 60, Window.HOUR: 3600, Window.DAY: 86_400}


@attrs.frozen(cache_hash=True)
class Allowance:
    """The number of requests or units that a user may use in each window."""

    measure: Measure
    window: Window
    limit: int
    key: str = attrs.field(init=False, repr=False, eq=False)
    """The name under which the count is stored. It does not contain the limit, so a changed limit keeps the count."""

    @key.default
    def _make_key(self) -> str:
        return f"{self.measure} per {self.window.value}"

    def __str__(self) -> str:
        unit = "units " if self.measure == "units" else ""
        return f"{self.limit} {unit}per {self.window.value}"


def lease_size(limit: int) -> int:
    """Return how many requests a process draws at once. If it crashes, at most this many are lost."""
    return max(1, limit // LEASES_PER_ALLOWANCE)


@attrs.frozen
class Plan:
    """A named set of allowances, at most one for each measure and window. Without allowances, there are no limits."""

    name: str
    allowances: tuple[Allowance, ...] = ()
    limits_units: bool = attrs.field(init=False, eq=False, repr=False)

    @limits_units.default
    def _find_units(self) -> bool:
        return any(allowance.measure == "units" for allowance in self.allowances)


@attrs.frozen
class Plans:
    """The plans in the configuration.

    Args:
        by_name: the plans.
        default: the name of the plan for users without one. None means that these users have no limits.
    """

    by_name: Mapping[str, Plan] = attrs.field(factory=dict, hash=False)
    default: str | None = None

    def find(self, name: str | None) -> Plan | None:
        """Return the plan whose limits apply to a user, or None if there are no limits.

        The default plan applies to users without a plan, and to users whose plan is not in the configuration.

        Args:
            name: the name in the user's row, or None.

        Raises:
            ConfigurationError: if the plan is not in the configuration, and there is no default plan.
        """
        if not self.by_name:
            return None
        plan = self.by_name.get(name or "") or self.by_name.get(self.default or "")
        if plan is None and name is not None:
            raise ConfigurationError(
                f"a user has the plan {name!r}, which the configuration does not contain: add it to plans, set"
                " default_plan, or give these users another plan; `mlapi doctor` shows how many users have it"
            )
        return plan


class AllowanceState(NamedTuple):
    """The number of requests or units that remain in the current window.

    It is an estimate: other processes may have used some of them since this process read the count.
    """

    allowance: Allowance
    remaining: int
    reset_seconds: int
    """The time until the window ends, rounded up, and at least 1."""


@attrs.frozen
class RequestLimitReachedError(MlapiError):
    """The user has used up an allowance.

    Attributes:
        allowance: the allowance. If several are used up, the one whose window ends last.
        retry_after_seconds: the time until its window ends, at least 1.
        states: the states of all allowances of the user's plan.
    """

    allowance: Allowance
    retry_after_seconds: int
    states: tuple[AllowanceState, ...] = ()

    def __str__(self) -> str:
        return f"Request limit reached: {self.allowance}"
