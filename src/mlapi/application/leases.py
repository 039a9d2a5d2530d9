"""The requests that this process has drawn from allowances: leases, from which it serves users without the database.

A lease is valid until its window ends. The process measures that with its monotonic clock from before it asked the
database, so it never serves a request after the window has ended on the database's clock.
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
REFUSAL_SECONDS = 1.0
"""How long a used-up allowance is remembered. Another process may have given some of it back since."""
MAX_LEASE_SECONDS = 300.0
"""Renew older leases: the database's clock may run faster, and the monotonic clock stops while a machine sleeps."""

TIMED_OUT = RepositoryUnavailableError("the database did not answer in time")

States = tuple[AllowanceState, ...]
Outcome = States | Exception


@attrs.define(eq=False)
class Lease:
    """What this process knows about an allowance of a user, and what it has drawn from it. Times are monotonic."""

    allowance: Allowance
    in_hand: int = 0
    """Drawn, and not used yet."""
    left: int = 0
    """Not drawn by any process when the database was last asked. Negative if too many units were charged."""
    starts_at: int = 0
    """The start of the window, in seconds since 1970 on the database's clock."""
    expires: float = float("-inf")
    """The window has not ended before this time."""
    resets: float = float("-inf")
    """The window has ended at this time. Clients may retry then."""
    renew_at: float = float("-inf")
    """Draw again after this time."""
    refused_cost: int = 0
    """Requests of this cost or more are refused until `refused_until`."""
    refused_until: float = float("-inf")

    def record(self, drawn: Drawn, before: float, after: float) -> None:
        """Record the result of a draw that was made between two times."""
        expires = before + drawn.ends_in_seconds
        if drawn.starts_at != self.starts_at:
            self.in_hand = 0
        self.expires = min(self.expires, expires) if self.in_hand else expires
        self.in_hand += drawn.granted
        self.resets = after + drawn.ends_in_seconds
        self.renew_at = min(self.expires, before + MAX_LEASE_SECONDS)
        self.starts_at = drawn.starts_at
        self.left = self.allowance.limit - drawn.used

    def refuse(self, now: float) -> None:
        """Remember that no more is left than is known."""
        self.refused_cost = self.in_hand + max(0, self.left) + 1
        self.refused_until = min(now + REFUSAL_SECONDS, self.expires)

    def state(self, now: float) -> AllowanceState:
        reset_seconds = ceil(self.resets - now)
        left = self.in_hand + self.left
        return AllowanceState(self.allowance, max(0, left), max(1, reset_seconds))

    def take_draws(self, user_id: UserId, cost: int, now: float) -> list[Draw]:
        """Return the draws that are needed to serve a request. A lease that must be renewed is given back first."""
        returned = []
        if now >= self.renew_at:
            returned = self.take_all(user_id, now)
        wanted = max(lease_size(self.allowance.limit), cost) - self.in_hand
        draw = Draw.from_allowance(user_id, self.allowance, wanted, at_least=cost - self.in_hand)
        return [*returned, draw]

    def take_all(self, user_id: UserId, now: float) -> list[Draw]:
        """Return the draw that gives back everything in hand, if there is anything and the window has not ended."""
        in_hand, self.in_hand = self.in_hand, 0
        if not in_hand or now >= self.expires:
            return []
        return [Draw.from_allowance(user_id, self.allowance, -in_hand, starts_at=self.starts_at)]


@attrs.define(eq=False)
class Waiter:
    """A request that waits for a draw.

    Attributes:
        notify: called when there is an outcome, or when the request has to draw: not while it draws.
        outcome: what the request gets; None while it waits.
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
    """The draws for one user that are queued or running. ``leases`` has None for those that give something back."""

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
    """The leases of requests, then those of units. Of units, none are drawn in advance."""
    returns: list[Draw] = attrs.field(factory=list)
    """Draws that give back leases of a former plan."""
    waiting: deque[Waiter] = attrs.field(factory=deque)
    pending: PendingDraw | None = None
    is_forgotten: bool = False

    def adopt(self, plan: Plan, now: float) -> None:
        """Use the allowances of a plan. Leases of equal allowances are kept; the others will be given back."""
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
        """Return the draws that give back everything in hand."""
        self.give_back(self.requests, now)
        returns, self.returns = self.returns, []
        return returns

    def states(self, now: float) -> States:
        """Return the states of the allowances whose current window is known."""
        return tuple([lease.state(now) for lease in self.all if now < lease.resets])


def refusal(blocked: Sequence[Lease], states: States, now: float) -> RequestLimitReachedError:
    """Return the error for a request, given the leases of used-up allowances and the states of all."""
    latest = max(blocked, key=lambda lease: lease.resets)
    return RequestLimitReachedError(latest.allowance, latest.state(now).reset_seconds, states)
