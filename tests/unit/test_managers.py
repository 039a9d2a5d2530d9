"""The rules for managers, and the use cases that add, rotate and remove them."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest

from mlapi import Actor, InvalidFieldsError, InvalidTokenError
from mlapi.adapters.memory import InMemoryAuditTrail, InMemoryManagers
from mlapi.application.managers import ManagerRegistry, NewManagerToken
from mlapi.domain.errors import ManagerExistsError, ManagerNotFoundError
from mlapi.domain.managers import (
    ADMIN,
    LOCAL,
    ManagerIdentity,
    authenticate_manager,
    generate_manager_token,
    looks_like_manager_token,
    parse_manager_token,
)
from mlapi.testing import SettableClock

DAY = timedelta(days=1)
RESERVED = "name must not be {}, which is reserved: choose the name of a person or a program"
INVALID_NAME = (
    "name must be 1 to 64 lower-case letters (a-z), digits, dots, hyphens and underscores, and start with a letter or a"
    " digit"
)


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def audit() -> InMemoryAuditTrail:
    return InMemoryAuditTrail()


@pytest.fixture
def registry(audit: InMemoryAuditTrail, clock: SettableClock) -> ManagerRegistry:
    return ManagerRegistry(InMemoryManagers(audit), clock=clock, actor=Actor("admin"))


def is_valid(registry: ManagerRegistry, issued: NewManagerToken) -> bool:
    presented = parse_manager_token(issued.token)
    (stored,) = registry.managers.find_many([presented.id])
    try:
        return authenticate_manager(presented, stored, registry.clock()) == stored
    except InvalidTokenError:
        return False


# --- tokens


def test_manager_tokens_are_unique_and_have_a_prefix() -> None:
    tokens = [generate_manager_token() for _ in range(2)]

    assert all(re.fullmatch(r"mlapi-manager_[0-9a-f]{16}_[0-9a-f]{64}", token) for token in tokens)
    assert len(set(tokens)) == 2
    assert all(map(looks_like_manager_token, tokens))


@pytest.mark.parametrize("change", [str.upper, lambda token: token[:-1], lambda token: token + "0", lambda _: ""])
def test_malformed_manager_token_is_rejected(change: Callable[[str], str]) -> None:
    token = change(generate_manager_token())

    with pytest.raises(InvalidTokenError):
        parse_manager_token(token)


def test_token_with_another_secret_is_rejected(registry: ManagerRegistry) -> None:
    issued = registry.add(name="alice", role="admin")
    forged = f"{issued.token[:-64]}{'0' * 64}"

    assert is_valid(registry, issued)
    assert not is_valid(registry, NewManagerToken(issued.manager, forged))


def test_token_is_valid_until_it_expires(registry: ManagerRegistry, clock: SettableClock) -> None:
    issued = registry.add(name="alice", role="admin", expires_datetime=clock() + DAY)

    before = is_valid(registry, issued)
    clock.now += DAY

    assert (before, is_valid(registry, issued)) == (True, False)


def test_token_and_digest_are_not_in_any_repr(registry: ManagerRegistry) -> None:
    issued = registry.add(name="alice", role="admin")

    secrets = [issued.token[-64:], issued.manager.digest, issued.manager.token_id]
    shown = f"{issued!r} {issued.manager!r} {parse_manager_token(issued.token).digest and registry!r}"
    assert [secret for secret in secrets if secret in shown] == []


# --- names and roles


@pytest.mark.parametrize("name", ["alice", "a", "0", "a.b-c_d", "a" * 64, "manager", "console"])
def test_name_is_accepted(registry: ManagerRegistry, name: str) -> None:
    assert registry.add(name=name, role="viewer").manager.identity.actor == f"manager {name}"


@pytest.mark.parametrize("name", ["", "Alice", "a b", "a\n", "-a", ".a", "_a", "é", "a" * 65, "a/b", "\ud800"])
def test_name_is_rejected(registry: ManagerRegistry, name: str) -> None:
    with pytest.raises(InvalidFieldsError, match=f"^{re.escape(INVALID_NAME)}$"):
        registry.add(name=name, role="viewer")


@pytest.mark.parametrize("name", ["admin", "local"])
def test_reserved_name_is_rejected(registry: ManagerRegistry, name: str) -> None:
    with pytest.raises(InvalidFieldsError, match=f"^{re.escape(RESERVED.format(name))}$"):
        registry.add(name=name, role="viewer")


def test_every_invalid_field_is_reported(registry: ManagerRegistry, clock: SettableClock) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        registry.add(name="A", role="owner", expires_datetime=clock())  # type: ignore[arg-type]  # on purpose

    assert [(error.field, error.message) for error in error_info.value.errors][1:] == [
        ("role", "must be admin or viewer"),
        ("expires_at", "must be in the future"),
    ]


def test_actors_of_unnamed_managers_keep_their_names() -> None:
    assert [identity.actor for identity in (ADMIN, LOCAL, ManagerIdentity("alice", "viewer"))] == [
        "admin",
        "local",
        "manager alice",
    ]


# --- changes


def test_name_of_a_manager_is_unique(registry: ManagerRegistry) -> None:
    registry.add(name="alice", role="admin")

    with pytest.raises(ManagerExistsError, match=r"^manager alice already exists: choose another name"):
        registry.add(name="alice", role="viewer")


def test_rotation_keeps_role_and_expiry(registry: ManagerRegistry, clock: SettableClock) -> None:
    old = registry.add(name="alice", role="viewer", expires_datetime=clock() + DAY)

    new = registry.rotate("alice")

    assert (is_valid(registry, old), is_valid(registry, new)) == (False, True)
    assert (new.manager.role, new.manager.expires_datetime) == ("viewer", clock() + DAY)


def test_rotation_of_an_expired_token_needs_an_expiry(registry: ManagerRegistry, clock: SettableClock) -> None:
    registry.add(name="alice", role="viewer", expires_datetime=clock() + DAY)
    clock.now += DAY

    with pytest.raises(InvalidFieldsError, match=r"^expires_at must be in the future$"):
        registry.rotate("alice")

    assert is_valid(registry, registry.rotate("alice", expires_datetime=clock() + DAY))


def test_removed_manager_cannot_be_rotated_or_removed(registry: ManagerRegistry) -> None:
    issued = registry.add(name="alice", role="viewer")
    registry.remove("alice")

    assert not is_valid(registry, issued)
    for change in (registry.rotate, registry.remove):
        with pytest.raises(ManagerNotFoundError, match=r"^manager alice does not exist: check the name"):
            change("alice")


def test_changes_of_managers_have_an_actor(registry: ManagerRegistry, audit: InMemoryAuditTrail) -> None:
    registry.as_actor(Actor("manager bob")).add(name="alice", role="viewer")
    registry.rotate("alice")

    assert [(entry.action, entry.actor) for entry in audit.list_page(limit=9)] == [
        ("rotate_manager", "admin"),
        ("add_manager", "manager bob"),
    ]
    assert [manager.name for manager in registry.list_all()] == ["alice"]
