"""The contract of `UserRepository.apply` for commands about users."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone

import attrs
import pytest

from mlapi import (
    Command,
    Outcome,
    PasswordChangedError,
    User,
    UserExistsError,
    UserId,
    UserNotFoundError,
    UserRepository,
)
from mlapi.domain.commands import (
    AddApiKey,
    ChangePassword,
    EndTokens,
    Reencrypt,
    RejectRegistration,
    Remove,
    SetEnabled,
    UpdateUser,
)
from mlapi.domain.rules import canonical_username
from mlapi.domain.users import EncryptedPassword
from mlapi.testing.samples import (
    ANOTHER,
    LATER,
    NO_USER,
    NOON,
    STORED,
    SUBSCRIBED,
    UNKNOWN_IDS,
    api_key,
    apply_one,
    registered,
    registration,
    rejections,
)


class UserCommandContract:
    def test_registered_user_is_stored_completely(self, repository: UserRepository) -> None:
        command = registration("Ada Łovelace", email="Ada@Example.com")

        user = apply_one(repository, command)

        assert isinstance(user, User)
        assert user == command.as_user(user.id)
        assert repository.get(user.id) == user

    def test_registered_user_has_expiry_plan_and_metadata(self, repository: UserRepository) -> None:
        command = registration(**SUBSCRIBED)

        ada = apply_one(repository, command)

        assert isinstance(ada, User)
        assert ada == command.as_user(ada.id) == repository.get(ada.id)
        assert {name: getattr(ada, name) for name in SUBSCRIBED} == SUBSCRIBED

    def test_imported_user_keeps_the_registration_time(self, repository: UserRepository) -> None:
        command = registration(enabled=False, at=LATER, created=NOON)

        ada = apply_one(repository, command)

        assert isinstance(ada, User)
        assert ada == repository.get(ada.id) == command.as_user(ada.id)
        assert (ada.enabled, ada.created_datetime, ada.updated_datetime) == (False, NOON, LATER)
        assert [entry.at for entry in repository.audit.list_page(limit=10)] == [LATER]

    def test_user_times_have_a_time_zone_and_are_in_utc(self, repository: UserRepository) -> None:
        elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
        user = apply_one(repository, registration(at=elsewhere))
        assert isinstance(user, User)

        stored = repository.get(user.id)

        assert stored.created_datetime == stored.updated_datetime == NOON
        assert stored.created_datetime.utcoffset() == timedelta(0)

    def test_special_characters_and_long_texts_are_stored(self, repository: UserRepository) -> None:
        odd = EncryptedPassword("a'b\"c\\d\ne\r\u2028f\x85%s{}\t🔑")
        people = [
            registration('o\'Brien "Ø" \\ {0} %s; --', password=odd, email="o'brien+{0}%s@example.com"),
            registration(
                "🔑" * 254, password=EncryptedPassword("é" * 8192), email="a" * 64 + "@" + "b." * 90 + "example"
            ),
        ]

        users = repository.apply(people)
        keys = [api_key(user.id, user.id, name="🗝'\"\\%" * 20) for user in users if isinstance(user, User)]
        repository.apply([AddApiKey(key=key) for key in keys])

        assert users == [command.as_user(key.user_id) for command, key in zip(people, keys, strict=True)]
        assert [repository.find(command.username_key) for command in people] == users
        assert [repository.list_api_keys(key.user_id) for key in keys] == [[key] for key in keys]

    def test_existing_username_is_rejected_with_its_user_id(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcomes = repository.apply([registration("ADA"), registration("ａda")])

        assert rejections(outcomes) == [UserExistsError(ada.id)] * 2
        assert repository.list_page(after=UserId(0), limit=10) == [ada]

    def test_recording_a_rejected_registration_changes_nothing(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcomes = repository.apply(
            [
                RejectRegistration(user_id=ada.id, at=LATER),
                SetEnabled(user_id=ada.id, enabled=True, at=NOON),
                RejectRegistration(user_id=NO_USER, at=LATER),
            ]
        )

        assert outcomes == [UserExistsError(ada.id), ada, UserNotFoundError(NO_USER)]
        assert repository.get(ada.id) == ada
        entry, *_ = [entry for entry in repository.audit.list_page(limit=9) if entry.outcome == "user_exists"]
        assert (entry.action, entry.user_id, entry.at) == ("register", ada.id, LATER)

    def test_concurrent_registrations_create_only_one_user(self, repository: UserRepository) -> None:
        def register(number: int) -> Outcome:
            return apply_one(repository, registration("ada" if number % 2 else "ADA"))

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(register, range(16)))

        (ada,) = repository.list_page(after=UserId(0), limit=10)
        assert outcomes.count(ada) == 1
        assert rejections(outcomes) == [UserExistsError(ada.id)] * 15

    def test_two_users_can_have_the_same_email(self, repository: UserRepository) -> None:
        outcomes = repository.apply([registration("ada"), registration("charles")])

        assert not rejections(outcomes)

    def test_disabling_changes_enabled_time_and_token_epoch(self, repository: UserRepository) -> None:
        ada = registered(repository)
        command = SetEnabled(user_id=ada.id, enabled=False, at=LATER)

        outcome = apply_one(repository, command)

        assert outcome == command.apply_to(ada)
        assert repository.get(ada.id) == outcome
        assert outcome == attrs.evolve(ada, enabled=False, updated_datetime=LATER, token_epoch=command.token_epoch)

    def test_enabling_an_enabled_user_changes_only_the_time(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcome = apply_one(repository, SetEnabled(user_id=ada.id, enabled=True, at=LATER))

        assert outcome == attrs.evolve(ada, updated_datetime=LATER)
        assert repository.get(ada.id) == outcome

    @pytest.mark.parametrize("enabled", [True, False], ids=["enabled", "disabled"])
    def test_ending_tokens_changes_time_and_token_epoch(self, repository: UserRepository, enabled: bool) -> None:
        ada = apply_one(repository, SetEnabled(user_id=registered(repository).id, enabled=enabled, at=NOON))
        assert isinstance(ada, User)
        command = EndTokens(user_id=ada.id, at=LATER)

        outcome = apply_one(repository, command)

        assert outcome == attrs.evolve(ada, updated_datetime=LATER, token_epoch=command.token_epoch)
        assert repository.get(ada.id) == outcome

    @pytest.mark.parametrize("replacing", [None, STORED], ids=["any password", "the stored password"])
    def test_password_change_changes_time_and_token_epoch(
        self, repository: UserRepository, replacing: EncryptedPassword | None
    ) -> None:
        ada = registered(repository)
        command = ChangePassword(user_id=ada.id, password=ANOTHER, replacing=replacing, at=LATER)

        outcome = apply_one(repository, command)

        assert outcome == attrs.evolve(ada, password=ANOTHER, updated_datetime=LATER, token_epoch=command.token_epoch)
        assert repository.get(ada.id) == outcome

    def test_outdated_password_change_is_rejected(self, repository: UserRepository) -> None:
        ada = registered(repository)
        stale = ChangePassword(user_id=ada.id, password=ANOTHER, replacing=EncryptedPassword("an older one"), at=LATER)

        outcome = apply_one(repository, stale)

        assert outcome == PasswordChangedError(ada.id)
        assert repository.get(ada.id) == ada

    def test_first_of_two_password_changes_wins(self, repository: UserRepository) -> None:
        ada = registered(repository)
        first, second = [
            ChangePassword(user_id=ada.id, password=EncryptedPassword(value), replacing=STORED, at=LATER)
            for value in ("first", "second")
        ]

        outcomes = repository.apply([first, second])

        changed = first.apply_to(ada)
        assert outcomes == [changed, PasswordChangedError(ada.id)]
        assert repository.get(ada.id) == changed

    def test_repeated_password_change_is_applied_once(self, repository: UserRepository) -> None:
        ada = registered(repository)
        command = ChangePassword(
            user_id=ada.id, password=EncryptedPassword("another"), replacing=ada.password, at=LATER
        )

        first, second = repository.apply([command]), repository.apply([command])

        assert first == second == [command.apply_to(ada)]

    def test_reencryption_changes_only_the_password(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcome = apply_one(repository, Reencrypt(user_id=ada.id, password=ANOTHER, replacing=STORED))

        assert outcome == attrs.evolve(ada, password=ANOTHER)
        assert repository.get(ada.id) == outcome

    def test_outdated_reencryption_changes_nothing(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcome = apply_one(
            repository, Reencrypt(user_id=ada.id, password=ANOTHER, replacing=EncryptedPassword("an older one"))
        )

        assert outcome == ada
        assert repository.get(ada.id) == ada

    def test_many_users_are_reencrypted_in_one_batch(self, repository: UserRepository) -> None:
        users = [registered(repository, f"user{number}") for number in range(5)]
        better = [EncryptedPassword(f"better {user.id}") for user in users]

        outcomes = repository.apply(
            [
                Reencrypt(user_id=user.id, password=password, replacing=STORED)
                for user, password in zip(users, better, strict=True)
            ]
        )

        assert outcomes == [attrs.evolve(user, password=password) for user, password in zip(users, better, strict=True)]
        assert repository.list_page(after=UserId(0), limit=10) == outcomes

    def test_updates_do_not_affect_other_users(self, repository: UserRepository) -> None:
        ada, charles = registered(repository, "ada"), registered(repository, "charles")

        repository.apply(
            [
                SetEnabled(user_id=ada.id, enabled=False, at=LATER),
                EndTokens(user_id=ada.id, at=LATER),
                ChangePassword(user_id=ada.id, password=ANOTHER, replacing=None, at=LATER),
                Reencrypt(user_id=ada.id, password=EncryptedPassword("better"), replacing=ANOTHER),
            ]
        )

        assert repository.get(charles.id) == charles

    def test_removed_user_is_returned_and_deleted(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcome = apply_one(repository, Remove(user_id=ada.id))

        assert outcome == ada
        assert repository.find(canonical_username("ada")) is None
        assert repository.list_page(after=UserId(0), limit=10) == []

    def test_username_of_a_removed_user_can_be_reused_but_not_its_id(self, repository: UserRepository) -> None:
        ada = registered(repository)
        repository.apply([Remove(user_id=ada.id)])

        again = registered(repository)

        assert again.id > ada.id

    def test_unknown_user_id_is_not_found(self, repository: UserRepository) -> None:
        def commands(user_id: UserId) -> list[Command]:
            return [
                Remove(user_id=user_id),
                SetEnabled(user_id=user_id, enabled=True, at=NOON),
                EndTokens(user_id=user_id, at=NOON),
                ChangePassword(user_id=user_id, password=ANOTHER, replacing=None, at=NOON),
                ChangePassword(user_id=user_id, password=ANOTHER, replacing=STORED, at=NOON),
                Reencrypt(user_id=user_id, password=ANOTHER, replacing=STORED),
                RejectRegistration(user_id=user_id, at=NOON),
                UpdateUser(user_id=user_id, plan="pro", at=NOON),
                AddApiKey(key=api_key(user_id)),
            ]

        outcomes = repository.apply([command for user_id in UNKNOWN_IDS for command in commands(user_id)])

        assert outcomes == [UserNotFoundError(user_id) for user_id in UNKNOWN_IDS for _ in range(9)]
        for user_id in UNKNOWN_IDS:
            for read in (repository.get, repository.list_api_keys):
                with pytest.raises(UserNotFoundError) as error_info:
                    read(user_id)
                assert error_info.value == UserNotFoundError(user_id)
