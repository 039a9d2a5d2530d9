"""Lists of users: their order, the positions where pages begin and end, and how many users there are."""

from collections.abc import Callable
from datetime import date, datetime
from typing import Self

import attrs

from mlapi.domain.rules import fold
from mlapi.domain.users import User, UserId, UserOrder

Value = int | str | datetime


def month_of(day: date) -> int:
    """Return the month of a day, or of a time in UTC, as a number: 202611 is November 2026."""
    return day.year * 100 + day.month


@attrs.frozen
class ListedUser:
    """A user in a list, with the time of their latest request, and the number of their requests in this month."""

    user: User
    seen_datetime: datetime | None = None
    requests: int = 0


_VALUES: dict[UserOrder, Callable[[ListedUser], Value | None]] = {
    "id": lambda listed: listed.user.id,
    "name": lambda listed: fold(listed.user.username),
    "created": lambda listed: listed.user.created_datetime,
    "updated": lambda listed: listed.user.updated_datetime,
    "expires": lambda listed: listed.user.expires_datetime,
    "seen": lambda listed: listed.seen_datetime,
    "usage": lambda listed: listed.requests or None,
}
"""The value by which a list in each order is sorted."""


@attrs.frozen
class ListPosition:
    """The place of a user in a sorted list. The user may have been changed or removed since.

    ``value`` is the value by which the list is sorted. It is None for users without one, such as an expiry. They come
    last in both directions.
    """

    value: Value | None = attrs.field(repr=False)
    user_id: UserId

    @classmethod
    def of(cls, order: UserOrder, listed: ListedUser) -> Self:
        """Return the position of a user. Names are sorted in canonical form."""
        return cls(_VALUES[order](listed), listed.user.id)

    def is_after(self, other: "ListPosition", *, descending: bool) -> bool:
        """Return whether this position comes after another one in a list."""
        if self.value is None or other.value is None:
            if (self.value is None) != (other.value is None):
                return self.value is None
            return self.user_id < other.user_id if descending else self.user_id > other.user_id
        mine, others = (self.value, self.user_id), (other.value, other.user_id)
        return mine < others if descending else mine > others


@attrs.frozen(kw_only=True)
class StateCounts:
    """The number of users in each state."""

    active: int = 0
    disabled: int = 0
    expired: int = 0
    pending: int = 0

    @property
    def total(self) -> int:
        return self.active + self.disabled + self.expired + self.pending
