"""Pytest fixtures for applications that use mlapi.

Enable them in the ``conftest.py`` at the root of your tests:

    pytest_plugins = ["mlapi.testing.fixtures"]

Within a test, all fixtures share the same in-memory users and the same clock, which stands still.
"""

from collections.abc import Iterator

import pytest

from mlapi.adapters.memory import (
    InMemoryTokens,
    InMemoryUsage,
    InMemoryUserRepository,
    PlainCipher,
    UnlimitedAttempts,
)
from mlapi.application.authentication import Access, Authenticator
from mlapi.application.guard import Guard
from mlapi.application.users import Users
from mlapi.domain.plans import Plans
from mlapi.testing.fakes import ImmediateUsage, LoggedInUser, SettableClock, make_limiter, register_and_log_in


@pytest.fixture
def mlapi_clock() -> SettableClock:
    """The clock of all other fixtures. Set ``now`` to change the time."""
    return SettableClock()


@pytest.fixture
def mlapi_users(mlapi_clock: SettableClock, mlapi_plans: Plans) -> Users:
    """An empty in-memory user database."""
    return Users(InMemoryUserRepository(), PlainCipher(), clock=mlapi_clock, plans=lambda: mlapi_plans)


@pytest.fixture
def mlapi_plans() -> Plans:
    """The plans, with no limits. To test limits, override this fixture; see `mlapi.testing.make_plans`."""
    return Plans()


@pytest.fixture
def mlapi_usage() -> InMemoryUsage:
    """The usage that the guard records: call its ``list_page``."""
    return InMemoryUsage()


@pytest.fixture
def mlapi_access(
    mlapi_users: Users, mlapi_clock: SettableClock, mlapi_plans: Plans, mlapi_usage: InMemoryUsage
) -> Iterator[Access]:
    """An authenticator without attempt limits, and the guard. Tokens expire after an hour."""
    tokens, repository = InMemoryTokens(clock=mlapi_clock), mlapi_users.repository
    assert isinstance(repository, InMemoryUserRepository)
    limiter = make_limiter(repository, mlapi_plans, clock=mlapi_clock)
    usage = ImmediateUsage(mlapi_usage, repository)
    yield Access(
        authenticator=Authenticator(mlapi_users, tokens, UnlimitedAttempts(), clock=mlapi_clock),
        guard=Guard(repository, tokens, clock=mlapi_clock, usage=usage, limiter=limiter),
    )
    limiter.close()


@pytest.fixture
def mlapi_guard(mlapi_access: Access) -> Guard:
    """The guard for ``mlapi_users``, to pass to the application under test."""
    return mlapi_access.guard


@pytest.fixture
def mlapi_enabled_user(mlapi_access: Access) -> LoggedInUser:
    """An enabled user with a valid token."""
    return register_and_log_in(mlapi_access, "enabled-user")


@pytest.fixture
def mlapi_disabled_user(mlapi_access: Access) -> LoggedInUser:
    """A user who received a token and was then disabled."""
    logged_in = register_and_log_in(mlapi_access, "disabled-user")
    user = mlapi_access.authenticator.users.set_enabled(user_id=logged_in.user.id, enabled=False)
    return LoggedInUser(user, logged_in.token)


@pytest.fixture
def mlapi_expired_user(mlapi_access: Access, mlapi_clock: SettableClock) -> LoggedInUser:
    """A user who received a token and whose access then expired."""
    logged_in = register_and_log_in(mlapi_access, "expired-user")
    user = mlapi_access.authenticator.users.update(user_id=logged_in.user.id, expires=mlapi_clock.now)
    return LoggedInUser(user, logged_in.token)
