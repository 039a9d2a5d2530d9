"""How a database counts what users have used of their allowances.

A process draws requests: it adds them to the stored count before it serves them. The requests that it has drawn and not
served yet are its lease, which it keeps in memory. Drawn requests count as used, so all processes together never exceed
the allowance, even if some of them crash.
"""

from collections.abc import Sequence
from typing import Protocol

import attrs

from mlapi.domain.plans import Allowance, Window
from mlapi.domain.users import UserId

MAX_FUTURE_SECONDS = 300
"""Replace a stored window that starts further in the future: the clock was wrong when it was stored."""
MAX_USED = 2**62
"""The largest count that is stored. It fits into the column of every database."""


@attrs.frozen
class AllowanceUse:
    """The stored count of a user and an allowance, and the window that it belongs to."""

    starts_at: int
    """The start of the window, in seconds since 1970."""
    used: int
    """The number of drawn requests or charged units. Charged units may exceed the limit."""


@attrs.frozen
class Drawn:
    """The result of a `Draw`."""

    granted: int
    used: int
    """The count after the draw. See `AllowanceUse.used`."""
    starts_at: int
    """The start of the window that the draw counts in, in seconds since 1970."""
    ends_in_seconds: float
    """The time until this window ends, on the database's clock."""


@attrs.frozen(kw_only=True)
class Draw:
    """A request of a process for a part of a user's allowance, or for giving back an unused part.

    Args:
        user_id: the id of the user.
        allowance: the key of the allowance, such as ``requests per minute``.
        window: the window of the allowance.
        limit: the limit of the allowance; None grants any number.
        wanted: how many requests or units to draw. 0 only reads the count. A negative number gives requests back.
        at_least: grant nothing if fewer than this are left.
        starts_at: for giving back: the window in which they were drawn. If it has ended, nothing changes.
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
        """Return a draw from an allowance, with its limit."""
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
        """Return the use to store, and the result.

        Never replace a stored window with an earlier one: if the clock is set back, no request is granted twice.

        Args:
            stored: the stored use; None if there is none.
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

    All processes with the same users share the counts. There is one count for each user and key of an allowance, so a
    changed limit or plan keeps the count. Removing a user removes the user's counts.

    The database's clock decides which window is current: the clock of the server, or for a local file, the clock of the
    machine. Read it after locking the rows. Both methods raise `RepositoryUnavailableError` while the database is
    unavailable.
    """

    def draw(self, requests: Sequence[Draw], *, commit_by: float | None = None) -> list[Drawn | None]:
        """Apply each draw to the stored use, in one durable transaction, and return the results in the same order.

        If a draw grants anything, store the first value that `Draw.apply_to` returns. Concurrent draws of the same
        allowance wait for each other. Once this returns, the changes survive a crash. If it raises, nothing was
        applied, unless the error's ``may_be_done`` is True. Do not repeat a transaction whose outcome is unknown.

        The result is None if the user does not exist, or is removed at the same time. Other draws are not affected.

        Args:
            requests: several thousand at most, in any order. If several draws are of the same allowance, later ones see
                the effects of earlier ones.
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
