"""Limits of plans: requests are admitted from leases in memory, and counted exactly."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlapi.application import limits
from mlapi.application.leases import DRAW_TIMEOUT_SECONDS, PendingDraw, Waiter
from mlapi.application.limits import Limiter
from mlapi.domain.allowances import Draw
from mlapi.domain.errors import (
    ConfigurationError,
    InvalidTokenError,
    ReadOnlyRepositoryError,
    RepositoryUnavailableError,
    ServiceUnavailableError,
)
from mlapi.domain.plans import Allowance, AllowanceState, Plan, Plans, RequestLimitReachedError, Window
from tests.limited_world import DAY_100, MINUTE_60, UNITS, USER, World, count_admitted, make_user
from tests.waiting import wait_until


def test_requests_are_served_from_a_lease() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()

    states = [limiter.admit(USER) for _ in range(7)]

    assert [state.remaining for (state,) in states] == [59, 58, 57, 56, 55, 54, 53]
    assert states[0] == (AllowanceState(MINUTE_60, 59, 60),)
    assert [[draw.wanted for draw in draws] for draws in world.draws] == [[3], [3], [3]]


def test_used_up_allowance_is_rejected_until_its_window_ends() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    world.now += 20

    assert count_admitted(limiter, 100) == 60
    with pytest.raises(RequestLimitReachedError) as error:
        limiter.admit(USER)
    assert error.value == RequestLimitReachedError(MINUTE_60, 40, (AllowanceState(MINUTE_60, 0, 40),))
    assert str(error.value) == "Request limit reached: 60 per minute"
    world.now += 40
    assert count_admitted(limiter, 100) == 60


def test_rejected_user_causes_at_most_one_draw_per_second() -> None:
    world = World(Allowance("requests", Window.MINUTE, 1))
    limiter = world.start_process()
    count_admitted(limiter, 2)
    before = len(world.draws)

    for _ in range(100):
        count_admitted(limiter, 10)
        world.now += 0.05

    assert 4 <= len(world.draws) - before <= 6


def test_rejected_request_counts_in_no_window() -> None:
    world = World(MINUTE_60, Allowance("requests", Window.DAY, 10))
    first, second = world.start_process(), world.start_process()

    assert count_admitted(first, 50) == 10
    assert count_admitted(second, 50) == 0
    first.close()
    second.close()
    assert world.used(MINUTE_60) == 10


def test_rejection_names_the_window_that_ends_last() -> None:
    world = World(Allowance("requests", Window.MINUTE, 2), Allowance("requests", Window.HOUR, 2))
    limiter = world.start_process()
    count_admitted(limiter, 2)

    with pytest.raises(RequestLimitReachedError, match="Request limit reached: 2 per hour") as error:
        limiter.admit(USER)

    assert error.value.retry_after_seconds == 3600


def test_cost_is_counted_completely_or_not_at_all() -> None:
    world = World(DAY_100)
    limiter = world.start_process()
    limiter.admit(USER, 95)

    for cost in (6, 101, 2**40):
        with pytest.raises(RequestLimitReachedError):
            limiter.admit(USER, cost)
    (state,) = limiter.admit(USER, 5)

    assert (state.remaining, world.used(DAY_100)) == (0, 100)


def test_cost_of_zero_counts_nothing() -> None:
    world = World(Allowance("requests", Window.DAY, 3))
    looking, limiter = world.start_process(), world.start_process()

    assert [looking.admit(USER, 0)[0].remaining for _ in range(9)] == [3] * 9
    assert count_admitted(limiter, 9) == 3
    with pytest.raises(RequestLimitReachedError):
        looking.admit(USER, 0)
    with pytest.raises(ValueError, match="the cost must be 0 or more"):
        limiter.admit(USER, -1)


def test_cost_of_zero_is_answered_from_a_lease() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    limiter.admit(USER)

    assert limiter.admit(USER, 0)[0].remaining == 59
    assert len(world.draws) == 1


def test_cost_of_zero_does_not_invalidate_newer_leases() -> None:
    world = World(MINUTE_60, Allowance("requests", Window.DAY, 2))
    limiter = world.start_process()
    limiter.admit(USER)

    limiter.admit(USER, 0)

    assert count_admitted(limiter, 9) == 1


def test_lease_is_not_used_after_its_window() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    world.now += 50
    world.latency_seconds = 1.0  # the database reads its clock a second after it is asked
    limiter.admit(USER)
    assert limiter.admit(USER)[0].reset_seconds == 9
    world.latency_seconds = 0.0

    world.now += 7.5  # half a second before the window ends, less than the time that the draw took
    limiter.admit(USER)
    assert len(world.draws) == 2
    world.now += 0.5
    limiter.admit(USER)

    assert world.used(MINUTE_60) == 3


def test_old_lease_is_renewed() -> None:
    world = World(DAY_100)
    limiter = world.start_process()
    limiter.admit(USER)

    world.now += 301
    limiter.admit(USER)

    assert [draw.wanted for draw in world.draws[-1]] == [-4, 5]
    assert world.used(DAY_100) == 6


def test_changed_limit_holds_at_the_next_request() -> None:
    world = World(DAY_100)
    first, second = world.start_process(), world.start_process()
    count_admitted(first, 6)
    count_admitted(second, 6)
    world.set_plan(Allowance("requests", Window.DAY, 14))

    assert count_admitted(first, 9) + count_admitted(second, 9) == 2


def test_changed_plan_keeps_equal_allowances() -> None:
    world = World(MINUTE_60, DAY_100)
    limiter = world.start_process()
    limiter.admit(USER)

    world.plans = Plans({"free": Plan("free", (DAY_100,)), "pro": Plan("pro", (DAY_100, MINUTE_60))})
    limiter.admit(make_user(plan="pro"))
    assert len(world.draws) == 1
    limiter.admit(USER)
    limiter.admit(USER)
    limiter.close()

    assert (world.used(MINUTE_60), world.used(DAY_100)) == (2, 4)


def test_users_without_limits_cost_nothing() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    world.plans = Plans({"staff": Plan("staff")})

    assert limiter.admit(make_user(plan="staff")) == limiter.admit(make_user(plan=None)) == ()
    limiter.charge(make_user(plan="staff"), 5)
    assert world.draws == []
    with pytest.raises(ConfigurationError, match="a user has the plan 'free', which"):
        limiter.admit(USER)


def test_default_plan_applies_to_missing_plans() -> None:
    plans = Plans({"free": Plan("free"), "pro": Plan("pro")}, "free")

    assert [plans.find(name) for name in ("pro", "gone", "", None)] == [Plan("pro"), *[Plan("free")] * 3]
    assert Plans().find("gone") is None


def test_request_after_charged_units_is_rejected() -> None:
    world = World(MINUTE_60, UNITS)
    limiter = world.start_process()
    limiter.charge(USER, 999)
    states = limiter.admit(USER)
    limiter.charge(USER, 500)

    assert [(str(state.allowance), state.remaining) for state in states] == [
        ("60 per minute", 59),
        ("1000 units per day", 1),
    ]
    with pytest.raises(RequestLimitReachedError, match="Request limit reached: 1000 units per day") as error:
        limiter.admit(USER)
    assert [state.remaining for state in error.value.states] == [59, 0]
    assert error.value.retry_after_seconds == 12 * 3600


def test_invalid_or_no_units_are_not_charged() -> None:
    world = World(UNITS)
    limiter = world.start_process()

    limiter.charge(USER, 0)
    with pytest.raises(ValueError, match="the number of units must be 0 or more"):
        limiter.charge(USER, -1)

    assert world.draws == []


@pytest.mark.parametrize("cost", [0, 1])
@pytest.mark.parametrize("allowance", [MINUTE_60, UNITS])
def test_removed_user_is_rejected(allowance: Allowance, cost: int) -> None:
    world = World(allowance)
    limiter = world.start_process()
    world.removed.add(USER.id)

    with pytest.raises(InvalidTokenError):
        limiter.admit(USER, cost)


def test_closed_limiter_gives_back_its_leases() -> None:
    world = World(MINUTE_60, DAY_100)
    limiter = world.start_process()
    users = [make_user(number) for number in range(1, 1502)]
    for user in users:
        limiter.admit(user)

    limiter.close()

    assert {world.used(allowance, user) for user in users for allowance in (MINUTE_60, DAY_100)} == {1}
    with pytest.raises(ServiceUnavailableError):
        limiter.admit(USER)


def test_lease_is_not_given_back_to_another_window() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    limiter.admit(USER)
    world.now += 60
    count_admitted(world.start_process(), 1)

    limiter.close()

    assert world.used(MINUTE_60) == 3


@pytest.mark.parametrize(("may_be_done", "used"), [(False, 1), (True, 1)])
def test_giving_back_is_not_done_twice(may_be_done: bool, used: int, caplog: pytest.LogCaptureFixture) -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    limiter.admit(USER)
    world.errors = [RepositoryUnavailableError("lost", may_be_done=may_be_done)]

    limiter.close()

    assert world.used(MINUTE_60) == used
    assert ("could not be given back" in caplog.text) == may_be_done


def test_outage_fails_requests_and_grants_nothing_twice() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    world.errors = [RepositoryUnavailableError("lost", may_be_done=True)]

    with pytest.raises(RepositoryUnavailableError) as error:
        limiter.admit(USER)

    assert not error.value.may_be_done
    assert count_admitted(limiter, 100) == 57


def test_read_only_database_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    world = World(MINUTE_60)
    world.errors = [ReadOnlyRepositoryError("read-only"), ReadOnlyRepositoryError("read-only")]
    limiter = world.start_process()

    for _ in range(2):
        with pytest.raises(ReadOnlyRepositoryError):
            limiter.admit(USER)

    (message,) = caplog.messages
    assert "may not write to the table mlapi_allowances: grant this privilege, or remove plans" in message


def test_threads_share_one_draw_per_user() -> None:
    world = World(Allowance("requests", Window.DAY, 400))
    limiter = world.start_process()
    running: list[int] = []

    def before_draw() -> None:
        running.append(1)
        assert len(running) == 1
        time.sleep(0.001)
        running.pop()

    world.before_draw = before_draw
    with ThreadPoolExecutor(16) as pool:
        admitted = sum(pool.map(lambda _: count_admitted(limiter, 40), range(16)))

    assert admitted == 400
    assert len(world.draws) <= 22


def test_waiting_thread_ends_when_the_database_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    started, finish = threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        assert finish.wait(10)

    world.after_draw = hang
    monkeypatch.setattr(limits, "DRAW_TIMEOUT_SECONDS", 0.05)
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(limiter.admit, USER)
        started.wait(10)
        with pytest.raises(RepositoryUnavailableError, match="did not answer in time"):
            limiter.admit(USER)
        world.after_draw = lambda: None
        world.now += DRAW_TIMEOUT_SECONDS + 1  # the hanging draw is given up, so the next request draws
        assert limiter.admit(USER)[0].remaining == 56
        finish.set()
        with pytest.raises(RepositoryUnavailableError):
            hanging.result(10)

    assert count_admitted(limiter, 100) == 56  # the requests that the hanging draw granted are lost


def test_failed_draw_fails_the_requests_that_wait_for_it() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    waiting = 5

    def fail_when_all_wait() -> None:
        wait_until(lambda: len(limiter._accounts._recent[USER.id].waiting) == waiting)
        world.errors = [RuntimeError("a bug")]

    world.before_draw = fail_when_all_wait
    with ThreadPoolExecutor(waiting) as pool:
        results = [pool.submit(limiter.admit, USER) for _ in range(waiting)]
        assert [str(result.exception(10)) for result in results] == ["a bug"] * waiting
    world.before_draw = lambda: None

    assert limiter.admit(USER)[0].remaining == 59


def test_interrupted_draw_lets_the_next_request_draw() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()

    def interrupt() -> None:
        raise KeyboardInterrupt

    world.before_draw = interrupt
    with pytest.raises(KeyboardInterrupt):
        limiter.admit(USER)
    world.before_draw = lambda: None

    assert limiter.admit(USER)[0].remaining == 59


def test_waiting_requests_are_served_in_order() -> None:
    world = World(Allowance("requests", Window.DAY, 10))
    limiter = world.start_process()
    first = limiter._accounts.wait(USER.id, world.plans.by_name["free"], 1, lambda: None)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(limiter.admit, USER)
        wait_until(lambda: len(first.account.waiting) == 2)
        pending = limiter._accounts.start(first)
        assert pending is not None
        limiter.execute([pending], time.monotonic() + 1)
        (state,) = second.result(10)

    assert isinstance(first.outcome, tuple)
    assert (first.outcome[0].remaining, state.remaining) == (9, 8)


def test_idle_users_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.05)
    world = World(MINUTE_60)
    limiter = world.start_process()
    for user_id in range(1, 100):
        limiter.admit(make_user(user_id))

    wait_until(lambda: limiter._accounts.is_empty and limiter._sweeper is None)

    assert [world.used(MINUTE_60, make_user(user_id)) for user_id in range(1, 100)] == [1] * 99
    limiter.admit(USER)
    assert limiter._sweeper is not None
    limiter.close()
    wait_until(lambda: not any(thread.name == "mlapi-limits" for thread in threading.enumerate()))


def test_closing_waits_until_idle_leases_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.01)
    world = World(MINUTE_60)
    limiter = world.start_process()
    started = threading.Event()

    def be_slow() -> None:
        started.set()
        time.sleep(0.1)

    limiter.admit(USER)
    world.before_draw = be_slow
    assert started.wait(10)

    limiter.close()

    assert world.used(MINUTE_60) == 1


def test_user_who_sends_another_request_keeps_the_lease() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    limiter.admit(USER)

    for _ in range(2):
        limiter._give_back(limiter._accounts.take_returns(limiter._accounts.evict_idle()))
        limiter.admit(USER)

    assert len(world.draws) == 1


def test_late_draw_of_an_evicted_user_is_given_back() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()

    def close() -> None:
        world.after_draw = lambda: None
        assert limiter._accounts.take_returns(limiter._accounts.close()) == []

    world.after_draw = close

    assert limiter.admit(USER)[0].remaining == 59

    assert world.used(MINUTE_60) == 1


def test_late_draw_for_a_former_plan_is_given_back() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()

    def change_plan() -> None:
        world.after_draw = lambda: None
        world.set_plan(DAY_100)
        limiter._accounts._recent[USER.id].adopt(world.plans.by_name["free"], world.now)

    world.after_draw = change_plan
    limiter.admit(USER)
    limiter.close()

    assert (world.used(MINUTE_60), world.used(DAY_100)) == (1, 0)


def test_forked_child_has_no_leases() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    limiter.admit(USER)

    if (child := os.fork()) == 0:
        limiter.admit(USER)
        os._exit(len(world.draws))
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 2


class TestPendingDraws:
    """Draws of requests that are canceled or time out, step by step."""

    @pytest.fixture
    def world(self) -> World:
        return World(DAY_100)

    @pytest.fixture
    def limiter(self, world: World) -> Limiter:
        return world.start_process()

    @pytest.fixture
    def waiter(self, world: World, limiter: Limiter) -> Waiter:
        return limiter._accounts.wait(USER.id, world.plans.by_name["free"], 1, lambda: None)

    @pytest.fixture
    def pending(self, limiter: Limiter, waiter: Waiter) -> PendingDraw:
        pending = limiter._accounts.start(waiter)
        assert pending is not None
        return pending

    def test_draw_of_a_canceled_request_is_not_made(
        self, world: World, limiter: Limiter, waiter: Waiter, pending: PendingDraw
    ) -> None:
        limiter._accounts.leave(waiter)

        limiter.execute([pending], time.monotonic() + 1)

        assert world.used(DAY_100) == 0

    def test_error_of_an_abandoned_draw_is_ignored(
        self, world: World, limiter: Limiter, waiter: Waiter, pending: PendingDraw
    ) -> None:
        limiter._accounts.begin(pending)
        limiter._accounts.leave(waiter)
        world.now += DRAW_TIMEOUT_SECONDS + 1

        assert limiter.admit(USER)[0].remaining == 99
        limiter._accounts.fail(pending, RuntimeError("late"))
        assert limiter.admit(USER)[0].remaining == 98

    def test_request_of_a_former_window_is_not_put_back(
        self, world: World, limiter: Limiter, waiter: Waiter, pending: PendingDraw
    ) -> None:
        limiter.execute([pending], time.monotonic() + 1)
        world.now += 86_400
        limiter.admit(USER)

        limiter._accounts.leave(waiter)
        limiter.close()

        assert world.used(DAY_100) == 1


def test_older_reading_does_not_replace_a_newer_lease() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    (old,) = world.read([Draw.from_allowance(USER.id, MINUTE_60, 0)])
    assert old is not None
    world.now += 60
    limiter.admit(USER)

    limiter._accounts.record(USER.id, world.plans.by_name["free"], [(MINUTE_60, old)], world.now)
    limiter.admit(USER)

    assert len(world.draws) == 1


def test_plan_may_lose_its_limits_during_a_request() -> None:
    world = World(MINUTE_60)
    limiter = world.start_process()
    plans = [world.plans, Plans({"free": Plan("free")})]
    limiter._plans = lambda: plans.pop(0)

    assert limiter.admit(USER) == ()


def test_units_of_several_users_are_charged_together() -> None:
    world = World(UNITS)
    limiter = world.start_process()

    limiter.charge_all([(USER, 5), (make_user(2), 7), (make_user(3), 0)])
    limiter.charge_all([(USER, 0)])

    assert [world.used(UNITS, make_user(user_id)) for user_id in (1, 2, 3)] == [5, 7, 0]
    assert len(world.draws) == 1
