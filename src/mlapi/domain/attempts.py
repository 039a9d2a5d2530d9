"""Login attempts, and how many have failed."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs


@attrs.define(kw_only=True, eq=False)
class Attempt:
    """A login attempt, from the moment a client sends it until it gets a response.

    Attributes:
        username: any text; usually a canonical username. No such user needs to exist.
        address: any text that identifies the client.
        is_over: True once `mlapi.domain.ports.AttemptLimiter.end` was called.
    """

    username: str
    address: str
    is_over: bool = False


@attrs.frozen
class WindowCount:
    """The number of events counted in a time window, and the time when the window ends."""

    count: int
    ends_at_timestamp: float
    """Seconds since 1970."""


class AttemptCounts(Protocol):
    """Counts events, such as failed logins, in fixed time windows.

    Keys are printable ASCII of at most 200 characters and contain neither usernames nor addresses. Counts must be
    shared by all processes that share the users. Delete expired counts regularly, because attacks create many.

    If the connection is lost, an implementation may repeat a method on a new one. An event may then be counted twice,
    but it is never lost. Both methods raise `RepositoryUnavailableError` while the database is unavailable.
    """

    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        """Return the count for each key and the end of its window, without waiting for writers.

        If nothing was added or the window has ended, the count is 0 and the end is the current time.
        """
        ...

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        """Add 1 to the count for each key, and return the new counts.

        A key that occurs several times is counted each time, as if by separate calls. So the counts of concurrent
        attempts can be added in one call.

        The first event opens a window of ``window_seconds``. Later events do not extend it. After the window has ended,
        the next event opens a new one with a count of 1.

        Concurrent calls must not lose each other's events. Durability is not required: a crash may lose the latest
        counts.

        Args:
            keys: in any order.
            window_seconds: the length of a new window.
        """
        ...


@runtime_checkable
class NonblockingAttemptCounts(Protocol):
    """An optional capability of `AttemptCounts`: reading counts on an event loop.

    See `mlapi.domain.ports.NonblockingLookup`.
    """

    def read_nowait(self, keys: Sequence[str]) -> list[WindowCount]:
        """Return the same result as `AttemptCounts.read`, without waiting."""
        ...
