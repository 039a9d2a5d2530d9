"""Limits on event loops: concurrent requests share draws, and canceled requests are not counted."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from mlapi.application.async_limits import AsyncLimiter
from mlapi.application.deadlines import start_deadline
from mlapi.application.limits import Limiter
from mlapi.domain.errors import RepositoryUnavailableError, ServiceUnavailableError
from mlapi.domain.plans import Allowance, RequestLimitReachedError, Window
from tests.limited_world import MINUTE_60, UNITS, USER, World, count_admitted, make_user
from tests.waiting import wait_until


@pytest.fixture
def world() -> World:
    return World(MINUTE_60)


@pytest.fixture
def limiter(world: World) -> Limiter:
    return world.start_process()


@pytest.fixture
def async_limiter(limiter: Limiter) -> Iterator[AsyncLimiter]:
    with closing(AsyncLimiter(limiter)) as async_limiter:
        yield async_limiter


async def is_admitted(limiter: AsyncLimiter, user_id: int = 1) -> bool:
    try:
        await limiter.admit(make_user(user_id))
    except RequestLimitReachedError:
        return False
    return True


class Pause:
    """Pauses the next draw, before or after the database has counted it."""

    def __init__(self, world: World, *, after: bool = False) -> None:
        self._world = world
        self._name = "after_draw" if after else "before_draw"
        self._started, self._finish = threading.Event(), threading.Event()
        setattr(world, self._name, self._pause)

    def _pause(self) -> None:
        setattr(self._world, self._name, lambda: None)
        self._started.set()
        assert self._finish.wait(10)

    async def wait(self) -> None:
        await asyncio.to_thread(self._started.wait, 10)

    def end(self) -> None:
        self._finish.set()


def test_concurrent_requests_get_exactly_the_allowance(async_limiter: AsyncLimiter, world: World) -> None:
    async def admit_all() -> list[bool]:
        return await asyncio.gather(*(is_admitted(async_limiter) for _ in range(200)))

    assert asyncio.run(admit_all()) == [True] * 60 + [False] * 140
    assert len(world.draws) == 21


def test_reading_the_limits_counts_no_request(async_limiter: AsyncLimiter, limiter: Limiter, world: World) -> None:
    async def read() -> tuple[int, int]:
        (before,) = await async_limiter.read(USER)
        count_admitted(limiter, 60)
        (after,) = await async_limiter.read(USER)
        return before.remaining, after.remaining

    assert asyncio.run(read()) == (60, 0)
    assert world.used(MINUTE_60) == 60


def test_requests_of_several_users_share_a_transaction(async_limiter: AsyncLimiter, world: World) -> None:
    async def admit_all() -> list[bool]:
        return await asyncio.gather(*(is_admitted(async_limiter, user_id) for user_id in range(100)))

    assert all(asyncio.run(admit_all()))
    assert len(world.draws) <= 2


def test_several_event_loops_share_the_leases(async_limiter: AsyncLimiter) -> None:
    async def admit_all() -> int:
        return sum(await asyncio.gather(*(is_admitted(async_limiter) for _ in range(50))))

    with ThreadPoolExecutor(4) as pool:
        admitted = sum(pool.map(lambda _: asyncio.run(admit_all()), range(4)))

    assert admitted == 60


def test_threads_and_loops_share_the_leases(async_limiter: AsyncLimiter, limiter: Limiter, world: World) -> None:
    async def run() -> None:
        pause = Pause(world)
        waiting = asyncio.create_task(async_limiter.admit(USER))
        await pause.wait()
        thread = asyncio.create_task(asyncio.to_thread(limiter.admit, USER))
        await asyncio.to_thread(wait_until, lambda: len(limiter._accounts._recent[USER.id].waiting) == 2)
        pause.end()
        assert [(await task)[0].remaining for task in (waiting, thread)] == [59, 58]

    asyncio.run(run())
    assert len(world.draws) == 1


def test_canceled_request_that_draws_counts_nothing(async_limiter: AsyncLimiter, world: World) -> None:
    async def run() -> None:
        pause = Pause(world)
        canceled = asyncio.create_task(async_limiter.admit(USER))
        await pause.wait()
        waiting = [asyncio.create_task(async_limiter.admit(USER)) for _ in range(2)]
        await asyncio.sleep(0)
        canceled.cancel()
        await asyncio.wait([canceled])
        pause.end()
        assert [(await task)[0].remaining for task in waiting] == [59, 58]

    asyncio.run(run())
    assert len(world.draws) == 1


def test_canceled_request_that_waits_counts_nothing(async_limiter: AsyncLimiter, world: World) -> None:
    async def run() -> None:
        pause = Pause(world)
        tasks = [asyncio.create_task(async_limiter.admit(USER)) for _ in range(3)]
        await pause.wait()
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        pause.end()
        assert [(await task)[0].remaining for task in (tasks[0], tasks[2])] == [59, 58]

    asyncio.run(run())


def test_request_canceled_in_the_queue_lets_the_next_draw(async_limiter: AsyncLimiter, world: World) -> None:
    async def run() -> None:
        pause = Pause(world)
        other = asyncio.create_task(async_limiter.admit(make_user(2)))
        await pause.wait()
        tasks = [asyncio.create_task(async_limiter.admit(USER)) for _ in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        pause.end()
        assert (await tasks[1])[0].remaining == 59
        await other

    asyncio.run(run())
    assert [len(draws) for draws in world.draws] == [1, 1]


def test_request_canceled_after_it_was_served_counts_nothing(
    async_limiter: AsyncLimiter, limiter: Limiter, world: World
) -> None:
    async def run() -> None:
        pause = Pause(world)
        tasks = [asyncio.create_task(async_limiter.admit(USER)) for _ in range(2)]
        await pause.wait()
        waiters = list(limiter._accounts._recent[USER.id].waiting)
        pause.end()
        time.sleep(0.01)  # block the loop, so that neither task can continue  # noqa: ASYNC251
        wait_until(lambda: waiters[1].outcome is not None)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)

    asyncio.run(run())
    limiter.close()
    assert world.used(MINUTE_60) == 0


def test_waiting_request_ends_at_its_deadline(async_limiter: AsyncLimiter, world: World) -> None:
    async def run() -> None:
        pause = Pause(world)
        drawing = asyncio.create_task(async_limiter.admit(USER))
        await pause.wait()
        start_deadline(0.05)
        with pytest.raises(RepositoryUnavailableError, match="did not answer in time"):
            await async_limiter.admit(USER)
        pause.end()
        assert (await drawing)[0].remaining == 59

    asyncio.run(run())


def test_request_without_time_left_is_rejected(async_limiter: AsyncLimiter, limiter: Limiter) -> None:
    async def run() -> None:
        start_deadline(-1)
        with pytest.raises(ServiceUnavailableError, match="the request took too long"):
            await async_limiter.admit(USER)

    asyncio.run(run())
    assert limiter.admit(USER)[0].remaining == 59


def test_requests_of_a_closed_loop_do_not_block_others(
    async_limiter: AsyncLimiter, limiter: Limiter, world: World
) -> None:
    pause = Pause(world)

    async def leave() -> None:
        tasks = [asyncio.create_task(async_limiter.admit(USER)) for _ in range(2)]
        await pause.wait()
        assert len(tasks) == 2

    asyncio.run(leave())
    pause.end()

    assert limiter.admit(USER)[0].remaining == 59


def test_units_are_read_together_and_charged_durably(async_limiter: AsyncLimiter, world: World) -> None:
    world.set_plan(UNITS)

    async def run() -> None:
        await asyncio.gather(*(async_limiter.charge(USER, 500) for _ in range(2)))
        with pytest.raises(RequestLimitReachedError):
            await async_limiter.admit(USER)
        assert await is_admitted(async_limiter, 2)
        await async_limiter.charge(USER, 0)

    asyncio.run(run())
    assert world.used(UNITS) == 1000


def test_outage_fails_all_waiting_requests(async_limiter: AsyncLimiter, world: World) -> None:
    async def run() -> None:
        pause = Pause(world)
        tasks = [asyncio.create_task(async_limiter.admit(USER)) for _ in range(3)]
        await pause.wait()
        world.errors = [RepositoryUnavailableError("lost", may_be_done=True)]
        pause.end()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results == [RepositoryUnavailableError("lost")] * 3

    asyncio.run(run())


def test_small_allowance_is_drawn_one_request_at_a_time(async_limiter: AsyncLimiter, world: World) -> None:
    world.set_plan(Allowance("requests", Window.DAY, 10))

    async def admit_all() -> list[bool]:
        return await asyncio.gather(*(is_admitted(async_limiter) for _ in range(30)))

    assert asyncio.run(admit_all()) == [True] * 10 + [False] * 20
    assert [draw.wanted for draws in world.draws for draw in draws] == [1] * 11
