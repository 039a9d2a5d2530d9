"""Count users for the pages of managers in the background, so that no page waits for the counts."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, final

from mlapi.domain.errors import MlapiError
from mlapi.forks import call_in_children, new_lock
from mlapi.interruption import Interruption

MAX_WAIT_SECONDS = 0.1
"""How long a page waits for new counts. It then shows the latest ones."""
COUNT_TIMEOUT_SECONDS = 30.0
_QUICK_SECONDS = 0.05
_REST_FACTOR = 20
"""A slow count is repeated only after this many times its duration, so that it uses at most 5 % of a core."""


T = TypeVar("T")
_logger = logging.getLogger("mlapi")


@final
class BackgroundCount(Generic[T]):
    """Counts rows of a database, and keeps the latest result of this process.

    In a small table, counts include every change that was acknowledged before `read`. In a large one, they may be a few
    seconds old.

    Args:
        count: reads the numbers.
        monotonic: returns the time in seconds.
    """

    def __init__(self, count: Callable[[], T], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._monotonic = monotonic
        self._lock = new_lock()  # event loops in several threads may share this
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="mlapi-counts")
        self._call: Future[None] | None = None
        self._interruption: Interruption | None = None
        self._latest: T | None = None
        self._due_monotonic = 0.0

    async def read(self) -> T | None:
        """Return the counts, or None if they have not been counted yet."""
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        await self._wait(self._call, deadline)  # it may have started before a change: count again
        await self._wait(self._start(), deadline)
        return self._latest

    def close(self) -> None:
        """End the running call. Its database connection is then closed together with the others."""
        if self._interruption is not None:
            self._interruption.request()
        self._executor.shutdown(cancel_futures=True)

    def _start(self) -> "Future[None] | None":
        """Return the running call. Start one if none is running and the latest counts are old enough."""
        with self._lock:
            is_running = self._call is not None and not self._call.done()
            if not is_running and self._monotonic() >= self._due_monotonic:
                self._call = self._executor.submit(self._run)
            return self._call

    def _run(self) -> None:
        start = self._monotonic()
        try:
            self._interruption = Interruption(COUNT_TIMEOUT_SECONDS)
            self._latest = self._interruption.run(self._count)
        except MlapiError:
            self._latest = None  # the database is unavailable, or too slow
        except Exception:
            self._latest = None
            _logger.exception("counting failed unexpectedly")
        duration = self._monotonic() - start
        self._due_monotonic = start + (0 if duration < _QUICK_SECONDS else (1 + _REST_FACTOR) * duration)

    @staticmethod
    async def _wait(call: "Future[None] | None", deadline: float) -> None:
        if call is not None and not call.done():
            await asyncio.wait({asyncio.wrap_future(call)}, timeout=max(0.0, deadline - time.monotonic()))
