"""Lists of users: their order, the positions where pages begin and end, and how many users there are."""

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
        user = listed.user
        value: Value | None
        match order:
            case "id":
                value = user.id
            case "name":
                value = fold(user.username)
            case "created":
                value = user.created_datetime
            case "updated":
                value = user.updated_datetime
            case "expires":
                value = user.expires_datetime
            case "seen":
                value = listed.seen_datetime
            case "usage":
                value = listed.requests or None
        return cls(value, user.id)

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
