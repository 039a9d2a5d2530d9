"""The accounts of all users who have recently sent a request to this process.

Each user has at most one pending draw. Further requests of the user wait for it, and are served in order.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import copy

import attrs

from mlapi.application.leases import (
    DRAW_TIMEOUT_SECONDS,
    TIMED_OUT,
    Account,
    DrawState,
    Lease,
    Outcome,
    PendingDraw,
    States,
    Waiter,
    limit_error,
)
from mlapi.domain.allowances import Draw, Drawn
from mlapi.domain.errors import InvalidTokenError, ServiceUnavailableError
from mlapi.domain.plans import Allowance, Plan
from mlapi.domain.users import UserId
from mlapi.forks import call_in_children, new_lock


class Accounts:
    """The accounts of all users. Thread-safe. `evict_idle` removes the users who have stopped sending requests.

    Args:
        monotonic: returns the time in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = new_lock()
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        """Start without leases. After a fork, the parent keeps its leases."""
        self._recent: dict[UserId, Account] = {}
        self._former: dict[UserId, Account] = {}
        self._is_closed = False

    def take(self, user_id: UserId, plan: Plan, cost: int) -> States | None:
        """Serve a request from a lease. Return None if it needs the database, or must wait for earlier requests.

        Raises:
            RequestLimitReachedError: if this process knows that an allowance is used up.
        """
        with self._lock:
            account = self._recent.get(user_id) or self._open(user_id, plan)
            if account.waiting:
                return None
            now = self._monotonic()
            if account.plan is not plan:
                account.adopt(plan, now)
            outcome = self._try_take(account, cost, now)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def wait(self, user_id: UserId, plan: Plan, cost: int, notify: Callable[[], None]) -> Waiter:
        """Add a request to the user's queue. Call `start` immediately, and again whenever ``notify`` is called."""
        with self._lock:
            account = self._recent.get(user_id) or self._open(user_id, plan)
            waiter = Waiter(account, plan, cost, notify)
            account.waiting.append(waiter)
            return waiter

    def start(self, waiter: Waiter) -> PendingDraw | None:
        """Return the draws that a request must make, or None if it has an outcome or must wait for another draw."""
        account = waiter.account
        with self._lock:
            now = self._monotonic()
            pending = account.pending
            if pending is not None and now - pending.started_monotonic > DRAW_TIMEOUT_SECONDS:
                self._give_up(pending)
            if account.pending is None:
                self._serve(account, now, current=waiter)
            if waiter.outcome is not None or account.pending is not None or account.waiting[0] is not waiter:
                return None
            return self._make_draws(account, waiter, now)

    def begin(self, pending: PendingDraw) -> bool:
        """Return whether to make these draws. If the request has been canceled, do not make them."""
        with self._lock:
            if pending.state is not DrawState.QUEUED:
                return False
            pending.state = DrawState.RUNNING
            return True

    def finish(self, pending: PendingDraw, results: Sequence[Drawn | None], before: float) -> list[Draw]:
        """Record the results of draws, and serve the waiting requests.

        Args:
            pending: the draws.
            results: the result of each draw.
            before: a monotonic time before the draws were made.

        Returns:
            Draws that give the requests back, if the user has been evicted in the meantime.
        """
        account = pending.waiter.account
        with self._lock:
            if pending.state is DrawState.OVER:
                return []
            pending.state, account.pending = DrawState.OVER, None
            now = self._monotonic()
            granted = [
                (lease, drawn) for lease, drawn in zip(pending.leases, results, strict=True) if lease is not None
            ]
            for lease, drawn in granted:
                if drawn is None:  # the user was removed
                    self._fail(pending, InvalidTokenError())
                    return []
                lease.record(drawn, before, now)
                if lease.in_hand < pending.waiter.cost:
                    lease.mark_used_up(now)
            account.give_back([lease for lease, _ in granted if lease not in account.requests], now)
            self._serve(account, now, current=pending.waiter)
            return account.take_returns(now) if account.is_evicted else []

    def fail(self, pending: PendingDraw, error: Exception) -> None:
        """Fail all requests that wait for these draws. Requests that the draws may have granted are lost."""
        with self._lock:
            if pending.state is not DrawState.OVER:
                pending.state, pending.waiter.account.pending = DrawState.OVER, None
                self._fail(pending, error)

    def leave(self, waiter: Waiter) -> None:
        """Remove a canceled request from the queue. If it has been served in the meantime, put back what it took."""
        account = waiter.account
        with self._lock:
            for lease, starts_at in waiter.taken:
                if lease.starts_at == starts_at:
                    lease.in_hand += waiter.cost
            waiter.taken = ()
            if waiter in account.waiting:
                account.waiting.remove(waiter)
            pending = account.pending
            if pending is not None and pending.waiter is waiter and pending.state is DrawState.QUEUED:
                pending.state, account.pending = DrawState.OVER, None
            if account.pending is None:
                self._serve(account, self._monotonic())

    def record(self, user_id: UserId, plan: Plan, results: Sequence[tuple[Allowance, Drawn]], before: float) -> States:
        """Record the counts that were read from the database, and return the states of all allowances.

        Raises:
            RequestLimitReachedError: if one of these allowances is used up.
        """
        with self._lock:
            account = self._recent.get(user_id) or self._open(user_id, plan)
            now = self._monotonic()
            account.adopt(plan, now)
            leases = {lease.allowance: lease for lease in account.all}
            for allowance, drawn in results:
                lease = leases[allowance]
                if drawn.starts_at >= lease.starts_at or now >= lease.expires:
                    lease.record(attrs.evolve(drawn, granted=0), before, now)
                if lease.in_hand + lease.left < 1:
                    lease.mark_used_up(now)
            blocked = [lease for lease in leases.values() if now < lease.rejected_until and lease.rejected_cost <= 1]
            states = account.states(now)
        if blocked:
            raise limit_error(blocked, states, now)
        return states

    @property
    def is_empty(self) -> bool:
        return not (self._recent or self._former)

    def evict_idle(self) -> list[Account]:
        """Remove and return the users without requests since the call before the last.

        The caller gives back their leases.
        """
        with self._lock:
            idle, self._former, self._recent = self._former, self._recent, {}
            return list(idle.values())

    def close(self) -> list[Account]:
        """Remove and return all users. The caller gives back their leases."""
        with self._lock:
            self._is_closed = True
            accounts = [*self._recent.values(), *self._former.values()]
            self._recent, self._former = {}, {}
            return accounts

    def take_returns(self, accounts: Iterable[Account]) -> list[Draw]:
        """Return the draws that give back the leases of evicted users."""
        returns: list[Draw] = []
        for account in accounts:
            with self._lock:  # once per user, so that requests do not wait for thousands of users
                account.is_evicted = True
                returns += account.take_returns(self._monotonic())
        return returns

    def _open(self, user_id: UserId, plan: Plan) -> Account:
        if self._is_closed:
            raise ServiceUnavailableError("the guard is closed")
        account = self._former.pop(user_id, None)
        if account is None:
            account = Account(user_id)
            account.adopt(plan, self._monotonic())
        self._recent[user_id] = account
        return account

    @staticmethod
    def _try_take(account: Account, cost: int, now: float) -> Outcome | None:
        """Take a request from all leases, or from none. Return None if a lease must be renewed."""
        needed = cost or 1
        leases = account.requests
        for lease in leases:
            if lease.in_hand < needed or now >= lease.renew_at:
                break
        else:
            for lease in leases:
                lease.in_hand -= cost
            return tuple([lease.state(now) for lease in account.all])
        blocked = [lease for lease in leases if now < lease.rejected_until and needed >= lease.rejected_cost]
        return limit_error(blocked, account.states(now), now) if blocked else None

    def _serve(self, account: Account, now: float, *, current: Waiter | None = None) -> None:
        """Serve the waiting requests in order, until one must draw. Notify each request except the current one."""
        while account.waiting:
            waiter = account.waiting[0]
            if account.plan is not waiter.plan:
                account.adopt(waiter.plan, now)
            waiter.outcome = self._try_take(account, waiter.cost, now)
            if waiter is not current:
                waiter.notify()
            if waiter.outcome is None:
                return
            if not isinstance(waiter.outcome, Exception):
                waiter.taken = tuple((lease, lease.starts_at) for lease in account.requests)
            account.waiting.popleft()

    @staticmethod
    def _give_up(pending: PendingDraw) -> None:
        """Stop waiting for draws whose outcome is unknown. Requests that they may have granted are lost."""
        account, waiter = pending.waiter.account, pending.waiter
        pending.state, account.pending = DrawState.OVER, None
        if waiter in account.waiting:
            account.waiting.remove(waiter)
            waiter.outcome = copy(TIMED_OUT)

    @staticmethod
    def _fail(pending: PendingDraw, error: Exception) -> None:
        waiting = pending.waiter.account.waiting
        while waiting:
            waiter = waiting.popleft()
            waiter.outcome = copy(error)  # raising an exception modifies its traceback
            if waiter is not pending.waiter:
                waiter.notify()

    @staticmethod
    def _make_draws(account: Account, waiter: Waiter, now: float) -> PendingDraw:
        draws, account.returns = account.returns, []
        leases: list[Lease | None] = [None] * len(draws)
        for lease in account.requests:
            if lease.in_hand < waiter.cost or now >= lease.renew_at:
                needed = lease.take_draws(account.user_id, waiter.cost, now)
                draws += needed
                leases += [*[None] * (len(needed) - 1), lease]
        account.pending = PendingDraw(waiter, draws, leases, now)
        return account.pending
