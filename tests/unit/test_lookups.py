"""Lookups of concurrent coroutines that share queries on the event loop."""

import asyncio
from collections.abc import Sequence

import pytest

from mlapi import RepositoryUnavailableError
from mlapi.application import lookups
from mlapi.application.lookups import Lookup


class Squares:
    """Finds the squares of numbers, on the event loop or in a thread."""

    def __init__(self) -> None:
        self.queries: list[list[int]] = []
        self.thread_queries: list[list[int]] = []
        self.error: Exception | None = None
        self.asked, self.answered = asyncio.Event(), asyncio.Event()
        self.answered.set()
        self.lookup = Lookup[int, int | None](self.find, None, self.find_async)

    def find(self, numbers: Sequence[int]) -> list[int]:
        self.thread_queries.append(list(numbers))
        return [number * number for number in numbers]

    async def find_async(self, numbers: Sequence[int]) -> list[int]:
        self.queries.append(list(numbers))
        self.asked.set()
        await self.answered.wait()
        if self.error is not None:
            raise self.error
        return [number * number for number in numbers]

    async def find_all(self, *numbers: int) -> list[int | None]:
        return await asyncio.gather(*(self.lookup.find(number) for number in numbers))


def test_concurrent_lookups_share_a_query() -> None:
    async def run() -> Squares:
        squares = Squares()
        assert await squares.find_all(3, 4, 5) == [9, 16, 25]
        assert await squares.find_all(6) == [36]
        return squares

    assert asyncio.run(run()).queries == [[3, 4, 5], [6]]


def test_lookups_during_a_query_share_the_next_one() -> None:
    async def run() -> Squares:
        squares = Squares()
        squares.answered.clear()
        first = asyncio.create_task(squares.find_all(3))
        await squares.asked.wait()
        others = asyncio.create_task(squares.find_all(4, 5))
        await asyncio.sleep(0.01)
        squares.answered.set()
        assert [await first, await others] == [[9], [16, 25]]
        return squares

    assert asyncio.run(run()).queries == [[3], [4, 5]]


def test_canceled_lookup_does_not_affect_others() -> None:
    async def run() -> Squares:
        squares = Squares()
        squares.answered.clear()
        canceled, other = (asyncio.create_task(squares.lookup.find(number)) for number in (3, 4))
        await squares.asked.wait()
        canceled.cancel()
        squares.answered.set()
        assert await other == 16
        return squares

    assert asyncio.run(run()).queries == [[3, 4]]


def test_failed_query_is_repeated_in_a_thread() -> None:
    async def run() -> Squares:
        squares = Squares()
        squares.error = RepositoryUnavailableError("lost")
        squares.answered.clear()
        canceled, *finding = (asyncio.create_task(squares.lookup.find(number)) for number in (2, 3, 4))
        await squares.asked.wait()
        canceled.cancel()
        squares.answered.set()
        assert await asyncio.gather(*finding) == [9, 16]
        squares.error = None
        assert await squares.find_all(5) == [25]  # still in a thread
        squares.lookup.close()
        return squares

    squares = asyncio.run(run())

    assert sorted(number for query in squares.thread_queries for number in query) == [3, 4, 5]
    assert squares.queries == [[2, 3, 4]]


def test_unexpected_error_reaches_every_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "ASYNC_RETRY_SECONDS", 0.0)

    async def run() -> list[int | BaseException | None]:
        squares = Squares()
        squares.error = ZeroDivisionError()
        found = await asyncio.gather(*(squares.lookup.find(number) for number in (3, 4)), return_exceptions=True)
        squares.error = None
        return [*found, await squares.lookup.find(5)]

    *errors, found = asyncio.run(run())

    assert [type(error) for error in errors] == [ZeroDivisionError, ZeroDivisionError]
    assert found == 25
