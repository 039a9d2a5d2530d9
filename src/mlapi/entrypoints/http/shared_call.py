"""Let concurrent requests share one blocking call."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

from mlapi.application.deadlines import remaining_seconds
from mlapi.domain.errors import ServiceUnavailableError
from mlapi.forks import call_in_children, new_lock


@final
class SharedCall:
    """A blocking call in its own thread. Requests that arrive while it runs share its result.

    Args:
        function: the function to call.
        timeout_seconds: how long a request waits for the result.
    """

    def __init__(self, function: Callable[[], object], *, timeout_seconds: float) -> None:
        self._function = function
        self._timeout_seconds = timeout_seconds
        self._lock = new_lock()  # event loops in several threads may share this
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._call: Future[object] | None = None

    async def run(self) -> None:
        """Wait for the running call, or start one.

        Raises:
            ServiceUnavailableError: if there is no result in time. The call keeps running for the other requests.
        """
        timeout_seconds = min(self._timeout_seconds, remaining_seconds())
        with self._lock:
            if self._call is None or self._call.done():
                self._call = self._executor.submit(self._function)
            result = asyncio.wrap_future(self._call)
        await asyncio.wait({result}, timeout=timeout_seconds)  # unlike `wait_for`, this does not cancel the call
        if not result.done():
            raise ServiceUnavailableError(f"no result within {timeout_seconds:.1f} seconds")
        result.result()

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
