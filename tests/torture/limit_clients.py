"""Clients that count which of their requests were granted, in windows of the database's clock.

The database runs on this machine, so its clock is `time.time`.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from http.client import HTTPConnection, HTTPException

import attrs

from mlapi import UserId, Users
from mlapi.adapters.memory import PlainCipher
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.domain.allowances import Draw
from mlapi.domain.plans import Allowance, Plan, Plans, Window, lease_size
from tests.torture.clients import TIMEOUT_SECONDS

ACTIVE_USERS = 3
"""Number of users of each plan who send requests at the same time."""
RECENT_SECONDS = 20.0
"""A process gives back a user's leases within this time after the user's last request."""
_PROBE_PROBABILITY = 0.02

Span = tuple[int, int]
"""The start of the window in which a request was sent, and of the window in which its response arrived."""


@attrs.frozen
class LimitedPlan:
    """A plan with one allowance.

    Attributes:
        name: the name in the configuration.
        allowance: its allowance.
        drawn_first: the number of requests of each window that another process uses first.
    """

    name: str
    allowance: Allowance
    drawn_first: int = 0


def make_plan(window: Window, limit: int, drawn_first: int = 0) -> LimitedPlan:
    return LimitedPlan(f"{window.value}-{limit}", Allowance("requests", window, limit), drawn_first)


@attrs.define(eq=False)
class LimitedUser:
    """A user, and the requests that were granted to the clients and to another process.

    Attributes:
        granted: the number of responses with status 200. Each client has its own counter.
        drawn: the number of requests of each window that another process has drawn.
        rejected_until: the time of the next attempt, on the clock of `time.time`.
        granted_at: the time of the latest grant.
        kills: the number of killed processes that may have had a lease of this user.
    """

    id: UserId
    api_key: str
    plan: LimitedPlan
    granted: list[Counter[Span]] = attrs.field(factory=list)
    drawn: Counter[int] = attrs.field(factory=Counter)
    unanswered: int = 0
    rejected_until: float = 0.0
    granted_at: float = 0.0
    kills: int = 0

    @property
    def answers(self) -> int:
        return sum(counter.total() for counter in self.granted)

    def draw_first(self, storage: SqlStorage) -> None:
        """Use requests of the current window in the test process, which is never killed."""
        allowance = self.plan.allowance
        if self.plan.drawn_first and not self.drawn[allowance.window.start_of(time.time())]:
            (drawn,) = storage.allowances.draw([Draw.from_allowance(self.id, allowance, self.plan.drawn_first)])
            assert drawn is not None
            self.drawn[drawn.starts_at] += drawn.granted

    def count_excess(self) -> int:
        """Return the smallest number of requests by which the allowance must have been exceeded.

        A request that was sent in one window and answered in another may count in either.
        """
        limit, spans = self.plan.allowance.limit, sum(self.granted, Counter[Span]())
        loads = Counter(self.drawn)
        for (sent, received), count in sorted(spans.items()):
            if sent == received:
                loads[sent] += count
        for (sent, received), count in sorted(spans.items()):
            if sent != received:
                earlier = max(0, min(count, limit - loads[sent]))
                loads[sent] += earlier
                loads[received] += count - earlier
        return sum(max(0, load - limit) for load in loads.values())

    def count_lost(self, used: int) -> int:
        """Return the number of requests that were counted, but not granted. The test must run in a single window."""
        return used - self.answers - self.drawn.total()

    @property
    def max_lost(self) -> int:
        """One lease for each killed process, and the requests that it admitted without sending a response."""
        return lease_size(self.plan.allowance.limit) * self.kills + self.unanswered


class UserPool:
    """The users of a plan. A few send requests at the same time, and are replaced when they reach the limit."""

    def __init__(self, users: Sequence[LimitedUser]) -> None:
        self.users = users
        self._rng = random.Random(len(users))

    def choose(self) -> LimitedUser | None:
        """Return the user for the next request. Some have reached their limit, so the request must be rejected."""
        now = time.time()
        if self._rng.random() < _PROBE_PROBABILITY:
            return self._rng.choice(self.users)
        active: list[LimitedUser] = []
        for user in self.users:
            if user.rejected_until <= now:
                active.append(user)
                if len(active) == ACTIVE_USERS:
                    break
        return self._rng.choice(active) if active else None

    def note_kill(self) -> None:
        for user in self.users:
            if user.granted_at > time.time() - RECENT_SECONDS:
                user.kills += 1


class LimitClient:
    """Sends the requests of the users of a plan to one worker, one at a time. It reconnects after a kill."""

    def __init__(self, pool: UserPool, port: int) -> None:
        self._pool = pool
        self._port = port
        self._granted = {user.id: Counter[Span]() for user in pool.users}
        for user in pool.users:
            user.granted.append(self._granted[user.id])
        self.refused = 0
        self.unexpected: list[tuple[int, bytes]] = []

    def work(self, stop: threading.Event) -> None:
        connection = self._connect()
        while not stop.is_set():
            user = self._pool.choose()
            if user is None:
                time.sleep(0.01)
                continue
            try:
                connection.connect() if connection.sock is None else None
            except OSError:
                time.sleep(0.01)
                continue
            try:
                self._send(connection, user)
            except (OSError, HTTPException):
                user.unanswered += 1
                connection.close()
                connection = self._connect()
        connection.close()

    def _connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)

    def _send(self, connection: HTTPConnection, user: LimitedUser) -> None:
        window = user.plan.allowance.window
        sent = window.start_of(time.time())
        connection.request("GET", "/predict", headers={"X-API-Key": user.api_key})
        response = connection.getresponse()
        body = response.read()
        now = time.time()
        if response.status == 200:
            self._granted[user.id][sent, window.start_of(now)] += 1
            user.granted_at = now
        elif response.status == 429:
            self.refused += 1
            user.rejected_until = now + int(response.headers["Retry-After"])
        else:
            self.unexpected.append((response.status, body))


def add_users(storage: SqlStorage, plan: LimitedPlan, count: int) -> list[LimitedUser]:
    """Register users with a plan and an API key."""
    plans = Plans({plan.name: Plan(plan.name, (plan.allowance,))})
    users = Users(storage.users, PlainCipher(), plans=lambda: plans)
    added = []
    for number in range(count):
        user = users.register(username=f"{plan.name}-{number}", password="x", email="user@example.com", plan=plan.name)
        _, secret = users.add_api_key(user_id=user.id, name="test")
        added.append(LimitedUser(user.id, secret, plan))
    return added


def render_plans(plans: Iterable[LimitedPlan]) -> str:
    """Return the configuration of the plans."""
    lines = [f"  {plan.name}: {{per_{plan.allowance.window.value}: {plan.allowance.limit}}}\n" for plan in plans]
    return "plans:\n" + "".join(lines)
