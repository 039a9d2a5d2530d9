"""Fixtures for whoever uses mlapi: name them once, in the ``conftest.py`` at the root of your tests.

    pytest_plugins = ["mlapi.testing.fixtures"]

All of them are of one test, know the same users, in memory, and tell the time by one clock that stands still.
"""

import pytest

from mlapi.adapters.memory import InMemoryTokens, InMemoryUserRepository, PlainCipher, UnlimitedAttempts
from mlapi.application.authentication import Access, Authenticator
from mlapi.application.guard import Guard
from mlapi.application.users import Users
from mlapi.testing.fakes import LoggedInUser, SettableClock, visitor


@pytest.fixture
def mlapi_clock() -> SettableClock:
    """The time for all of it; set ``now`` to let time pass."""
    return SettableClock()


@pytest.fixture
def mlapi_users(mlapi_clock: SettableClock) -> Users:
    """Users in memory, nobody at first: for code that calls `mlapi.Users`."""
    return Users(InMemoryUserRepository(), PlainCipher(), clock=mlapi_clock)


@pytest.fixture
def mlapi_access(mlapi_users: Users, mlapi_clock: SettableClock) -> Access:
    """Log-ins, as often as one likes, and the guard. Tokens last for an hour."""
    tokens = InMemoryTokens(clock=mlapi_clock)
    return Access(
        authenticator=Authenticator(mlapi_users, tokens, UnlimitedAttempts()),
        guard=Guard(mlapi_users.repository, tokens, clock=mlapi_clock),
    )


@pytest.fixture
def mlapi_guard(mlapi_access: Access) -> Guard:
    """The guard of ``mlapi_users``: for an application that lets in nobody else."""
    return mlapi_access.guard


@pytest.fixture
def mlapi_let_in(mlapi_access: Access) -> LoggedInUser:
    """Somebody whom the guard lets in."""
    return visitor(mlapi_access, "let-in")


@pytest.fixture
def mlapi_shut_out(mlapi_access: Access) -> LoggedInUser:
    """Somebody whom the guard shuts out: he has got a token, and was disabled since."""
    shut_out = visitor(mlapi_access, "shut-out")
    user = mlapi_access.authenticator.users.set_enabled(user_id=shut_out.user.id, enabled=False)
    return LoggedInUser(user, shut_out.token)
