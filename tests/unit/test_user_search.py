"""Search results: index first in a large table, then the rest, without omitting or repeating users."""

from collections.abc import Callable

import pytest

from mlapi import User, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.application import user_search
from mlapi.application.user_search import FoundUsers, UserSearch, iterate_sorted
from mlapi.domain.rules import UserFilter

NAMES = ["nevada", "ada", "bob", "Adam", "canada", "adalbert", "eve"]


@pytest.fixture
def users() -> Users:
    users = Users(InMemoryUserRepository(), PlainCipher())
    for name in NAMES:
        users.register(username=name, password="password", email=f"{name}@example.com")
    return users


@pytest.fixture
def large(users: Users, monkeypatch: pytest.MonkeyPatch) -> Users:
    """The same users, as in a table that is too large to scan for the first page."""
    monkeypatch.setattr(user_search, "SMALL_TABLE_MAX_ID", 0)
    return users


def find(users: Users, text: str, *, after: int = 0, limit: int = 10, enabled: bool | None = None) -> FoundUsers:
    search = UserSearch(users, matching=UserFilter(containing=text, enabled=enabled), after=after, limit=limit)
    return search.look_up() or search.scan()


def find_all(users: Users, text: str, *, limit: int, between: Callable[[User], object] = id) -> list[list[str]]:
    """Return the names on each page. Call a function with each user before the next page is read."""
    pages, after = [], 0
    while True:
        page = find(users, text, after=after, limit=limit)
        pages.append([user.username for user in page.users])
        for user in page.users:
            between(user)
        if page.next is None:
            return pages
        after = page.next


def test_small_table_is_searched_in_order_of_id(users: Users) -> None:
    assert find_all(users, "ADA", limit=10) == [["nevada", "ada", "Adam", "canada", "adalbert"]]


def test_names_that_begin_with_the_text_come_first(large: Users) -> None:
    assert find_all(large, "ADA", limit=10) == [["ada", "Adam", "adalbert"], ["nevada", "canada"]]


def test_indexed_pages_are_followed_by_the_rest(large: Users) -> None:
    pages = find_all(large, "ada", limit=2)

    assert [name for page in pages for name in page] == ["ada", "Adam", "adalbert", "nevada", "canada"]
    assert pages[:2] == [["ada", "Adam"], ["adalbert"]]


def test_removing_found_users_omits_none(large: Users) -> None:
    pages = find_all(large, "ada", limit=2, between=lambda user: large.remove(user_id=user.id))

    assert sorted(name for page in pages for name in page) == ["Adam", "ada", "adalbert", "canada", "nevada"]


def test_text_that_begins_no_name_is_found_by_a_scan(large: Users) -> None:
    assert UserSearch(large, matching=UserFilter(containing="vad"), limit=10).look_up() is None
    assert find_all(large, "vad", limit=10) == [["nevada"]]


def test_text_that_begins_many_names_is_found_by_a_scan(large: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_search, "MAX_INDEXED_USERS", 2)

    assert find_all(large, "ada", limit=3) == [["nevada", "ada", "Adam"], ["canada", "adalbert"]]


def test_names_added_between_pages_omit_none(large: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find(large, "ada", limit=2)
    monkeypatch.setattr(user_search, "MAX_INDEXED_USERS", 2)

    assert first.next is not None
    assert [user.username for user in find(large, "ada", after=first.next).users] == [
        "nevada",
        "ada",
        "Adam",
        "canada",
        "adalbert",
    ]


def test_indexed_search_can_be_filtered_by_enabled(large: Users) -> None:
    large.set_enabled(user_id=large.list_page()[1].id, enabled=False)

    assert [user.username for user in find(large, "ada", enabled=True).users] == ["Adam", "adalbert"]
    assert [user.username for user in find(large, "ada", enabled=False).users] == ["ada"]


def test_indexed_search_without_matches_in_that_state_scans(large: Users) -> None:
    large.set_enabled(user_id=large.list_page()[0].id, enabled=False)

    assert [user.username for user in find(large, "ada", enabled=False).users] == ["nevada"]


def test_list_without_text_needs_no_scan(users: Users) -> None:
    assert not UserSearch(users, limit=2).needs_scan
    assert UserSearch(users, matching=UserFilter(enabled=True), limit=2).needs_scan
    assert [user.id for user in find(users, "", after=2**52 - 1).users] == []


@pytest.mark.parametrize("limit", [None, 1, 3, 6, 7, 9])
def test_sorted_users_are_read_in_pages(users: Users, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_search, "MAX_SORTED_PAGE", 3)

    found = [listed.user.username for listed in iterate_sorted(users, "name", descending=True, limit=limit)]

    assert found == ["nevada", "eve", "canada", "bob", "Adam", "adalbert", "ada"][:limit]
