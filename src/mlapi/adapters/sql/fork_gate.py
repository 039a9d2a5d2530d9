"""Keep the operations of a database from running while the process forks."""

import threading
import time

from mlapi import forks

_POLL_SECONDS = 0.001


class ForkGate:
    """Makes new operations wait while it is closed. Use it as a context manager around each operation.

    Operations may run concurrently. The gate has no lock, because every query passes it: list operations are atomic.
    """

    def __init__(self) -> None:
        self.is_torn = False
        """Whether this process, or a process that it descends from, was forked during an operation."""
        self._was_busy = False
        self._initialize()
        forks.call_in_children(self._restart)

    def _initialize(self) -> None:
        self._active: list[None] = []
        self._opened = threading.Event()
        self.is_closed = False

    def _restart(self) -> None:
        self.is_torn = self.is_torn or self._was_busy
        self._initialize()

    def __enter__(self) -> None:
        forks.notice_fork()
        self._active.append(None)
        while self.is_closed:  # check this after counting the operation, so that `close` cannot miss it
            self._active.pop()
            self._opened.wait()
            self._active.append(None)

    def __exit__(self, *_error: object) -> None:
        if self._active:  # it is empty in a child that was forked during this operation
            self._active.pop()

    def close(self, *, timeout_seconds: float) -> bool:
        """Make new operations wait. Return whether all others ended in time."""
        self._opened.clear()
        self.is_closed = True
        deadline = time.monotonic() + timeout_seconds
        while self._active and time.monotonic() <= deadline:
            time.sleep(_POLL_SECONDS)
        self._was_busy = bool(self._active)
        return not self._was_busy

    def open(self) -> None:
        self.is_closed = False
        self._opened.set()
