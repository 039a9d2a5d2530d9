"""Counts of login attempts, and the port that stores them."""

from contextlib import AbstractContextManager
from typing import Protocol

import attrs


@attrs.frozen
class WindowCount:
    """The number of attempts counted in a time window, and the time when the window ends."""

    count: int
    ends_at_timestamp: float
    """Seconds since 1970."""


class AttemptCountReader(Protocol):
    """Reads the counts of login attempts."""

    def get(self, key: str) -> WindowCount:
        """Return the count for a key and the end of its window.

        If nothing was added or the window has ended, the count is 0 and the end is the current time.
        """
        ...


class AttemptCountWriter(AttemptCountReader, Protocol):
    """Reads and changes the counts of login attempts within a transaction. Reads see the transaction's own changes."""

    def add(self, key: str, *, window_seconds: float) -> int:
        """Add one attempt and return the new count.

        The first attempt opens a window of ``window_seconds``. Later attempts do not extend it. After the window
        has ended, the next attempt opens a new one with a count of 1.
        """
        ...

    def subtract(self, key: str) -> None:
        """Subtract one attempt, unless the count is 0 or its window has ended."""
        ...


class AttemptCounts(Protocol):
    """Stores the number of login attempts in fixed time windows.

    Keys are printable ASCII of at most 200 characters and contain neither usernames nor addresses. Counts must be
    shared by all processes that share the users. Delete expired counts regularly, because attacks create many.

    Both context managers raise `RepositoryUnavailableError` while the database is unavailable.
    """

    def transaction(self) -> AbstractContextManager[AttemptCountWriter]:
        """Open a transaction. It is committed at the end of the ``with`` block, or rolled back if the block raises.

        Concurrent transactions must not lose each other's changes. The caller changes keys in the same order in every
        process, so an implementation that locks keys as they change cannot deadlock. Durability is not required: a
        crash may lose the latest counts.
        """
        ...

    def reading(self) -> AbstractContextManager[AttemptCountReader]:
        """Open a read-only view, which does not wait for writers.

        Rejected attempts only read, so a flood of guesses causes no writes.
        """
        ...
