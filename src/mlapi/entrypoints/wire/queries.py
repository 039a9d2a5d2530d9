"""Parse the query parameters of the operations."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from urllib.parse import parse_qsl

import attrs

from mlapi.domain.audit import AuditId
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.domain.rules import MAX_USERNAME_CHARS, has_invisible
from mlapi.domain.usage import DayRange, UsagePosition
from mlapi.domain.users import UserId
from mlapi.entrypoints.wire.errors import MAX_QUERY_BYTES
from mlapi.entrypoints.wire.requests import parse_permission, parse_user_id

_BEFORE_FIRST_USER = UserId(0)
MAX_QUERY_FIELDS = 20
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 500
DEFAULT_USAGE_DAYS = 30
MIN_SEARCH_CHARS = 2
"""A single character is in nearly every username or e-mail address."""


@attrs.frozen(kw_only=True)
class UsersQuery:
    """The parsed query string of ``GET /users``."""

    enabled: bool | None = None
    containing: str = attrs.field(default="", repr=False)
    limit: int = DEFAULT_PAGE_SIZE
    after: UserId = _BEFORE_FIRST_USER


@attrs.frozen(kw_only=True)
class AuditQuery:
    """The parsed query string of ``GET /audit``."""

    user_id: UserId | None = None
    limit: int = DEFAULT_PAGE_SIZE
    after: AuditId | None = None

    @property
    def is_search(self) -> bool:
        """Whether the query may have to read many entries to fill a page."""
        return self.user_id is not None


@attrs.frozen(kw_only=True)
class UsageQuery:
    """The parsed query string of ``GET /usage``."""

    days: DayRange
    limit: int = DEFAULT_PAGE_SIZE
    after: UsagePosition | None = None


def parse_users_query(query: bytes) -> UsersQuery:
    """Parse the query string of ``GET /users``.

    Raises:
        InvalidFieldsError: if a parameter is invalid. The error lists every invalid parameter.
    """
    values = _parse(query, USERS_PARAMETERS)
    return UsersQuery(
        enabled=parse_permission(values["enabled"]) if "enabled" in values else None,
        containing=values.get("q", ""),
        limit=int(values.get("limit", DEFAULT_PAGE_SIZE)),
        after=parse_user_id(values.get("after", "0")),
    )


def parse_audit_query(query: bytes) -> AuditQuery:
    """Parse the query string of ``GET /audit``.

    Raises:
        InvalidFieldsError: if a parameter is invalid. The error lists every invalid parameter.
    """
    values = _parse(query, AUDIT_PARAMETERS)
    return AuditQuery(
        user_id=parse_user_id(values["user_id"]) if "user_id" in values else None,
        limit=int(values.get("limit", DEFAULT_PAGE_SIZE)),
        after=AuditId(parse_user_id(values["after"])) if "after" in values else None,
    )


def parse_cost(query: bytes) -> int:
    """Parse the query string of ``/verify``. Return how much the request counts: 1, or 0 if it only asks.

    Raises:
        InvalidFieldsError: if the parameter is invalid, or there are others. A proxy that forwards the query of its
            client would otherwise let the client choose the cost.
    """
    return int(_parse(query, VERIFY_PARAMETERS).get("cost", "1")) if query else 1


def parse_usage_query(query: bytes, *, today: date) -> UsageQuery:
    """Parse the query string of ``GET /usage``. See `parse_days`."""
    values = _parse(query, USAGE_PARAMETERS)
    return UsageQuery(
        days=parse_days(values, today=today),
        limit=int(values.get("limit", DEFAULT_PAGE_SIZE)),
        after=UsagePosition.parse(values["after"]) if "after" in values else None,
    )


def parse_user_usage_query(query: bytes, *, today: date) -> DayRange:
    """Parse the query string of ``GET /users/<id>/usage``. See `parse_days`."""
    return parse_days(_parse(query, DAYS_PARAMETERS), today=today)


def parse_days(values: Mapping[str, str], *, today: date) -> DayRange:
    """Return the range of days from ``from`` to ``to``.

    Without ``to``, the range ends today. Without ``from``, it has `DEFAULT_USAGE_DAYS` days.

    Args:
        values: may contain ``from`` and ``to``.
        today: the current day in UTC.

    Raises:
        InvalidFieldsError: if a value is not a date such as 2030-01-31, or the range ends before it begins.
    """
    found = {name: _parse_date(values[name]) for name in DAYS_PARAMETERS if name in values}
    InvalidFieldsError.raise_for([(name, None if day else _DATE_ERROR) for name, day in found.items()])
    last = found.get("to") or today
    first = found.get("from") or date.fromordinal(max(1, last.toordinal() - DEFAULT_USAGE_DAYS + 1))
    if first > last:
        raise InvalidFieldsError((FieldError("from", "must not be after the last day (by default, today)"),))
    return DayRange(first, last)


def split_query(query: bytes) -> list[tuple[str, str]]:
    """Return the names and values in a query string, in their order.

    Raises:
        InvalidFieldsError: if the query is too long, has too many parameters, or is not UTF-8.
    """
    if len(query) > MAX_QUERY_BYTES:
        raise InvalidFieldsError((FieldError("query", f"must be at most {MAX_QUERY_BYTES} bytes"),))
    try:
        text = query.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:  # not UTF-8, or too many parameters
        message = f"must have at most {MAX_QUERY_FIELDS} parameters, in UTF-8"
        raise InvalidFieldsError((FieldError("query", message),)) from None


def _parse(query: bytes, parameters: Mapping[str, Callable[[str], str | None]]) -> dict[str, str]:
    """Return the values of the parameters.

    Args:
        query: the query string.
        parameters: for each known parameter, a function that returns an error message for a value, or None.

    Raises:
        InvalidFieldsError: if a parameter is unknown, repeated or invalid. The error lists all of them.
    """
    values: dict[str, list[str]] = {}
    for name, value in split_query(query):
        values.setdefault(name, []).append(value)
    errors: list[tuple[str, str | None]] = [
        (name, parameters[name](found[0]) if len(found) == 1 else "must be given once")
        for name, found in values.items()
        if name in parameters
    ]
    if values.keys() - parameters.keys():
        errors.append(("query", f"must contain only {', '.join(parameters)}"))
    InvalidFieldsError.raise_for(errors)
    return {name: found[0] for name, found in values.items()}


def _find_page_size_error(text: str) -> str | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PAGE_SIZE))
    return None if is_number and 0 < int(text) <= MAX_PAGE_SIZE else f"must be from 1 to {MAX_PAGE_SIZE}"


def _find_search_error(text: str) -> str | None:
    if 0 < len(text) < MIN_SEARCH_CHARS:
        return f"must be at least {MIN_SEARCH_CHARS} characters"
    if len(text) > MAX_USERNAME_CHARS:
        return f"must be at most {MAX_USERNAME_CHARS} characters"
    return "must not contain control or invisible characters" if has_invisible(text) else None


def _find_id_error(text: str) -> str | None:
    return None if text.isascii() and text.isdigit() else "must be ASCII digits"


def _find_date_error(text: str) -> str | None:
    return None if _parse_date(text) else _DATE_ERROR


def _parse_date(text: str) -> date | None:
    with suppress(ValueError):  # there is no such day
        if _DATE.fullmatch(text):  # Python also accepts 20300131 and 2030-W05-4
            return date.fromisoformat(text)
    return None


def _find_position_error(text: str) -> str | None:
    try:
        UsagePosition.parse(text)
    except ValueError:
        return "must be the next of the previous page"
    return None


_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DATE_ERROR = "must be a date such as 2030-01-31"
USERS_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {
    "enabled": lambda text: None if text in {"0", "1"} else "must be 0 or 1",
    "q": _find_search_error,
    "limit": _find_page_size_error,
    "after": _find_id_error,
}
VERIFY_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {
    "cost": lambda text: None if text in {"0", "1"} else "must be 0 or 1",
}
AUDIT_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {
    "user_id": _find_id_error,
    "limit": _find_page_size_error,
    "after": _find_id_error,
}
DAYS_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {"from": _find_date_error, "to": _find_date_error}
USAGE_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {
    **DAYS_PARAMETERS,
    "limit": _find_page_size_error,
    "after": _find_position_error,
}
