"""Look up users for many concurrent requests with one query, on the event loop if the repository can do that."""

import asyncio
from collections.abc import Callable, Sequence
from copy import copy
from typing import Generic, TypeVar

from mlapi.application.batching import Batcher
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.ports import NonblockingLookup, NonblockingPrincipalLookup, PrincipalRepository, UserRepository
from mlapi.domain.users import User, UsernameKey
from mlapi.forks import call_in_children

Key = TypeVar("Key")
Found = TypeVar("Found")


class Lookup(Generic[Key, Found]):
    """Looks up keys. Concurrent calls share a query.

    Args:
        find: returns the result for each key. It runs in a thread.
        find_nowait: does the same without waiting; see `NonblockingLookup`. It runs on the event loop, once for all
            calls in one turn of the loop, because switching threads would take longer than the query. If it is None or
            would have to wait, ``find`` is used.
    """

    def __init__(
        self,
        find: Callable[[Sequence[Key]], Sequence[Found]],
        find_nowait: Callable[[Sequence[Key]], Sequence[Found]] | None,
    ) -> None:
        self._find_nowait = find_nowait
        self._batcher = Batcher[Key, Found](lambda keys, _: find(keys))
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        """Start without lookups. The parent executes those from before a fork."""
        self._turns: dict[asyncio.AbstractEventLoop, list[tuple[Key, asyncio.Future[Found]]]] = {}

    async def find(self, key: Key) -> Found:
        """Return what is stored for a key at the time of this call or later.

        Raises:
            ServiceUnavailableError, RepositoryUnavailableError: see `Batcher.submit`.
        """
        if self._find_nowait is not None:
            try:
                return await self._submit_nowait(key, self._find_nowait)
            except RepositoryUnavailableError:
                pass  # the lookup would have to wait, so use the thread
        return await self._batcher.submit(key)

    def close(self) -> None:
        self._batcher.close()

    def _submit_nowait(
        self, key: Key, find_nowait: Callable[[Sequence[Key]], Sequence[Found]]
    ) -> "asyncio.Future[Found]":
        loop = asyncio.get_running_loop()
        turn = self._turns.get(loop)
        if turn is None:
            self._turns[loop] = turn = []
            loop.call_soon(self._query, loop, find_nowait)
        future = loop.create_future()
        turn.append((key, future))
        return future

    def _query(self, loop: asyncio.AbstractEventLoop, find_nowait: Callable[[Sequence[Key]], Sequence[Found]]) -> None:
        turn = self._turns.pop(loop)
        try:
            results = find_nowait([key for key, _ in turn])
        except Exception as error:  # noqa: BLE001 - each waiting coroutine raises it
            for _, future in turn:
                if not future.done():
                    future.set_exception(copy(error))
            return
        for (_, future), found in zip(turn, results, strict=True):
            if not future.done():  # it may have been canceled
                future.set_result(found)


class PrincipalLookup(Lookup[PrincipalId, Principal | None]):
    """An asynchronous wrapper around `PrincipalRepository.find_principals`."""

    def __init__(self, repository: PrincipalRepository) -> None:
        nowait = repository.find_principals_nowait if isinstance(repository, NonblockingPrincipalLookup) else None
        super().__init__(repository.find_principals, nowait)


class UsernameLookup(Lookup[UsernameKey, User | None]):
    """An asynchronous wrapper around `UserRepository.find_many`."""

    def __init__(self, repository: UserRepository) -> None:
        nowait = repository.find_many_nowait if isinstance(repository, NonblockingLookup) else None
        super().__init__(repository.find_many, nowait)
