"""Users, commands and API keys for the contract suites."""

from datetime import UTC, datetime, timedelta
from typing import Any

from mlapi import (
    ApiKey,
    ApiKeyId,
    Command,
    Outcome,
    User,
    UserId,
    UserRepository,
)
from mlapi.domain.commands import (
    AddApiKey,
    Register,
)
from mlapi.domain.metadata import Metadata
from mlapi.domain.users import EncryptedPassword

NOON = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
MICROSECOND, SECOND, MINUTE = timedelta(microseconds=1), timedelta(seconds=1), timedelta(minutes=1)
NO_USER = UserId(2**62)
UNKNOWN_IDS = [UserId(0), UserId(-1), NO_USER, UserId(2**63), UserId(10**20)]
STORED, ANOTHER = EncryptedPassword("stored"), EncryptedPassword("another")
NO_KEY = ApiKeyId("f" * 16)
SUBSCRIBED: dict[str, Any] = {
    "expires_datetime": NOON + timedelta(days=30),
    "plan": "pro",
    "metadata": Metadata.from_object({"customer": "cus_123", "seats": 5, "tags": ["é", None, {"x": 1.5}]}),
}
"""The optional fields of a user."""


def registration(username: str = "ada", **fields: object) -> Register:
    """Return a command that registers a user."""
    values = {"password": STORED, "email": "ada@example.com", "at": NOON, **fields}
    return Register(username=username, **values)  # type: ignore[arg-type]  # the test passes the right types


def api_key(user_id: UserId, number: int = 0, **fields: object) -> ApiKey:
    """Return an API key, without storing it."""
    values = {"name": f"key {number}", "digest": f"digest {number}", "created_datetime": NOON, **fields}
    return ApiKey(id=ApiKeyId(f"{number:016x}"), user_id=user_id, **values)  # type: ignore[arg-type]  # the test passes the right types


def apply_one(repository: UserRepository, command: Command) -> Outcome:
    """Apply one command and return its outcome."""
    (outcome,) = repository.apply([command])
    return outcome


def registered(repository: UserRepository, username: str = "ada", **fields: object) -> User:
    """Register a user and return it."""
    user = apply_one(repository, registration(username, **fields))
    assert isinstance(user, User)
    return user


def with_api_key(repository: UserRepository, user: User, number: int = 0, **fields: object) -> ApiKey:
    """Add an API key to a user and return it."""
    key = api_key(user.id, number, **fields)
    assert apply_one(repository, AddApiKey(key=key)) == key
    return key


def rejections(outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes that are not users."""
    return [outcome for outcome in outcomes if not isinstance(outcome, User)]
