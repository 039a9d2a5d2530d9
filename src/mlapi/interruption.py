"""End the database reads of a search early, because its client has disconnected or its time is up.

The thread that serves a search calls it with `Interruption.run`. A storage that can end a read early gets the
interruption from `current_interruption`. Other storages can ignore it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, final

from mlapi.domain.errors import SearchUnavailableError

T = TypeVar("T")

_CURRENT: ContextVar["Interruption | None"] = ContextVar("interruption", default=None)


@final
class Interruption:
    """Ends one search early. Every method can be called from any thread.

    Args:
        timeout_seconds: the maximum duration of the search, from now on.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._deadline_monotonic = time.monotonic() + timeout_seconds
        self._lock = threading.Lock()
        self._interrupt: Callable[[], None] | None = None
        self._is_requested = False

    @property
    def remaining_seconds(self) -> float:
        """The time until the deadline. Negative once it has passed."""
        return self._deadline_monotonic - time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the search should end now."""
        return self._is_requested or self.remaining_seconds <= 0

    def request(self) -> None:
        """End the search before its deadline. This may wait for the database server."""
        with self._lock:
            self._is_requested = True
            if self._interrupt is not None:
                self._interrupt()

    @contextmanager
    def calling(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """During the block, let `request` call ``interrupt``. Leave the block only when that call has returned."""
        with self._lock:
            self._interrupt = interrupt
        try:
            yield
        finally:
            with self._lock:
                self._interrupt = None

    def raise_if_due(self) -> None:
        """Raise `SearchUnavailableError` if the search should end now."""
        if self.is_due:
            raise took_too_long()

    def run(self, search: Callable[[], T]) -> T:
        """Call a function, and end its reads if this interruption is due."""
        self.raise_if_due()
        token = _CURRENT.set(self)
        try:
            return search()
        finally:
            _CURRENT.reset(token)


def current_interruption() -> Interruption | None:
    """Return the interruption of the search that runs in this thread, or None for other reads."""
    return _CURRENT.get()


def took_too_long() -> SearchUnavailableError:
    return SearchUnavailableError("The search takes too long: search for a longer text, or for the start of a username")
