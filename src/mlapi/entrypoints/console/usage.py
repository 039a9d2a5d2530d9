"""The usage page: requests and units per day, of all users or of one user."""

from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus

import attrs
from starlette.responses import Response

from mlapi.application.usage_reports import iterate_usage
from mlapi.domain.credentials import ApiKeyId
from mlapi.domain.errors import FieldError, InvalidFieldsError, SearchUnavailableError, UserNotFoundError
from mlapi.domain.usage import DayRange
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.pages import PageRequest, render_page
from mlapi.entrypoints.pages.usage import UsageOverview, default_days, read_overview
from mlapi.entrypoints.wire import queries, requests

MAX_CHART_DAYS = 366
TOP_USERS = 10


@attrs.frozen(kw_only=True)
class UsageShare:
    """The usage of one user, or of one API key or the tokens of a user.

    Attributes:
        id: the id of the user or the API key; None for tokens.
        name: the name of the user or the API key; None if it has been removed.
        requests: the sum of the requests.
        units: the sum of the units.
    """

    id: UserId | ApiKeyId | None
    name: str | None
    requests: int
    units: int


async def show_usage(request: PageRequest) -> Response:
    """Show the usage of all users and the users with the most requests, or the usage of one user by API key."""
    parameters = request.query_parameters("user_id", "from", "to")
    user_id = requests.parse_user_id(parameters["user_id"]) if "user_id" in parameters else None
    try:
        days, errors = _parse_days(parameters), {}
    except InvalidFieldsError as error:
        days = default_days()
        errors = {field_error.field: field_error.message for field_error in error.errors}
    status, headers = HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK, {}
    found, notice = _FoundUsage(), ""
    try:
        if user_id is None:
            found = await request.search(partial(_read_all, request.runtime, days))
        else:
            found = await request.runtime.executor.read_page(_read_user, request.runtime, days, user_id)
    except SearchUnavailableError as error:  # show it on this page, where fewer days can be chosen
        status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(error.retry_after_seconds)}
        notice = f"{error}. Fewer days take less time."
    return render_page(
        request,
        "usage.html",
        status,
        headers=headers.items(),
        user_id=user_id,
        user=found.user,
        usage=found.overview,
        shares=found.shares,
        notice=notice,
        days=days,
        form={"from": days.first.isoformat(), "to": days.last.isoformat(), **parameters},
        errors=errors,
    )


def _parse_days(parameters: Mapping[str, str]) -> DayRange:
    days = queries.parse_days(parameters, today=utc_now().date())
    if days.length > MAX_CHART_DAYS:
        raise InvalidFieldsError((FieldError("from", f"must be at most {MAX_CHART_DAYS} days before the last day"),))
    return days


@attrs.frozen(kw_only=True)
class _FoundUsage:
    overview: UsageOverview | None = None
    shares: Sequence[UsageShare] = ()
    user: User | None = None


def _read_all(runtime: Runtime, days: DayRange) -> _FoundUsage:
    top = runtime.usage.list_top_users(first_day=days.first, last_day=days.last, limit=TOP_USERS)
    users = runtime.users.repository.find_principals([total.user_id for total in top])
    shares = [
        UsageShare(
            id=total.user_id,
            name=user.username if isinstance(user, User) else None,
            requests=total.requests,
            units=total.units,
        )
        for total, user in zip(top, users, strict=True)
    ]
    return _FoundUsage(overview=read_overview(runtime.usage, days), shares=shares)


def _read_user(runtime: Runtime, days: DayRange, user_id: UserId) -> _FoundUsage:
    try:
        user, keys = runtime.users.get(user_id), runtime.users.list_api_keys(user_id)
    except UserNotFoundError:  # usage outlives its user
        user, keys = None, []
    names: dict[ApiKeyId | None, str] = {key.id: key.name for key in keys}
    totals: dict[ApiKeyId | None, list[int]] = {}
    for row in iterate_usage(runtime.usage, days, user_id):
        total = totals.setdefault(row.key_id, [0, 0])
        total[0] += row.requests
        total[1] += row.units
    shares = [
        UsageShare(id=key_id, name=names.get(key_id), requests=requests, units=units)
        for key_id, (requests, units) in totals.items()
    ]
    return _FoundUsage(overview=read_overview(runtime.usage, days, user_id), shares=shares, user=user)
