"""Read usage for the API, the console and the command line."""

from collections.abc import Iterator
from datetime import datetime

from mlapi.domain.usage import DayRange, UsageRepository, UsageRow
from mlapi.domain.users import UserId

PAGE_ROWS = 1000


def iterate_usage(usage: UsageRepository, days: DayRange, user_id: UserId | None = None) -> Iterator[UsageRow]:
    """Yield the usage of all users, or of one user who may have been removed, sorted by position.

    Raises:
        RepositoryUnavailableError: if the database is unavailable.
    """
    last = None
    while page := usage.list_page(
        first_day=days.first, last_day=days.last, user_id=user_id, after=last, limit=PAGE_ROWS
    ):
        yield from page
        if len(page) < PAGE_ROWS:
            return
        last = page[-1].position


def find_last_seen(usage: UsageRepository, user_id: UserId) -> datetime | None:
    """Return the time of the latest request of a user, or None.

    Raises:
        RepositoryUnavailableError: if the database is unavailable.
    """
    return usage.last_seen([user_id]).get(user_id)
