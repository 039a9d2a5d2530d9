"""Times in the options of commands."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import click

from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.expiry import Extension, parse_extension
from mlapi.domain.users import utc_now

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DISTANCE = re.compile(rf"([+-]?)(\d{{1,6}})([{''.join(_UNITS)}])")


class FutureTime(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """A time in the future: ``+30d``, or a date or time in ISO 8601. Without a time zone, it is in UTC."""

    name = "time"
    _sign = "+"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:  # noqa: ANN401 - inherited signature
        try:
            time = self._parse(str(value))
        except (ValueError, OverflowError):
            distance = f"{self._sign}30d" if self._sign == "+" else "30d"
            self.fail(f"{value!r} is not a time such as {distance}, 2030-01-31 or 2030-01-31T12:00Z", param, ctx)
        if self._sign == "+" and time <= utc_now():
            self.fail(f"{value!r} is not in the future", param, ctx)
        return time

    def _parse(self, text: str) -> datetime:
        match = _DISTANCE.fullmatch(text)
        if match is None:
            return parse_time(text)
        if match[1] not in {"", self._sign}:
            raise ValueError("wrong direction")
        distance = timedelta(**{_UNITS[match[3]]: int(match[2])})
        return utc_now() + distance if self._sign == "+" else utc_now() - distance


class PastTime(FutureTime):
    """A time in the past: ``30d``, or a date or time in ISO 8601. Without a time zone, it is in UTC."""

    _sign = "-"


class ExpiryTime(click.ParamType):  # type: ignore[type-arg]  # as above
    """When access expires: a date or time in ISO 8601, an extension such as ``+30d``, or ``never``."""

    name = "time"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - inherited signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime | Extension | Literal["never"]:
        text = str(value)
        try:
            if text == "never":
                return "never"
            return parse_extension(text) if text.startswith("+") else parse_time(text)
        except (ValueError, OverflowError, InvalidFieldsError):
            self.fail(f"{text!r} is not a time such as 2030-01-31, 2030-01-31T12:00Z, +30d, +1mo or never", param, ctx)


class AnyTime(click.ParamType):  # type: ignore[type-arg]  # as above
    """A time in the past or in the future: ``+7d``, or a date or time in ISO 8601."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:  # noqa: ANN401 - inherited signature
        text = str(value)
        try:
            return parse_extension(text).extend(None, utc_now()) if text.startswith("+") else parse_time(text)
        except (ValueError, OverflowError, InvalidFieldsError):
            self.fail(f"{text!r} is not a time such as +7d, 2030-01-31 or 2030-01-31T12:00Z", param, ctx)


def parse_time(text: str) -> datetime:
    """Parse a date or time in ISO 8601. A date is its first instant. Without a time zone, the time is in UTC.

    Raises:
        ValueError, OverflowError: if it is invalid.
    """
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
