"""Run searches by admins. Limit their number and duration, and end them when their client disconnects."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar, final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from mlapi.application.deadlines import remaining_seconds
from mlapi.domain.errors import SearchUnavailableError
from mlapi.forks import call_in_children
from mlapi.interruption import Interruption, took_too_long

MAX_SEARCHES = 2
"""A search reads a whole table and uses a whole core, so more of them would slow down logins and changes."""
SEARCH_TIMEOUT_SECONDS = 5.0
MAX_WAIT_SECONDS = 0.25
"""Short searches, of small tables, wait this long for each other instead of being rejected."""
_MAX_WAITING = 16
_DISCONNECT_GRACE_SECONDS = 0.3
_GRACE_SECONDS = 0.5
"""A search that reaches its time limit ends itself. If it has not done so after this time, stop waiting for it."""

P = ParamSpec("P")
T = TypeVar("T")


@final
class SearchPool:
    """Threads for the queries whose cost grows with the number of rows.

    A search keeps its thread until it has ended, so there are never more than `MAX_SEARCHES` at a time.
    """

    def __init__(self, *, timeout_seconds: float = SEARCH_TIMEOUT_SECONDS) -> None:
        self._timeout_seconds = timeout_seconds
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        self._executor = ThreadPoolExecutor(MAX_SEARCHES, thread_name_prefix="mlapi-search")
        self._slots = threading.BoundedSemaphore(MAX_SEARCHES + _MAX_WAITING)

    async def run(self, receive: Receive, search: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread and return its result. End its reads when the client disconnects.

        Args:
            receive: the ASGI callable of the request, whose body has been read.
            search: the function to call. See `mlapi.interruption`.
            args: its arguments.
            kwargs: its keyword arguments.

        Raises:
            SearchUnavailableError: if other searches are running, or this one takes too long.
            ClientDisconnect: if the client disconnects.
        """
        timeout_seconds = min(self._timeout_seconds, remaining_seconds())
        if not self._slots.acquire(blocking=False):
            raise _busy()
        interruption = Interruption(timeout_seconds)
        call = self._executor.submit(interruption.run, partial(search, *args, **kwargs))
        call.add_done_callback(lambda _: self._slots.release())
        result, disconnect = asyncio.wrap_future(call), asyncio.ensure_future(_wait_for_disconnect(receive))
        result.add_done_callback(_retrieve)
        loop = asyncio.get_running_loop()
        give_up = loop.call_later(MAX_WAIT_SECONDS, call.cancel)  # does nothing if the search has started
        try:
            either: set[asyncio.Future[Any]] = {result, disconnect}
            await asyncio.wait(either, timeout=timeout_seconds + _GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if disconnect.done():  # let a short search finish
                await asyncio.wait({result}, timeout=_DISCONNECT_GRACE_SECONDS)
            if result.cancelled():
                raise _busy()
            if result.done():
                return result.result()
            if disconnect.done():
                raise ClientDisconnect
            raise took_too_long()
        finally:
            give_up.cancel()
            disconnect.cancel()
            if not call.done() and not call.cancel():
                loop.run_in_executor(None, interruption.request)  # it may wait for the database server

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _retrieve(result: "asyncio.Future[T]") -> None:
    """Mark an error as handled. Its client may have disconnected."""
    if not result.cancelled():
        result.exception()


def _busy() -> SearchUnavailableError:
    return SearchUnavailableError("Two other searches are running: try again in a moment")
