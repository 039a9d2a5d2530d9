"""Extend the time until which a user has access."""

import calendar
import re
from datetime import UTC, datetime, timedelta

import attrs

from mlapi.domain.errors import FieldError, InvalidFieldsError

_EXTENSION = re.compile(r"\+([1-9][0-9]{0,3})(h|d|w|mo|y)")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}
_MONTHS = {"mo": 1, "y": 12}
_LAST_INSTANT = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@attrs.frozen(kw_only=True)
class Extension:
    """An amount of time to add to a user's access: calendar months, then hours."""

    months: int = 0
    hours: int = 0

    def extend(self, end: datetime | None, now: datetime) -> datetime:
        """Return the new end of access. A renewal never loses paid time.

        Args:
            end: the present end of access, in UTC; None for a user without one.
            now: the current time, in UTC. Access is extended from ``now`` if it has already ended.

        Returns:
            The new end, at most in the year 9999. Calendar months keep the day of the month; in a shorter month, the
            last day is used.
        """
        start = now if end is None else max(end, now)
        try:
            return min(_add_months(start, self.months) + timedelta(hours=self.hours), _LAST_INSTANT)
        except (OverflowError, ValueError):  # after the year 9999
            return _LAST_INSTANT


def parse_extension(text: str) -> Extension:
    """Return the extension in a text such as ``+30d``. The units are h, d, w, mo and y.

    >>> parse_extension("+1mo")
    Extension(months=1, hours=0)

    Raises:
        InvalidFieldsError: if the text has another form.
    """
    match = _EXTENSION.fullmatch(text)
    if match is None:
        message = "must be + and a number of h, d, w, mo or y, such as +30d or +1mo"
        raise InvalidFieldsError((FieldError("expires_at", message),))
    count, unit = int(match[1]), match[2]
    return Extension(months=count * _MONTHS.get(unit, 0), hours=count * _HOURS.get(unit, 0))


def _add_months(start: datetime, months: int) -> datetime:
    years, month_index = divmod(start.month - 1 + months, 12)
    year, month = start.year + years, month_index + 1
    return start.replace(year=year, month=month, day=min(start.day, calendar.monthrange(year, month)[1]))
