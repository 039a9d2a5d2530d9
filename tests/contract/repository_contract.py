"""What every `UserRepository` must do. A subclass gives the fixture ``repository``: an empty one for each test."""

import time
from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest

from mlapi import (
    Change,
    EncryptedPassword,
    Outcome,
    Register,
    Remove,
    RepositoryUnavailableError,
    SetEnabled,
    User,
    UserExistsError,
    UserId,
    UserNotFoundError,
    UserRepository,
    canonical_username,
)

NOON = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
NOBODY = UserId(2**62)


def registration(username: str = "ada", **fields: object) -> Register:
    given = {"password": EncryptedPassword("stored"), "email": "ada@example.com", "at": NOON, **fields}
    return Register(username=username, **given)  # type: ignore[arg-type]  # as a test gives them


def apply_one(repository: UserRepository, change: Change) -> Outcome:
    (outcome,) = repository.apply([change])
    return outcome


def registered(repository: UserRepository, username: str = "ada") -> User:
    user = apply_one(repository, registration(username))
    assert isinstance(user, User)
    return user


def refusals(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not isinstance(outcome, User)]


class UserRepositoryContract:
    def test_a_registered_user_is_stored_whole(self, repository: UserRepository) -> None:
        change = registration("Ada Łovelace", email="Ada@Example.com")

        user = apply_one(repository, change)

        assert isinstance(user, User)
        assert user == change.as_user(user.id)
        assert repository.get(user.id) == user

    def test_times_come_back_aware_and_in_utc(self, repository: UserRepository) -> None:
        elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
        user = apply_one(repository, registration(at=elsewhere))
        assert isinstance(user, User)

        stored = repository.get(user.id)

        assert stored.created_datetime == stored.updated_datetime == NOON
        assert stored.created_datetime.utcoffset() == timedelta(0)

    def test_a_name_that_exists_is_refused_with_its_holder(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcomes = repository.apply([registration("ADA"), registration("ａda")])

        assert refusals(outcomes) == [UserExistsError(ada.id)] * 2
        assert repository.page(after=UserId(0), limit=10) == [ada]

    def test_two_users_may_share_an_address(self, repository: UserRepository) -> None:
        outcomes = repository.apply([registration("ada"), registration("charles")])

        assert not refusals(outcomes)

    def test_disabling_turns_the_flag_the_time_and_the_epoch(self, repository: UserRepository) -> None:
        ada = registered(repository)
        change = SetEnabled(user_id=ada.id, enabled=False, at=LATER)

        outcome = apply_one(repository, change)

        assert outcome == change.applied_to(ada)
        assert repository.get(ada.id) == outcome
        assert outcome == attrs.evolve(ada, enabled=False, updated_datetime=LATER, token_epoch=change.token_epoch)

    def test_enabling_who_is_enabled_moves_the_time_alone(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcome = apply_one(repository, SetEnabled(user_id=ada.id, enabled=True, at=LATER))

        assert outcome == attrs.evolve(ada, updated_datetime=LATER)
        assert repository.get(ada.id) == outcome

    def test_setting_one_user_leaves_the_others(self, repository: UserRepository) -> None:
        ada, charles = registered(repository, "ada"), registered(repository, "charles")

        repository.apply([SetEnabled(user_id=ada.id, enabled=False, at=LATER)])

        assert repository.get(charles.id) == charles

    def test_a_removed_user_is_returned_and_gone(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcome = apply_one(repository, Remove(user_id=ada.id))

        assert outcome == ada
        assert repository.find(canonical_username("ada")) is None
        assert repository.page(after=UserId(0), limit=10) == []

    def test_the_name_of_a_removed_user_is_free_and_his_id_is_not(self, repository: UserRepository) -> None:
        ada = registered(repository)
        repository.apply([Remove(user_id=ada.id)])

        again = registered(repository)

        assert again.id > ada.id

    def test_an_id_that_nobody_has_is_not_found(self, repository: UserRepository) -> None:
        impossible = [UserId(0), UserId(-1), NOBODY, UserId(2**63), UserId(10**20)]

        outcomes = repository.apply(
            [change for i in impossible for change in (Remove(user_id=i), SetEnabled(user_id=i, enabled=True, at=NOON))]
        )

        assert refusals(outcomes) == [UserNotFoundError(i) for i in impossible for _ in range(2)]
        for user_id in impossible:
            with pytest.raises(UserNotFoundError) as refusal:
                repository.get(user_id)
            assert refusal.value == UserNotFoundError(user_id)

    def test_a_refused_change_leaves_its_neighbours_alone(self, repository: UserRepository) -> None:
        outcomes = repository.apply(
            [
                registration("ada"),
                registration("ADA"),
                registration("charles"),
                Remove(user_id=NOBODY),
                SetEnabled(user_id=NOBODY, enabled=False, at=LATER),
                registration("grace"),
            ]
        )

        names = [user.username for user in repository.page(after=UserId(0), limit=10)]
        assert names == ["ada", "charles", "grace"]
        assert [isinstance(outcome, User) for outcome in outcomes] == [True, False, True, False, False, True]

    def test_a_batch_is_applied_in_order(self, repository: UserRepository) -> None:
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
        assert refusals(outcomes) == [UserNotFoundError(ada.id), UserExistsError(again.id)]

    def test_no_changes_have_no_outcomes(self, repository: UserRepository) -> None:
        assert repository.apply([]) == []

    def test_a_user_is_found_by_the_canonical_form_of_his_name(self, repository: UserRepository) -> None:
        user = registered(repository, "Straße")

        found = repository.find(canonical_username("STRASSE"))

        assert found == user
        assert repository.find(canonical_username("strase")) is None

    def test_pages_follow_each_other_by_id(self, repository: UserRepository) -> None:
        users = [registered(repository, f"user{number}") for number in range(5)]

        first = repository.page(after=UserId(0), limit=2)
        second = repository.page(after=first[-1].id, limit=2)
        third = repository.page(after=second[-1].id, limit=2)

        assert [first, second, third] == [users[:2], users[2:4], users[4:]]
        assert repository.page(after=third[-1].id, limit=2) == []

    def test_what_it_hands_out_is_not_what_it_keeps(self, repository: UserRepository) -> None:
        ada = registered(repository)

        attrs.evolve(ada, enabled=False)

        assert repository.get(ada.id).enabled is True

    def test_what_could_only_be_committed_too_late_is_undone(self, repository: UserRepository) -> None:
        with pytest.raises(RepositoryUnavailableError, match="too late to commit"):
            repository.apply([registration("ada")], commit_by=time.monotonic() - 1)

        assert repository.page(after=UserId(0), limit=10) == []
        (user,) = repository.apply([registration("ada")], commit_by=time.monotonic() + 60)
        assert repository.page(after=UserId(0), limit=10) == [user]

    def test_it_says_that_it_could_take_a_change(self, repository: UserRepository) -> None:
        repository.check()
