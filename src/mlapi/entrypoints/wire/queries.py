"""Parse the query parameters of the operations."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from typing import cast, get_args
from urllib.parse import parse_qsl

import attrs
import msgspec

from mlapi.domain.actors import MAX_ACTOR_CHARS
from mlapi.domain.audit import EVERY_ENTRY, Action, AuditFilter, AuditId
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.domain.lists import ListPosition
from mlapi.domain.plans import NO_PLAN
from mlapi.domain.rules import (
    EVERY_USER,
    MAX_EMAIL_CHARS,
    MAX_USERNAME_CHARS,
    UserFilter,
    find_text_error,
    has_invisible,
)
from mlapi.domain.usage import DayRange, UsagePosition
from mlapi.domain.users import UserId, UserOrder, UserState, to_utc
from mlapi.entrypoints.wire.errors import MAX_QUERY_BYTES
from mlapi.entrypoints.wire.fields import describe_choices
from mlapi.entrypoints.wire.list_positions import decode_position
from mlapi.entrypoints.wire.requests import parse_permission, parse_user_id

_BEFORE_FIRST_USER = UserId(0)
MAX_QUERY_FIELDS = 20
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 500
DEFAULT_USAGE_DAYS = 30
MIN_SEARCH_CHARS = 2
"""A single character is in nearly every username or e-mail address."""
METADATA_PREFIX = "metadata."
"""The beginning of the parameter that filters by a key of the metadata, such as ``metadata.customer``."""


@attrs.frozen(kw_only=True)
class UsersQuery:
    """The parsed query string of ``GET /users``.

    Attributes:
        matching: selects the users.
        limit: the maximum number of users on the page.
        after: the ``next`` of the previous page; 0 for the first page. Only without ``order``.
        order: the order of the list. None if the query has none.
        descending: whether to reverse the order.
        after_position: where the previous page ends. Only with ``order``.
        before_position: where the next page begins. Only with ``order``.
    """

    matching: UserFilter = EVERY_USER
    limit: int = DEFAULT_PAGE_SIZE
    after: UserId = _BEFORE_FIRST_USER
    order: UserOrder | None = None
    descending: bool = False
    after_position: ListPosition | None = None
    before_position: ListPosition | None = None


@attrs.frozen(kw_only=True)
class AuditQuery:
    """The parsed query string of ``GET /audit``."""

    matching: AuditFilter = EVERY_ENTRY
    limit: int = DEFAULT_PAGE_SIZE
    after: AuditId | None = None

    @property
    def is_search(self) -> bool:
        """Whether the query may have to read many entries to fill a page."""
        return self.matching != EVERY_ENTRY


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
    pairs = split_query(query)
    metadata = [(name, value) for name, value in pairs if name.startswith(METADATA_PREFIX)]
    values = _parse(
        [pair for pair in pairs if pair not in metadata],
        USERS_PARAMETERS,
        [*_find_contradictions(dict(pairs)), ("metadata", _find_metadata_error(metadata))],
    )
    order, positions = _parse_order(values.get("order", "")), _parse_positions(values)
    return UsersQuery(
        matching=UserFilter(
            enabled=parse_permission(values["enabled"]) if "enabled" in values else None,
            containing=values.get("q", ""),
            state=cast("UserState | None", values.get("state")),
            expires_before=_parse_time(values["expires_before"]) if "expires_before" in values else None,
            metadata=next(((name.removeprefix(METADATA_PREFIX), value) for name, value in metadata), None),
            plans=frozenset({None if values["plan"] == NO_PLAN else values["plan"]}) if "plan" in values else None,
            email=values.get("email"),
        ),
        limit=int(values.get("limit", DEFAULT_PAGE_SIZE)),
        after=parse_user_id("0" if order else values.get("after", "0")),
        order=order,
        descending=values.get("order", "").startswith("-"),
        after_position=positions.get("after"),
        before_position=positions.get("before"),
    )


def _parse_order(text: str) -> UserOrder | None:
    return cast("UserOrder", text.removeprefix("-")) if text else None


def _parse_positions(values: Mapping[str, str]) -> dict[str, ListPosition]:
    """Return the positions in a query, which contains at most one.

    Raises:
        InvalidFieldsError: if one is invalid, or belongs to a list with another order.
    """
    found, errors = dict[str, ListPosition](), list[tuple[str, str | None]]()
    order = _parse_order(values.get("order", ""))
    for name in ("after", "before") if order else ():
        if name in values:
            try:
                found[name] = decode_position(cast("UserOrder", order), values[name])
            except ValueError:
                errors.append((name, "must be the next or previous of a page with the same order"))
    if order is None:
        errors += [
            ("after", _find_id_error(values.get("after", "0"))),
            ("before", "needs order" if "before" in values else None),
        ]
    elif {"after", "before"} <= values.keys():
        errors.append(("before", "must not be combined with after"))
    InvalidFieldsError.raise_for(errors)
    return found


def parse_audit_query(query: bytes) -> AuditQuery:
    """Parse the query string of ``GET /audit``.

    Raises:
        InvalidFieldsError: if a parameter is invalid. The error lists every invalid parameter.
    """
    values = _parse(split_query(query), AUDIT_PARAMETERS)
    return AuditQuery(
        matching=AuditFilter(
            user_id=parse_user_id(values["user_id"]) if "user_id" in values else None,
            action=cast("Action | None", values.get("action")),
            actor=values.get("actor"),
            since=_parse_time(values["since"]) if "since" in values else None,
            until=_parse_time(values["until"]) if "until" in values else None,
        ),
        limit=int(values.get("limit", DEFAULT_PAGE_SIZE)),
        after=AuditId(parse_user_id(values["after"])) if "after" in values else None,
    )


def parse_cost(query: bytes) -> int:
    """Parse the query string of ``/verify``. Return the number of requests to count: 1 by default, or 0.

    Raises:
        InvalidFieldsError: if the parameter is invalid, or there are other parameters. This reveals a proxy that
            forwards its client's query: with such a proxy, the client could choose the cost.
    """
    return int(_parse(split_query(query), VERIFY_PARAMETERS).get("cost", "1")) if query else 1


def parse_usage_query(query: bytes, *, today: date) -> UsageQuery:
    """Parse the query string of ``GET /usage``. See `parse_days`."""
    values = _parse(split_query(query), USAGE_PARAMETERS)
    return UsageQuery(
        days=parse_days(values, today=today),
        limit=int(values.get("limit", DEFAULT_PAGE_SIZE)),
        after=UsagePosition.parse(values["after"]) if "after" in values else None,
    )


def parse_user_usage_query(query: bytes, *, today: date) -> DayRange:
    """Parse the query string of ``GET /users/<id>/usage``. See `parse_days`."""
    return parse_days(_parse(split_query(query), DAYS_PARAMETERS), today=today)


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


def _parse(
    pairs: Iterable[tuple[str, str]],
    parameters: Mapping[str, Callable[[str], str | None]],
    errors: Iterable[tuple[str, str | None]] = (),
) -> dict[str, str]:
    """Return the values of the parameters.

    Args:
        pairs: the names and values in the query string.
        parameters: for each known parameter, a function that returns an error message for a value, or None.
        errors: further errors to report.

    Raises:
        InvalidFieldsError: if a parameter is unknown, repeated or invalid. The error lists all of them.
    """
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    own_errors: list[tuple[str, str | None]] = [
        (name, parameters[name](found[0]) if len(found) == 1 else "must be given once")
        for name, found in values.items()
        if name in parameters
    ]
    if values.keys() - parameters.keys():
        own_errors.append(("query", f"must contain only {', '.join(parameters)}"))
    InvalidFieldsError.raise_for([*own_errors, *errors])
    return {name: found[0] for name, found in values.items()}


def _find_contradictions(values: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Return an error if no user can match both ``state`` and ``enabled``."""
    is_disabled = values.get("state") in {"disabled", "pending"}
    if "state" in values and values.get("enabled") == ("1" if is_disabled else "0"):
        return [("state", f"contradicts enabled={values['enabled']}: omit enabled")]
    return []


