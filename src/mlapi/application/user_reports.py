"""The numbers of registrations and removals on recent days."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta

import attrs

from mlapi.application.users import Users

DAYS = 30
"""The number of days in a report. The last one is today, in UTC."""


@attrs.frozen
class ChangesPerDay:
    """The numbers of registrations and removals by day. Days without any are omitted."""

    registered: Mapping[date, int]
    removed: Mapping[date, int]


def count_changes(users: Users) -> ChangesPerDay:
    """Count the registrations of existing users, and the removals in the audit trail, in the last `DAYS` days.

    Raises:
        RepositoryUnavailableError: if the database is unavailable.
    """
    since = datetime.combine(users.now().astimezone(UTC).date() - timedelta(days=DAYS - 1), time(), UTC)
    removed = {each.day: each.count for each in users.count_actions_per_day(since) if each.action == "remove"}
    return ChangesPerDay(users.repository.count_registrations(since=since), removed)
