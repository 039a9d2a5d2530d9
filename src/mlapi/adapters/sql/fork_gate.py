"""Keep the operations of a database from running while the process forks."""

import threading

from mlapi import forks


class ForkGate:
    """Lets operations run concurrently, and makes new ones wait while it is closed. Use it as a context manager."""

    def __init__(self) -> None:
        self._initialize()
        forks.call_in_children(self._initialize)

    def _initialize(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._active = 0
        self.is_closed = False

    def __enter__(self) -> None:
        forks.notice_fork()
        with self._lock:
            while self.is_closed:
                self._changed.wait()
            self._active += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._active -= 1
            if self.is_closed:
                self._changed.notify_all()

    def close(self, *, timeout_seconds: float) -> bool:
        """Make new operations wait. Return whether all others ended in time."""
        with self._lock:
            self.is_closed = True
            return self._changed.wait_for(lambda: self._active == 0, timeout_seconds)

    def open(self) -> None:
        with self._lock:
            self.is_closed = False
            self._changed.notify_all()
