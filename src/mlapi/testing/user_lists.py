"""The contract of `UserRepository` for sorted lists and counts, and of `Storage` for the activity in them."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from mlapi import User, UserId, UserRepository
from mlapi.domain.commands import EndTokens, Remove, SetEnabled
from mlapi.domain.lists import ListedUser, ListPosition, StateCounts
from mlapi.domain.rules import UserFilter
from mlapi.domain.storage import Storage
from mlapi.domain.usage import MAX_COUNT, UsageRow
from mlapi.domain.users import UserOrder
from mlapi.testing.samples import (
    LATER,
    MINUTE,
    NOON,
    SECOND,
    apply_one,
    registered,
    registration,
)

DAY = timedelta(days=1)
ORDERS: tuple[UserOrder, ...] = ("created", "name", "expires", "seen")


class UserListContract:
    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize(
        ("order", "expected"), [("id", "cBda"), ("name", "aBcd"), ("created", "Bdac"), ("updated", "dcBa")]
    )
    def test_pages_can_be_sorted(
        self, repository: UserRepository, order: UserOrder, expected: str, descending: bool
    ) -> None:
        created = {"c": LATER, "B": NOON, "d": NOON, "a": NOON + SECOND}
        users = [registered(repository, name, at=at, created=at) for name, at in created.items()]
        times = [LATER, LATER + SECOND, NOON, LATER + MINUTE]
        repository.apply([EndTokens(user_id=user.id, at=at) for user, at in zip(users, times, strict=True)])

        pages, last = [], None
        while page := repository.list_sorted(order, descending=descending, after=last, limit=3):
            pages.append("".join(listed.user.username for listed in page))
            last = ListPosition.of(order, page[-1])

        wanted = expected[::-1] if descending else expected
        assert pages == [wanted[:3], wanted[3:]]

    def test_sorted_pages_are_filtered(self, repository: UserRepository) -> None:
        ada, bob, adam = [registered(repository, name) for name in ("ada", "bob", "adam")]
        disabled = apply_one(repository, SetEnabled(user_id=ada.id, enabled=False, at=LATER))
        assert isinstance(disabled, User)

        by_text = repository.list_sorted("updated", limit=9, matching=UserFilter(containing="dam"))
        by_state = [
            repository.list_sorted("name", limit=9, matching=UserFilter(enabled=enabled)) for enabled in (True, False)
        ]

        assert by_text == [ListedUser(adam)]
        assert by_state == [[ListedUser(adam), ListedUser(bob)], [ListedUser(disabled)]]

    def test_sorted_page_follows_a_user_who_has_been_removed(self, repository: UserRepository) -> None:
        users = [registered(repository, name) for name in ("ada", "bob", "eve")]
        repository.apply([Remove(user_id=users[1].id)])

        removed = ListPosition.of("name", ListedUser(users[1]))
        assert repository.list_sorted("name", after=removed, limit=9) == [ListedUser(users[2])]
        assert repository.list_sorted("name", before=removed, limit=9) == [ListedUser(users[0])]

    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize("order", ["id", "name", "created", "updated", "expires", "seen", "usage"])
    def test_going_back_returns_the_previous_page(
        self, repository: UserRepository, order: UserOrder, descending: bool
    ) -> None:
        ends = [None, LATER, NOON, None, NOON, LATER, None]
        users = [registered(repository, f"user{number}", expires_datetime=end) for number, end in enumerate(ends)]
        everyone = repository.list_sorted(order, descending=descending, limit=9)
        positions = [ListPosition.of(order, listed) for listed in everyone]

        assert sorted(listed.user.id for listed in everyone) == [user.id for user in users]
        for index, position in enumerate(positions):
            for limit in (1, 3, 9):
                before = repository.list_sorted(order, descending=descending, before=position, limit=limit)
                after = repository.list_sorted(order, descending=descending, after=position, limit=limit)
                assert before == everyone[max(0, index - limit) : index]
                assert after == everyone[index + 1 : index + 1 + limit]

    @pytest.mark.parametrize(("descending", "expected"), [(False, "bacfed"), (True, "cabdef")])
    def test_users_without_expiry_come_last(self, repository: UserRepository, descending: bool, expected: str) -> None:
        ends = {"f": None, "a": LATER, "b": NOON, "e": None, "c": LATER, "d": None}
        for name, end in ends.items():
            registered(repository, name, expires_datetime=end)

        page = repository.list_sorted("expires", descending=descending, limit=9)

        assert "".join(listed.user.username for listed in page) == expected

    def test_pages_can_be_filtered_by_plan(self, repository: UserRepository) -> None:
        plans = ["pro", None, "free", "pro"]
        users = [registered(repository, f"user{number}", plan=plan) for number, plan in enumerate(plans)]
        repository.apply([SetEnabled(user_id=users[3].id, enabled=False, at=LATER)])

        def found(*plans: str | None, **fields: Any) -> list[int]:
            matching = UserFilter(plans=frozenset(plans), **fields)
            page = repository.list_page(after=UserId(0), limit=9, matching=matching)
            for order in ("created", "name", "expires", "seen"):
                listed = repository.list_sorted(order, limit=9, matching=matching)
                assert [each.user for each in listed] == page
            assert repository.count(matching) == len(page)
            return [int(user.username[-1]) for user in page]

        assert found("pro") == [0, 3]
        assert found(None) == [1]
        assert found("free", None) == [1, 2]
        assert found("free", "pro") == [0, 2, 3]
        assert found("pro", state="disabled", at=LATER) == [3]
        assert found("unknown", "x\0") == found() == []

    def test_pages_can_be_filtered_by_whole_address(self, repository: UserRepository) -> None:
        addresses = ["Ada@Example.com", "ada@example.com", "ada@example.comx", "b@example.com"]
        users = [registered(repository, f"user{number}", email=each) for number, each in enumerate(addresses)]

        def found(email: str) -> list[User]:
            matching = UserFilter(email=email)
            page = repository.list_page(after=UserId(0), limit=9, matching=matching)
            assert repository.list_sorted("created", limit=9, matching=matching) == list(map(ListedUser, page))
            return page

        assert found("ADA@example.com") == users[:2]
        assert found("da@example.com") == found("x\0") == found("") == []

    def test_expired_and_active_users_can_be_sorted_by_expiry(self, repository: UserRepository) -> None:
        ends = [None, NOON, NOON - SECOND, LATER, LATER + SECOND, NOON - MINUTE]
        users = [registered(repository, f"user{number}", expires_datetime=end) for number, end in enumerate(ends)]
        repository.apply([SetEnabled(user_id=users[5].id, enabled=False, at=NOON)])

        def found(descending: bool, **fields: Any) -> list[int]:
            options: Any = {"descending": descending, "matching": UserFilter(**fields, at=NOON)}
            everyone = repository.list_sorted("expires", limit=9, **options)
            for index, listed in enumerate(everyone):
                position = ListPosition.of("expires", listed)
                assert repository.list_sorted("expires", after=position, limit=9, **options) == everyone[index + 1 :]
                assert repository.list_sorted("expires", before=position, limit=9, **options) == everyone[:index]
            return [int(listed.user.username[-1]) for listed in everyone]

        assert found(False, state="expired") == [2, 1]
        assert found(True, state="expired") == [1, 2]
        assert found(False, state="active") == [3, 4, 0]
        assert found(True, state="active") == [4, 3, 0]
        assert found(False, state="disabled") == [5]
        assert found(False, expires_before=LATER) == [5, 2, 1]

    def test_registrations_are_counted_by_their_day(self, repository: UserRepository) -> None:
        created = [NOON - 2 * DAY, NOON - DAY, NOON - DAY + MINUTE, NOON]
        for number, at in enumerate(created):
            registered(repository, f"user{number}", created=at)

        assert repository.count_registrations(since=NOON - DAY) == {
            (NOON - DAY).date(): 2,
            NOON.date(): 1,
        }

    def test_users_are_counted_by_state(self, repository: UserRepository) -> None:
        ends = [None, LATER, NOON, NOON]
        users = [registered(repository, f"user{number}", expires_datetime=end) for number, end in enumerate(ends)]
        repository.apply([registration("waiting", enabled=False, pending="approval")])
        repository.apply([SetEnabled(user_id=users[3].id, enabled=False, at=NOON)])

        counts = repository.count_states(NOON + SECOND)

        assert counts == StateCounts(active=2, disabled=1, expired=1, pending=1)
        assert counts.total == repository.count() == 5
        assert repository.count(limit=3) == 3
        assert repository.count(UserFilter(state="pending"), limit=3) == 1


class ActivityListContract:
    def test_lists_show_the_latest_request_and_the_requests_of_the_month(self, storage: Storage) -> None:
        ada, bob, eve = [registered(storage.users, name) for name in ("ada", "bob", "eve")]
        storage.usage.add(
            [
                _requests(ada, 31, month=10, requests=7),
                _requests(ada, 1, requests=2, key_id="00112233445566aa"),
                _requests(ada, 1, requests=3),
                _requests(ada, 2, requests=1),
                _requests(eve, 31, month=10, requests=9),
            ]
        )
        storage.usage.add([_requests(ada, 1, requests=4), _requests(ada, 30, month=9, requests=5)])
        storage.usage.add([])

        found = storage.users.list_sorted("id", limit=9, matching=UserFilter(at=NOON))

        assert found == [ListedUser(ada, _at(2), 10), ListedUser(bob), ListedUser(eve, _at(31, month=10))]
        october = storage.users.list_sorted("id", limit=9, matching=UserFilter(at=_at(31, month=10)))
        assert [listed.requests for listed in october] == [0, 0, 9]

    def test_requests_of_the_month_end_at_the_largest_number(self, storage: Storage) -> None:
        ada = registered(storage.users)
        storage.usage.add([_requests(ada, 1, requests=MAX_COUNT), _requests(ada, 2, requests=MAX_COUNT)])
        storage.usage.add([_requests(ada, 1, requests=1)])

        (found,) = storage.users.list_sorted("usage", limit=9, matching=UserFilter(at=NOON))

        assert found.requests == MAX_COUNT

    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize(("order", "expected"), [("seen", "cae"), ("usage", "eac")])
    def test_lists_are_sorted_by_activity(
        self, storage: Storage, order: UserOrder, expected: str, descending: bool
    ) -> None:
        users = {name: registered(storage.users, name) for name in "abcdex"}
        storage.usage.add(
            [
                _requests(users["a"], 3, requests=5),
                _requests(users["c"], 2, requests=5),
                _requests(users["e"], 4, requests=1),
                _requests(users["x"], 5, requests=8),
            ]
        )
        if order == "usage":  # without requests in this month, and with units only
            storage.usage.add([_requests(users["b"], 9, month=10), _requests(users["d"], 9, requests=0)])
        storage.users.apply([Remove(user_id=users["x"].id)])
        wanted = expected[::-1] + "db" if descending else expected + "bd"

        for matching in (UserFilter(at=NOON), UserFilter(at=NOON, enabled=True, state="active")):
            options: Any = {"descending": descending, "matching": matching}
            everyone = storage.users.list_sorted(order, limit=9, **options)
            assert "".join(listed.user.username for listed in everyone) == wanted
            for index, listed in enumerate(everyone):
                position = ListPosition.of(order, listed)
                assert storage.users.list_sorted(order, after=position, limit=2, **options) == everyone[index + 1 :][:2]
                assert (
                    storage.users.list_sorted(order, before=position, limit=2, **options)
                    == everyone[max(0, index - 2) : index]
                )

    def test_sorted_activity_is_filtered(self, storage: Storage) -> None:
        ada, bob, eve = [registered(storage.users, name) for name in ("ada", "bob", "eve")]
        storage.usage.add([_requests(user, day) for day, user in enumerate((ada, bob, eve), 1)])
        storage.users.apply([SetEnabled(user_id=user.id, enabled=False, at=LATER) for user in (ada, eve)])

        for order in ("seen", "usage"):
            matching = UserFilter(state="disabled", at=NOON)
            page = storage.users.list_sorted(order, descending=True, limit=9, matching=matching)
            assert [listed.user.id for listed in page] == [eve.id, ada.id]


def _at(day: int, *, month: int = 11) -> datetime:
    return datetime(2026, month, day, 12, tzinfo=UTC)


def _requests(user: User, day: int, *, month: int = 11, **fields: Any) -> UsageRow:
    values = {"requests": 1, **fields}
    return UsageRow(day=date(2026, month, day), user_id=user.id, seen_datetime=_at(day, month=month), **values)
