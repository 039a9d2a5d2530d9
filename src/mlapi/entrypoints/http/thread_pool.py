"""Run blocking calls from an event loop, in a thread pool with a bounded queue and a timeout."""

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
    """A fixed number of threads for one kind of blocking call. If all are busy, calls wait in a queue.

    Args:
        threads: the number of threads.
        max_queued_per_thread: the maximum number of waiting calls per thread.
        timeout_seconds: the maximum duration of a call, including the time in the queue.
    """

    def __init__(self, threads: int, *, max_queued_per_thread: int, timeout_seconds: float) -> None:
        self._executor = ThreadPoolExecutor(threads)
        self._max_calls = threads * (max_queued_per_thread + 1)
        self._timeout_seconds = timeout_seconds
        self._calls = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread.

        If the caller is canceled or times out, the call is removed from the queue. If it has already started, it keeps
        running in its thread.

        Raises:
            ServiceUnavailableError: if the queue is full or the call times out.
        """
        if self._calls >= self._max_calls:
            raise ServiceUnavailableError("too many requests are waiting")
        self._calls += 1
        call = self._executor.submit(partial(function, *args, **kwargs))
        call.add_done_callback(self._count_down)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(call), self._timeout_seconds)
        except TimeoutError:
            raise ServiceUnavailableError(f"no result within {self._timeout_seconds:g} seconds") from None

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _count_down(self, _call: object) -> None:
        self._calls -= 1


def cores() -> int:
    """Return the number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
