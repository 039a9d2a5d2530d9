"""How a database counts what users have used of their allowances.

Processes draw requests from an allowance in advance and serve them from memory. What they have drawn counts as used, so
all processes together never exceed the allowance, even if some of them crash.
"""

from collections.abc import Sequence
from typing import Protocol

import attrs

from mlapi.domain.plans import Allowance, Window
from mlapi.domain.users import UserId

MAX_FUTURE_SECONDS = 300
"""A stored window that starts further in the future was made by a wrong clock, so it is replaced."""
MAX_USED = 2**62
"""Counts never exceed this, so that databases can store them."""


@attrs.frozen
class AllowanceUse:
    """What a user has used of an allowance in one window, as a database stores it."""

    starts_at: int
    """The start of the window, in seconds since 1970."""
    used: int
    """Including what processes have drawn and not used yet. Charged units may exceed the limit."""


@attrs.frozen
class Drawn:
    """The result of a `Draw`."""

    granted: int
    used: int
    """After the draw. See `AllowanceUse`."""
    starts_at: int
    """The start of the window that the draw counts in, in seconds since 1970."""
    ends_in_seconds: float
    """When this window ends: the time from now, on the database's clock."""


@attrs.frozen(kw_only=True)
class Draw:
    """A change of what a user has used of an allowance.

    Args:
        user_id: the user.
        allowance: the key of the allowance, such as ``requests per minute``.
        window: the window of the allowance.
        limit: the limit; None grants any number.
        wanted: how many to draw. 0 only reads. A negative number gives drawn ones back.
        at_least: grant none if fewer than these are left.
        starts_at: the window in which those that are given back were drawn. If it has ended, nothing changes.
    """

    user_id: UserId
    allowance: str
    window: Window
    limit: int | None
    wanted: int
    at_least: int = 1
    starts_at: int | None = None

    @classmethod
    def from_allowance(
        cls, user_id: UserId, allowance: Allowance, wanted: int, *, at_least: int = 1, starts_at: int | None = None
    ) -> "Draw":
        """Return a draw from an allowance, bounded by its limit."""
        return cls(
            user_id=user_id,
            allowance=allowance.key,
            window=allowance.window,
            limit=allowance.limit,
            wanted=wanted,
            at_least=at_least,
            starts_at=starts_at,
        )

    def apply_to(self, stored: AllowanceUse | None, timestamp: float) -> tuple[AllowanceUse, Drawn]:
        """Return what to store, and the result.

        A stored window is never replaced by an earlier one, so that a clock that was set back grants nothing twice.

        Args:
            stored: what is stored; None if nothing is.
            timestamp: the database's clock, in seconds since 1970, read after the row was locked.
        """
        current = self._find_current(stored, timestamp)
        granted = self._count_granted(current)
        if granted:
            current = AllowanceUse(current.starts_at, min(max(0, current.used + granted), MAX_USED))
        ends_in_seconds = self.window.end_of(current.starts_at) - timestamp
        return current, Drawn(granted, current.used, current.starts_at, ends_in_seconds)

    def _find_current(self, stored: AllowanceUse | None, timestamp: float) -> AllowanceUse:
        starts_at = self.window.start_of(timestamp)
        if stored is not None and starts_at <= stored.starts_at <= timestamp + MAX_FUTURE_SECONDS:
            return stored
        return AllowanceUse(starts_at, 0)

    def _count_granted(self, current: AllowanceUse) -> int:
        if self.wanted < 0:
            return self.wanted if self.starts_at == current.starts_at else 0
        if self.limit is None:
            return self.wanted
        left = self.limit - current.used
        return min(self.wanted, left) if left >= self.at_least else 0


class Allowances(Protocol):
    """Counts what each user has used of each allowance, in the current window.

    Counts are shared by all processes that share the users. They are kept for each user and each key of an allowance,
    so that a changed limit or plan keeps the count. The counts of a removed user are removed.

    The database's clock decides which window is current: the clock of the server, or that of the machine for a local
    file. Read it after the rows are locked. Both methods raise `RepositoryUnavailableError` while the database is
    unavailable.
    """

    def draw(self, requests: Sequence[Draw], *, commit_by: float | None = None) -> list[Drawn | None]:
        """Apply each draw to what is stored, in one durable transaction, and return the results in the same order.

        Store the first value that `Draw.apply_to` returns, if the draw granted anything. Concurrent draws of the same
        allowance wait for each other. Once this returns, the changes survive a crash. If it raises, nothing was
        applied, unless the error's ``may_be_done`` is True. A transaction whose outcome is unknown is not repeated.

        The result is None if the user does not exist, or is removed at the same time. The others are not affected.

        Args:
            requests: several thousand at most, in any order, possibly several of the same allowance: the later ones see
                the effects of those before.
            commit_by: a deadline, in the time of `time.monotonic`. If the commit would start later, roll back and raise
                `RepositoryUnavailableError("too late to commit")`.
        """
        ...

    def read(self, requests: Sequence[Draw]) -> list[Drawn | None]:
        """Return the result of each draw as if its ``wanted`` were 0, without waiting for writers.

        The result reflects every draw that any process acknowledged before the call. For a user who does not exist, it
        is None or an unused allowance.
        """
        ...
