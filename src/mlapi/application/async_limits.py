"""Enforce the limits of plans on event loops: concurrent draws share a commit, and concurrent reads share a query."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import attrs

from mlapi.application.batching import Batcher
from mlapi.application.deadlines import remaining_seconds
from mlapi.application.leases import DRAW_TIMEOUT_SECONDS, TIMED_OUT, PendingDraw
from mlapi.application.limits import Charges, Limiter
from mlapi.domain.allowances import Draw, Drawn
from mlapi.domain.plans import AllowanceState, RequestLimitReachedError
from mlapi.domain.users import User


class AsyncLimiter:
    """An asynchronous wrapper around a `Limiter`, for any number of event loops.

    Args:
        limiter: holds the leases.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._executor = _BatchExecutor(limiter)

    async def admit(self, user: User, cost: int = 1) -> tuple[AllowanceState, ...]:
        """Count a request. See `Limiter.admit`. Canceling this coroutine before it returns counts nothing."""
        states = self._limiter.admit_nowait(user, cost)
        return await self._limiter.admit_with(self._executor, user, cost) if states is None else states

    async def read(self, user: User) -> tuple[AllowanceState, ...]:
        """Return the state of each allowance, even if one is used up. Does not count a request."""
        try:
            return await self.admit(user, 0)
        except RequestLimitReachedError as error:
            return error.states

    async def charge(self, user: User, units: int) -> None:
        """Count units. See `Limiter.charge`."""
        await self._limiter.charge_with(self._executor, user, units)

    def close(self) -> None:
        """Wait until all started batches are done. The limiter stays open."""
        self._executor.close()


class _BatchExecutor:
    """Runs the steps of concurrent requests together, in other threads."""

    def __init__(self, limiter: Limiter) -> None:
        self._draws = Batcher[PendingDraw | Charges, None](limiter.execute)
        self._reads = Batcher[Sequence[Draw], Sequence[Drawn | None]](self._read_all)
        self._limiter = limiter

    def new_signal(self) -> "_LoopSignal":
        return _LoopSignal()

    async def read(self, draws: Sequence[Draw]) -> Sequence[Drawn | None]:
        return await self._reads.submit(draws)

    async def draw(self, item: PendingDraw | Charges) -> None:
        await self._draws.submit(item)

    def close(self) -> None:
        self._draws.close()
        self._reads.close()

    def _read_all(self, requests: Sequence[Sequence[Draw]], _deadline: float) -> list[Sequence[Drawn | None]]:
        results = iter(self._limiter.read([draw for draws in requests for draw in draws]))
        return [[next(results) for _ in draws] for draws in requests]


class _LoopSignal:
    """Wakes a waiting coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def notify(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, so no coroutine waits
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        try:
            async with asyncio.timeout(min(DRAW_TIMEOUT_SECONDS, remaining_seconds())):
                await self._event.wait()
        except TimeoutError:
            raise attrs.evolve(TIMED_OUT) from None
        self._event.clear()
