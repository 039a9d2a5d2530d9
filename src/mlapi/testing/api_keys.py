"""The contract of `UserRepository` for API keys, and for looking up principals."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest

from mlapi import (
    ApiKey,
    ApiKeyId,
    ApiKeyNotFoundError,
    User,
    UserNotFoundError,
    UserRepository,
)
from mlapi.domain.commands import (
    AddApiKey,
    RecordApiKeyUse,
    Remove,
    RemoveApiKey,
    SetEnabled,
)
from mlapi.domain.credentials import ApiKeyPrincipal, PrincipalId
from mlapi.domain.errors import TooManyApiKeysError
from mlapi.domain.ports import NonblockingLookup
from mlapi.testing.samples import (
    LATER,
    MINUTE,
    NO_KEY,
    NO_USER,
    NOON,
    SECOND,
    UNKNOWN_IDS,
    api_key,
    apply_one,
    registered,
    with_api_key,
)


class ApiKeyContract:
    def test_api_key_is_stored_completely(self, repository: UserRepository) -> None:
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

    def test_unused_api_key_that_never_expires_is_stored(self, repository: UserRepository) -> None:
        ada = registered(repository)
        key = with_api_key(repository, ada)

        (stored,) = repository.list_api_keys(ada.id)

        assert (stored.expires_datetime, stored.last_used_datetime) == (None, None)
        assert stored == key

    def test_api_key_times_are_aware_and_in_utc(self, repository: UserRepository) -> None:
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

    def test_api_key_can_expire_at_the_latest_possible_time(self, repository: UserRepository) -> None:
        ada = registered(repository)
        key = with_api_key(repository, ada, expires_datetime=datetime.max.replace(tzinfo=UTC))

        assert repository.list_api_keys(ada.id) == [key]

    def test_adding_an_api_key_does_not_change_its_user(self, repository: UserRepository) -> None:
        ada = registered(repository)

        with_api_key(repository, ada)

        assert repository.get(ada.id) == ada

    def test_api_key_can_be_added_for_a_disabled_user(self, repository: UserRepository) -> None:
        ada = apply_one(repository, SetEnabled(user_id=registered(repository).id, enabled=False, at=LATER))
        assert isinstance(ada, User)

        key = with_api_key(repository, ada)

        assert repository.find_principals([key.id]) == [ApiKeyPrincipal(key, ada)]

    def test_rejected_api_key_does_not_affect_others_in_the_batch(self, repository: UserRepository) -> None:
        ada = registered(repository)
        first, last = api_key(ada.id, 1), api_key(ada.id, 3)

        outcomes = repository.apply([AddApiKey(key=key) for key in (first, api_key(NO_USER, 2), last)])

        assert outcomes == [first, UserNotFoundError(NO_USER), last]
        assert repository.list_api_keys(ada.id) == [first, last]

    def test_removed_api_key_is_returned_and_deleted(self, repository: UserRepository) -> None:
        ada = registered(repository)
        kept, removed = with_api_key(repository, ada, 1), with_api_key(repository, ada, 2)

        outcome = apply_one(repository, RemoveApiKey(key_id=removed.id))

        assert outcome == removed
        assert repository.list_api_keys(ada.id) == [kept]
        assert repository.find_principals([removed.id, kept.id]) == [None, ApiKeyPrincipal(kept, ada)]
        assert repository.get(ada.id) == ada

    # --- limits and owners

    def test_api_key_beyond_the_limit_is_rejected(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        keys = [api_key(ada.id, number) for number in range(1, 5)]
        bobs_key = api_key(bob.id, 9)

        outcomes = [apply_one(repository, AddApiKey(key=key, limit=2)) for key in keys[:3]]
        outcomes += [
            apply_one(repository, AddApiKey(key=keys[3])),
            apply_one(repository, AddApiKey(key=bobs_key, limit=2)),
        ]

        assert outcomes == [keys[0], keys[1], TooManyApiKeysError(ada.id, 2), keys[3], bobs_key]
        assert repository.list_api_keys(ada.id) == [keys[0], keys[1], keys[3]]

    def test_limit_of_api_keys_applies_within_a_batch(self, repository: UserRepository) -> None:
        ada = registered(repository)
        first, second, third, fourth = (api_key(ada.id, number) for number in range(1, 5))

        outcomes = repository.apply(
            [
                AddApiKey(key=first, limit=1),
                AddApiKey(key=second, limit=1),
                RemoveApiKey(key_id=first.id),
                AddApiKey(key=third, limit=1),
                AddApiKey(key=fourth),
            ]
        )

        assert outcomes == [first, TooManyApiKeysError(ada.id, 1), first, third, fourth]
        assert repository.list_api_keys(ada.id) == [third, fourth]

    def test_racing_api_keys_do_not_exceed_the_limit(self, repository: UserRepository) -> None:
        ada = registered(repository)
        commands = [AddApiKey(key=api_key(ada.id, number), limit=3) for number in range(1, 21)]

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(lambda command: apply_one(repository, command), commands))

        assert outcomes.count(TooManyApiKeysError(ada.id, 3)) == 17
        assert len(repository.list_api_keys(ada.id)) == 3

    def test_api_key_with_a_limit_needs_an_existing_user(self, repository: UserRepository) -> None:
        outcomes = [apply_one(repository, AddApiKey(key=api_key(user_id), limit=1)) for user_id in UNKNOWN_IDS]

        assert outcomes == [UserNotFoundError(user_id) for user_id in UNKNOWN_IDS]

    def test_api_key_is_not_removed_for_another_user(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        key = with_api_key(repository, ada)
        others = [bob.id, *UNKNOWN_IDS]

        outcomes = repository.apply([RemoveApiKey(key_id=key.id, owner=user_id) for user_id in others])
        kept = repository.list_api_keys(ada.id)
        outcomes.append(apply_one(repository, RemoveApiKey(key_id=key.id, owner=ada.id)))

        assert outcomes == [*[ApiKeyNotFoundError(key.id)] * len(others), key]
        assert (kept, repository.list_api_keys(ada.id)) == ([key], [])

    def test_unknown_api_key_is_not_found(self, repository: UserRepository) -> None:
        ada = registered(repository)
        key = with_api_key(repository, ada)
        ids = [NO_KEY, ApiKeyId(""), ApiKeyId("é" * 1000), ApiKeyId(key.id.upper() + "x"), ApiKeyId("1")]

        outcomes = repository.apply([RemoveApiKey(key_id=key_id) for key_id in ids])
        outcomes += repository.apply([RecordApiKeyUse(key_id=key_id, at=LATER) for key_id in ids])

        assert outcomes == [ApiKeyNotFoundError(key_id) for key_id in ids] * 2
        assert repository.list_api_keys(ada.id) == [key]

    def test_unstorable_api_key_id_is_not_found(self, repository: UserRepository) -> None:
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

    @pytest.mark.parametrize(
        ("last", "at", "recorded"),
        [
            pytest.param(None, NOON, NOON, id="first use"),
            pytest.param(NOON, NOON + SECOND, NOON, id="within a minute"),
            pytest.param(NOON, NOON + MINUTE - timedelta(microseconds=1), NOON, id="just within a minute"),
            pytest.param(NOON, NOON + MINUTE, NOON + MINUTE, id="after a minute"),
            pytest.param(NOON, LATER, LATER, id="after an hour"),
            pytest.param(LATER, NOON, LATER, id="earlier, according to another clock"),
        ],
    )
    def test_last_use_of_an_api_key_is_accurate_to_within_a_minute(
        self, repository: UserRepository, last: datetime | None, at: datetime, recorded: datetime
    ) -> None:
        ada = registered(repository)
        key = with_api_key(repository, ada, 1, last_used_datetime=last)
        other = with_api_key(repository, ada, 2)

        outcome = apply_one(repository, RecordApiKeyUse(key_id=key.id, at=at))

        assert outcome == attrs.evolve(key, last_used_datetime=recorded)
        assert repository.list_api_keys(ada.id) == [outcome, other]
        assert repository.get(ada.id) == ada

    def test_use_of_several_api_keys_is_recorded_in_one_batch(self, repository: UserRepository) -> None:
        ada = registered(repository)
        keys = [with_api_key(repository, ada, number) for number in range(5)]

        outcomes = repository.apply([RecordApiKeyUse(key_id=key.id, at=LATER) for key in reversed(keys)])

        used = [attrs.evolve(key, last_used_datetime=LATER) for key in keys]
        assert outcomes == used[::-1]
        assert repository.list_api_keys(ada.id) == used

    def test_removing_a_user_removes_the_api_keys(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        removed = [with_api_key(repository, ada, number) for number in (1, 2)]
        kept = with_api_key(repository, bob, 3)

        repository.apply([Remove(user_id=ada.id)])

        assert repository.find_principals([*(key.id for key in removed), kept.id]) == [
            None,
            None,
            ApiKeyPrincipal(kept, bob),
        ]
        outcomes = repository.apply([RemoveApiKey(key_id=key.id) for key in removed])
        assert outcomes == [ApiKeyNotFoundError(key.id) for key in removed]

    def test_api_keys_are_sorted_by_creation_time_and_id(self, repository: UserRepository) -> None:
        ada, bob, eve = [registered(repository, name) for name in ("ada", "bob", "eve")]
        newest = with_api_key(repository, ada, 1, created_datetime=NOON + 2 * SECOND)
        bobs_key = with_api_key(repository, bob, 2)
        same_time = [with_api_key(repository, ada, number, created_datetime=NOON + SECOND) for number in (12, 10, 3)]
        oldest = with_api_key(repository, ada, 9)

        found = [repository.list_api_keys(user.id) for user in (ada, bob, eve)]

        assert found == [[oldest, *reversed(same_time), newest], [bobs_key], []]


class PrincipalContract:
    def test_principals_are_returned_in_order(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        adas_key, bobs_key = with_api_key(repository, ada, 1), with_api_key(repository, bob, 2)
        ids: list[PrincipalId] = [bob.id, bobs_key.id, NO_USER, adas_key.id, NO_KEY, ada.id, bob.id, adas_key.id]

        found = repository.find_principals(ids)

        ada_by_key = ApiKeyPrincipal(adas_key, ada)
        assert found == [bob, ApiKeyPrincipal(bobs_key, bob), None, ada_by_key, None, ada, bob, ada_by_key]

    def test_unknown_ids_have_no_principal(self, repository: UserRepository) -> None:
        ada = registered(repository)
        ids: list[PrincipalId] = [*UNKNOWN_IDS, ApiKeyId(""), ApiKeyId(str(ada.id)), ApiKeyId("ada"), NO_KEY]

        assert repository.find_principals(ids) == [None] * len(ids)

    def test_empty_list_of_ids_yields_no_principals(self, repository: UserRepository) -> None:
        assert repository.find_principals([]) == []

    @pytest.mark.parametrize("nowait", [False, True], ids=["waiting", "nonblocking"])
    def test_principals_reflect_the_latest_changes(self, repository: UserRepository, nowait: bool) -> None:
        find_principals = repository.find_principals
        if nowait and isinstance(repository, NonblockingLookup):
            find_principals = repository.find_principals_nowait
        ada = registered(repository)
        key = with_api_key(repository, ada)
        repository.find_principals([ada.id])  # opens a connection, which the nonblocking lookup needs
        seen = [find_principals([ada.id, key.id])]

        disabled = apply_one(repository, SetEnabled(user_id=ada.id, enabled=False, at=LATER))
        used = apply_one(repository, RecordApiKeyUse(key_id=key.id, at=LATER))
        seen.append(find_principals([ada.id, key.id]))
        repository.apply([RemoveApiKey(key_id=key.id)])
        seen.append(find_principals([ada.id, key.id]))

        assert isinstance(disabled, User)
        assert isinstance(used, ApiKey)
        assert seen == [[ada, ApiKeyPrincipal(key, ada)], [disabled, ApiKeyPrincipal(used, disabled)], [disabled, None]]
