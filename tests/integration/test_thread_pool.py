"""The thread pools: deadlines, bounded queues, and fair turns between clients and priorities."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

import pytest

from mlapi import ServiceUnavailableError
from mlapi.application.deadlines import PausedDeadline, end_deadline, pause, remaining_seconds, start_deadline
from mlapi.entrypoints.http.thread_pool import BoundedThreadPool, Priority, Turn

TOO_MANY = ServiceUnavailableError("too many requests are waiting")
TOO_LATE = ServiceUnavailableError("the request took too long")


class BusyPool:
    """A pool with one thread, which is busy until `released`. It records the calls that run afterwards."""

    def __init__(self, max_queued: int) -> None:
        self.threads = BoundedThreadPool(1, max_queued_per_thread=max_queued)
        self.started, self._released = threading.Event(), threading.Event()
        self.calls: list[str] = []

    def occupy(self) -> "asyncio.Task[object]":
        return asyncio.create_task(self.threads.run(self._wait))

    def call(self, name: str, turn: Turn | None = None) -> "asyncio.Task[None]":
        run = self.threads.run(self.calls.append, name) if turn is None else self._run_as(turn, name)
        return asyncio.create_task(run)

    def release(self) -> None:
        self._released.set()

    def _run_as(self, turn: Turn, name: str) -> Coroutine[object, object, None]:
        return self.threads.run_as(turn, self.calls.append, name)

    def _wait(self) -> None:
        self.started.set()
        self._released.wait(10)


@contextmanager
def busy_pool(max_queued: int = 10) -> Iterator[BusyPool]:
    pool = BusyPool(max_queued)
    yield pool
    pool.threads.close()


async def start(pool: BusyPool) -> "asyncio.Task[object]":
    """Occupy the thread of the pool."""
    busy = pool.occupy()
    assert await asyncio.to_thread(pool.started.wait, 10)
    return busy


async def finish(*tasks: "asyncio.Task[object] | asyncio.Task[None]") -> list[object]:
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def test_calls_that_time_out_in_the_queue_are_never_run() -> None:
    async def run(pool: BusyPool) -> list[object]:
        busy = await start(pool)
        token = start_deadline(0.05)
        late = await finish(pool.call("a"), pool.call("b"))
        end_deadline(token)
        pool.release()
        await busy
        await pool.call("c")
        return late

    with busy_pool() as pool:
        late = asyncio.run(run(pool))

    assert late == [TOO_LATE, TOO_LATE]
    assert pool.calls == ["c"]


def test_call_after_the_deadline_never_starts() -> None:
    async def run(pool: BusyPool) -> list[object]:
        start_deadline(-1)
        return await finish(pool.call("a"))

    with busy_pool() as pool:
        assert asyncio.run(run(pool)) == [TOO_LATE]

    assert pool.calls == []


def test_running_call_that_times_out_does_not_hold_the_request() -> None:
    async def run(pool: BusyPool) -> tuple[list[object], float]:
        begin = time.monotonic()
        start_deadline(0.05)
        results = await finish(await start(pool))
        pool.release()
        return results, time.monotonic() - begin

    with busy_pool() as pool:
        results, seconds = asyncio.run(run(pool))

    assert results == [TOO_LATE]
    assert seconds < 5


def test_abandoned_calls_never_start() -> None:
    async def run(pool: BusyPool) -> list[object]:
        busy = await start(pool)
        gone = asyncio.Event()
        tasks = [
            pool.call("a"),
            pool.call("b", Turn(is_disconnected=gone.is_set)),
            pool.call("c", Turn(is_disconnected=lambda: False)),
        ]
        await asyncio.sleep(0)
        gone.set()
        pool.release()
        await busy
        return await finish(*tasks)

    with busy_pool() as pool:
        a, b, c = asyncio.run(run(pool))

    assert pool.calls == ["a", "c"]
    assert (a, c) == (None, None)
    assert isinstance(b, ServiceUnavailableError)


def test_abandoned_calls_make_room_in_a_full_queue() -> None:
    async def run(pool: BusyPool) -> list[object]:
        busy = await start(pool)
        gone = asyncio.Event()
        tasks = [pool.call(name, Turn(is_disconnected=gone.is_set)) for name in "ab"]
        await asyncio.sleep(0)
        gone.set()
        tasks += [pool.call(name, Turn(is_disconnected=lambda: False)) for name in "cde"]
        await asyncio.sleep(0)
        pool.release()
        await busy
        return await finish(*tasks)

    with busy_pool(max_queued=2) as pool:
        results = asyncio.run(run(pool))

    assert pool.calls == ["c", "d"]
    assert [isinstance(result, ServiceUnavailableError) for result in results] == [True, True, False, False, True]


def test_calls_are_rejected_immediately_when_the_queue_is_full() -> None:
    async def run(pool: BusyPool) -> list[object]:
        busy = await start(pool)
        calls = [pool.call(name) for name in "abcd"]
        await asyncio.sleep(0)
        rejected = [call.done() for call in calls]
        pool.release()
        return [rejected, *await finish(busy, *calls)]

    with busy_pool(max_queued=2) as pool:
        _, *results = asyncio.run(run(pool))

    assert results == [None, None, None, TOO_MANY, TOO_MANY]
    assert pool.calls == ["a", "b"]


def test_waiting_clients_take_turns() -> None:
    async def run(pool: BusyPool) -> None:
        busy = await start(pool)
        flood = [pool.call(f"flood{number}", Turn("flood")) for number in range(4)]
        neighbors = [pool.call("ada1", Turn("ada")), pool.call("bob", Turn("bob")), pool.call("ada2", Turn("ada"))]
        await asyncio.sleep(0)
        pool.release()
        await finish(busy, *flood, *neighbors)

    with busy_pool() as pool:
        asyncio.run(run(pool))

    assert pool.calls == ["flood0", "ada1", "bob", "flood1", "ada2", "flood2", "flood3"]


def test_calls_of_low_priority_wait_for_all_others() -> None:
    async def run(pool: BusyPool) -> None:
        busy = await start(pool)
        low = [pool.call(f"low{number}", Turn("ada", Priority.LOW)) for number in range(2)]
        high = [pool.call(f"high{number}", Turn("bob")) for number in range(2)]
        await asyncio.sleep(0)
        pool.release()
        await finish(busy, *low, *high)

    with busy_pool() as pool:
        asyncio.run(run(pool))

    assert pool.calls == ["high0", "high1", "low0", "low1"]


def test_full_low_priority_queue_rejects_no_urgent_calls() -> None:
    async def run(pool: BusyPool) -> list[object]:
        busy = await start(pool)
        low = [pool.call(name, Turn(name, Priority.LOW)) for name in "abcd"]
        high = pool.call("high", Turn("eve"))
        await asyncio.sleep(0)
        pool.release()
        await busy
        return await finish(*low, high)

    with busy_pool(max_queued=2) as pool:
        results = asyncio.run(run(pool))

    assert results == [None, None, None, TOO_MANY, None]


def test_full_queue_rejects_the_client_with_the_most_calls() -> None:
    async def run(pool: BusyPool) -> list[object]:
        busy = await start(pool)
        flood = [pool.call(f"flood{number}", Turn("flood")) for number in range(4)]
        neighbors = [pool.call("ada1", Turn("ada")), pool.call("ada2", Turn("ada"))]
        await asyncio.sleep(0.01)
        pool.release()
        await busy
        return await finish(*flood, *neighbors)

    with busy_pool(max_queued=3) as pool:
        results = asyncio.run(run(pool))

    # Three calls may wait. The fourth of the flood is rejected, and its third makes room for the neighbor's first. The
    # neighbor's second is rejected: with it, the neighbor would have as many as the flood.
    assert results == [None, None, TOO_MANY, TOO_MANY, None, TOO_MANY]
    assert pool.calls == ["flood0", "ada1", "flood1"]


def test_canceled_call_frees_its_place_in_the_queue() -> None:
    async def run(pool: BusyPool) -> list[object]:
        busy = await start(pool)
        first, second = pool.call("a"), pool.call("b")
        await asyncio.sleep(0)
        first.cancel()
        await finish(first)
        third = pool.call("c")
        await asyncio.sleep(0)
        pool.release()
        return await finish(busy, second, third)

    with busy_pool(max_queued=2) as pool:
        assert asyncio.run(run(pool)) == [None, None, None]

    assert pool.calls == ["b", "c"]


def test_closing_the_pool_cancels_waiting_calls() -> None:
    async def run(pool: BusyPool) -> list[object]:
        busy = await start(pool)
        waiting = pool.call("a")
        await asyncio.sleep(0)
        pool.threads.close()
        pool.release()
        return await finish(busy, waiting)

    with busy_pool() as pool:
        busy, waiting = asyncio.run(run(pool))

    assert busy is None
    assert isinstance(waiting, asyncio.CancelledError)
    assert pool.calls == []


def test_waiting_for_the_client_extends_the_deadline() -> None:
    token = start_deadline(5)

    with PausedDeadline():
        time.sleep(0.1)
    remaining = remaining_seconds()
    end_deadline(token)

    assert 4.9 < remaining <= 5


@pytest.mark.parametrize("is_set", [True, False])
def test_default_time_left_is_that_of_a_request(is_set: bool) -> None:
    if is_set:
        end_deadline(start_deadline(1))
    with PausedDeadline():
        remaining = remaining_seconds()

    assert remaining == 8


@pytest.mark.parametrize(("deadline_seconds", "expected_seconds"), [(None, 0.1), (5, 0.1), (0.01, 0.0), (-1, 0.0)])
def test_pause_ends_at_the_deadline(deadline_seconds: float | None, expected_seconds: float) -> None:
    async def run() -> float:
        if deadline_seconds is not None:
            start_deadline(deadline_seconds)
        begin = time.monotonic()
        await pause(0.1)
        return time.monotonic() - begin

    assert expected_seconds <= asyncio.run(run()) < expected_seconds + 5
