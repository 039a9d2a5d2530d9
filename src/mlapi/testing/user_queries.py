"""The contract of `UserRepository` for reading users."""

from typing import Any

import attrs
import pytest

from mlapi import (
    ApiKey,
    User,
    UserId,
    UserRepository,
)
from mlapi.domain.commands import (
    RecordApiKeyUse,
    Remove,
    SetEnabled,
    UpdateUser,
    UserChange,
)
from mlapi.domain.credentials import ApiKeyPrincipal
from mlapi.domain.lists import ListedUser
from mlapi.domain.metadata import Metadata
from mlapi.domain.ports import NonblockingLookup
from mlapi.domain.rules import UserFilter, canonical_username
from mlapi.domain.users import UserState
from mlapi.testing.samples import (
    LATER,
    MICROSECOND,
    NOON,
    SECOND,
    SUBSCRIBED,
    apply_one,
    registered,
    registration,
    with_api_key,
)


class UserQueryContract:
    def test_user_is_found_by_canonical_username(self, repository: UserRepository) -> None:
        user = registered(repository, "Straße")

        found = repository.find(canonical_username("STRASSE"))

        assert found == user
        assert repository.find(canonical_username("strase")) is None

    def test_many_usernames_are_found_in_any_order(self, repository: UserRepository) -> None:
        commands = [registration(f"user{number}") for number in range(1100)]
        users = repository.apply(commands)
        keys = [command.username_key for command in commands]
        unknown = canonical_username("unknown")

        found = repository.find_many([unknown, *reversed(keys), unknown, *keys])

        assert found == [None, *reversed(users), None, *users]
        assert repository.find_many([]) == []

    @pytest.mark.parametrize("nowait", [False, True], ids=["waiting", "nonblocking"])
    def test_username_lookup_reflects_the_latest_changes(self, repository: UserRepository, nowait: bool) -> None:
        find_many = repository.find_many
        if nowait and isinstance(repository, NonblockingLookup):
            find_many = repository.find_many_nowait
        key = canonical_username("ada")
        repository.find_many([key])  # opens a connection, which the nonblocking lookup needs
        seen = [find_many([key])]

        ada = registered(repository)
        seen.append(find_many([key]))
        repository.apply([Remove(user_id=ada.id)])
        seen.append(find_many([key]))

        assert seen == [[None], [ada], [None]]

    def test_users_are_found_by_email_in_any_ascii_case(self, repository: UserRepository) -> None:
        ada, bob, eve = (
            registered(repository, name, email=email)
            for name, email in (("ada", "Ada@Example.com"), ("bob", "ada@example.com"), ("eve", "eve@example.com"))
        )

        assert repository.find_by_email("ADA@example.COM", limit=9) == [ada, bob]
        assert repository.find_by_email("ada@example.com", limit=1) == [ada]
        assert repository.find_by_email("eve@example.com", limit=9) == [eve]

    @pytest.mark.parametrize("text", ["", "ada", "a%@example.com", "a_a@example.com", "a\0", "a\ud800", "x" * 999])
    def test_unknown_email_matches_no_user(self, repository: UserRepository, text: str) -> None:
        registered(repository, email="ada@example.com")

        assert repository.find_by_email(text, limit=9) == []

    def test_pages_are_sorted_by_id(self, repository: UserRepository) -> None:
        users = [registered(repository, f"user{number}") for number in range(5)]

        first = repository.list_page(after=UserId(0), limit=2)
        second = repository.list_page(after=first[-1].id, limit=2)
        third = repository.list_page(after=second[-1].id, limit=2)

        assert [first, second, third] == [users[:2], users[2:4], users[4:]]
        assert repository.list_page(after=third[-1].id, limit=2) == []

    def test_update_does_not_move_a_user_to_another_page(self, repository: UserRepository) -> None:
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
        "matching",
        [UserFilter(enabled=False), UserFilter(containing="even"), UserFilter(enabled=False, containing="n")],
    )
    def test_filter_does_not_shorten_pages(self, repository: UserRepository, matching: UserFilter) -> None:
        people = [registered(repository, f"{'odd' if number % 2 else 'even'}-{number}") for number in range(8)]
        evens = repository.apply([SetEnabled(user_id=user.id, enabled=False, at=LATER) for user in people[::2]])

        pages, last = [], UserId(0)
        while page := repository.list_page(after=last, limit=3, matching=matching):
            pages.append(page)
            last = page[-1].id

        assert pages == [evens[:3], evens[3:]]

    def test_pages_can_be_filtered_by_enabled(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        disabled = apply_one(repository, SetEnabled(user_id=bob.id, enabled=False, at=LATER))

        pages = [
            repository.list_page(after=UserId(0), limit=10, matching=UserFilter(enabled=enabled))
            for enabled in (True, False, None)
        ]

        assert pages == [[ada], [disabled], [ada, disabled]]

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
    def test_pages_can_be_filtered_by_text(self, repository: UserRepository, text: str, expected: list[int]) -> None:
        names = ["ada", "Straße", "ADAM", "100%_"]
        commands = [registration(name, email=f"User{number}@Example.com") for number, name in enumerate(names)]
        people = repository.apply(commands)

        assert repository.list_page(after=UserId(0), limit=10, matching=UserFilter(containing=text)) == [
            people[number] for number in expected
        ]

    def test_pages_can_be_filtered_by_state(self, repository: UserRepository) -> None:
        ends = [None, LATER + MICROSECOND, LATER, NOON, None, NOON]
        users = [registered(repository, f"user{number}", expires_datetime=end) for number, end in enumerate(ends)]
        repository.apply([SetEnabled(user_id=user.id, enabled=False, at=NOON) for user in users[4:]])

        def found(state: UserState, **fields: Any) -> list[UserId]:
            matching = UserFilter(state=state, at=LATER, **fields)
            page = repository.list_page(after=UserId(0), limit=10, matching=matching)
            assert repository.list_sorted("id", limit=10, matching=matching) == list(map(ListedUser, page))
            assert repository.count(matching) == len(page)
            assert all(user.state_at(LATER) == state for user in page)
            return [user.id for user in page]

        ids = [user.id for user in users]
        states: tuple[UserState, ...] = ("active", "disabled", "expired")
        assert [found(state) for state in states] == [ids[:2], ids[4:], ids[2:4]]
        assert found("active", expires_before=LATER + SECOND) == ids[1:2]
        assert found("disabled", containing="user5") == ids[5:]

    def test_pages_can_be_filtered_by_expiry(self, repository: UserRepository) -> None:
        ends = [None, NOON - SECOND, NOON, NOON + SECOND]
        users = [registered(repository, f"user{number}", expires_datetime=end) for number, end in enumerate(ends)]

        found = [
            repository.list_page(after=UserId(0), limit=10, matching=UserFilter(expires_before=time))
            for time in (NOON, NOON + MICROSECOND, LATER)
        ]

        assert found == [users[1:2], users[1:3], users[1:]]

    @pytest.mark.parametrize(
        ("key", "text", "expected"),
        [
            ("customer", "cus_1", ["ada"]),
            ("customer", "cus", []),
            ("customer", "CUS_1", []),
            ("id", "7", ["ada", "bob"]),
            ("id", "7.0", ["eve"]),
            ("id", "true", ["cyd"]),
            ("id", "True", []),
            ("id", "1e+22", ["dan"]),
            ("id", "null", []),
            ("id", "[1]", []),
            ("none", "null", []),
            ("inner", "x", []),
            ("a.b c", "'é%_", ["bob"]),
            ("", "", ["cyd"]),
            ("id", "1e999", []),
            ("id", "9" * 5000, []),
            ("id", "NaN", []),
            ("id", '"', ["kim"]),
            ('"', "x", []),
            ("id", "\0", []),
            ("\ud800", "x", []),
            ("id", "\ud800", []),
        ],
        ids=ascii,
    )
    def test_pages_can_be_filtered_by_metadata(
        self, repository: UserRepository, key: str, text: str, expected: list[str]
    ) -> None:
        metadata: dict[str, dict[str, object]] = {
            "ada": {"customer": "cus_1", "id": "7", "nested": {"inner": "x"}},
            "bob": {"id": 7, "a.b c": "'é%_", "customer": ["cus_1"]},
            "cyd": {"id": True, "": "", "none": None},
            "dan": {"id": 1e22},
            "eve": {"id": 7.0},
            "fay": {"id": [1], "nested": {"id": "7"}},
            "kim": {"id": '"'},
            "liz": {},
        }
        for name, value in metadata.items():
            registered(repository, name, metadata=Metadata.from_object(value))

        matching = UserFilter(metadata=(key, text))
        page = repository.list_page(after=UserId(0), limit=10, matching=matching)

        assert [user.username for user in page] == expected
        assert repository.list_sorted("name", limit=10, matching=matching) == list(map(ListedUser, page))

    @pytest.mark.parametrize("text", ["\0", "ad\0", "\ud800"], ids=ascii)
    def test_text_that_no_name_can_contain_finds_no_user(self, repository: UserRepository, text: str) -> None:
        registered(repository, "ada")

        matching = UserFilter(containing=text)
        assert repository.list_page(after=UserId(0), limit=9, matching=matching) == []
        assert repository.list_sorted("name", limit=9, matching=matching) == []
        assert repository.find_by_prefix(text, limit=9) == []

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [("ad", [0, 2]), ("strasse", [1]), ("user", []), ("%", []), ("100%", [3]), ("z", [4, 5])],
    )
    def test_users_are_found_by_the_start_of_their_name(
        self, repository: UserRepository, prefix: str, expected: list[int]
    ) -> None:
        names = ["ada", "Straße", "ADAM", "100%_", "Z", "z\U0001f600"]
        people = [registered(repository, name) for name in names]

        assert repository.find_by_prefix(prefix, limit=10) == [people[number] for number in expected]

    def test_number_of_users_found_by_prefix_is_limited(self, repository: UserRepository) -> None:
        people = [registered(repository, f"ada-{number}") for number in range(4)]

        found = repository.find_by_prefix("ada", limit=3)

        assert len(found) == 3
        assert [user for user in people if user in found] == found

    def test_page_after_the_largest_id_is_empty(self, repository: UserRepository) -> None:
        registered(repository)

        assert repository.list_page(after=UserId(10**30), limit=10) == []

    def test_changing_a_returned_user_does_not_change_the_stored_one(self, repository: UserRepository) -> None:
        ada = registered(repository)

        attrs.evolve(ada, enabled=False)

        assert repository.get(ada.id).enabled is True

    def test_every_read_sees_the_latest_changes(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        key = with_api_key(repository, ada)

        def seen() -> list[object]:
            return [
                repository.get(ada.id),
                repository.find(canonical_username("ada")),
                repository.find_many([canonical_username("ada")]),
                repository.list_page(after=UserId(0), limit=10),
                repository.list_page(after=UserId(0), limit=10, matching=UserFilter(enabled=False)),
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

    def test_every_read_returns_expiry_plan_and_metadata(self, repository: UserRepository) -> None:
        before = registered(repository, "ada", **SUBSCRIBED)
        key = with_api_key(repository, before)
        repository.find_principals([before.id, key.id])

        change = apply_one(repository, UpdateUser(user_id=before.id, expires=LATER, plan="free", at=LATER))

        assert isinstance(change, UserChange)
        ada = change.after
        assert (change.before, ada.plan, ada.expires_datetime) == (before, "free", LATER)
        assert repository.find(canonical_username("ada")) == repository.get(ada.id) == ada
        assert repository.find_principals([ada.id, key.id]) == [ada, ApiKeyPrincipal(key, ada)]
        assert repository.find_by_prefix("ad", limit=9) == [ada]
        assert repository.list_sorted("name", limit=9) == [ListedUser(ada)]
        if isinstance(repository, NonblockingLookup):
            assert repository.find_principals_nowait([ada.id, key.id]) == [ada, ApiKeyPrincipal(key, ada)]

    def test_users_are_counted(self, repository: UserRepository) -> None:
        counts = [repository.count()]
        ada, _ = registered(repository, "ada"), registered(repository, "bob")
        with_api_key(repository, ada)
        counts.append(repository.count())

        repository.apply([SetEnabled(user_id=ada.id, enabled=False, at=LATER), registration("ADA")])
        counts.append(repository.count())
        repository.apply([Remove(user_id=ada.id)])

        assert [*counts, repository.count()] == [0, 2, 2, 1]

    def test_check_passes_when_writing_is_possible(self, repository: UserRepository) -> None:
        repository.check()
