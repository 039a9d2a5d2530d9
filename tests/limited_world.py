"""A simulated database with a clock and plans, for tests of limits in several processes."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from mlapi.adapters.memory import InMemoryAllowances
from mlapi.application.limits import Limiter
from mlapi.domain.allowances import Draw, Drawn
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.plans import Allowance, Plan, Plans, RequestLimitReachedError, Window
from mlapi.domain.users import EncryptedPassword, User, UserId

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE_60 = Allowance("requests", Window.MINUTE, 60)
DAY_100 = Allowance("requests", Window.DAY, 100)
UNITS = Allowance("units", Window.DAY, 1000)


def make_user(user_id: int = 1, plan: str | None = "free") -> User:
    return User(
        id=UserId(user_id),
        username="ada",
        password=EncryptedPassword(""),
        email="ada@example.com",
        enabled=True,
        created_datetime=NOON,
        updated_datetime=NOON,
        token_epoch="",
        plan=plan,
    )


USER = make_user()


class World:
    """A database, its clock, and the plans that all processes use."""

    def __init__(self, *allowances: Allowance) -> None:
        self.now = NOON.timestamp()
        self.plans = Plans({"free": Plan("free", allowances)}, "free")
        self.removed: set[UserId] = set()
        self.database = InMemoryAllowances(lambda user_id: user_id not in self.removed, clock=lambda: self.now)
        self.draws: list[Sequence[Draw]] = []
        self.latency_seconds = 0.0
        self.errors: list[Exception] = []
        self.before_draw: Callable[[], None] = lambda: None
        self.after_draw: Callable[[], None] = lambda: None

    def start_process(self) -> Limiter:
        return Limiter(self, lambda: self.plans, monotonic=lambda: self.now)

    def set_plan(self, *allowances: Allowance) -> None:
        self.plans = Plans({"free": Plan("free", allowances)}, "free")

    def draw(self, requests: Sequence[Draw], *, commit_by: float | None = None) -> list[Drawn | None]:
        self.before_draw()
        self.draws.append(requests)
        self.now += self.latency_seconds
        if self.errors:
            error = self.errors.pop()
            if isinstance(error, RepositoryUnavailableError) and error.may_be_done:
                self.database.draw(requests)
            raise error
        results = self.database.draw(requests, commit_by=commit_by)
        self.now += self.latency_seconds
        self.after_draw()
        return results

    def read(self, requests: Sequence[Draw]) -> list[Drawn | None]:
        return self.database.read(requests)

    def used(self, allowance: Allowance, user: User = USER) -> int:
        (drawn,) = self.database.read([Draw.from_allowance(user.id, allowance, 0)])
        assert drawn is not None
        return drawn.used


def count_admitted(limiter: Limiter, attempts: int, user: User = USER) -> int:
    admitted = 0
    for _ in range(attempts):
        try:
            limiter.admit(user)
        except RequestLimitReachedError:
            continue
        admitted += 1
    return admitted
