"""Leases: requests that this process has drawn from allowances, and from which it serves users without the database.

A lease is valid until its window ends. The process measures this time with its monotonic clock, starting before the
draw. It therefore never serves a request after the window has ended on the database's clock.
"""

import enum
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import ceil

import attrs

from mlapi.domain.allowances import Draw, Drawn
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.plans import Allowance, AllowanceState, Plan, RequestLimitReachedError, lease_size
from mlapi.domain.users import UserId

DRAW_TIMEOUT_SECONDS = 5.0
REJECTION_SECONDS = 1.0
"""How long requests are rejected without a draw. After that, another process may have given requests back."""
MAX_LEASE_SECONDS = 300.0
"""Older leases are renewed: the database's clock may run faster, and the monotonic clock stops during sleep."""

TIMED_OUT = RepositoryUnavailableError("the database did not answer in time")

States = tuple[AllowanceState, ...]
Outcome = States | Exception


@attrs.define(eq=False)
class Lease:
    """The part of a user's allowance that this process has drawn, and the rest as it was last read.

    All times are monotonic, except ``starts_at``.
    """

    allowance: Allowance
    in_hand: int = 0
    """The number of drawn requests that have not been used yet."""
    left: int = 0
    """The number that no process had drawn at the last draw or read. Negative if charged units exceed the limit."""
    starts_at: int = 0
    """The start of the window, in seconds since 1970 on the database's clock."""
    expires: float = float("-inf")
    """The earliest time at which the window may end. The lease is not used after it."""
    resets: float = float("-inf")
    """The latest time at which the window may end. Clients are told to retry then."""
    renew_at: float = float("-inf")
    """Draw again after this time."""
    rejected_cost: int = 0
    """Requests of this cost or more are rejected until `rejected_until`."""
    rejected_until: float = float("-inf")

    def record(self, drawn: Drawn, before: float, after: float) -> None:
        """Record the result of a draw that was made between the times ``before`` and ``after``."""
        expires = before + drawn.ends_in_seconds
        if drawn.starts_at != self.starts_at:
            self.in_hand = 0
        self.expires = min(self.expires, expires) if self.in_hand else expires
        self.in_hand += drawn.granted
        self.resets = after + drawn.ends_in_seconds
        self.renew_at = min(self.expires, before + MAX_LEASE_SECONDS)
        self.starts_at = drawn.starts_at
        self.left = self.allowance.limit - drawn.used

    def mark_used_up(self, now: float) -> None:
        """Reject requests that cost more than the remaining number, until `rejected_until`."""
        self.rejected_cost = self.in_hand + max(0, self.left) + 1
        self.rejected_until = min(now + REJECTION_SECONDS, self.expires)

    def state(self, now: float) -> AllowanceState:
        reset_seconds = ceil(self.resets - now)
        left = self.in_hand + self.left
        return AllowanceState(self.allowance, max(0, left), max(1, reset_seconds))

    def take_draws(self, user_id: UserId, cost: int, now: float) -> list[Draw]:
        """Return the draws that a request needs. To renew a lease, the first draw gives it back."""
        returned = []
        if now >= self.renew_at:
            returned = self.take_all(user_id, now)
        wanted = max(lease_size(self.allowance.limit), cost) - self.in_hand
        draw = Draw.from_allowance(user_id, self.allowance, wanted, at_least=cost - self.in_hand)
        return [*returned, draw]

    def take_all(self, user_id: UserId, now: float) -> list[Draw]:
        """Return a draw that gives back all unused requests. Return none if there are none, or the window has ended."""
        in_hand, self.in_hand = self.in_hand, 0
        if not in_hand or now >= self.expires:
            return []
        return [Draw.from_allowance(user_id, self.allowance, -in_hand, starts_at=self.starts_at)]


@attrs.define(eq=False)
class Waiter:
    """A request that waits for a draw.

    Attributes:
        notify: called when the request has an outcome, or when it must draw. Not called while it draws.
        outcome: the states of the allowances, or the error for the request; None while it waits.
    """

    account: "Account"
    plan: Plan
    cost: int
    notify: Callable[[], None]
    outcome: Outcome | None = None
    taken: tuple[tuple[Lease, int], ...] = ()
    """The leases that served it, and their windows."""


class DrawState(enum.Enum):
    QUEUED = enum.auto()
    RUNNING = enum.auto()
    OVER = enum.auto()


@attrs.define(eq=False)
class PendingDraw:
    """The queued or running draws of one user. ``leases`` contains the lease of each draw, or None if it gives back."""

    waiter: Waiter
    draws: list[Draw]
    leases: list[Lease | None]
    started_monotonic: float
    state: DrawState = DrawState.QUEUED


@attrs.define(eq=False)
class Account:
    """The leases and the waiting requests of a user."""

    user_id: UserId
    plan: Plan | None = None
    requests: tuple[Lease, ...] = ()
    all: tuple[Lease, ...] = ()
    """The leases of requests, then the leases of units, which are always empty: units are not drawn in advance."""
    returns: list[Draw] = attrs.field(factory=list)
    """Draws that give back leases of a former plan."""
    waiting: deque[Waiter] = attrs.field(factory=deque)
    pending: PendingDraw | None = None
    is_evicted: bool = False

    def adopt(self, plan: Plan, now: float) -> None:
        """Change to the allowances of a plan. Keep the leases of allowances in both plans, and give back the others."""
        if plan != self.plan:
            known = {lease.allowance: lease for lease in self.all}
            leases = [known.pop(each) if each in known else Lease(each) for each in plan.allowances]
            self.requests = tuple(lease for lease in leases if lease.allowance.measure == "requests")
            self.all = (*self.requests, *(lease for lease in leases if lease.allowance.measure == "units"))
            self.give_back(known.values(), now)
        self.plan = plan

    def give_back(self, leases: Iterable[Lease], now: float) -> None:
        for lease in leases:
            self.returns += lease.take_all(self.user_id, now)

    def take_returns(self, now: float) -> list[Draw]:
        """Return the draws that give back all unused requests."""
        self.give_back(self.requests, now)
        returns, self.returns = self.returns, []
        return returns

    def states(self, now: float) -> States:
        """Return the states of the allowances whose current window is known."""
        return tuple([lease.state(now) for lease in self.all if now < lease.resets])


def limit_error(blocked: Sequence[Lease], states: States, now: float) -> RequestLimitReachedError:
    """Return the error for a request. ``blocked`` contains the leases of the used-up allowances."""
    latest = max(blocked, key=lambda lease: lease.resets)
    return RequestLimitReachedError(latest.allowance, latest.state(now).reset_seconds, states)
