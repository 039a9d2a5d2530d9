"""Registrations and removals per day as bars, for a small inline SVG and its text."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta

import attrs

from mlapi.domain.audit import DailyCount

DAYS = 30
"""Today in UTC is the last of them."""
WIDTH, HEIGHT = 600, 96
"""Of the drawing, in its own units."""
_SLOT = WIDTH // DAYS
_BAR = 14  # of a slot
_LEAST = 2  # so that one of thousands is seen


@attrs.frozen(kw_only=True)
class Day:
    """A day with its two bars: registrations stand on the base line, removals hang from it."""

    day: date
    registered: int
    removed: int
    x: int
    up: int
    down: int


@attrs.frozen(kw_only=True)
class Chart:
    days: Sequence[Day]
    baseline: int
    """From the top."""

    @property
    def registered(self) -> int:
        return sum(day.registered for day in self.days)

    @property
    def removed(self) -> int:
        return sum(day.removed for day in self.days)


def first_moment(now: datetime) -> datetime:
    """Return when the first day of a chart begins."""
    return datetime.combine(now.astimezone(UTC).date() - timedelta(days=DAYS - 1), time(), UTC)


def chart(counts: Sequence[DailyCount], now: datetime) -> Chart:
    """Return the chart of the days up to now, of what has been counted since `first_moment`."""
    count_of = {(count.day, count.action): count.count for count in counts}
    first = first_moment(now).date()
    days = [first + timedelta(days=number) for number in range(DAYS)]
    registered = [count_of.get((day, "register"), 0) for day in days]
    removed = [count_of.get((day, "remove"), 0) for day in days]
    unit = HEIGHT / max(1, max(registered) + max(removed))
    return Chart(
        baseline=round(HEIGHT - max(removed) * unit),
        days=[
            Day(
                day=day,
                registered=registrations,
                removed=removals,
                x=number * _SLOT + (_SLOT - _BAR) // 2,
                up=_height(registrations, unit),
                down=_height(removals, unit),
            )
            for number, (day, registrations, removals) in enumerate(zip(days, registered, removed, strict=True))
        ],
    )


def _height(count: int, unit: float) -> int:
    return max(_LEAST, round(count * unit)) if count else 0
