"""The contract of `UserRepository.apply` for batches of commands."""

import time

import attrs
import pytest

from mlapi import (
    ApiKeyNotFoundError,
    Command,
    RepositoryUnavailableError,
    User,
    UserExistsError,
    UserId,
    UserNotFoundError,
    UserRepository,
)
from mlapi.domain.actors import Actor
from mlapi.domain.commands import (
    AddApiKey,
    ChangePassword,
    EndTokens,
    RecordApiKeyUse,
    Reencrypt,
    Remove,
    RemoveApiKey,
    SetEnabled,
    UpdateUser,
    UserChange,
)
from mlapi.domain.metadata import Metadata
from mlapi.domain.rules import canonical_username
from mlapi.domain.users import EncryptedPassword
from mlapi.testing.samples import (
    ANOTHER,
    LATER,
    NO_USER,
    NOON,
    STORED,
    api_key,
    registered,
    registration,
    rejections,
    with_api_key,
)


class BatchContract:
    def test_rejected_command_does_not_affect_the_others(self, repository: UserRepository) -> None:
        outcomes = repository.apply(
            [
                registration("ada"),
                registration("ADA"),
                registration("charles"),
                Remove(user_id=NO_USER),
                SetEnabled(user_id=NO_USER, enabled=False, at=LATER),
                registration("grace"),
            ]
        )

        names = [user.username for user in repository.list_page(after=UserId(0), limit=10)]
        assert names == ["ada", "charles", "grace"]
        assert [isinstance(outcome, User) for outcome in outcomes] == [True, False, True, False, False, True]

    def test_batch_is_applied_in_order(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcomes = repository.apply(
            [
                SetEnabled(user_id=ada.id, enabled=False, at=LATER),
                Remove(user_id=ada.id),
                SetEnabled(user_id=ada.id, enabled=True, at=LATER),
                registration("ada"),
                registration("ada"),
            ]
        )

        again = repository.find(canonical_username("ada"))
        assert again is not None
        assert again.id > ada.id
        assert rejections(outcomes) == [UserNotFoundError(ada.id), UserExistsError(again.id)]

    def test_batch_of_all_commands_is_applied_in_order(self, repository: UserRepository) -> None:
        ada = registered(repository)
        old, new = api_key(ada.id, 1), api_key(ada.id, 2)
        ending = EndTokens(user_id=ada.id, at=LATER)
        changing = ChangePassword(user_id=ada.id, password=ANOTHER, replacing=STORED, at=LATER)
        upgrading = UpdateUser(user_id=ada.id, plan="pro", at=LATER)

        outcomes = repository.apply(
            [
                AddApiKey(key=old),
                ending,
                RecordApiKeyUse(key_id=old.id, at=LATER),
                changing,
                AddApiKey(key=new),
                RemoveApiKey(key_id=old.id),
                Reencrypt(user_id=ada.id, password=EncryptedPassword("better"), replacing=ANOTHER),
                upgrading,
                RemoveApiKey(key_id=old.id),
                Remove(user_id=ada.id),
                RecordApiKeyUse(key_id=new.id, at=LATER),
                AddApiKey(key=new),
            ]
        )

        ended = ending.apply_to(ada)
        changed = changing.apply_to(ended)
        used = attrs.evolve(old, last_used_datetime=LATER)
        assert isinstance(changed, User)
        better = attrs.evolve(changed, password=EncryptedPassword("better"))
        assert outcomes == [
            old,
            ended,
            used,
            changed,
            new,
            used,
            better,
            upgrading.apply_to(better),
            ApiKeyNotFoundError(old.id),
            attrs.evolve(better, plan="pro"),
            ApiKeyNotFoundError(new.id),
            UserNotFoundError(ada.id),
        ]

    def test_renaming_frees_and_takes_names_in_order(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")

        def rename(user: User, name: str) -> UpdateUser:
            return UpdateUser(user_id=user.id, username=name, at=LATER)

        outcomes = repository.apply(
            [
                registration("ada"),
                rename(ada, "eve"),
                registration("ada"),
                registration("eve"),
                rename(ada, "bob"),
                Remove(user_id=bob.id),
                rename(ada, "bob"),
                rename(bob, "eve"),
                registration("eve"),
            ]
        )

        names = {user.username: user.id for user in repository.list_page(after=UserId(0), limit=10)}
        assert list(names) == ["bob", "ada", "eve"]
        assert names["bob"] == ada.id
        assert rejections([each for each in outcomes if not isinstance(each, UserChange)]) == [
            UserExistsError(ada.id),
            UserExistsError(ada.id),
            UserExistsError(bob.id),
            UserNotFoundError(bob.id),
        ]

    def test_command_before_its_user_is_registered_is_rejected(self, repository: UserRepository) -> None:
        guessed = UserId(registered(repository).id + 1)
        early, late = [EndTokens(user_id=guessed, at=LATER) for _ in range(2)]

        too_early, bob, ended = repository.apply([early, registration("bob"), late])

        assert too_early == UserNotFoundError(guessed)
        assert isinstance(bob, User)
        assert bob.id == guessed
        assert ended == late.apply_to(bob)
        assert repository.get(guessed) == ended

    def test_api_key_before_its_user_is_registered_is_rejected(self, repository: UserRepository) -> None:
        guessed = UserId(registered(repository).id + 1)
        early, late = api_key(guessed, 1), api_key(guessed, 2)

        too_early, bob, added = repository.apply([AddApiKey(key=early), registration("bob"), AddApiKey(key=late)])

        assert too_early == UserNotFoundError(guessed)
        assert isinstance(bob, User)
        assert bob.id == guessed
        assert added == late
        assert repository.list_api_keys(guessed) == [late]

    def test_empty_batch_has_no_outcomes(self, repository: UserRepository) -> None:
        assert repository.apply([]) == []

    def test_command_after_the_deadline_is_rolled_back(self, repository: UserRepository) -> None:
        with pytest.raises(RepositoryUnavailableError, match="too late to commit"):
            repository.apply([registration("ada")], commit_by=time.monotonic() - 1)

        assert repository.list_page(after=UserId(0), limit=10) == []
        (user,) = repository.apply([registration("ada")], commit_by=time.monotonic() + 60)
        assert repository.list_page(after=UserId(0), limit=10) == [user]

    def test_batch_after_the_deadline_is_rolled_back(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        key = with_api_key(repository, ada, 1)
        commands: list[Command] = [
            registration("eve"),
            SetEnabled(user_id=ada.id, enabled=False, at=LATER),
            Remove(user_id=bob.id),
            RecordApiKeyUse(key_id=key.id, at=LATER),
            AddApiKey(key=api_key(ada.id, 2)),
            Remove(user_id=NO_USER),
        ]
        entries = repository.audit.list_page(limit=10)

        with pytest.raises(RepositoryUnavailableError):
            repository.apply(commands, commit_by=time.monotonic() - 1)

        assert repository.list_page(after=UserId(0), limit=10) == [ada, bob]
        assert repository.list_api_keys(ada.id) == [key]
        assert repository.audit.list_page(limit=10) == entries
        assert repository.apply([registration("eve")], commit_by=time.monotonic() + 60) == [
            repository.find(canonical_username("eve"))
        ]

    def test_batch_of_a_thousand_commands_is_applied(self, repository: UserRepository) -> None:
        ada = registered(repository)
        names = [f"user{number}" for number in range(500)]

        people = repository.apply([registration(name) for name in names])
        outcomes = repository.apply(
            [SetEnabled(user_id=user.id, enabled=False, at=LATER) for user in people if isinstance(user, User)]
            + [SetEnabled(user_id=ada.id, enabled=number % 2 == 1, at=NOON) for number in range(500)]
        )

        assert repository.list_page(after=ada.id, limit=1000) == outcomes[:500]
        assert [(user.username, user.enabled) for user in repository.list_page(after=ada.id, limit=1000)] == [
            (name, False) for name in names
        ]
        assert repository.get(ada.id) == outcomes[-1]
        assert repository.get(ada.id).enabled

    def test_users_of_a_large_batch_keep_every_field(self, repository: UserRepository) -> None:
        ada = registered(repository)
        full = registration(
            "Zoë \U0001f98b",
            expires_datetime=LATER,
            plan="pro",
            metadata=Metadata.from_json('{"quote": "\\"ü\\"", "n": 1.5}'),
            enabled=False,
            pending="email",
            actor=Actor("import", "request"),
        )
        others = [registration(f"user{number}", created=LATER) for number in range(200)]

        outcomes = repository.apply([others[0], registration("ADA"), full, *others])

        assert rejections(outcomes) == [UserExistsError(ada.id), UserExistsError(ada.id + 1)]
        users = [outcome for outcome in outcomes if isinstance(outcome, User)]
        assert repository.list_page(after=ada.id, limit=1000) == users
        assert users == [
            command.as_user(UserId(user.id))
            for command, user in zip([others[0], full, *others[1:]], users, strict=True)
        ]
        entries = repository.audit.list_page(limit=1000)[-2::-1]  # without the first entry, which belongs to ada
        assert [entry.user_id for entry in entries if entry.outcome == "done"] == [user.id for user in users]
        assert [entry.user_id for entry in entries if entry.outcome == "user_exists"] == [ada.id, ada.id + 1]
