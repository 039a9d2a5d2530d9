"""Blocking calls from an event loop: so many threads for each kind, a bounded queue, and a limit to waiting."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from mlapi.domain.errors import ServiceUnavailableError

P = ParamSpec("P")
T = TypeVar("T")


class BoundedThreadPool:
    """A fixed number of threads for one kind of blocking call; further calls queue for them in order.

    Args:
        count: of threads.
        queue: calls that may wait for each thread.
        patience: seconds that a call may take, its waiting included.
    """

    def __init__(self, count: int, *, queue: int, patience: float) -> None:
        self._executor = ThreadPoolExecutor(count)
        self._most = count * (queue + 1)
        self._patience = patience
        self._running = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await a call made in a thread.

        If this is cancelled or has waited too long, a call that is still in the queue is not made; one that has begun
        goes on, and keeps its thread until it ends.

        Raises:
            ServiceUnavailableError: if the queue is full, or the call has waited too long.
        """
        if self._running >= self._most:
            raise ServiceUnavailableError("too many requests are waiting")
        self._running += 1
        call = self._executor.submit(partial(function, *args, **kwargs))
        call.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(call), self._patience)
        except TimeoutError:
            raise ServiceUnavailableError(f"no result within {self._patience:g} seconds") from None

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _done(self, _call: object) -> None:
        self._running -= 1


def cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
