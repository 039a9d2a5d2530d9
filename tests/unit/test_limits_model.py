"""Limits hold over all processes that crash, stop or lose their database. A simple model checks them."""

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.plans import Allowance, RequestLimitReachedError, Window, lease_size
from tests.limited_world import USER, World

_MINUTE_LIMITS = st.integers(1, 100)
_DAY_LIMITS = st.integers(1, 100) | st.integers(100, 1000)


class LimitsMachine(RuleBasedStateMachine):
    """Processes that serve requests, crash, stop, and lose their database. The model only counts requests."""

    @initialize(minute=_MINUTE_LIMITS, day=_DAY_LIMITS)
    def start(self, minute: int, day: int) -> None:
        self.world = World()
        self.processes = [self.world.start_process() for _ in range(2)]
        self.admitted: dict[tuple[str, int], int] = defaultdict(int)
        self.charged: dict[int, int] = defaultdict(int)
        self.forfeits = 0
        self.is_changed = False
        self.set_limits(minute, day)

    def set_limits(self, minute: int, day: int) -> None:
        self.allowances = (
            Allowance("requests", Window.MINUTE, minute),
            Allowance("requests", Window.DAY, day),
            Allowance("units", Window.DAY, 500),
        )
        self.world.set_plan(*self.allowances)

    @rule(process=st.integers(0, 1), cost=st.sampled_from([1, 1, 1, 1, 0, 7]), attempts=st.sampled_from([1, 9, 300]))
    def request(self, process: int, cost: int, attempts: int) -> None:
        for _ in range(attempts):
            started = self.world.now
            try:
                states = self.processes[process].admit(USER, cost)
            except (RequestLimitReachedError, RepositoryUnavailableError):
                return
            assert [state.allowance for state in states] == list(self.allowances)
            assert self.world.now - started < 60
            self.count(cost)

    def count(self, cost: int) -> None:
        for allowance in self.allowances[:2]:
            # The database's clock is the only clock in this test, so it gives the time of the admission.
            start = allowance.window.start_of(self.world.now)
            self.admitted[allowance.key, start] += cost
            if cost:
                assert self.admitted[allowance.key, start] <= allowance.limit
        assert self.charged[Window.DAY.start_of(self.world.now)] < 500

    @rule(process=st.integers(0, 1), units=st.sampled_from([1, 200]))
    def charge(self, process: int, units: int) -> None:
        try:
            self.processes[process].charge(USER, units)
        except RepositoryUnavailableError:
            return
        self.charged[Window.DAY.start_of(self.world.now)] += units

    @rule(offset_seconds=st.sampled_from([-0.5, 0, 0, 0.5]), window=st.sampled_from([Window.MINUTE, Window.DAY]))
    def pass_window(self, offset_seconds: float, window: Window) -> None:
        start = window.start_of(self.world.now)
        self.world.now = max(self.world.now, window.end_of(start) + offset_seconds)

    @rule(seconds=st.floats(0.1, 100) | st.just(301))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(minute=_MINUTE_LIMITS, day=_DAY_LIMITS)
    def change_plan(self, minute: int, day: int) -> None:
        self.set_limits(minute, day)
        self.is_changed = True

    @rule(
        process=st.integers(0, 1),
        event=st.sampled_from(["crash", "restart", "idle", "slow", "outage", "unknown outcome"]),
    )
    def disturb(self, process: int, event: str) -> None:
        limiter = self.processes[process]
        if event == "idle":
            limiter._give_back(limiter._accounts.take_returns(limiter._accounts.evict_idle()))
        elif event == "slow":
            self.world.latency_seconds = 0.3 - self.world.latency_seconds
        elif event in {"outage", "unknown outcome"}:
            self.world.errors = [RepositoryUnavailableError("lost", may_be_done=event == "unknown outcome")]
            self.forfeits += 1
        else:
            if event == "crash":
                self.forfeits += 1
            else:
                limiter.close()
            self.processes[process] = self.world.start_process()

    @invariant()
    def nothing_is_lost_but_by_crashes(self) -> None:
        if not hasattr(self, "world") or self.is_changed:
            return
        for allowance in self.allowances[:2]:
            start = allowance.window.start_of(self.world.now)
            held = self.world.used(allowance) - self.admitted[allowance.key, start]
            # A draw for a request that costs more than a lease may be lost as well.
            assert 0 <= held <= (2 + self.forfeits) * max(lease_size(allowance.limit), 9)

    def teardown(self) -> None:
        for process in getattr(self, "processes", ()):
            process.close()


LimitsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLimits = LimitsMachine.TestCase
