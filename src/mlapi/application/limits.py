"""Enforce the limits of plans. `mlapi.application.leases` explains how requests are served from memory."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import attrs

from mlapi.application.accounts import Accounts
from mlapi.application.inline import run_inline
from mlapi.application.leases import DRAW_TIMEOUT_SECONDS, TIMED_OUT, PendingDraw, States
from mlapi.application.repeated_warnings import RepeatedWarnings
from mlapi.domain.allowances import Allowances, Draw, Drawn
from mlapi.domain.errors import (
    ConfigurationError,
    InvalidTokenError,
    MlapiError,
    ReadOnlyRepositoryError,
    RepositoryUnavailableError,
)
from mlapi.domain.plans import Allowance, AllowanceState, Plan, Plans
from mlapi.domain.users import User
from mlapi.forks import call_at_exit, call_in_children, new_lock, notice_fork

IDLE_SECONDS = 6.0
"""A user's leases are given back this long after the user's last request, or at most twice as long. It exceeds the time
that a request may wait."""
_MAX_RETURNS = 1000
_WARNING_INTERVAL_SECONDS = 60.0
_READ_ONLY = (
    "requests are rejected: the plans have limits, but the database account may not write to the table"
    " mlapi_allowances: grant this privilege, or remove plans from the configuration"
)

Charges = tuple[Draw, ...]

_logger = logging.getLogger("mlapi")


class Signal(Protocol):
    """Wakes a waiting request."""

    def notify(self) -> None:
        """Wake the request. Callable from any thread."""
        ...

    async def wait(self) -> None:
        """Wait for `notify`. Raise `RepositoryUnavailableError` after `DRAW_TIMEOUT_SECONDS`."""
        ...


class LimitsExecutor(Protocol):
    """Decides in which thread the steps that wait for the database run."""

    def new_signal(self) -> Signal: ...

    async def read(self, draws: Sequence[Draw]) -> Sequence[Drawn | None]:
        """See `Allowances.read`."""
        ...

    async def draw(self, item: PendingDraw | Charges) -> None:
        """See `Limiter.execute`."""
        ...


class Limiter:
    """Admits the requests of users within the limits of their plans. Thread-safe.

    Args:
        allowances: counts the requests of all processes.
        plans: returns the current plans.
        refresh_plans: checks whether the plans have changed, unless they were checked after the given monotonic time.
            None if they never change.
        monotonic: returns the time in seconds.
    """

    def __init__(
        self,
        allowances: Allowances,
        plans: Callable[[], Plans],
        *,
        refresh_plans: Callable[[float], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accounts = Accounts(monotonic)
        self._monotonic = monotonic
        self._allowances = allowances
        self._plans = plans
        self.refresh_plans = refresh_plans or (lambda _since: None)
        self._lock = new_lock()
        self._warnings = RepeatedWarnings(interval_seconds=_WARNING_INTERVAL_SECONDS)
        self._inline = _InlineExecutor(self)
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        """Start without a thread. After a fork, the parent gives back its own leases."""
        self._sweeper: threading.Thread | None = None
        self._closing = threading.Event()
        self._forget_exit: Callable[[], None] = lambda: None

    def admit(self, user: User, cost: int = 1) -> tuple[AllowanceState, ...]:
        """Count a request, and return the states of the allowances of the user's plan. Without limits, there are none.

        If several requests of a user must wait for the database, they are served in order.

        Args:
            user: the user, as currently stored.
            cost: the number of requests to count. 0 counts none, but raises the same errors as 1.

        Raises:
            RequestLimitReachedError: if an allowance is used up. The request then counts toward none.
            ConfigurationError: if the configuration does not contain the user's plan, and has no default plan.
            InvalidTokenError: if the user was removed.
            RepositoryUnavailableError: if the database is unavailable and the request needs it.
        """
        states = self.admit_nowait(user, cost)
        return run_inline(self.admit_with(self._inline, user, cost)) if states is None else states

    def find_plan(self, user: User) -> Plan | None:
        """Return the plan whose limits apply to a user, or None if there are no limits.

        Raises:
            ConfigurationError: see `admit`.
        """
        return self._plans().find(user.plan)

    def charge(self, user: User, units: int) -> None:
        """Count units, for example generated tokens. Return when they are stored durably.

        The units may exceed the limit. The user's next request is then rejected. If the user's plan does not limit
        units, this does nothing.

        Raises:
            ConfigurationError, RepositoryUnavailableError: see `admit`.
        """
        run_inline(self.charge_with(self._inline, user, units))

    def close(self) -> None:
        """Give all unused requests back. Do not admit requests afterwards.

        If you do not close the limiter, it gives them back when the process exits, unless the process is killed.
        """
        notice_fork()
        self._closing.set()
        self._forget_exit()
        if (sweeper := self._sweeper) is not None:
            sweeper.join(DRAW_TIMEOUT_SECONDS)  # it may be giving requests back
        self._give_back(self._accounts.take_returns(self._accounts.close()), attempts=2)

    def admit_nowait(self, user: User, cost: int) -> States | None:
        """Admit a request like `admit`, but return None if it has to wait for the database."""
        if cost < 0:
            raise ValueError("the cost must be 0 or more")
        notice_fork()  # a child must not use the leases of its parent
        plan = self._plans().find(user.plan)
        if plan is None or not plan.allowances:
            return ()
        return None if plan.limits_units else self._accounts.take(user.id, plan, cost)

    async def admit_with(self, executor: LimitsExecutor, user: User, cost: int) -> States:
        """Admit a request for which `admit_nowait` has returned None."""
        plan = self._plans().find(user.plan)
        if plan is None or not plan.allowances:
            return ()  # the plans have just changed
        self._start_sweeper()
        states: States = ()
        to_read = [allowance for allowance in plan.allowances if allowance.measure == "units" or cost == 0]
        if to_read:
            states = await self._read(executor, user, plan, to_read)
        return await self._wait(executor, user, plan, cost) if cost else states

    async def charge_with(self, executor: LimitsExecutor, user: User, units: int) -> None:
        """Charge units like `charge`."""
        if units < 0:
            raise ValueError("the number of units must be 0 or more")
        notice_fork()
        charges = self._make_charges(user, units)
        if charges:
            await executor.draw(charges)

    def charge_all(self, units: Sequence[tuple[User, int]]) -> None:
        """Count the units of several users, like `charge`, in one transaction. Skip users whose plan is unknown."""
        charges = []
        for user, number in units:
            with suppress(ConfigurationError):
                charges.append(self._make_charges(user, number))
        if any(charges):
            self.execute(charges, time.monotonic() + DRAW_TIMEOUT_SECONDS)

    def _make_charges(self, user: User, units: int) -> Charges:
        plan = self.find_plan(user)
        if plan is None or not plan.limits_units or not units:
            return ()
        return tuple(
            attrs.evolve(Draw.from_allowance(user.id, allowance, units), limit=None)
            for allowance in plan.allowances
            if allowance.measure == "units"
        )

    def read(self, draws: Sequence[Draw]) -> Sequence[Drawn | None]:
        return self._allowances.read(draws)

    def execute(self, items: Sequence[PendingDraw | Charges], commit_by: float) -> list[None]:
        """Make the draws of several requests in one transaction, and serve the requests that wait for them.

        Args:
            items: the draws and charges of each request.
            commit_by: see `Allowances.draw`.
        """
        begun = [item for item in items if not isinstance(item, PendingDraw) or self._accounts.begin(item)]
        draws = [_draws_of(item) for item in begun]
        before = self._monotonic()
        try:
            results = iter(self._allowances.draw([each for some in draws for each in some], commit_by=commit_by))
        except BaseException as error:
            self._fail([item for item in begun if isinstance(item, PendingDraw)], error)
            raise
        returns: list[Draw] = []
        for item, some in zip(begun, draws, strict=True):
            own = [next(results) for _ in some]
            if isinstance(item, PendingDraw):
                returns += self._accounts.finish(item, own, before)
        self._give_back(returns)
        return [None] * len(items)

    async def _read(self, executor: LimitsExecutor, user: User, plan: Plan, allowances: Sequence[Allowance]) -> States:
        draws = [Draw.from_allowance(user.id, allowance, 0) for allowance in allowances]
        before = self._monotonic()
        results = await executor.read(draws)
        found = [(allowance, drawn) for allowance, drawn in zip(allowances, results, strict=True) if drawn is not None]
        if len(found) < len(allowances):
            raise InvalidTokenError
        return self._accounts.record(user.id, plan, found, before)

    async def _wait(self, executor: LimitsExecutor, user: User, plan: Plan, cost: int) -> States:
        signal = executor.new_signal()
        waiter = self._accounts.wait(user.id, plan, cost, signal.notify)
        try:
            while (outcome := waiter.outcome) is None:
                if (pending := self._accounts.start(waiter)) is not None:
                    await executor.draw(pending)
                elif waiter.outcome is None:
                    await signal.wait()
        except RepositoryUnavailableError as error:
            self._accounts.leave(waiter)
            raise _as_not_executed(error) from None
        except BaseException:
            self._accounts.leave(waiter)
            raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _fail(self, pending: Sequence[PendingDraw], error: BaseException) -> None:
        if isinstance(error, ReadOnlyRepositoryError):
            self._warnings.log(_READ_ONLY)
        if isinstance(error, RepositoryUnavailableError):
            error = _as_not_executed(error)
        for each in pending:
            self._accounts.fail(each, error if isinstance(error, Exception) else TIMED_OUT)

    def _give_back(self, draws: Sequence[Draw], *, attempts: int = 1) -> None:
        for start in range(0, len(draws), _MAX_RETURNS):
            self._give_back_some(draws[start : start + _MAX_RETURNS], attempts)

    def _give_back_some(self, draws: Sequence[Draw], attempts: int) -> None:
        try:
            self._allowances.draw(draws, commit_by=time.monotonic() + DRAW_TIMEOUT_SECONDS)
        except MlapiError as error:
            may_be_done = isinstance(error, RepositoryUnavailableError) and error.may_be_done
            if attempts > 1 and not may_be_done:
                self._give_back_some(draws, attempts - 1)
            else:
                self._warnings.log(f"unused requests could not be given back, so users have lost them: {error}")

    def _start_sweeper(self) -> None:
        if self._sweeper is None:
            with self._lock:
                if self._sweeper is None:  # pragma: no branch - another thread may have been first
                    self._sweeper = threading.Thread(target=self._sweep, name="mlapi-limits", daemon=True)
                    self._sweeper.start()
                    self._forget_exit()
                    self._forget_exit = call_at_exit(self.close)

    def _sweep(self) -> None:
        """Give back the leases of users who have stopped sending requests. End when there are no more users."""
        closing = self._closing
        while not closing.wait(IDLE_SECONDS):
            self._give_back(self._accounts.take_returns(self._accounts.evict_idle()))
            with self._lock:
                if self._accounts.is_empty:
                    self._sweeper = None
                    return


class _InlineExecutor:
    """Runs every step in the calling thread."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def new_signal(self) -> "_ThreadSignal":
        return _ThreadSignal()

    async def read(self, draws: Sequence[Draw]) -> Sequence[Drawn | None]:
        return self._limiter.read(draws)

    async def draw(self, item: PendingDraw | Charges) -> None:
        self._limiter.execute([item], time.monotonic() + DRAW_TIMEOUT_SECONDS)


class _ThreadSignal:
    """Wakes a waiting thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.notify = self._event.set

    async def wait(self) -> None:
        if not self._event.wait(DRAW_TIMEOUT_SECONDS):
            raise attrs.evolve(TIMED_OUT)
        self._event.clear()


def _draws_of(item: PendingDraw | Charges) -> Sequence[Draw]:
    return item.draws if isinstance(item, PendingDraw) else item


def _as_not_executed(error: RepositoryUnavailableError) -> RepositoryUnavailableError:
    """Return the error for a request that was not admitted. Whether its draws are stored does not matter to clients."""
    return attrs.evolve(error, may_be_done=False)
