"""What every `UserRepository` must do. A subclass gives the fixture ``repository``: an empty one for each test."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest

from mlapi import (
    Actor,
    ApiKey,
    ApiKeyId,
    ApiKeyNotFoundError,
    AuditEntry,
    Command,
    Outcome,
    PasswordChangedError,
    RepositoryUnavailableError,
    User,
    UserExistsError,
    UserId,
    UserNotFoundError,
    UserRepository,
)
from mlapi.domain.audit import UNSAVED_ID, Action, AuditId, DailyCount
from mlapi.domain.commands import (
    AddApiKey,
    ChangePassword,
    EndTokens,
    RecordApiKeyUse,
    Reencrypt,
    Register,
    Remove,
    RemoveApiKey,
    SetEnabled,
)
from mlapi.domain.credentials import ApiKeyPrincipal, PrincipalId
from mlapi.domain.ports import NonblockingLookup
from mlapi.domain.rules import canonical_username
from mlapi.domain.users import EncryptedPassword

NOON = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
HOUR_AND_A_HALF = timedelta(minutes=90)
NOBODY = UserId(2**62)
IMPOSSIBLE = [UserId(0), UserId(-1), NOBODY, UserId(2**63), UserId(10**20)]
STORED, ANOTHER = EncryptedPassword("stored"), EncryptedPassword("another")
NO_KEY = ApiKeyId("f" * 16)


def registration(username: str = "ada", **fields: object) -> Register:
    given = {"password": STORED, "email": "ada@example.com", "at": NOON, **fields}
    return Register(username=username, **given)  # type: ignore[arg-type]  # as a test gives them


def api_key(user_id: UserId, number: int = 0, **fields: object) -> ApiKey:
    given = {"name": f"key {number}", "digest": f"digest {number}", "created_datetime": NOON, **fields}
    return ApiKey(id=ApiKeyId(f"{number:016x}"), user_id=user_id, **given)  # type: ignore[arg-type]  # as a test gives them


def apply_one(repository: UserRepository, command: Command) -> Outcome:
    (outcome,) = repository.apply([command])
    return outcome


def registered(repository: UserRepository, username: str = "ada") -> User:
    user = apply_one(repository, registration(username))
    assert isinstance(user, User)
    return user


def with_api_key(repository: UserRepository, user: User, number: int = 0, **fields: object) -> ApiKey:
    key = api_key(user.id, number, **fields)
    assert apply_one(repository, AddApiKey(key=key)) == key
    return key


def refusals(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not isinstance(outcome, User)]


class UserRepositoryContract:
    def test_a_registered_user_is_stored_whole(self, repository: UserRepository) -> None:
        command = registration("Ada Łovelace", email="Ada@Example.com")

        user = apply_one(repository, command)

        assert isinstance(user, User)
        assert user == command.as_user(user.id)
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
        assert repository.list_page(after=UserId(0), limit=10) == [ada]

    def test_two_users_may_share_an_address(self, repository: UserRepository) -> None:
        outcomes = repository.apply([registration("ada"), registration("charles")])

        assert not refusals(outcomes)

    def test_disabling_turns_the_flag_the_time_and_the_epoch(self, repository: UserRepository) -> None:
        ada = registered(repository)
        command = SetEnabled(user_id=ada.id, enabled=False, at=LATER)

        outcome = apply_one(repository, command)

        assert outcome == command.apply_to(ada)
        assert repository.get(ada.id) == outcome
        assert outcome == attrs.evolve(ada, enabled=False, updated_datetime=LATER, token_epoch=command.token_epoch)

    def test_enabling_who_is_enabled_moves_the_time_alone(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcome = apply_one(repository, SetEnabled(user_id=ada.id, enabled=True, at=LATER))

        assert outcome == attrs.evolve(ada, updated_datetime=LATER)
        assert repository.get(ada.id) == outcome

    def test_changing_one_user_leaves_the_others(self, repository: UserRepository) -> None:
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

    @pytest.mark.parametrize("enabled", [True, False], ids=["enabled", "disabled"])
    def test_ending_tokens_turns_the_time_and_the_epoch_and_leaves_the_flag(
        self, repository: UserRepository, enabled: bool
    ) -> None:
        ada = apply_one(repository, SetEnabled(user_id=registered(repository).id, enabled=enabled, at=NOON))
        assert isinstance(ada, User)
        command = EndTokens(user_id=ada.id, at=LATER)

        outcome = apply_one(repository, command)

        assert outcome == attrs.evolve(ada, updated_datetime=LATER, token_epoch=command.token_epoch)
        assert repository.get(ada.id) == outcome

    @pytest.mark.parametrize("replacing", [None, STORED], ids=["whatever it was", "the stored one"])
    def test_another_password_turns_the_time_and_the_epoch(
        self, repository: UserRepository, replacing: EncryptedPassword | None
    ) -> None:
        ada = registered(repository)
        command = ChangePassword(user_id=ada.id, password=ANOTHER, replacing=replacing, at=LATER)

        outcome = apply_one(repository, command)

        assert outcome == attrs.evolve(ada, password=ANOTHER, updated_datetime=LATER, token_epoch=command.token_epoch)
        assert repository.get(ada.id) == outcome

    def test_a_password_that_has_changed_meanwhile_is_not_replaced(self, repository: UserRepository) -> None:
        ada = registered(repository)
        stale = ChangePassword(user_id=ada.id, password=ANOTHER, replacing=EncryptedPassword("an older one"), at=LATER)

        outcome = apply_one(repository, stale)

        assert outcome == PasswordChangedError(ada.id)
        assert repository.get(ada.id) == ada

    def test_of_two_who_replace_one_password_the_first_wins(self, repository: UserRepository) -> None:
        ada = registered(repository)
        first, second = [
            ChangePassword(user_id=ada.id, password=EncryptedPassword(value), replacing=STORED, at=LATER)
            for value in ("first", "second")
        ]

        outcomes = repository.apply([first, second])

        changed = first.apply_to(ada)
        assert outcomes == [changed, PasswordChangedError(ada.id)]
        assert repository.get(ada.id) == changed

    def test_a_password_that_is_stored_better_moves_nothing_else(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcome = apply_one(repository, Reencrypt(user_id=ada.id, password=ANOTHER, replacing=STORED))

        assert outcome == attrs.evolve(ada, password=ANOTHER)
        assert repository.get(ada.id) == outcome

    def test_a_password_that_has_changed_meanwhile_is_not_stored_better(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcome = apply_one(
            repository, Reencrypt(user_id=ada.id, password=ANOTHER, replacing=EncryptedPassword("an older one"))
        )

        assert outcome == ada
        assert repository.get(ada.id) == ada

    def test_passwords_of_many_users_are_stored_better_at_once(self, repository: UserRepository) -> None:
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

    def test_a_removed_user_is_returned_and_gone(self, repository: UserRepository) -> None:
        ada = registered(repository)

        outcome = apply_one(repository, Remove(user_id=ada.id))

        assert outcome == ada
        assert repository.find(canonical_username("ada")) is None
        assert repository.list_page(after=UserId(0), limit=10) == []

    def test_the_name_of_a_removed_user_is_free_and_his_id_is_not(self, repository: UserRepository) -> None:
        ada = registered(repository)
        repository.apply([Remove(user_id=ada.id)])

        again = registered(repository)

        assert again.id > ada.id

    def test_an_id_that_nobody_has_is_not_found(self, repository: UserRepository) -> None:
        def commands(user_id: UserId) -> list[Command]:
            return [
                Remove(user_id=user_id),
                SetEnabled(user_id=user_id, enabled=True, at=NOON),
                EndTokens(user_id=user_id, at=NOON),
                ChangePassword(user_id=user_id, password=ANOTHER, replacing=None, at=NOON),
                ChangePassword(user_id=user_id, password=ANOTHER, replacing=STORED, at=NOON),
                Reencrypt(user_id=user_id, password=ANOTHER, replacing=STORED),
                AddApiKey(key=api_key(user_id)),
            ]

        outcomes = repository.apply([command for user_id in IMPOSSIBLE for command in commands(user_id)])

        assert outcomes == [UserNotFoundError(user_id) for user_id in IMPOSSIBLE for _ in range(7)]
        for user_id in IMPOSSIBLE:
            for read in (repository.get, repository.list_api_keys):
                with pytest.raises(UserNotFoundError) as refusal:
                    read(user_id)
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

        names = [user.username for user in repository.list_page(after=UserId(0), limit=10)]
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

    def test_a_batch_of_every_kind_of_change_is_applied_in_order(self, repository: UserRepository) -> None:
        ada = registered(repository)
        old, new = api_key(ada.id, 1), api_key(ada.id, 2)
        ending = EndTokens(user_id=ada.id, at=LATER)
        changing = ChangePassword(user_id=ada.id, password=ANOTHER, replacing=STORED, at=LATER)

        outcomes = repository.apply(
            [
                AddApiKey(key=old),
                ending,
                RecordApiKeyUse(key_id=old.id, at=LATER),
                changing,
                AddApiKey(key=new),
                RemoveApiKey(key_id=old.id),
                Reencrypt(user_id=ada.id, password=EncryptedPassword("better"), replacing=ANOTHER),
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
            ApiKeyNotFoundError(old.id),
            better,
            ApiKeyNotFoundError(new.id),
            UserNotFoundError(ada.id),
        ]

    def test_who_guesses_the_next_id_is_too_early_before_it_is_given(self, repository: UserRepository) -> None:
        guessed = UserId(registered(repository).id + 1)
        early, late = [EndTokens(user_id=guessed, at=LATER) for _ in range(2)]

        too_early, bob, ended = repository.apply([early, registration("bob"), late])

        assert too_early == UserNotFoundError(guessed)
        assert isinstance(bob, User)
        assert bob.id == guessed
        assert ended == late.apply_to(bob)
        assert repository.get(guessed) == ended

    def test_an_api_key_for_the_next_id_is_too_early_before_it_is_given(self, repository: UserRepository) -> None:
        guessed = UserId(registered(repository).id + 1)
        early, late = api_key(guessed, 1), api_key(guessed, 2)

        too_early, bob, added = repository.apply([AddApiKey(key=early), registration("bob"), AddApiKey(key=late)])

        assert too_early == UserNotFoundError(guessed)
        assert isinstance(bob, User)
        assert bob.id == guessed
        assert added == late
        assert repository.list_api_keys(guessed) == [late]

    def test_no_changes_have_no_outcomes(self, repository: UserRepository) -> None:
        assert repository.apply([]) == []

    def test_a_user_is_found_by_the_canonical_form_of_his_name(self, repository: UserRepository) -> None:
        user = registered(repository, "Straße")

        found = repository.find(canonical_username("STRASSE"))

        assert found == user
        assert repository.find(canonical_username("strase")) is None

    def test_many_names_are_found_at_once_in_whatever_order(self, repository: UserRepository) -> None:
        commands = [registration(f"user{number}") for number in range(1100)]
        users = repository.apply(commands)
        keys = [command.username_key for command in commands]
        nobody = canonical_username("nobody")

        found = repository.find_many([nobody, *reversed(keys), nobody, *keys])

        assert found == [None, *reversed(users), None, *users]
        assert repository.find_many([]) == []

    def test_pages_follow_each_other_by_id(self, repository: UserRepository) -> None:
        users = [registered(repository, f"user{number}") for number in range(5)]

        first = repository.list_page(after=UserId(0), limit=2)
        second = repository.list_page(after=first[-1].id, limit=2)
        third = repository.list_page(after=second[-1].id, limit=2)

        assert [first, second, third] == [users[:2], users[2:4], users[4:]]
        assert repository.list_page(after=third[-1].id, limit=2) == []

    def test_a_change_does_not_move_a_user_to_another_page(self, repository: UserRepository) -> None:
        ada, bob, eve = [registered(repository, name) for name in ("ada", "bob", "eve")]

        disabled, enabled = repository.apply(
            [
                SetEnabled(user_id=ada.id, enabled=False, at=LATER),
                SetEnabled(user_id=ada.id, enabled=True, at=LATER),
            ]
        )

        assert disabled != enabled
        assert repository.list_page(after=UserId(0), limit=2) == [enabled, bob]
        assert repository.list_page(after=bob.id, limit=2) == [eve]

    @pytest.mark.parametrize(
        "wanted", [{"enabled": False}, {"containing": "even"}, {"enabled": False, "containing": "n"}]
    )
    def test_a_page_is_full_while_there_are_more_of_those_it_is_of(
        self, repository: UserRepository, wanted: dict[str, Any]
    ) -> None:
        people = [registered(repository, f"{'odd' if number % 2 else 'even'}-{number}") for number in range(8)]
        apply = [SetEnabled(user_id=user.id, enabled=False, at=LATER) for user in people[::2]]
        evens = repository.apply(apply)

        pages, last = [], UserId(0)
        while page := repository.list_page(after=last, limit=3, **wanted):
            pages.append(page)
            last = page[-1].id

        assert pages == [evens[:3], evens[3:]]

    def test_what_it_hands_out_is_not_what_it_keeps(self, repository: UserRepository) -> None:
        ada = registered(repository)

        attrs.evolve(ada, enabled=False)

        assert repository.get(ada.id).enabled is True

    def test_what_could_only_be_committed_too_late_is_undone(self, repository: UserRepository) -> None:
        with pytest.raises(RepositoryUnavailableError, match="too late to commit"):
            repository.apply([registration("ada")], commit_by=time.monotonic() - 1)

        assert repository.list_page(after=UserId(0), limit=10) == []
        (user,) = repository.apply([registration("ada")], commit_by=time.monotonic() + 60)
        assert repository.list_page(after=UserId(0), limit=10) == [user]

    def test_of_a_batch_that_is_too_late_nothing_is_applied(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        key = with_api_key(repository, ada, 1)
        commands: list[Command] = [
            registration("eve"),
            SetEnabled(user_id=ada.id, enabled=False, at=LATER),
            Remove(user_id=bob.id),
            RecordApiKeyUse(key_id=key.id, at=LATER),
            AddApiKey(key=api_key(ada.id, 2)),
            Remove(user_id=NOBODY),
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

    def test_every_way_to_read_sees_the_last_change(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        key = with_api_key(repository, ada)

        def seen() -> list[object]:
            return [
                repository.get(ada.id),
                repository.find(canonical_username("ada")),
                repository.find_many([canonical_username("ada")]),
                repository.list_page(after=UserId(0), limit=10),
                repository.list_page(after=UserId(0), limit=10, enabled=False),
                repository.find_principals([ada.id, key.id]),
                repository.list_api_keys(ada.id),
                repository.count(),
            ]

        before = seen()
        disabled, used, _ = repository.apply(
            [
                SetEnabled(user_id=ada.id, enabled=False, at=LATER),
                RecordApiKeyUse(key_id=key.id, at=LATER),
                Remove(user_id=bob.id),
            ]
        )

        assert isinstance(disabled, User)
        assert isinstance(used, ApiKey)
        assert before == [ada, ada, [ada], [ada, bob], [], [ada, ApiKeyPrincipal(key, ada)], [key], 2]
        assert seen() == [
            disabled,
            disabled,
            [disabled],
            [disabled],
            [disabled],
            [disabled, ApiKeyPrincipal(used, disabled)],
            [used],
            1,
        ]

    def test_texts_of_any_characters_and_the_longest_are_stored_whole(self, repository: UserRepository) -> None:
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

    def test_a_thousand_changes_are_one_batch(self, repository: UserRepository) -> None:
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

    def test_of_those_who_ask_for_one_name_at_once_one_gets_it(self, repository: UserRepository) -> None:
        def ask(number: int) -> Outcome:
            return apply_one(repository, registration("ada" if number % 2 else "ADA"))

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(ask, range(16)))

        (ada,) = repository.list_page(after=UserId(0), limit=10)
        assert outcomes.count(ada) == 1
        assert refusals(outcomes) == [UserExistsError(ada.id)] * 15

    def test_it_says_that_it_could_take_a_change(self, repository: UserRepository) -> None:
        repository.check()

    def test_it_counts_its_users(self, repository: UserRepository) -> None:
        counts = [repository.count()]
        ada, _ = registered(repository, "ada"), registered(repository, "bob")
        with_api_key(repository, ada)
        counts.append(repository.count())

        repository.apply([SetEnabled(user_id=ada.id, enabled=False, at=LATER), registration("ADA")])
        counts.append(repository.count())
        repository.apply([Remove(user_id=ada.id)])

        assert [*counts, repository.count()] == [0, 2, 2, 1]

    # --- API keys

    def test_an_api_key_is_stored_whole(self, repository: UserRepository) -> None:
        ada = registered(repository)
        key = api_key(
            ada.id,
            name="Łaptop 💻",
            expires_datetime=LATER + timedelta(microseconds=7),
            last_used_datetime=NOON + SECOND,
        )

        outcome = apply_one(repository, AddApiKey(key=key))

        assert outcome == key
        assert repository.list_api_keys(ada.id) == [key]
        assert repository.find_principals([key.id]) == [ApiKeyPrincipal(key, ada)]

    def test_an_api_key_without_end_and_use_is_stored_so(self, repository: UserRepository) -> None:
        ada = registered(repository)
        key = with_api_key(repository, ada)

        (stored,) = repository.list_api_keys(ada.id)

        assert (stored.expires_datetime, stored.last_used_datetime) == (None, None)
        assert stored == key

    def test_times_of_an_api_key_come_back_aware_and_in_utc(self, repository: UserRepository) -> None:
        elsewhere = timezone(timedelta(hours=-3, minutes=-30))
        ada = registered(repository)
        with_api_key(
            repository,
            ada,
            created_datetime=NOON.astimezone(elsewhere),
            expires_datetime=LATER.astimezone(elsewhere),
            last_used_datetime=(NOON + SECOND).astimezone(elsewhere),
        )

        (stored,) = repository.list_api_keys(ada.id)

        times = [stored.created_datetime, stored.expires_datetime, stored.last_used_datetime]
        assert times == [NOON, LATER, NOON + SECOND]
        assert [time and time.utcoffset() for time in times] == [timedelta(0)] * 3

    def test_an_api_key_may_end_at_the_end_of_time(self, repository: UserRepository) -> None:
        ada = registered(repository)
        key = with_api_key(repository, ada, expires_datetime=datetime.max.replace(tzinfo=UTC))

        assert repository.list_api_keys(ada.id) == [key]

    def test_a_new_api_key_changes_nothing_of_its_user(self, repository: UserRepository) -> None:
        ada = registered(repository)

        with_api_key(repository, ada)

        assert repository.get(ada.id) == ada

    def test_a_user_who_is_shut_out_may_be_given_an_api_key(self, repository: UserRepository) -> None:
        ada = apply_one(repository, SetEnabled(user_id=registered(repository).id, enabled=False, at=LATER))
        assert isinstance(ada, User)

        key = with_api_key(repository, ada)

        assert repository.find_principals([key.id]) == [ApiKeyPrincipal(key, ada)]

    def test_a_refused_api_key_leaves_its_neighbours_alone(self, repository: UserRepository) -> None:
        ada = registered(repository)
        first, last = api_key(ada.id, 1), api_key(ada.id, 3)

        outcomes = repository.apply([AddApiKey(key=key) for key in (first, api_key(NOBODY, 2), last)])

        assert outcomes == [first, UserNotFoundError(NOBODY), last]
        assert repository.list_api_keys(ada.id) == [first, last]

    def test_a_removed_api_key_is_returned_and_gone(self, repository: UserRepository) -> None:
        ada = registered(repository)
        kept, removed = with_api_key(repository, ada, 1), with_api_key(repository, ada, 2)

        outcome = apply_one(repository, RemoveApiKey(key_id=removed.id))

        assert outcome == removed
        assert repository.list_api_keys(ada.id) == [kept]
        assert repository.find_principals([removed.id, kept.id]) == [None, ApiKeyPrincipal(kept, ada)]
        assert repository.get(ada.id) == ada

    def test_an_api_key_that_is_not_there_is_not_found(self, repository: UserRepository) -> None:
        ada = registered(repository)
        key = with_api_key(repository, ada)
        ids = [NO_KEY, ApiKeyId(""), ApiKeyId("é" * 1000), ApiKeyId(key.id.upper() + "x"), ApiKeyId("1")]

        outcomes = repository.apply([RemoveApiKey(key_id=key_id) for key_id in ids])
        outcomes += repository.apply([RecordApiKeyUse(key_id=key_id, at=LATER) for key_id in ids])

        assert outcomes == [ApiKeyNotFoundError(key_id) for key_id in ids] * 2
        assert repository.list_api_keys(ada.id) == [key]

    @pytest.mark.parametrize(
        ("last", "at", "recorded"),
        [
            pytest.param(None, NOON, NOON, id="for the first time"),
            pytest.param(NOON, NOON + SECOND, NOON, id="within a minute"),
            pytest.param(NOON, NOON + MINUTE - timedelta(microseconds=1), NOON, id="hardly within a minute"),
            pytest.param(NOON, NOON + MINUTE, NOON + MINUTE, id="after a minute"),
            pytest.param(NOON, LATER, LATER, id="after an hour"),
            pytest.param(LATER, NOON, LATER, id="before, by another clock"),
        ],
    )
    def test_the_last_use_of_an_api_key_is_known_to_the_minute(
        self, repository: UserRepository, last: datetime | None, at: datetime, recorded: datetime
    ) -> None:
        ada = registered(repository)
        key = with_api_key(repository, ada, 1, last_used_datetime=last)
        other = with_api_key(repository, ada, 2)

        outcome = apply_one(repository, RecordApiKeyUse(key_id=key.id, at=at))

        assert outcome == attrs.evolve(key, last_used_datetime=recorded)
        assert repository.list_api_keys(ada.id) == [outcome, other]
        assert repository.get(ada.id) == ada

    def test_uses_of_many_api_keys_are_recorded_at_once(self, repository: UserRepository) -> None:
        ada = registered(repository)
        keys = [with_api_key(repository, ada, number) for number in range(5)]

        outcomes = repository.apply([RecordApiKeyUse(key_id=key.id, at=LATER) for key in reversed(keys)])

        used = [attrs.evolve(key, last_used_datetime=LATER) for key in keys]
        assert outcomes == used[::-1]
        assert repository.list_api_keys(ada.id) == used

    def test_the_api_keys_of_a_removed_user_go_with_him(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        gone = [with_api_key(repository, ada, number) for number in (1, 2)]
        kept = with_api_key(repository, bob, 3)

        repository.apply([Remove(user_id=ada.id)])

        assert repository.find_principals([*(key.id for key in gone), kept.id]) == [
            None,
            None,
            ApiKeyPrincipal(kept, bob),
        ]
        outcomes = repository.apply([RemoveApiKey(key_id=key.id) for key in gone])
        assert outcomes == [ApiKeyNotFoundError(key.id) for key in gone]

    def test_api_keys_are_those_of_one_user_the_oldest_first(self, repository: UserRepository) -> None:
        ada, bob, eve = [registered(repository, name) for name in ("ada", "bob", "eve")]
        youngest = with_api_key(repository, ada, 1, created_datetime=NOON + 2 * SECOND)
        hers = with_api_key(repository, bob, 2)
        same_time = [with_api_key(repository, ada, number, created_datetime=NOON + SECOND) for number in (12, 10, 3)]
        oldest = with_api_key(repository, ada, 9)

        found = [repository.list_api_keys(user.id) for user in (ada, bob, eve)]

        assert found == [[oldest, *reversed(same_time), youngest], [hers], []]

    # --- who stands behind what a request shows

    def test_holders_are_those_who_were_asked_for_in_their_order(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        hers, his = with_api_key(repository, ada, 1), with_api_key(repository, bob, 2)

        find_principals = repository.find_principals([bob.id, his.id, NOBODY, hers.id, NO_KEY, ada.id, bob.id, hers.id])

        of_hers = ApiKeyPrincipal(hers, ada)
        assert find_principals == [bob, ApiKeyPrincipal(his, bob), None, of_hers, None, ada, bob, of_hers]

    def test_what_nobody_can_have_has_no_holder(self, repository: UserRepository) -> None:
        ada = registered(repository)
        subjects: list[PrincipalId] = [*IMPOSSIBLE, ApiKeyId(""), ApiKeyId(str(ada.id)), ApiKeyId("ada"), NO_KEY]

        assert repository.find_principals(subjects) == [None] * len(subjects)

    def test_nobody_asked_for_is_nobody_found(self, repository: UserRepository) -> None:
        assert repository.find_principals([]) == []

    @pytest.mark.parametrize("nowait", [False, True], ids=["waiting", "nonblocking"])
    def test_holders_are_seen_as_the_last_change_left_them(self, repository: UserRepository, nowait: bool) -> None:
        find_principals = repository.find_principals
        if nowait and isinstance(repository, NonblockingLookup):
            find_principals = repository.find_principals_nowait
        ada = registered(repository)
        key = with_api_key(repository, ada)
        repository.find_principals([ada.id])  # opened
        seen = [find_principals([ada.id, key.id])]

        disabled = apply_one(repository, SetEnabled(user_id=ada.id, enabled=False, at=LATER))
        used = apply_one(repository, RecordApiKeyUse(key_id=key.id, at=LATER))
        seen.append(find_principals([ada.id, key.id]))
        repository.apply([RemoveApiKey(key_id=key.id)])
        seen.append(find_principals([ada.id, key.id]))

        assert isinstance(disabled, User)
        assert isinstance(used, ApiKey)
        assert seen == [[ada, ApiKeyPrincipal(key, ada)], [disabled, ApiKeyPrincipal(used, disabled)], [disabled, None]]

    def test_an_id_that_no_database_can_hold_is_no_api_key(self, repository: UserRepository) -> None:
        ada = registered(repository)
        key = api_key(ada.id)
        ids = [ApiKeyId("\0"), ApiKeyId("é"), ApiKeyId("\ud800"), ApiKeyId(""), ApiKeyId("x" * 100_000)]

        outcomes = repository.apply(
            [
                AddApiKey(key=key),
                *(RemoveApiKey(key_id=key_id) for key_id in ids),
                *(RecordApiKeyUse(key_id=key_id, at=LATER) for key_id in ids),
                SetEnabled(user_id=ada.id, enabled=False, at=LATER),
            ]
        )

        assert outcomes[1:-1] == [ApiKeyNotFoundError(key_id) for key_id in ids * 2]
        assert repository.find_principals(ids) == [None] * len(ids)
        assert repository.get(ada.id).enabled is False

    def test_a_change_of_password_that_was_made_already_is_made_once(self, repository: UserRepository) -> None:
        ada = registered(repository)
        command = ChangePassword(
            user_id=ada.id, password=EncryptedPassword("another"), replacing=ada.password, at=LATER
        )

        first, second = repository.apply([command]), repository.apply([command])

        assert first == second == [command.apply_to(ada)]

    def test_a_page_may_be_of_those_who_are_let_in_or_shut_out(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        shut_out = apply_one(repository, SetEnabled(user_id=bob.id, enabled=False, at=LATER))

        pages = [repository.list_page(after=UserId(0), limit=10, enabled=enabled) for enabled in (True, False, None)]

        assert pages == [[ada], [shut_out], [ada, shut_out]]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("ad", [0, 2]),
            ("strasse", [1]),
            ("user1@", [1]),
            ("example", [0, 1, 2, 3]),
            ("%", [3]),
            ("_", [3]),
            ("x%", []),
        ],
    )
    def test_a_page_may_be_of_those_with_a_text_in_their_name_or_address(
        self, repository: UserRepository, text: str, expected: list[int]
    ) -> None:
        names = ["ada", "Straße", "ADAM", "100%_"]
        apply = [registration(name, email=f"User{number}@Example.com") for number, name in enumerate(names)]
        people = repository.apply(apply)

        assert repository.list_page(after=UserId(0), limit=10, containing=text) == [
            people[number] for number in expected
        ]

    def test_no_user_comes_after_the_largest_id(self, repository: UserRepository) -> None:
        registered(repository)

        assert repository.list_page(after=UserId(10**30), limit=10) == []

    def test_a_user_who_is_taken_over_keeps_when_he_was_registered(self, repository: UserRepository) -> None:
        command = registration(enabled=False, at=LATER, created=NOON)

        ada = apply_one(repository, command)

        assert isinstance(ada, User)
        assert ada == repository.get(ada.id) == command.as_user(ada.id)
        assert (ada.enabled, ada.created_datetime, ada.updated_datetime) == (False, NOON, LATER)
        assert [entry.at for entry in repository.audit.list_page(limit=10)] == [LATER]

    # --- the audit trail

    def test_every_change_leaves_an_entry_the_newest_first(self, repository: UserRepository) -> None:
        actor = Actor("admin", "request-7")
        ada = apply_one(repository, registration(actor=actor))
        assert isinstance(ada, User)
        key = api_key(ada.id, created_datetime=LATER)
        commands: list[Command] = [
            SetEnabled(user_id=ada.id, enabled=False, at=LATER, actor=actor),
            SetEnabled(user_id=ada.id, enabled=True, at=LATER, actor=actor),
            EndTokens(user_id=ada.id, at=LATER, actor=actor),
            ChangePassword(user_id=ada.id, password=ANOTHER, replacing=None, at=LATER, actor=actor),
            AddApiKey(key=key, actor=actor),
            RemoveApiKey(key_id=key.id, at=LATER, actor=actor),
            Remove(user_id=ada.id, at=LATER, actor=actor),
        ]
        repository.apply(commands)

        entries = repository.audit.list_page(limit=10)
        expected: list[tuple[Action, ApiKeyId | None]] = [
            ("register", None),
            ("disable", None),
            ("enable", None),
            ("end_tokens", None),
            ("set_password", None),
            ("add_api_key", key.id),
            ("remove_api_key", key.id),
            ("remove", None),
        ]
        assert [attrs.evolve(entry, id=UNSAVED_ID) for entry in reversed(entries)] == [
            AuditEntry(
                at=NOON if action == "register" else LATER,
                actor="admin",
                action=action,
                user_id=ada.id,
                api_key_id=key_id,
                outcome="done",
                request_id="request-7",
            )
            for action, key_id in expected
        ]
        assert [entry.id for entry in entries] == sorted({entry.id for entry in entries}, reverse=True)

    def test_a_refused_change_leaves_an_entry_that_says_why(self, repository: UserRepository) -> None:
        ada = registered(repository)
        replacing = EncryptedPassword("not the stored one")
        repository.apply(
            [
                registration("ADA"),
                ChangePassword(user_id=ada.id, password=ANOTHER, replacing=replacing, at=LATER),
                Remove(user_id=NOBODY, at=LATER),
                AddApiKey(key=api_key(NOBODY)),
                RemoveApiKey(key_id=NO_KEY, at=LATER),
            ]
        )

        entries = repository.audit.list_page(limit=5)
        assert [(entry.action, entry.outcome, entry.user_id, entry.api_key_id) for entry in reversed(entries)] == [
            ("register", "user_exists", ada.id, None),
            ("set_password", "password_changed", ada.id, None),
            ("remove", "user_not_found", NOBODY, None),
            ("add_api_key", "user_not_found", NOBODY, None),
            ("remove_api_key", "api_key_not_found", None, None),
        ]
        assert {(entry.actor, entry.request_id) for entry in entries} == {("library", None)}

    def test_an_id_that_no_database_can_hold_is_told_as_nobodys(self, repository: UserRepository) -> None:
        repository.apply([SetEnabled(user_id=user_id, enabled=True, at=NOON) for user_id in IMPOSSIBLE])

        told = [entry.user_id for entry in repository.audit.list_page(limit=10)]
        assert told == [user_id if user_id == NOBODY else None for user_id in reversed(IMPOSSIBLE)]

    def test_what_changes_nothing_of_anybody_leaves_no_entry(self, repository: UserRepository) -> None:
        ada = registered(repository)
        key = with_api_key(repository, ada)
        before = repository.audit.list_page(limit=10)

        repository.apply(
            [
                Reencrypt(user_id=ada.id, password=ANOTHER, replacing=STORED),
                RecordApiKeyUse(key_id=key.id, at=LATER),
            ]
        )

        assert repository.audit.list_page(limit=10) == before

    def test_entries_come_in_pages_and_about_one_user(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        apply_one(repository, Remove(user_id=ada.id, at=LATER))
        audit = repository.audit

        everything = audit.list_page(limit=10)
        first = audit.list_page(limit=2)
        second = audit.list_page(limit=2, after=first[-1].id)
        assert [(entry.action, entry.user_id) for entry in everything] == [
            ("remove", ada.id),
            ("register", bob.id),
            ("register", ada.id),
        ]
        assert first + second == everything
        assert audit.list_page(limit=10, user_id=ada.id) == [everything[0], everything[2]]
        assert audit.list_page(limit=10, user_id=ada.id, after=everything[0].id) == [everything[2]]
        assert audit.list_page(limit=10, after=everything[-1].id) == []

    def test_no_entry_is_about_an_id_that_nobody_can_have_and_all_come_after_the_largest(
        self, repository: UserRepository
    ) -> None:
        registered(repository)

        assert [repository.audit.list_page(limit=10, user_id=user_id) for user_id in IMPOSSIBLE] == [[]] * len(
            IMPOSSIBLE
        )
        assert len(repository.audit.list_page(limit=10, after=AuditId(10**30))) == 1
        assert repository.audit.list_page(limit=10, after=AuditId(0)) == []

    def test_entries_are_counted_by_day_in_utc(self, repository: UserRepository) -> None:
        late = datetime(2026, 11, 23, 23, 30, tzinfo=UTC)
        in_tokyo = (late + HOUR_AND_A_HALF).astimezone(timezone(timedelta(hours=9)))
        repository.apply(
            [
                registration("ada", at=late),
                registration("ADA", at=late),
                registration("bob", at=in_tokyo),
                registration("eve", at=late - timedelta(days=1)),
                SetEnabled(user_id=NOBODY, enabled=True, at=late),
            ]
        )
        (ada,) = [user for user in repository.list_page(after=UserId(0), limit=1) if user.username == "ada"]
        repository.apply([SetEnabled(user_id=ada.id, enabled=False, at=late)])

        assert repository.audit.count_per_day(since=late) == [
            DailyCount(date(2026, 11, 23), "disable", 1),
            DailyCount(date(2026, 11, 23), "register", 1),
            DailyCount(date(2026, 11, 24), "register", 1),
        ]

    def test_old_entries_are_forgotten_the_oldest_first(self, repository: UserRepository) -> None:
        for number in (3, 1, 2, 4):
            apply_one(repository, registration(f"user {number}", at=NOON + number * SECOND))

        purged = [repository.audit.purge(before=NOON + 4 * SECOND, limit=2) for _ in range(3)]

        assert purged == [2, 1, 0]
        assert [entry.at for entry in repository.audit.list_page(limit=10)] == [NOON + 4 * SECOND]

    def test_an_id_of_an_entry_is_never_given_twice(self, repository: UserRepository) -> None:
        registered(repository)
        (entry,) = repository.audit.list_page(limit=10)
        repository.audit.purge(before=LATER, limit=10)

        apply_one(repository, registration("bob"))

        (next_entry,) = repository.audit.list_page(limit=10)
        assert next_entry.id > entry.id
