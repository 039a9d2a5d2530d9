"""Counts of concurrent login attempts are read and added together."""

import asyncio
from collections.abc import Sequence

import pytest

from mlapi import Authenticator, InvalidCredentialsError, RepositoryUnavailableError, ServiceUnavailableError, Users
from mlapi.adapters.memory import (
    InMemoryAttempts,
    InMemoryTokens,
    InMemoryUserRepository,
    PlainCipher,
    UnlimitedAttempts,
)
from mlapi.application.async_attempts import BatchedAttemptLimiter
from mlapi.application.authentication import AsyncAuthenticator
from mlapi.application.executors import InlineExecutor
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.application.shared_counts import BatchedCounts
from mlapi.domain.attempts import Attempt, AttemptCounts, WindowCount
from mlapi.domain.credentials import IssuedToken

HOME = "192.0.2.1"


class BlockingCounts:
    """Attempt counts that can only be used in a thread. They record the keys of each call."""

    def __init__(self, *, failing_window_seconds: float | None = None) -> None:
        self.calls: list[tuple[str, ...]] = []
        self._counts = InMemoryAttempts()
        self._failing_window_seconds = failing_window_seconds

    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        self.calls.append(tuple(keys))
        return self._counts.read(keys)

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        self.calls.append(tuple(keys))
        if window_seconds == self._failing_window_seconds:
            raise RepositoryUnavailableError("disk full")
        return self._counts.add(keys, window_seconds=window_seconds)


async def add_all(counts: AttemptCounts, *additions: tuple[tuple[str, ...], float]) -> list[object]:
    """Return the counts or the error of each addition."""
    shared = BatchedCounts(counts)
    results = await asyncio.gather(
        *[shared.add(keys, window_seconds=seconds) for keys, seconds in additions], return_exceptions=True
    )
    shared.close()
    return [result if isinstance(result, BaseException) else [each.count for each in result] for result in results]


def test_concurrent_reads_share_a_query() -> None:
    counts = BlockingCounts()
    counts.add(["a", "b", "b"], window_seconds=60)

    async def read() -> tuple[list[WindowCount], list[WindowCount]]:
        shared = BatchedCounts(counts)
        found = await asyncio.gather(shared.read(("a", "b")), shared.read(("b", "c")))
        shared.close()
        return found

    found = asyncio.run(read())

    assert [[each.count for each in group] for group in found] == [[1, 2], [2, 0]]
    assert counts.calls[1:] == [("a", "b", "c")]


def test_concurrent_additions_are_made_together() -> None:
    counts = BlockingCounts()

    results = asyncio.run(add_all(counts, (("a", "b"), 60), (("a", "c"), 60), (("a",), 60)))

    assert results == [[1, 1], [2, 1], [3]]
    assert counts.calls == [("a", "b", "a", "c", "a")]


def test_additions_with_different_windows_can_share_a_batch() -> None:
    results = asyncio.run(add_all(InMemoryAttempts(), (("a",), 60), (("b",), 90), (("a",), 60), (("b",), 90)))

    assert results == [[1], [1], [2], [2]]


def test_failed_addition_does_not_fail_those_of_other_windows() -> None:
    counts = BlockingCounts(failing_window_seconds=90)

    results = asyncio.run(add_all(counts, (("a",), 60), (("b",), 90), (("a",), 60), (("c",), 90)))

    error = RepositoryUnavailableError("disk full")
    assert results == [[1], error, [2], error]
    assert results[1] is not results[3]


def test_failure_is_counted_here_if_too_many_are_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reject(_counts: BatchedCounts, _keys: tuple[str, ...], *, window_seconds: float) -> list[WindowCount]:
        raise ServiceUnavailableError(f"too many requests are waiting to count for {window_seconds} seconds")

    limiter = FixedWindowAttemptLimiter(InMemoryAttempts(), AttemptLimits(per_name_and_address=2))
    monkeypatch.setattr(BatchedCounts, "add", reject)

    async def guess() -> list[str]:
        batched = BatchedAttemptLimiter(limiter)
        results = []
        for _ in range(3):
            attempt = Attempt(username="ada", address=HOME)
            try:
                await batched.start(attempt)
                await batched.record_failure(attempt)
                results.append("wrong")
            except Exception as error:  # noqa: BLE001 - its type is compared
                results.append(type(error).__name__)
            finally:
                limiter.end(attempt)
        return results

    assert asyncio.run(guess()) == ["wrong", "wrong", "TooManyAttemptsError"]


def test_other_limiters_run_where_queries_run() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher())
    users.register(username="ada", password="difference engine", email="ada@example.com")
    authenticator = Authenticator(users, InMemoryTokens(), UnlimitedAttempts())

    async def log_in(*attempts: tuple[str, str]) -> list[object]:
        logins = AsyncAuthenticator(authenticator, InlineExecutor(users))
        found = [logins.log_in(username=name, password=password, address=HOME) for name, password in attempts]
        results = await asyncio.gather(*found, return_exceptions=True)
        logins.close()
        return [type(result) for result in results]

    results = asyncio.run(log_in(("ada", "difference engine"), ("ada", "wrong"), ("\0", "difference engine")))

    assert results == [IssuedToken, InvalidCredentialsError, InvalidCredentialsError]
