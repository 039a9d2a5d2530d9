"""In-memory users and tokens, and a cipher that does not encrypt. For demos and tests.

These adapters pass the same contract suites as the others, but all data is lost when the process ends.
"""

from mlapi.adapters.memory.counts import InMemoryAllowances, InMemoryAttempts, UnlimitedAttempts
from mlapi.adapters.memory.credentials import InMemoryTokens, PlainCipher
from mlapi.adapters.memory.logins import InMemoryLogins
from mlapi.adapters.memory.managers import InMemoryManagers
from mlapi.adapters.memory.outbox import InMemoryOutbox
from mlapi.adapters.memory.sessions import InMemorySessions
from mlapi.adapters.memory.storage import InMemoryStorage
from mlapi.adapters.memory.usage import InMemoryUsage
from mlapi.adapters.memory.users import InMemoryAuditTrail, InMemoryLinks, InMemoryUserRepository

__all__ = [
    "InMemoryAllowances",
    "InMemoryAttempts",
    "InMemoryAuditTrail",
    "InMemoryLinks",
    "InMemoryLogins",
    "InMemoryManagers",
    "InMemoryOutbox",
    "InMemorySessions",
    "InMemoryStorage",
    "InMemoryTokens",
    "InMemoryUsage",
    "InMemoryUserRepository",
    "PlainCipher",
    "UnlimitedAttempts",
]
