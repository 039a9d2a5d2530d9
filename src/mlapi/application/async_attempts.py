"""Use an `AttemptLimiter` in coroutines."""

from typing import Protocol, final

from mlapi.application.executors import Executor
from mlapi.application.login_throttle import FixedWindowAttemptLimiter
from mlapi.application.shared_counts import BatchedCounts
from mlapi.domain.attempts import Attempt
from mlapi.domain.ports import AttemptLimiter


class AsyncAttemptLimiter(Protocol):
    """The methods of `AttemptLimiter` that wait for the database, as coroutines."""

    async def start(self, attempt: Attempt) -> None: ...
    async def record_failure(self, attempt: Attempt) -> None: ...
    async def record_success(self, attempt: Attempt) -> None: ...

    def close(self) -> None:
        """Wait until the started calls are done. Nothing may be called afterwards."""
        ...


@final
class ExecutedAttemptLimiter:
    """An `AsyncAttemptLimiter` for any limiter. Each call runs where the executor runs queries."""

    def __init__(self, limiter: AttemptLimiter, executor: Executor) -> None:
        self._limiter = limiter
        self._executor = executor

    async def start(self, attempt: Attempt) -> None:
        await self._executor.for_client(attempt.address).query(self._limiter.start, attempt)

    async def record_failure(self, attempt: Attempt) -> None:
        await self._executor.for_client(attempt.address).query(self._limiter.record_failure, attempt)

    async def record_success(self, attempt: Attempt) -> None:
        await self._executor.for_client(attempt.address).query(self._limiter.record_success, attempt)

    def close(self) -> None:
        """Do nothing: the executor is closed by its owner."""


@final
class BatchedAttemptLimiter:
    """An `AsyncAttemptLimiter` whose concurrent attempts share their queries. See `BatchedCounts`."""

    def __init__(self, limiter: FixedWindowAttemptLimiter) -> None:
        self._limiter = limiter
        self._counts = BatchedCounts(limiter.counts)

    async def start(self, attempt: Attempt) -> None:
        await self._limiter.start_with(self._counts, attempt)

    async def record_failure(self, attempt: Attempt) -> None:
        await self._limiter.record_failure_with(self._counts, attempt)

    async def record_success(self, attempt: Attempt) -> None:
        await self._limiter.record_success_with(self._counts, attempt)

    def close(self) -> None:
        self._counts.close()
