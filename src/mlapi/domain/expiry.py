"""Extend the time until which a user has access."""

import calendar
import re
from datetime import UTC, datetime, timedelta

import attrs

from mlapi.domain.errors import FieldError, InvalidFieldsError

_EXTENSION = re.compile(r"\+([1-9][0-9]{0,3})(h|d|w|mo|y)")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}
_MONTHS = {"mo": 1, "y": 12}
_LAST_INSTANT = datetime.max.replace(tzinfo=UTC)


@attrs.frozen(kw_only=True)
class Extension:
    """An amount of time to add to a user's access: calendar months, then hours.

    Raises:
        ValueError: if an amount is negative, or both are zero.
    """

    months: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    hours: int = attrs.field(default=0, validator=attrs.validators.ge(0))

    def __attrs_post_init__(self) -> None:
        if not (self.months or self.hours):
            raise ValueError("an extension needs months or hours, such as Extension(months=1)")

    def extend(self, expiry: datetime | None, now: datetime) -> datetime:
        """Return the new expiry. Extend from the later of both arguments, so that early renewals lose no paid time.

        Args:
            expiry: the current expiry, in UTC; None for a user whose access never expires.
            now: the current time, in UTC.

        Returns:
            The new expiry, at most the end of the year 9999. Calendar months keep the day of the month, or use the last
            day of a shorter month.
        """
        start = now if expiry is None else max(expiry, now)
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
