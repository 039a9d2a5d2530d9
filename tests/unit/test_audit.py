"""Every change has an entry, but for those that change nothing of anybody."""

from datetime import UTC, datetime
from typing import get_args

import pytest

from mlapi import (
    AddApiKey,
    ApiKey,
    ApiKeyId,
    ApiKeyNotFoundError,
    AuditEntry,
    Cause,
    Change,
    ChangePassword,
    EncryptedPassword,
    EndTokens,
    Outcome,
    PasswordChangedError,
    RecordApiKeyUse,
    Reencrypt,
    Refusal,
    Register,
    Remove,
    RemoveApiKey,
    SetEnabled,
    User,
    UserExistsError,
    UserId,
    UserNotFoundError,
    Users,
)
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.domain.audit import audit_entry

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
ADA = UserId(7)
STORED = EncryptedPassword("stored")
KEY = ApiKey(id=ApiKeyId("0" * 16), user_id=ADA, name="laptop", digest="digest", created_datetime=NOON)
REGISTER = Register(username="ada", password=STORED, email="ada@example.com", at=NOON)
CHANGES: list[Change] = [
    REGISTER,
    SetEnabled(user_id=ADA, enabled=True, at=NOON),
    SetEnabled(user_id=ADA, enabled=False, at=NOON),
    EndTokens(user_id=ADA, at=NOON),
    ChangePassword(user_id=ADA, password=STORED, replacing=None, at=NOON),
    Remove(user_id=ADA, at=NOON),
    AddApiKey(key=KEY),
    RemoveApiKey(key_id=KEY.id, at=NOON),
]
BOOKKEEPING: list[Change] = [
    Reencrypt(user_id=ADA, password=STORED, replacing=STORED),
    RecordApiKeyUse(key_id=KEY.id, at=NOON),
]
REFUSALS: list[Refusal] = [
    UserExistsError(7),
    UserNotFoundError(7),
    PasswordChangedError(7),
    ApiKeyNotFoundError("x"),
]


def test_these_are_all_changes_and_all_refusals_there_are() -> None:
    assert {type(change) for change in CHANGES + BOOKKEEPING} == set(get_args(Change))
    assert {type(refusal) for refusal in REFUSALS} == set(get_args(Refusal))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
@pytest.mark.parametrize("outcome", [REGISTER.as_user(ADA), KEY, *REFUSALS], ids=lambda outcome: type(outcome).__name__)
def test_every_change_with_every_outcome_has_an_entry_at_its_time(change: Change, outcome: Outcome) -> None:
    entry = audit_entry(change, outcome)

    assert entry is not None
    assert entry.at == NOON
    assert (entry.outcome == "done") == isinstance(outcome, User | ApiKey)


@pytest.mark.parametrize("change", BOOKKEEPING, ids=lambda change: type(change).__name__)
def test_bookkeeping_has_none(change: Change) -> None:
    assert audit_entry(change, REGISTER.as_user(ADA)) is None


def test_an_entry_holds_nothing_of_a_user_but_his_id() -> None:
    entry = audit_entry(REGISTER, REGISTER.as_user(ADA))

    assert entry == AuditEntry(
        at=NOON,
        actor="library",
        action="register",
        user_id=ADA,
        api_key_id=None,
        outcome="done",
        request_id=None,
    )


def test_what_is_done_through_users_of_somebody_is_told_of_him() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher(), by=Cause("nightly job"))
    ada = users.register(username="ada", password="difference engine", email="ada@example.com")

    acting = users.acting(Cause("admin", "request-7"))
    acting.set_enabled(user_id=ada.id, enabled=False)
    acting.set_password(user_id=ada.id, password="analytical engine")
    acting.end_tokens(user_id=ada.id)
    key, _ = acting.add_api_key(user_id=ada.id, name="laptop")
    acting.remove_api_key(key.id)
    acting.remove(user_id=ada.id)

    told = [(entry.actor, entry.request_id, entry.action) for entry in reversed(users.audit_page())]
    assert told[0] == ("nightly job", None, "register")
    assert told[1:] == [
        ("admin", "request-7", action)
        for action in ("disable", "set_password", "end_tokens", "add_api_key", "remove_api_key", "remove")
    ]
    assert [count.count for count in users.activity(NOON.replace(year=2020))] == [1] * 7
