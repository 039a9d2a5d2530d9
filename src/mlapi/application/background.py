"""Write collected data in a thread, about once per interval, so that no request waits for a write."""

import threading
import time
from collections.abc import Callable
from typing import final

import attrs

from mlapi.domain.errors import MlapiError, ReadOnlyRepositoryError
from mlapi.forks import call_at_exit, call_in_children, new_lock, notice_fork


@attrs.define(eq=False)
class Outage:
    """The time from the first failed write until one succeeds."""

    error: MlapiError | None = None
    """The latest error; None unless writes are failing."""
    is_permanent: bool = False
    """True if writes failed repeatedly because the account may only read. A failover may cause a single such error."""
    retry_at_monotonic: float = float("-inf")

    def begin(self, error: MlapiError, *, retry_seconds: float) -> bool:
        """Remember the error. Return True if the previous write succeeded."""
        is_new = self.error is None
        self.is_permanent = isinstance(error, ReadOnlyRepositoryError) and isinstance(self.error, type(error))
        self.error = error
        self.retry_at_monotonic = time.monotonic() + retry_seconds
        return is_new

    @property
    def is_waiting(self) -> bool:
        """True until the next attempt is due."""
        return time.monotonic() < self.retry_at_monotonic


@final
class WriterThread:
    """Calls a function in the background while there is work. It starts a thread at the first `wake`.

    A forked child starts without a thread, and starts its own at the next `wake`.

    Args:
        write: writes the collected data. Returns True if some is left, for example because the database is unavailable.
        close: called when the process exits, unless it is killed. It must call `stop`.
        name: the name of the thread.
        interval_seconds: the time from the beginning of one write to the next.
    """

    def __init__(
        self, write: Callable[[], bool], close: Callable[[], None], *, name: str, interval_seconds: float
    ) -> None:
        self._write = write
        self._close = close
        self._name = name
        self._interval_seconds = interval_seconds
        self._lock = new_lock()
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        self._thread: threading.Thread | None = None
        self._forget_exit: Callable[[], None] = lambda: None
        self._has_work, self._is_stopping = threading.Event(), threading.Event()

    def wake(self) -> None:
        """Tell the thread that there is work. Never waits for a write."""
        if self._has_work.is_set():
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, args=(self._has_work, self._is_stopping), name=self._name, daemon=True
                )
                self._forget_exit()
                self._forget_exit = call_at_exit(self._close)
                try:
                    self._thread.start()
                except RuntimeError:  # too many threads: try again at the next call
                    return
            self._has_work.set()

    def stop(self) -> None:
        """End the thread after the current write. The caller writes the rest."""
        notice_fork()  # before taking the lock, because noticing a fork releases it
        with self._lock:
            self._forget_exit()
            thread, has_work, is_stopping = self._thread, self._has_work, self._is_stopping
            self._initialize()
        is_stopping.set()
        has_work.set()
        if thread is not None:
            thread.join()

    def _run(self, has_work: threading.Event, is_stopping: threading.Event) -> None:
        began = time.monotonic()
        while True:
            has_work.wait()
            # Measured from the beginning of the previous write, so that a slow one does not delay the next.
            if is_stopping.wait(max(0.0, began + self._interval_seconds - time.monotonic())):
                return
            began = time.monotonic()
            has_work.clear()
            if self._write():
                has_work.set()
