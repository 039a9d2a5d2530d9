"""Look up users for many concurrent requests with one query, on the event loop if the repository can do that."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Generic, TypeVar

from mlapi.application.batching import Batcher
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.ports import (
    AsyncPrincipalLookup,
    NonblockingLookup,
    NonblockingPrincipalLookup,
    PrincipalRepository,
    UserRepository,
)
from mlapi.domain.users import User, UsernameKey
from mlapi.forks import call_in_children

ASYNC_RETRY_SECONDS = 1.0
"""How long lookups use the thread after a query on the event loop has failed."""

Key = TypeVar("Key")
Found = TypeVar("Found")
_Turn = list[tuple[Key, asyncio.Future[Found]]]
"""Keys to look up with one query, and the futures of the coroutines that wait for them."""


class Lookup(Generic[Key, Found]):
    """Looks up keys. Concurrent calls share a query.

    Args:
        find: returns the result for each key. It runs in a thread.
        find_nowait: does the same without waiting; see `NonblockingLookup`. It runs on the event loop, once for all
            calls in one turn of the loop, because switching threads would take longer than the query. If it is None or
            would have to wait, ``find`` is used.
        find_async: does the same, and waits without blocking the event loop; see `AsyncPrincipalLookup`. One query runs
            at a time, for all calls since the previous one began. If it is None or fails, ``find`` is used.
    """

    def __init__(
        self,
        find: Callable[[Sequence[Key]], Sequence[Found]],
        find_nowait: Callable[[Sequence[Key]], Sequence[Found]] | None,
        find_async: Callable[[Sequence[Key]], Awaitable[Sequence[Found]]] | None = None,
    ) -> None:
        self._find_nowait = find_nowait
        self._find_async = find_async
        self._batcher = Batcher[Key, Found](lambda keys, _: find(keys))
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        """Start without lookups. The parent executes those from before a fork."""
        self._turns: dict[asyncio.AbstractEventLoop, _Turn[Key, Found]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry_async_at = float("-inf")  # on the clock of `time.monotonic`

    async def find(self, key: Key) -> Found:
        """Return what is stored for a key at the time of this call or later.

        Raises:
            ServiceUnavailableError, RepositoryUnavailableError: see `Batcher.submit`.
        """
        if self._find_nowait is not None or (self._find_async is not None and time.monotonic() >= self._retry_async_at):
            try:
                return await self._submit(key)
            except RepositoryUnavailableError:
                pass  # the lookup would have to wait, so use the thread
        return await self._batcher.submit(key)

    def close(self) -> None:
        self._batcher.close()

    def _submit(self, key: Key) -> "asyncio.Future[Found]":
        loop = asyncio.get_running_loop()
        turn = self._turns.get(loop)
        if turn is None:
            self._turns[loop] = turn = []
            if self._find_nowait is not None:
                loop.call_soon(self._query, loop, self._find_nowait)
            elif self._find_async is not None:  # pragma: no branch - `find` has checked it
                task = loop.create_task(self._query_async(loop, self._find_async))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        future = loop.create_future()
        turn.append((key, future))
        return future

    def _query(self, loop: asyncio.AbstractEventLoop, find_nowait: Callable[[Sequence[Key]], Sequence[Found]]) -> None:
        turn = self._turns.pop(loop)
        try:
            results = find_nowait([key for key, _ in turn])
        except Exception as error:  # noqa: BLE001 - each waiting coroutine raises it
            _fail(turn, error)
        else:
            _deliver(turn, results)

    async def _query_async(
        self, loop: asyncio.AbstractEventLoop, find_async: Callable[[Sequence[Key]], Awaitable[Sequence[Found]]]
    ) -> None:
        """Execute one query after the other, as long as there are keys to look up."""
        try:
            while turn := self._turns[loop]:
                self._turns[loop] = []
                try:
                    results = await find_async([key for key, _ in turn])
                except Exception as error:  # noqa: BLE001 - each waiting coroutine raises it
                    self._retry_async_at = time.monotonic() + ASYNC_RETRY_SECONDS
                    _fail(turn, error)
                else:
                    _deliver(turn, results)
        finally:  # canceled if the loop ends
            del self._turns[loop]


def _deliver(turn: _Turn[Key, Found], results: Sequence[Found]) -> None:
    for (_, future), found in zip(turn, results, strict=True):
        if not future.done():  # it may have been canceled
            future.set_result(found)


def _fail(turn: _Turn[Key, Found], error: Exception) -> None:
    for _, future in turn:
        if not future.done():
            future.set_exception(copy(error))


class PrincipalLookup(Lookup[PrincipalId, Principal | None]):
    """An asynchronous wrapper around `PrincipalRepository.find_principals`."""

    def __init__(self, repository: PrincipalRepository) -> None:
        nowait = repository.find_principals_nowait if isinstance(repository, NonblockingPrincipalLookup) else None
        find_async = repository.find_principals_async if isinstance(repository, AsyncPrincipalLookup) else None
        super().__init__(repository.find_principals, nowait, find_async)


class UsernameLookup(Lookup[UsernameKey, User | None]):
    """An asynchronous wrapper around `UserRepository.find_many`."""

    def __init__(self, repository: UserRepository) -> None:
        nowait = repository.find_many_nowait if isinstance(repository, NonblockingLookup) else None
        super().__init__(repository.find_many, nowait)
