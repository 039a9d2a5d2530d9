"""The guard counts requests, decisions and charged units."""

import asyncio
from datetime import timedelta
from typing import Any

import attrs
import pytest

from mlapi import Guard, InvalidTokenError, User, UserDisabledError, Users
from mlapi.adapters.memory import InMemoryTokens, InMemoryUsage, InMemoryUserRepository, PlainCipher
from mlapi.application import guard as guard_module
from mlapi.bootstrap import async_guard
from mlapi.domain.usage import UsageRow
from mlapi.testing import ImmediateUsage, SettableClock, make_limiter, make_plans

SECOND = timedelta(seconds=1)


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def users(clock: SettableClock) -> Users:
    return Users(InMemoryUserRepository(), PlainCipher(), clock=clock)


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password="difference engine", email="ada@example.com")


@pytest.fixture
def tokens(clock: SettableClock) -> InMemoryTokens:
    return InMemoryTokens(clock=clock)


@pytest.fixture
def token(tokens: InMemoryTokens, ada: User) -> str:
    return tokens.issue(ada).token


@pytest.fixture
def key(users: Users, ada: User) -> str:
    _, secret = users.add_api_key(user_id=ada.id, name="job")
    return secret


@pytest.fixture
def usage() -> InMemoryUsage:
    return InMemoryUsage()


@pytest.fixture
def guard(users: Users, tokens: InMemoryTokens, clock: SettableClock, usage: InMemoryUsage) -> Guard:
    """A guard that records usage, but not the last use of API keys."""
    return Guard(users.repository, tokens, clock=clock, usage=ImmediateUsage(usage))


def test_requests_and_key_uses_are_passed_to_the_recorder(
    guard: Guard, usage: InMemoryUsage, users: Users, key: str, clock: SettableClock
) -> None:
    (stored,) = users.list_api_keys(guard.identify(key).id)
    before = clock.now

    guard.check(key)
    clock.now += SECOND
    guard.check(key)

    assert usage.list_page(limit=10) == [
        UsageRow(day=before.date(), user_id=stored.user_id, key_id=stored.id, requests=2, seen_datetime=before + SECOND)
    ]
    assert users.list_api_keys(stored.user_id) == [stored]


def test_only_admitted_requests_are_usage(
    guard: Guard, usage: InMemoryUsage, users: Users, key: str, token: str
) -> None:
    user = guard.admit(token).user
    guard.admit(key, cost=0)
    guard.identify(key)
    users.set_enabled(user_id=user.id, enabled=False)

    with pytest.raises(UserDisabledError):
        guard.admit(key)
    with pytest.raises(InvalidTokenError):
        guard.check("forged")

    assert [(row.key_id, row.requests) for row in usage.list_page(limit=10)] == [(None, 1)]
    assert guard.decisions == {"admitted": 2, "user_disabled": 1, "invalid_token": 1}


def test_charged_units_are_usage_of_the_user_and_key(guard: Guard, usage: InMemoryUsage, key: str, token: str) -> None:
    guard.admit(key).charge(12)
    guard.charge(guard.check(token), 5)

    assert [(row.key_id, row.requests, row.units) for row in usage.list_page(limit=10)] == [
        (None, 1, 5),
        (key.split("_")[1], 1, 12),
    ]


@pytest.mark.parametrize("units", [-1, 2**53, 1.5, True, "1"])
def test_units_must_be_whole_numbers(guard: Guard, key: str, units: Any) -> None:
    with pytest.raises(ValueError, match="units must be a whole number"):
        guard.admit(key).charge(units)


@pytest.mark.parametrize("cost", [-1, 2**53, 1.0, float("nan"), True, "1", None])
def test_cost_must_be_a_whole_number(guard: Guard, usage: InMemoryUsage, key: str, cost: Any) -> None:
    async def admit() -> None:
        with async_guard(guard) as wrapper:
            await wrapper.admit(key, cost=cost)

    with pytest.raises(ValueError, match="cost must be a whole number"):
        guard.admit(key, cost=cost)
    with pytest.raises(ValueError, match="cost must be a whole number"):
        asyncio.run(admit())

    assert usage.list_page(limit=10) == []


def test_guard_without_plans_warns_about_users_with_a_plan(
    guard: Guard, users: Users, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    user = guard.check(key)
    planned = attrs.evolve(user, plan="free")

    assert [guard.apply_plan(user), guard.apply_plan(planned), guard.apply_plan(planned)] == [user, planned, planned]

    (message,) = caplog.messages
    assert message.startswith("users have plans, but the configuration of this process has none, so no limits apply:")


def test_charged_units_are_dropped_without_a_recorder(users: Users, tokens: InMemoryTokens, key: str) -> None:
    guard = Guard(users.repository, tokens)

    guard.admit(key).charge(5)

    assert guard.decisions == {"admitted": 1}


def test_async_guard_charges_units_without_plans(guard: Guard, usage: InMemoryUsage, token: str) -> None:
    async def charge() -> dict[str, int]:
        with async_guard(guard) as wrapper:
            admission = await wrapper.admit(token)
            admission.charge(12)
            await admission.settle()
            await wrapper.charge(admission.user, 5)
            return wrapper.decisions

    assert asyncio.run(charge()) == {"admitted": 1}
    assert [(row.requests, row.units) for row in usage.list_page(limit=10)] == [(1, 17)]


def test_cache_of_users_with_plans_is_bounded(
    users: Users, tokens: InMemoryTokens, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "_MAX_PLANNED", 1)
    assert isinstance(users.repository, InMemoryUserRepository)
    limiter = make_limiter(users.repository, make_plans({"free": {}, "pro": {}}, default_plan="free"))
    guard = Guard(users.repository, tokens, limiter=limiter)
    grace = users.register(username="grace", password="a compiler", email="grace@example.com")
    pro = attrs.evolve(grace, plan="pro")

    planned = [guard.apply_plan(user) for user in (ada, ada, grace, pro, ada)]

    assert [user.plan for user in planned] == ["free", "free", "free", "pro", "free"]
    assert planned[0] is planned[1]
    assert planned[3] is pro
