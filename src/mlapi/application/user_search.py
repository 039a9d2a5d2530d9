"""Search for users by part of their name or e-mail address, and avoid reading the whole table if possible.

An index quickly finds usernames that begin with the text. Other matches, such as the middle of a name or an e-mail
address, need a scan. In a large table, the first pages therefore contain the users whose names begin with the text.
Later pages contain the others.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import final

import attrs

from mlapi.application.users import Users
from mlapi.domain.lists import ListedUser, ListPosition
from mlapi.domain.rules import EVERY_USER, UserFilter, fold
from mlapi.domain.users import User, UserId, UserOrder

SMALL_TABLE_MAX_ID = 20_000
"""The largest id in a small table. A scan of a small table takes about 10 ms, so the index is not needed."""
MAX_INDEXED_USERS = 1_000
"""The maximum number of users from the index. If more names match, a scan in order of id quickly fills a page."""

MAX_SORTED_PAGE = 10_000
"""Users per page of a sorted list. The database reads all users for each page in order of time, so pages are large."""

# Added to the id in a cursor, to distinguish the kinds of pages. The sums are exact in JSON (RFC 8259, section 6).
_INDEXED = 2**51
_REST = 2**52


@attrs.frozen(kw_only=True)
class SortedPage:
    """A page of a sorted list.

    Attributes:
        users: the users with their activity, in the order of the list.
        next: the position after which the next page begins, or None if this is the last page.
        previous: the position before which the previous page ends, or None if this is the first page.
    """

    users: Sequence[ListedUser]
    next: ListPosition | None = None
    previous: ListPosition | None = None


def read_sorted_page(
    users: Users,
    order: UserOrder,
    *,
    descending: bool = False,
    after: ListPosition | None = None,
    before: ListPosition | None = None,
    limit: int,
    matching: UserFilter = EVERY_USER,
) -> SortedPage:
    """Return a page of a sorted list. If no users are left before a position, return the first page.

    See `UserRepository.list_sorted` for the arguments.

    Raises:
        RepositoryUnavailableError: if the database is unavailable.
    """
    matching = users.with_time(matching)
    found = users.repository.list_sorted(
        order,
        descending=descending,
        after=after,
        before=before,
        limit=limit + 1,  # fetch one more user to find out whether there is another page
        matching=matching,
    )
    has_more = len(found) > limit
    if before is not None:
        if len(found) < limit:  # users were removed, or their values changed: start again, so that the page is full
            return read_sorted_page(users, order, descending=descending, limit=limit, matching=matching)
        page, has_next, has_previous = found[-limit:], True, has_more
    else:
        page, has_next, has_previous = found[:limit], has_more, after is not None
    return SortedPage(
        users=page,
        next=ListPosition.of(order, page[-1]) if has_next and page else None,
        previous=ListPosition.of(order, page[0]) if has_previous and page else None,
    )


@attrs.frozen
class FoundUsers:
    """A page of users.

    Attributes:
        users: sorted by id.
        next: the ``after`` of the next page, or None if this is the last one.
        is_indexed: True if the page contains only users whose names begin with the text. Later pages contain the
            others.
    """

    users: Sequence[User]
    next: int | None = None
    is_indexed: bool = False


@final
class UserSearch:
    """One page of a list of users, or of the result of a search.

    Args:
        users: the users to search.
        matching: selects the users.
        after: the ``next`` of the previous page; 0 for the first page.
        limit: maximum number of users on the page.
    """

    def __init__(self, users: Users, *, matching: UserFilter = EVERY_USER, after: int = 0, limit: int) -> None:
        self._users = users
        self._matching = users.with_time(matching)
        self._text = matching.containing
        self.needs_scan = matching != EVERY_USER
        """Whether `scan` may have to read the whole table."""
        offset = next((offset for offset in (_REST, _INDEXED) if after >= offset), 0) if self._text else 0
        self._after, self._is_rest, self._is_indexed = UserId(after - offset), offset == _REST, offset == _INDEXED
        self._limit = limit

    def look_up(self) -> FoundUsers | None:
        """Return the next users whose names begin with the text, or None if `scan` must find the page."""
        if not self._may_be_indexed():
            return None
        begin_with_text = self._users.repository.find_by_prefix(self._text, limit=MAX_INDEXED_USERS + 1)
        if len(begin_with_text) > MAX_INDEXED_USERS:
            self._after = UserId(0)  # names may have been added since page 1: repeat users rather than omit any
            return None
        found = [user for user in begin_with_text if user.id > self._after and self._matching.matches(user)]
        page, has_more = found[: self._limit], len(found) > self._limit
        if not page and not self._is_indexed:
            return None
        return FoundUsers(page, next=_INDEXED + page[-1].id if has_more else _REST, is_indexed=True)

    def scan(self) -> FoundUsers:
        """Return the next users that match, in ascending order of id."""
        found = self._users.list_page(
            after=self._after,
            limit=self._limit + 1,  # fetch one more user to find out whether there is a next page
            matching=self._matching,
        )
        page, has_more = found[: self._limit], len(found) > self._limit
        if not self._is_rest:
            return FoundUsers(page, page[-1].id if has_more else None)
        rest = [user for user in page if not fold(user.username).startswith(self._text)]  # earlier pages had these
        return FoundUsers(rest, page[-1].id + _REST if has_more else None)

    def _may_be_indexed(self) -> bool:
        if self._is_indexed:
            return True
        is_first = bool(self._text) and self._after == 0 and not self._is_rest
        return is_first and bool(self._users.list_page(after=UserId(SMALL_TABLE_MAX_ID), limit=1))


def iterate_sorted(
    users: Users,
    order: UserOrder,
    *,
    descending: bool = False,
    limit: int | None = None,
    matching: UserFilter = EVERY_USER,
) -> Iterator[ListedUser]:
    """Yield the matching users in any order, at most ``limit``. See `Users.list_page` for the arguments.

    Raises:
        RepositoryUnavailableError: if the database is unavailable.
    """
    last, matching, remaining = None, users.with_time(matching), sys.maxsize if limit is None else limit
    while remaining > 0:
        size = min(remaining, MAX_SORTED_PAGE)
        page = users.repository.list_sorted(order, descending=descending, after=last, limit=size, matching=matching)
        yield from page
        if len(page) < size:
            return
        last, remaining = ListPosition.of(order, page[-1]), remaining - size
