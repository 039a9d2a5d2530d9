"""The contract of `UserRepository.apply` for `UpdateUser`: name, e-mail address, expiry, plan and metadata."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import attrs
import pytest

from mlapi import (
    Outcome,
    User,
    UserExistsError,
    UserId,
    UserRepository,
)
from mlapi.domain.commands import (
    SetEnabled,
    UpdateUser,
    UserChange,
)
from mlapi.domain.errors import UserChangedError
from mlapi.domain.expiry import Extension
from mlapi.domain.metadata import NO_METADATA, Metadata
from mlapi.domain.rules import canonical_username
from mlapi.testing.samples import (
    LATER,
    NOON,
    SECOND,
    SUBSCRIBED,
    apply_one,
    registered,
    registration,
)


class UserUpdateContract:
    def test_update_changes_only_the_specified_fields(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada", **SUBSCRIBED), registered(repository, "bob", **SUBSCRIBED)
        commands = [
            UpdateUser(user_id=ada.id, at=LATER),
            UpdateUser(user_id=ada.id, username="Äda", at=LATER),
            UpdateUser(user_id=ada.id, email="new@example.com", at=LATER),
            UpdateUser(user_id=ada.id, expires=LATER, at=LATER),
            UpdateUser(user_id=ada.id, plan="free", at=LATER),
            UpdateUser(user_id=ada.id, metadata=Metadata.from_object({"a": [1, "é"]}), at=LATER),
            UpdateUser(user_id=ada.id, expires=None, plan=None, metadata=NO_METADATA, at=LATER + SECOND),
        ]

        expected = ada
        for command in commands:
            change = apply_one(repository, command)
            assert change == command.apply_to(expected)
            assert isinstance(change, UserChange)
            expected = change.after
            assert repository.get(ada.id) == expected

        assert expected == attrs.evolve(
            ada,
            username="Äda",
            email="new@example.com",
            updated_datetime=LATER + SECOND,
            expires_datetime=None,
            plan=None,
            metadata=NO_METADATA,
        )
        assert repository.get(bob.id) == bob

    def test_change_based_on_an_old_value_is_rejected(self, repository: UserRepository) -> None:
        ada = registered(repository, expires_datetime=LATER)
        month = UpdateUser(user_id=ada.id, expires=Extension(months=1), replacing_expires=LATER, at=NOON)

        outcomes = repository.apply([month, month])

        changed = repository.get(ada.id)
        assert outcomes == [UserChange(ada, changed), UserChangedError(ada.id)]
        assert changed.expires_datetime == Extension(months=1).extend(LATER, NOON)
        new = Metadata.from_object({"a": 1})
        edits = [
            UpdateUser(user_id=ada.id, username="eve", metadata=new, replacing_metadata=NO_METADATA, at=NOON)
            for _ in range(2)
        ]
        first, second = repository.apply(edits)
        assert isinstance(first, UserChange)
        assert (first.after.username, first.after.metadata, second) == ("eve", new, UserChangedError(ada.id))
        for stale in (
            UpdateUser(user_id=ada.id, plan="pro", replacing_plan="free", at=NOON),
            UpdateUser(user_id=ada.id, email="new@example.com", replacing_email="old@example.com", at=NOON),
            UpdateUser(user_id=ada.id, username="ada", replacing_username="bob", at=NOON),
        ):
            assert apply_one(repository, stale) == UserChangedError(ada.id)
        never = UpdateUser(user_id=ada.id, expires=None, replacing_expires=None, at=NOON)
        assert apply_one(repository, never) == UserChangedError(ada.id)

    @pytest.mark.parametrize(
        ("expiry", "expected"),
        [
            (None, LATER + timedelta(days=30)),
            (NOON, LATER + timedelta(days=30)),
            (LATER + SECOND, LATER + SECOND + timedelta(days=30)),
        ],
        ids=["no expiry", "expired", "not expired"],
    )
    def test_extension_starts_at_the_later_of_now_and_the_expiry(
        self, repository: UserRepository, expiry: datetime | None, expected: datetime
    ) -> None:
        ada = registered(repository, expires_datetime=expiry)

        change = apply_one(repository, UpdateUser(user_id=ada.id, expires=Extension(hours=30 * 24), at=LATER))

        assert isinstance(change, UserChange)
        assert change.after.expires_datetime == repository.get(ada.id).expires_datetime == expected

    def test_two_extensions_in_a_batch_both_count(self, repository: UserRepository) -> None:
        ada = registered(repository)
        extending = UpdateUser(user_id=ada.id, expires=Extension(months=1), at=NOON)

        repository.apply([extending, extending])

        assert repository.get(ada.id).expires_datetime == NOON.replace(year=2027, month=1)

    def test_user_is_found_by_the_new_name_only(self, repository: UserRepository) -> None:
        ada = registered(repository, "ada")

        repository.apply([UpdateUser(user_id=ada.id, username="Grace", at=LATER)])
        renamed = repository.find(canonical_username("grace"))

        assert renamed == attrs.evolve(ada, username="Grace", updated_datetime=LATER)
        assert repository.find(canonical_username("ada")) is None
        assert registered(repository, "ada").id > ada.id

    def test_user_keeps_the_name_in_another_spelling(self, repository: UserRepository) -> None:
        ada = registered(repository, "ada")

        repository.apply([UpdateUser(user_id=ada.id, username="ＡDA", at=LATER)])

        assert repository.get(ada.id).username == "ＡDA"
        assert repository.find(canonical_username("ada")) == repository.get(ada.id)

    def test_name_of_another_user_is_rejected(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")

        outcomes = repository.apply(
            [
                registration("cyd"),
                UpdateUser(user_id=ada.id, username="BOB", plan="pro", at=LATER),
                SetEnabled(user_id=bob.id, enabled=False, at=LATER),
                UpdateUser(user_id=bob.id, username="cyd", at=LATER),
                UpdateUser(user_id=bob.id, username="eve", at=LATER),
            ]
        )

        cyd = repository.find(canonical_username("cyd"))
        assert cyd is not None
        assert outcomes[1] == UserExistsError(bob.id)
        assert outcomes[3] == UserExistsError(cyd.id)
        assert repository.get(ada.id) == ada
        assert [(user.username, user.enabled) for user in repository.list_page(after=UserId(0), limit=9)] == [
            ("ada", True),
            ("eve", False),
            ("cyd", True),
        ]

    def test_exactly_one_of_several_users_gets_a_name(self, repository: UserRepository) -> None:
        users = [registered(repository, f"user{number}") for number in range(8)]

        def rename(user: User) -> Outcome:
            return apply_one(repository, UpdateUser(user_id=user.id, username="ada", at=LATER))

        with ThreadPoolExecutor(len(users)) as pool:
            outcomes = list(pool.map(rename, users))

        (winner,) = [outcome.after for outcome in outcomes if isinstance(outcome, UserChange)]
        assert outcomes.count(UserExistsError(winner.id)) == len(users) - 1
        assert repository.find(canonical_username("ada")) == winner
