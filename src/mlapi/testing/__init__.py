"""Test support: fakes for unit tests, contract suites for your own adapters, and a check that all routes are guarded.

The fakes need only mlapi. The contract suites need pytest, and `HttpContract` also needs httpx2 (``pip install
'mlapi-users[testing]'``), so they are imported on first use. Fixtures are in `mlapi.testing.fixtures`.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from mlapi.adapters.memory import (
    InMemoryManagers,
    InMemoryStorage,
    InMemoryTokens,
    InMemoryUsage,
    InMemoryUserRepository,
    PlainCipher,
    UnlimitedAttempts,
)
from mlapi.testing.fakes import (
    ImmediateUsage,
    LoggedInUser,
    SettableClock,
    UnavailableRepository,
    make_limiter,
    make_plans,
    register_and_log_in,
)

__all__ = [
    "AllowancesContract",
    "AttemptLimiterContract",
    "HttpContract",
    "ImmediateUsage",
    "InMemoryManagers",
    "InMemoryStorage",
    "InMemoryTokens",
    "InMemoryUsage",
    "InMemoryUserRepository",
    "LoggedInUser",
    "ManagersContract",
    "OutboxContract",
    "PasswordCipherContract",
    "PlainCipher",
    "SettableClock",
    "StorageContract",
    "TokenIssuerContract",
    "UnavailableRepository",
    "UnlimitedAttempts",
    "UsageRepositoryContract",
    "UserRepositoryContract",
    "assert_all_routes_guarded",
    "make_limiter",
    "make_plans",
    "register_and_log_in",
]

_SUITES = {
    "AllowancesContract": "mlapi.testing.allowances",
    "AttemptLimiterContract": "mlapi.testing.attempts",
    "HttpContract": "mlapi.testing.http",
    "ManagersContract": "mlapi.testing.managers",
    "OutboxContract": "mlapi.testing.outbox",
    "PasswordCipherContract": "mlapi.testing.cipher",
    "StorageContract": "mlapi.testing.storage",
    "TokenIssuerContract": "mlapi.testing.tokens",
    "UsageRepositoryContract": "mlapi.testing.usage",
    "UserRepositoryContract": "mlapi.testing.repository",
}
_MODULES = {**_SUITES, "assert_all_routes_guarded": "mlapi.testing.guarded_routes"}

_TOPICS = (
    *("api_keys", "audit_trail", "batches", "links", "logins", "sessions"),
    *("user_commands", "user_lists", "user_queries", "user_updates"),
)
"""Modules that contain parts of a contract suite."""

if (pytest := sys.modules.get("pytest")) is not None:  # so that failed assertions show the compared values
    pytest.register_assert_rewrite(*_SUITES.values(), *(f"mlapi.testing.{topic}" for topic in _TOPICS))

if TYPE_CHECKING:
    from mlapi.testing.allowances import AllowancesContract
    from mlapi.testing.attempts import AttemptLimiterContract
    from mlapi.testing.cipher import PasswordCipherContract
    from mlapi.testing.guarded_routes import assert_all_routes_guarded
    from mlapi.testing.http import HttpContract
    from mlapi.testing.managers import ManagersContract
    from mlapi.testing.outbox import OutboxContract
    from mlapi.testing.repository import UserRepositoryContract
    from mlapi.testing.storage import StorageContract
    from mlapi.testing.tokens import TokenIssuerContract
    from mlapi.testing.usage import UsageRepositoryContract
else:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(_MODULES[name]), name)
        except ModuleNotFoundError as error:
            if error.name not in {"pytest", "httpx2"}:
                raise
            needed = f"{name} needs {error.name}, which is not installed: pip install 'mlapi-users[testing]'"
            raise ModuleNotFoundError(needed, name=error.name) from error
