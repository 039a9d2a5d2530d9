"""Run blocking calls from an event loop, in a thread pool with bounded queues. Clients take turns in each queue."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from functools import partial
from typing import Any, ParamSpec, TypeVar

import attrs

from mlapi.application.deadlines import deadline_error, disconnect_error, remaining_seconds
from mlapi.domain.errors import ServiceUnavailableError
from mlapi.forks import call_in_children, new_lock

P = ParamSpec("P")
T = TypeVar("T")


class Priority(IntEnum):
    """The order in which waiting calls start. Each priority has its own bounded queue."""

    HIGH = 0
    LOW = 1


@attrs.frozen
class Turn:
    """Determines when a waiting call runs.

    Attributes:
        client: the client that sent the request. The clients in a queue take turns.
        priority: a call of low priority starts only if no call of high priority waits.
        is_disconnected: tells, in any thread, whether the client has disconnected. Its calls then do not start, and
            make room in a full queue. None if the call must run anyway.
    """

    client: str = ""
    priority: Priority = Priority.HIGH
    is_disconnected: Callable[[], bool] | None = None


class BoundedThreadPool:
    """A fixed number of threads for one kind of blocking call. If all are busy, calls wait in a queue.

    A client that sends many requests delays only itself: the waiting calls of all clients take turns, and if the queue
    is full, a call of the client with the most waiting calls is rejected.

    Calls may wait until the deadline of their request; see `mlapi.application.deadlines`.

    Args:
        threads: the number of threads.
        max_queued_per_thread: the maximum number of waiting calls per thread and priority.
    """

    def __init__(self, threads: int, *, max_queued_per_thread: int) -> None:
        self._threads = threads
        self._max_queued_per_thread = max_queued_per_thread
        self._lock = new_lock()
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        """Start without calls and threads. The parent executes the calls from before a fork."""
        self._executor = ThreadPoolExecutor(self._threads)
        max_calls = self._threads * (self._max_queued_per_thread + 1)
        self._queues = {priority: _FairQueue(max_calls) for priority in Priority}

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread. All calls without a client take turns as one client. See `run_as`."""
        return await self.run_as(Turn(), function, *args, **kwargs)

    async def run_as(self, turn: Turn, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread.

        If the caller is canceled or the deadline passes, the call is removed from the queue. If it has already
        started, it keeps running in its thread.

        Raises:
            ServiceUnavailableError: if the queue is full, the deadline of the request passes, or the client disconnects
                before the call starts.
        """
        timeout_seconds = remaining_seconds()
        call = _Call(turn, partial(function, *args, **kwargs))
        with self._lock:
            rejected = self._queues[turn.priority].add(call)
        if rejected is not None:
            rejected.future.set_exception(ServiceUnavailableError("too many requests are waiting"))
        if rejected is not call:
            call.future.add_done_callback(partial(self._remove, call))
            self._executor.submit(self._run_next)
        try:
            async with asyncio.timeout(timeout_seconds):  # `wait_for` takes another iteration of the event loop
                result: T = await asyncio.wrap_future(call.future)
        except TimeoutError:
            raise deadline_error() from None
        return result

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            waiting = [call for queue in self._queues.values() for call in queue.waiting]
        for call in waiting:
            call.future.cancel()

    def _run_next(self) -> None:
        """Run the next call in a thread. Each call submits one such job, which may run another call."""
        with self._lock:
            call = next(filter(None, (queue.take() for queue in self._queues.values())), None)
        if call is None or not call.future.set_running_or_notify_cancel():
            return
        if call.is_disconnected:
            call.future.set_exception(disconnect_error())
            return
        try:
            result = call.function()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            call.future.set_exception(error)
        else:
            call.future.set_result(result)

    def _remove(self, call: "_Call", _future: object) -> None:
        with self._lock:
            self._queues[call.turn.priority].remove(call)


@attrs.frozen(eq=False)
class _Call:
    turn: Turn
    function: Callable[[], Any]
    future: "Future[Any]" = attrs.field(factory=Future)

    @property
    def is_disconnected(self) -> bool:
        is_disconnected = self.turn.is_disconnected
        return is_disconnected is not None and is_disconnected()


class _FairQueue:
    """Calls of one priority. Calls of the same client run in order, and the clients take turns.

    Args:
        max_calls: the maximum number of calls that are waiting or running.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._unfinished: set[_Call] = set()
        self._waiting: OrderedDict[str, OrderedDict[_Call, None]] = OrderedDict()
        """The waiting calls of each client. The first client is the next one."""

    @property
    def waiting(self) -> list[_Call]:
        return [call for calls in self._waiting.values() for call in calls]

    def add(self, call: _Call) -> _Call | None:
        """Add a call. If the queue is full, return the call to reject instead, which may be the new one."""
        rejected = None
        if len(self._unfinished) >= self._max_calls:
            rejected = self._find_disconnected(call) or self._find_unfair(call.turn.client)
            if rejected is None:
                return call
            self.remove(rejected)
        self._unfinished.add(call)
        self._waiting.setdefault(call.turn.client, OrderedDict())[call] = None
        return rejected

    def take(self) -> _Call | None:
        """Return the next call, which counts as unfinished until it is removed."""
        if not self._waiting:
            return None
        client, calls = self._waiting.popitem(last=False)
        call, _ = calls.popitem(last=False)
        if calls:
            self._waiting[client] = calls  # after the other clients
        return call

    def remove(self, call: _Call) -> None:
        """Remove a call that has finished or was canceled or rejected."""
        self._unfinished.discard(call)
        calls = self._waiting.get(call.turn.client)
        if calls is not None:
            calls.pop(call, None)
            if not calls:
                del self._waiting[call.turn.client]

    def _find_disconnected(self, added: _Call) -> _Call | None:
        """Return a call whose client has disconnected. Do not search if the calls in this queue must run anyway."""
        if added.turn.is_disconnected is None:
            return None
        return next((call for call in self.waiting if call.is_disconnected), None)

    def _find_unfair(self, client: str) -> _Call | None:
        """Return the latest call of the client with the most waiting calls, if it has more than ``client`` would."""
        most_calls = max(self._waiting.values(), key=len, default=OrderedDict())
        if len(most_calls) <= len(self._waiting.get(client, ())) + 1:
            return None
        return next(reversed(most_calls))
