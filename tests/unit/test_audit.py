"""Every command creates an audit entry, except the internal ones."""

from datetime import UTC, datetime
from typing import get_args

import attrs
import pytest

from mlapi import (
    Actor,
    ApiKey,
    ApiKeyId,
    ApiKeyNotFoundError,
    AuditEntry,
    ChangeRejectedError,
    Command,
    Outcome,
    PasswordChangedError,
    UserExistsError,
    UserId,
    UserNotFoundError,
    UserReferencedError,
    Users,
)
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.domain.actors import ANYONE
from mlapi.domain.audit import make_audit_entry
from mlapi.domain.commands import (
    AddApiKey,
    ChangePassword,
    EndTokens,
    IssueToken,
    RecordApiKeyUse,
    Reencrypt,
    Register,
    Rejection,
    RejectRegistration,
    Remove,
    RemoveApiKey,
    Result,
    SetEnabled,
    UpdateUser,
    UserChange,
)
from mlapi.domain.errors import (
    LinkNotAllowedError,
    LinkNotFoundError,
    RepositoryUnavailableError,
    TooManyApiKeysError,
    UserChangedError,
)
from mlapi.domain.links import AddLink, Link, LinkId, RedeemLink, Redemption
from mlapi.domain.users import EncryptedPassword
from mlapi.testing import UnavailableRepository

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
ADA = UserId(7)
STORED = EncryptedPassword("stored")
KEY = ApiKey(id=ApiKeyId("0" * 16), user_id=ADA, name="laptop", digest="digest", created_datetime=NOON)
REGISTER = Register(username="ada", password=STORED, email="ada@example.com", at=NOON)
ADD_LINK = AddLink(link_id=LinkId("0" * 16), user_id=ADA, purpose="password", digest="digest", at=NOON, expires=NOON)
AUDITED: list[Command] = [
    REGISTER,
    UpdateUser(user_id=ADA, plan="pro", at=NOON),
    SetEnabled(user_id=ADA, enabled=True, at=NOON),
    SetEnabled(user_id=ADA, enabled=False, at=NOON),
    IssueToken(user_id=ADA, at=NOON),
    EndTokens(user_id=ADA, at=NOON),
    ChangePassword(user_id=ADA, password=STORED, replacing=None, at=NOON),
    RejectRegistration(user_id=ADA, at=NOON),
    Remove(user_id=ADA, at=NOON),
    AddApiKey(key=KEY),
    RemoveApiKey(key_id=KEY.id, at=NOON),
    ADD_LINK,
    RedeemLink(link_id=ADD_LINK.link_id, user_id=ADA, digest="digest", at=NOON),
]
LINK = ADD_LINK.apply_to(REGISTER.as_user(ADA))
CHANGE = UserChange(REGISTER.as_user(ADA), attrs.evolve(REGISTER.as_user(ADA), plan="pro"))
assert isinstance(LINK, Link)
REDEMPTION = Redemption(LINK, CHANGE.before, CHANGE.after)
INTERNAL: list[Command] = [
    Reencrypt(user_id=ADA, password=STORED, replacing=STORED),
    RecordApiKeyUse(key_id=KEY.id, at=NOON),
]
REJECTIONS: list[Rejection] = [
    UserExistsError(7),
    UserNotFoundError(7),
    PasswordChangedError(7),
    UserChangedError(7),
    ApiKeyNotFoundError("x"),
    TooManyApiKeysError(7, 10),
    LinkNotFoundError(),
    LinkNotAllowedError(7, "disabled"),
    ChangeRejectedError(None, "a constraint failed"),
    UserReferencedError(7),
]


def test_all_commands_and_rejections_are_tested() -> None:
    assert {type(command) for command in AUDITED + INTERNAL} == set(get_args(Command))
    assert {type(rejection) for rejection in REJECTIONS} == set(get_args(Rejection))


@pytest.mark.parametrize("command", AUDITED, ids=lambda command: type(command).__name__)
@pytest.mark.parametrize(
    "outcome",
    [REGISTER.as_user(ADA), CHANGE, KEY, LINK, REDEMPTION, *REJECTIONS],
    ids=lambda outcome: type(outcome).__name__,
)
def test_every_command_and_outcome_is_audited(command: Command, outcome: Outcome) -> None:
    entry = make_audit_entry(command, outcome)

    assert entry is not None
    assert entry.at == NOON
    assert (entry.outcome == "done") == isinstance(outcome, Result)


@pytest.mark.parametrize("outcome", [REGISTER.as_user(ADA), UserExistsError(ADA)], ids=["done", "rejected"])
def test_rejected_anonymous_registration_is_not_audited(outcome: Outcome) -> None:
    command = attrs.evolve(REGISTER, actor=Actor(ANYONE))

    entry = make_audit_entry(command, outcome)

    assert (entry is None) == isinstance(outcome, UserExistsError)


def test_unavailable_audit_trail_raises_an_error() -> None:
    trail = UnavailableRepository().audit

    with pytest.raises(RepositoryUnavailableError):
        trail.count_bulk(["request-7"], limit=1)
    with pytest.raises(RepositoryUnavailableError):
        trail.find_removals([ADA])


def test_name_of_a_removed_user_is_kept_if_configured() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher(), keeps_names=False).as_actor(Actor("admin"))
    for name in ("ada", "bob"):
        users.register(username=name, password="difference engine", email=f"{name}@example.com")

    users.remove(user_id=UserId(1))
    Users(users.repository, PlainCipher()).remove(user_id=UserId(2))

    entries = users.repository.audit.find_removals([UserId(1), UserId(2)])
    assert [entry.changes for entry in entries] == [None, '{"username": ["bob", null]}']


@pytest.mark.parametrize("command", INTERNAL, ids=lambda command: type(command).__name__)
def test_internal_commands_are_not_audited(command: Command) -> None:
    assert make_audit_entry(command, REGISTER.as_user(ADA)) is None


def test_entry_contains_no_personal_data() -> None:
    entry = make_audit_entry(REGISTER, REGISTER.as_user(ADA))

    assert entry == AuditEntry(
        at=NOON,
        actor="library",
        action="register",
        user_id=ADA,
        api_key_id=None,
        outcome="done",
        request_id=None,
    )


def test_entries_name_the_actor() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher(), actor=Actor("nightly job"))
    ada = users.register(username="ada", password="difference engine", email="ada@example.com")

    admin_users = users.as_actor(Actor("admin", "request-7"))
    admin_users.set_enabled(user_id=ada.id, enabled=False)
    admin_users.set_password(user_id=ada.id, password="analytical engine")
    admin_users.end_tokens(user_id=ada.id)
    key, _ = admin_users.add_api_key(user_id=ada.id, name="laptop")
    admin_users.remove_api_key(key.id)
    admin_users.remove(user_id=ada.id)

    entries = [(entry.actor, entry.request_id, entry.action) for entry in reversed(users.list_audit_page())]
    assert entries[0] == ("nightly job", None, "register")
    assert entries[1:] == [
        ("admin", "request-7", action)
        for action in ("disable", "set_password", "end_tokens", "add_api_key", "remove_api_key", "remove")
    ]
    assert [count.count for count in users.count_actions_per_day(NOON.replace(year=2020))] == [1] * 7
