"""Registration looks the username up before a costly encryption, and records only rejections by admins."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from mlapi import (
    Actor,
    InvalidFieldsError,
    MlapiError,
    User,
    UserExistsError,
    Users,
)
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.application.executors import InlineExecutor
from mlapi.application.lookups import UsernameLookup
from mlapi.application.registration import AsyncRegistration
from mlapi.domain.actors import ANYONE
from mlapi.domain.commands import Remove
from mlapi.domain.users import UserId, UsernameKey
from mlapi.testing.samples import registered
from tests.counting_cipher import CountingCipher

PASSWORD = "difference engine"
ACTORS = [Actor(ANYONE), Actor("admin")]


class VanishingRepository(InMemoryUserRepository):
    """A repository whose user is removed right after each lookup, as if by another process."""

    def find(self, key: UsernameKey) -> User | None:
        user = super().find(key)
        if user is not None:
            self.apply([Remove(user_id=user.id)])
        return user

    def find_many_nowait(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        return [self.find(key) for key in keys]


def register(users: Users, is_async: bool, **fields: str) -> User | MlapiError:
    """Register a user synchronously or on an event loop, and return the user or the error."""
    values: dict[str, Any] = {"username": "Ada", "password": PASSWORD, "email": "ada@example.com", **fields}

    async def run() -> User:
        lookup = UsernameLookup(users.repository)
        registrations = AsyncRegistration(None, InlineExecutor(users), lookup, on_rejected=lambda: None)
        try:
            return await registrations.register(users, **values, address="192.0.2.1")
        finally:
            registrations.close()

    try:
        return asyncio.run(run()) if is_async else users.register(**values)
    except MlapiError as error:
        return error


def outcomes(users: Users) -> list[str]:
    return [entry.outcome for entry in reversed(users.list_audit_page())]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    value: bool = request.param
    return value


@pytest.mark.parametrize("actor", ACTORS, ids=lambda actor: actor.name)
def test_taken_username_is_rejected_without_a_hash(is_async: bool, actor: Actor) -> None:
    repository, cipher = InMemoryUserRepository(), CountingCipher()
    ada = registered(repository)

    result = register(Users(repository, cipher, actor=actor), is_async)

    assert result == UserExistsError(ada.id)
    assert cipher.encrypted == 0


@pytest.mark.parametrize("actor", ACTORS, ids=lambda actor: actor.name)
def test_only_rejections_of_authenticated_clients_are_recorded(is_async: bool, actor: Actor) -> None:
    users = Users(InMemoryUserRepository(), PlainCipher(), actor=actor)
    register(users, is_async)

    register(users, is_async)

    assert outcomes(users) == (["done"] if actor.is_anonymous else ["done", "user_exists"])


@pytest.mark.parametrize("actor", ACTORS, ids=lambda actor: actor.name)
def test_new_username_is_registered(is_async: bool, actor: Actor) -> None:
    users = Users(InMemoryUserRepository(), PlainCipher(), actor=actor)

    result = register(users, is_async)

    assert result == users.get(UserId(1))


def test_username_is_not_looked_up_if_encryption_is_cheap(is_async: bool) -> None:
    repository = VanishingRepository()
    ada = registered(repository)

    result = register(Users(repository, PlainCipher()), is_async)

    assert result == UserExistsError(ada.id)


def test_username_freed_after_the_lookup_is_registered(is_async: bool) -> None:
    repository = VanishingRepository()
    ada = registered(repository)

    result = register(Users(repository, CountingCipher()), is_async)

    assert isinstance(result, User)
    assert result.id > ada.id


def test_invalid_fields_are_reported_before_any_lookup(is_async: bool) -> None:
    result = register(Users(VanishingRepository(), PlainCipher()), is_async, email="ada", password="")

    assert isinstance(result, InvalidFieldsError)
    assert [error.field for error in result.errors] == ["password", "email"]
