"""Bar charts of numbers per day: their coordinates for an inline SVG."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import attrs

from mlapi.application.user_reports import DAYS, ChangesPerDay

WIDTH, HEIGHT = 600, 96
"""The size of the drawing in SVG units."""
_SLOT_WIDTH = WIDTH // DAYS
_BAR_WIDTH = 14
_MIN_BAR_HEIGHT = 2  # keeps a count of 1 visible next to counts in the thousands


@attrs.frozen(kw_only=True)
class Day:
    """One day in the chart. Registrations are drawn above the baseline, removals below."""

    day: date
    registered: int
    removed: int
    x: int
    up: int
    """The height of the bar above the baseline."""
    down: int
    """The height of the bar below the baseline."""


@attrs.frozen(kw_only=True)
class Chart:
    """The chart of registrations and removals."""

    days: Sequence[Day]
    baseline: int
    """The distance of the baseline from the top of the chart."""

    @property
    def registered(self) -> int:
        return sum(day.registered for day in self.days)

    @property
    def removed(self) -> int:
        return sum(day.removed for day in self.days)


def make_chart(changes: ChangesPerDay, today: date) -> Chart:
    """Return the chart of the last `DAYS` days."""
    days = [today - timedelta(days=DAYS - 1 - number) for number in range(DAYS)]
    registered = [changes.registered.get(day, 0) for day in days]
    removed = [changes.removed.get(day, 0) for day in days]
    scale = HEIGHT / max(1, max(registered) + max(removed))
    return Chart(
        baseline=round(HEIGHT - max(removed) * scale),
        days=[
            Day(
                day=day,
                registered=registrations,
                removed=removals,
                x=number * _SLOT_WIDTH + (_SLOT_WIDTH - _BAR_WIDTH) // 2,
                up=_bar_height(registrations, scale),
                down=_bar_height(removals, scale),
            )
            for number, (day, registrations, removals) in enumerate(zip(days, registered, removed, strict=True))
        ],
    )


@attrs.frozen(kw_only=True)
class Bar:
    """The bar of one day in a `BarChart`."""

    day: date
    count: int
    x: float
    height: int


@attrs.frozen(kw_only=True)
class BarChart:
    """A chart of one number per day, without a second row of bars below the baseline."""

    bars: Sequence[Bar]
    bar_width: float

    @property
    def total(self) -> int:
        return sum(bar.count for bar in self.bars)

    @property
    def peak(self) -> Bar:
        """The day with the largest number; the first of several."""
        return max(self.bars, key=lambda bar: bar.count)


def make_bar_chart(counts: Mapping[date, int], first: date, last: date) -> BarChart:
    """Return the chart of a range of days, both inclusive. Days without a count have the number 0."""
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    slot_width = WIDTH / len(days)
    scale = HEIGHT / max(1, *(counts.get(day, 0) for day in days))
    return BarChart(
        bar_width=round(slot_width * _BAR_WIDTH / _SLOT_WIDTH, 2),
        bars=[
            Bar(
                day=day,
                count=counts.get(day, 0),
                x=round((number + (1 - _BAR_WIDTH / _SLOT_WIDTH) / 2) * slot_width, 2),
                height=_bar_height(counts.get(day, 0), scale),
            )
            for number, day in enumerate(days)
        ],
    )


def _bar_height(count: int, scale: float) -> int:
    return max(_MIN_BAR_HEIGHT, round(count * scale)) if count else 0
