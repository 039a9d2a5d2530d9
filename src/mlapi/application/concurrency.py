"""Limit how many tasks with the same key run at the same time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import final

from mlapi.application.deadlines import deadline_error, remaining_seconds
from mlapi.forks import call_in_children


@final
class ConcurrencyLimit:
    """Limits how many tasks with the same key run concurrently. The others wait, first come, first served.

    Args:
        max_running: maximum number of concurrent tasks with the same key.
    """

    def __init__(self, max_running: int) -> None:
        self._max_running = max_running
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        self._semaphores: dict[Hashable, asyncio.Semaphore] = {}
        self._tasks: Counter[Hashable] = Counter()
        """Number of tasks that run or wait, by key."""

    @asynccontextmanager
    async def slot(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a free slot, then run the block. Use it on one event loop only.

        Raises:
            ServiceUnavailableError: if the deadline of the request passes during the wait.
        """
        semaphore = self._semaphores.setdefault(key, asyncio.Semaphore(self._max_running))
        self._tasks[key] += 1
        try:
            if semaphore.locked():
                await _wait_for(semaphore)
            else:  # it does not wait, so it needs no timer
                await semaphore.acquire()
            try:
                yield
            finally:
                semaphore.release()
        finally:
            self._tasks[key] -= 1
            if not self._tasks[key]:
                del self._tasks[key], self._semaphores[key]


async def _wait_for(semaphore: asyncio.Semaphore) -> None:
    try:
        async with asyncio.timeout(remaining_seconds()):
            await semaphore.acquire()
    except TimeoutError:
        raise deadline_error() from None