def _find_metadata_error(pairs: Sequence[tuple[str, str]]) -> str | None:
    if len(pairs) > 1:
        return "must be given for one key only"
    if any(name == METADATA_PREFIX for name, _value in pairs):
        return "must name a key, as in metadata.customer"
    return "must not contain NUL characters" if any("\0" in text for pair in pairs for text in pair) else None


def _parse_time(text: str) -> datetime:
    """Parse a time with a time zone (RFC 3339).

    Raises:
        ValueError, OverflowError: if it is invalid.
    """
    return to_utc(msgspec.convert(text, datetime))


def _find_time_error(text: str) -> str | None:
    try:
        _parse_time(text)
    except (ValueError, OverflowError):
        return "must be a time with a time zone, such as 2030-01-31T12:00:00Z"
    return None


def _find_page_size_error(text: str) -> str | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PAGE_SIZE))
    return None if is_number and 0 < int(text) <= MAX_PAGE_SIZE else f"must be from 1 to {MAX_PAGE_SIZE}"


def _find_search_error(text: str) -> str | None:
    if 0 < len(text) < MIN_SEARCH_CHARS and not (text.isascii() and text.isdigit()):
        return f"must be at least {MIN_SEARCH_CHARS} characters"
    if len(text) > MAX_USERNAME_CHARS:
        return f"must be at most {MAX_USERNAME_CHARS} characters"
    return _find_search_text_error(text)


def _find_search_text_error(text: str) -> str | None:
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
ACTIONS: tuple[str, ...] = get_args(Action)
LIST_ORDERS: tuple[UserOrder, ...] = ("id", "name", "created", "expires", "seen", "usage")
"""The orders that an index supports."""
_ORDERS_TEXT = f"{describe_choices(LIST_ORDERS)}, with a leading - for the reverse order"
STATES: tuple[str, ...] = get_args(UserState)
USERS_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {
    "enabled": lambda text: None if text in {"0", "1"} else "must be 0 or 1",
    "state": lambda text: None if text in STATES else f"must be {describe_choices(STATES)}",
    "expires_before": _find_time_error,
    "metadata": lambda _text: "must name a key, as in metadata.customer",  # see METADATA_PREFIX
    "q": _find_search_error,
    "plan": lambda text: find_text_error(text, MAX_USERNAME_CHARS) or _find_search_text_error(text),
    "email": lambda text: find_text_error(text, MAX_EMAIL_CHARS) or _find_search_text_error(text),
    "order": lambda text: None if text.removeprefix("-") in LIST_ORDERS else f"must be {_ORDERS_TEXT}",
    "limit": _find_page_size_error,
    "after": lambda _text: None,  # see _parse_positions
    "before": lambda _text: None,
}
VERIFY_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {
    "cost": lambda text: None if text in {"0", "1"} else "must be 0 or 1",
}
AUDIT_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {
    "user_id": _find_id_error,
    "action": lambda text: None if text in ACTIONS else f"must be {describe_choices(ACTIONS)}",
    "actor": lambda text: find_text_error(text, MAX_ACTOR_CHARS),
    "since": _find_time_error,
    "until": _find_time_error,
    "limit": _find_page_size_error,
    "after": _find_id_error,
}
DAYS_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {"from": _find_date_error, "to": _find_date_error}
USAGE_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {
    **DAYS_PARAMETERS,
    "limit": _find_page_size_error,
    "after": _find_position_error,
}
