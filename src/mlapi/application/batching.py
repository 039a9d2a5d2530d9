"""Batching: commands of concurrent requests share one commit. `mlapi.application.lookups` also batches queries.

A commit waits for the disk no matter how many commands it contains, and a query costs one round trip. Therefore
each event loop collects requests in a `_LoopQueue`, and a single writer thread executes them as a batch. Results are
delivered only after the commit of the whole batch.

Clients usually send their next request right after a response. After each batch the loop therefore waits about 100 us
for these follow-ups, so that they share a commit again.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from copy import copy
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, overload

import attrs

from mlapi.application.deadlines import remaining_seconds
from mlapi.domain.commands import ApiKeyCommand, Command, Outcome, Result, UpdateUser, UserChange, UserCommand
from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import MlapiError, RepositoryUnavailableError, ServiceUnavailableError
from mlapi.domain.links import AddLink, Link, RedeemLink, Redemption
from mlapi.domain.ports import UserRepository
from mlapi.domain.users import User
from mlapi.forks import call_in_children, new_lock, notice_fork

MAX_WAITING_REQUESTS = 10_000
"""At 10,000 requests per second, the last request in a full queue waits one second. Each takes about a kilobyte."""
TIMEOUT_SECONDS = 5.0
GROUP_COMMANDS = 250
"""The maximum number of commands from one request in a transaction, which other requests share."""

_MAX_IDLE_TURNS = 16
"""Stop waiting for follow-ups after this many turns of the loop (about 100 us) without a new request."""
_MAX_WAIT_SECONDS = 0.005
"""Start the next batch after this time, even if follow-ups are still arriving."""

_TIMED_OUT = RepositoryUnavailableError("the database did not answer in time")

_logger = logging.getLogger("mlapi")

Item = TypeVar("Item")
ItemResult = TypeVar("ItemResult")


@attrs.define(eq=False)
class _Request:
    """A waiting item. The writer thread sets ``result``; the event loop copies it to ``future``."""

    item: Any
    future: "asyncio.Future[Any]"
    result: Any = attrs.field(init=False)

    def fail(self, error: MlapiError) -> None:
        """Raise a copy of an error in the waiting coroutine: raising an exception modifies its traceback."""
        if not self.future.done():
            self.future.set_exception(copy(error))


@attrs.define(eq=False)
class _Batch:
    """Requests that are executed together. ``deadline_monotonic`` is a `time.monotonic` time."""

    deadline_monotonic: float
    requests: list[_Request] = attrs.field(factory=list)
    timer: asyncio.TimerHandle = attrs.field(init=False)
    timed_out: bool = False


class Batcher(Generic[Item, ItemResult]):
    """Executes the requests of concurrent coroutines in batches, in one writer thread.

    Args:
        execute: called in the writer thread with the items of a batch and its deadline, a `time.monotonic` time.
            Returns a result for each item, or an exception that `submit` raises for this item.
        max_waiting_requests: maximum number of waiting requests. Any more are rejected.
        timeout_seconds: maximum time that a batch waits and runs. A request also ends at its own deadline; see
            `mlapi.application.deadlines`.
    """

    _timeout_error = _TIMED_OUT

    def __init__(
        self,
        execute: Callable[[Sequence[Item], float], Sequence[ItemResult | Exception]],
        *,
        max_waiting_requests: int = MAX_WAITING_REQUESTS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._execute = execute
        self._max_waiting_requests = max_waiting_requests
        self._timeout_seconds = timeout_seconds
        self._lock = new_lock()  # event loops in several threads may share this batcher
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        """Start without requests and without a thread. The parent executes the requests from before a fork."""
        self._waiting = 0
        self._queues: dict[asyncio.AbstractEventLoop, _LoopQueue] = {}
        self._submitted: SimpleQueue[tuple[_LoopQueue, _Batch] | None] = SimpleQueue()
        self._writer: threading.Thread | None = None

    async def submit(self, item: Item) -> ItemResult:
        """Return the result after the whole batch has been executed.

        Canceling this coroutine drops the request if its batch has not started yet. The other requests of the batch
        are not affected.

        Raises:
            ServiceUnavailableError: if too many requests are waiting.
            RepositoryUnavailableError: if the request has waited too long. It may still be executed if its batch has
                started.
        """
        notice_fork()
        remaining = remaining_seconds()
        with self._lock:
            if self._waiting >= self._max_waiting_requests:
                raise ServiceUnavailableError("too many requests are waiting")
            self._waiting += 1
        loop = asyncio.get_running_loop()
        queue = self._queues.get(loop) or self._add_queue(loop)
        request = _Request(item, loop.create_future())
        queue.add(request)
        if remaining >= self._timeout_seconds:  # nearly always, the timer of the batch is enough
            result: ItemResult = await request.future
            return result
        timer = loop.call_later(remaining, request.fail, self._timeout_error)
        try:
            result = await request.future
        finally:
            timer.cancel()
        return result

    def close(self) -> None:
        """Wait until all started batches are done or have timed out. Nothing may be submitted afterwards."""
        if self._writer is not None:
            self._submitted.put(None)
            self._writer.join(self._timeout_seconds)

    def _add_queue(self, loop: asyncio.AbstractEventLoop) -> "_LoopQueue":
        queue = _LoopQueue(loop, self._start_batch, self._replace_writer, self._timeout_seconds, self._timeout_error)
        with self._lock:
            others = {other: known for other, known in self._queues.items() if not other.is_closed()}
            self._queues = {**others, loop: queue}
        return queue

    def _start_batch(self, queue: "_LoopQueue", batch: _Batch) -> None:
        with self._lock:
            if self._writer is None:
                self._start_writer()
        self._submitted.put((queue, batch))

    def _start_writer(self) -> None:
        self._writer = threading.Thread(target=self._write, name="mlapi-batcher", daemon=True)
        self._writer.start()

    def _replace_writer(self) -> None:
        """Continue with a new thread, and thus a new connection, while the old one waits for an unresponsive server."""
        with self._lock:
            self._start_writer()

    def _write(self) -> None:
        while (submitted := self._submitted.get()) is not None:
            queue, batch = submitted
            requests = [request for request in batch.requests if not request.future.done()]
            results = self._get_results([request.item for request in requests], batch.deadline_monotonic)
            for request, result in zip(requests, results, strict=True):
                request.result = result
            with self._lock:
                self._waiting -= len(batch.requests)
            with suppress(RuntimeError):  # the loop is closed, so no coroutine waits for the results
                queue.loop.call_soon_threadsafe(queue.deliver, batch)
            with self._lock:
                if threading.current_thread() is not self._writer:
                    return  # this thread was replaced while it waited

    def _get_results(self, items: Sequence[Item], deadline_monotonic: float) -> Sequence[ItemResult | Exception]:
        try:
            return self._execute(items, deadline_monotonic)
        except MlapiError as error:
            return [copy(error) for _ in items]  # one copy each: raising an exception modifies its traceback
        except Exception as error:
            if len(items) == 1:
                _logger.exception("a request failed unexpectedly")
                return [error]
            # Nothing was applied. Execute each request separately, so that only the faulty one fails.
            return [result for item in items for result in self._get_results([item], deadline_monotonic)]


class CommandBatcher(Batcher[Command, Result]):
    """An asynchronous wrapper around `UserRepository.apply`: commands of concurrent requests share a commit.

    Args:
        repository: applies the commands.
        on_committed: called in the writer thread with the commands and outcomes of each committed batch.
        max_waiting_requests: see `Batcher`.
        timeout_seconds: see `Batcher`.
    """

    # A commit that hangs, for example because a standby is unavailable, may still be completed later.
    _timeout_error = attrs.evolve(_TIMED_OUT, may_be_done=True)

    def __init__(
        self,
        repository: UserRepository,
        *,
        on_committed: Callable[[Sequence[Command], Sequence[Outcome]], None] = lambda _commands, _outcomes: None,
        max_waiting_requests: int = MAX_WAITING_REQUESTS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        def execute(commands: Sequence[Command], commit_by: float) -> list[Outcome]:
            outcomes = repository.apply(commands, commit_by=commit_by)
            on_committed(commands, outcomes)
            return outcomes

        super().__init__(execute, max_waiting_requests=max_waiting_requests, timeout_seconds=timeout_seconds)

    @overload
    async def apply(self, command: UserCommand) -> User: ...
    @overload
    async def apply(self, command: UpdateUser) -> UserChange: ...
    @overload
    async def apply(self, command: ApiKeyCommand) -> ApiKey: ...
    @overload
    async def apply(self, command: AddLink) -> Link: ...
    @overload
    async def apply(self, command: RedeemLink) -> Redemption: ...
    def apply(self, command: Command) -> Coroutine[Any, Any, Result]:
        """Apply a command, and return its outcome once the change is durable.

        Raises:
            UserExistsError, UserNotFoundError, PasswordChangedError, ApiKeyNotFoundError, LinkNotFoundError,
                LinkNotAllowedError, UserReferencedError, ChangeRejectedError: if the command is rejected.
            ServiceUnavailableError, RepositoryUnavailableError: see `submit` and `UserRepository.apply`.
        """
        return self.submit(command)

    async def apply_all(self, commands: Sequence[Command]) -> list[Outcome | ServiceUnavailableError]:
        """Apply commands, and return the outcome of each once the changes are durable.

        The commands are submitted in groups of `GROUP_COMMANDS`, so that other requests never wait for more than one
        group. Once the database is unavailable, no further command is submitted.
        """
        outcomes: list[Any] = []
        for start in range(0, len(commands), GROUP_COMMANDS):
            group = [self.submit(command) for command in commands[start : start + GROUP_COMMANDS]]
            found = await asyncio.gather(*group, return_exceptions=True)
            outcomes += found
            failed = next((each for each in found if isinstance(each, ServiceUnavailableError)), None)
            if failed is not None:
                return outcomes + [failed] * (len(commands) - len(outcomes))
            for each in found:
                if isinstance(each, BaseException) and not isinstance(each, MlapiError):
                    raise each
        return outcomes


class _LoopQueue:
    """Collects the requests of one event loop into batches, and executes one batch at a time.

    All methods run in the thread of the loop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start_batch: Callable[["_LoopQueue", _Batch], None],
        replace_writer: Callable[[], None],
        timeout_seconds: float,
        timeout_error: RepositoryUnavailableError,
    ) -> None:
        self.loop = loop
        self._start_batch = start_batch
        self._replace_writer = replace_writer
        self._timeout_seconds = timeout_seconds
        self._timeout_error = timeout_error
        self._next: _Batch | None = None
        self._in_flight = False  # a batch is being executed
        self._scheduled = False  # a callback that starts the next batch is scheduled

    def add(self, request: _Request) -> None:
        """Add a request to the next batch, and schedule its start if no batch is in flight."""
        if self._next is None:
            self._next = _Batch(time.monotonic() + self._timeout_seconds)
            self._next.timer = self.loop.call_later(self._timeout_seconds, self._time_out, self._next)
        self._next.requests.append(request)
        if not self._in_flight and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._start_next)  # after this turn of the loop has read all requests

    def deliver(self, batch: _Batch) -> None:
        """Give each coroutine its result, then schedule the next batch."""
        if batch.timed_out:
            return
        batch.timer.cancel()
        for request in batch.requests:
            if request.future.done():
                continue  # canceled
            if isinstance(request.result, Exception):
                request.future.set_exception(request.result)
            else:
                request.future.set_result(request.result)
        self._in_flight = False
        self._scheduled = True
        if len(batch.requests) == 1:
            self._start_next()
        else:  # the responses are sent in the next turn of the loop, before this callback
            self.loop.call_soon(self._wait_for_follow_ups, len(batch.requests) + self._collected, time.monotonic())

    @property
    def _collected(self) -> int:
        return 0 if self._next is None else len(self._next.requests)

    def _wait_for_follow_ups(
        self, expected: int, started_monotonic: float, collected_before: int = 0, idle_turns: int = 0
    ) -> None:
        collected = self._collected
        idle_turns = idle_turns + 1 if collected == collected_before else 0
        if (
            collected >= expected
            or idle_turns > _MAX_IDLE_TURNS
            or time.monotonic() - started_monotonic > _MAX_WAIT_SECONDS
        ):
            self._start_next()
        else:
            self.loop.call_soon(self._wait_for_follow_ups, expected, started_monotonic, collected, idle_turns)

    def _start_next(self) -> None:
        self._scheduled = False
        batch, self._next = self._next, None
        if batch is not None:
            self._in_flight = True
            self._start_batch(self, batch)

    def _time_out(self, batch: _Batch) -> None:
        for request in batch.requests:
            request.fail(self._timeout_error)
        batch.timed_out = True  # it is still being executed; the next batch starts without waiting for it
        self._in_flight = False
        self._replace_writer()
        self._start_next()
