"""Charts of requests and units per day, of all users or of one user."""

from collections.abc import Sequence
from datetime import datetime

import attrs

from mlapi.domain.usage import DailyUsage, DayRange, UsageRepository
from mlapi.domain.users import UserId, utc_now
from mlapi.entrypoints.pages.chart import BarChart, make_bar_chart
from mlapi.entrypoints.wire import queries


@attrs.frozen(kw_only=True)
class UsageOverview:
    """The charts of requests and units per day.

    Attributes:
        requests: the chart of the requests.
        units: the chart of the units.
        days: the days that have usage, for a table.
        last_seen: the time of the user's latest request on any day; None for the overview of all users.
    """

    requests: BarChart
    units: BarChart
    days: Sequence[DailyUsage]
    last_seen: datetime | None


def default_days() -> DayRange:
    """Return the days that the page shows by default. The last day is today."""
    return queries.parse_days({}, today=utc_now().date())


def read_overview(usage: UsageRepository, days: DayRange, user_id: UserId | None = None) -> UsageOverview:
    """Return the overview of all users, or of one user."""
    found = usage.sum_per_day(first_day=days.first, last_day=days.last, user_id=user_id)
    return UsageOverview(
        requests=make_bar_chart({day.day: day.requests for day in found}, days.first, days.last),
        units=make_bar_chart({day.day: day.units for day in found}, days.first, days.last),
        days=found,
        last_seen=None if user_id is None else usage.last_seen([user_id]).get(user_id),
    )
