"""The user list, the user page, and the forms that change users."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import attrs
from starlette.responses import Response

from mlapi.application.user_search import FoundUsers
from mlapi.application.users import Users
from mlapi.domain.audit import AuditEntry, AuditFilter
from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import FieldError, InvalidFieldsError, SearchUnavailableError, UserExistsError
from mlapi.domain.expiry import Extension, parse_extension
from mlapi.domain.rules import MAX_USERNAME_CHARS, UserFilter
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.http.user_lists import list_users
from mlapi.entrypoints.pages import Notice, PageRequest, Undo, redirect, render_page
from mlapi.entrypoints.pages.chart import Chart, chart_start, make_chart
from mlapi.entrypoints.pages.usage import UsageOverview, default_days, read_overview
from mlapi.entrypoints.wire import queries, requests

USERS_PER_PAGE = 25
RECENT_ENTRIES = 10
"""The number of audit entries on a user's page."""
ENDING_SOON = timedelta(days=7)
_SHORTEST_PERIOD = timedelta(hours=1)
MAX_ENDING_SOON = 5
"""The number of users whose access expires soon that the first page shows."""
_LIST_PARAMETERS = ("q", "state", "after")
_ENDING = "ending"
"""A value of the state filter: active users whose access expires soon."""


async def show_users(request: PageRequest) -> Response:
    """Show a page of the user list, below a chart of recent registrations and removals."""
    parameters = request.query_parameters(*_LIST_PARAMETERS)
    typed, notice = parameters.get("q", ""), ""
    if 0 < len(typed) < queries.MIN_SEARCH_CHARS and typed.isprintable():  # htmx sends it while the user types
        del parameters["q"]
        notice = f"Type at least {queries.MIN_SEARCH_CHARS} characters to search."
    query = _parse_list_query(parameters)
    status, headers = HTTPStatus.OK, {}
    try:
        found = await list_users(request.runtime, request.http_request.receive, query)
        overview = await _read_overview(request)
    except SearchUnavailableError as error:  # show it on this page, which keeps what the user has typed
        found, notice = FoundUsers([]), f"{error}."
        overview = None  # reading it would be another search
        status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(error.retry_after_seconds)}
    search = urlencode({name: value for name, value in parameters.items() if name != "after"})
    return render_page(
        request,
        "users.html",
        status,
        headers=headers.items(),
        users=found.users,
        parameters=parameters,
        typed=typed,
        notice=notice,
        is_indexed=found.is_indexed,
        list_query=urlencode(parameters),
        first_page=search if query.after else None,
        next_page=None if found.next is None else urlencode({**parameters, "after": found.next}),
        overview=overview,
        has_access_columns=any(user.expires_datetime or user.plan for user in found.users),
        search_max_length=MAX_USERNAME_CHARS,
        now=utc_now(),
    )


def _parse_list_query(parameters: Mapping[str, str]) -> queries.UsersQuery:
    """Parse the parameters of the list. ``state`` may also be `_ENDING`.

    Raises:
        InvalidFieldsError: if a parameter is invalid.
    """
    fields = {**parameters, "limit": USERS_PER_PAGE}
    if parameters.get("state") == _ENDING:
        fields |= {"state": "active", "expires_before": (utc_now() + ENDING_SOON).isoformat()}
    return queries.parse_users_query(urlencode(fields).encode("ascii"))


@attrs.frozen
class Overview:
    """The content of the first page above the list.

    Attributes:
        total: the number of users.
        chart: registrations and removals.
        ending: users whose access expires soon, the soonest first; at most `MAX_ENDING_SOON`.
        has_more_ending: whether there are more.
    """

    total: int
    chart: Chart
    ending: Sequence[User]
    has_more_ending: bool


async def _read_overview(request: PageRequest) -> Overview | None:
    """Return the overview, or None if the database cannot be read now."""
    if request.is_partial:  # htmx replaces only the list
        return None
    users, now = request.runtime.users, utc_now()

    def read() -> Overview:
        ending = _find_ending(users, now)
        return Overview(
            users.count(),
            make_chart(users.count_actions_per_day(chart_start(now)), now),
            ending[:MAX_ENDING_SOON],
            len(ending) > MAX_ENDING_SOON,
        )

    try:
        return await request.search(read)
    except SearchUnavailableError:
        return None


def _find_ending(users: Users, now: datetime) -> list[User]:
    """Return users whose access expires soon, the soonest first.

    Lists are sorted by id. If more users match than fit on a page, shorter periods find the soonest.
    """
    period, found = ENDING_SOON, dict[UserId, User]()
    while True:
        matching = UserFilter(state="active", expires_before=now + period, at=now)
        page = users.list_page(limit=queries.MAX_PAGE_SIZE, matching=matching)
        found |= {user.id: user for user in page}
        if len(page) < queries.MAX_PAGE_SIZE or period < _SHORTEST_PERIOD:
            return sorted(found.values(), key=lambda user: user.expires_datetime or now)
        period /= 4


async def redirect_to_users(request: PageRequest) -> Response:
    return redirect(request)


async def add_user(request: PageRequest) -> Response:
    if request.is_safe:
        return render_page(request, "add_user.html", form={}, errors={})
    form, users = request.form, request.users
    try:
        user = await request.runtime.registration.register(
            users,
            username=form.get("username", ""),
            password=form.get("password", ""),
            email=form.get("email", ""),
            address=request.address,
        )
    except InvalidFieldsError as error:
        status, errors = HTTPStatus.UNPROCESSABLE_ENTITY, errors_by_field(error)
    except UserExistsError as error:
        status, errors = HTTPStatus.CONFLICT, {"username": f"is already taken by user {error.user_id}"}
    else:
        return redirect(
            request, f"/users/{user.id}", notice=Notice(f"{user.username} was added.", about=f"/users/{user.id}")
        )
    return render_page(request, "add_user.html", status, form=form, errors=errors)


async def show_user(request: PageRequest) -> Response:
    return await user_page(request, user_id_in_path(request))


async def set_enabled(request: PageRequest) -> Response:
    """Enable or disable a user, then redirect to the page with the button: the user's page or the list."""
    user_id = user_id_in_path(request)
    if request.is_safe:
        return redirect(request, f"/users/{user_id}")
    enabled = requests.parse_permission(request.form.get("enabled", ""))
    fields = queries.split_query(request.form.get("list", "").encode("utf-8"))
    user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
    if user.enabled != enabled or user.pending:  # otherwise, this is the second click of a double click
        user = await request.runtime.executor.apply(request.users.prepare_set_enabled(user_id=user_id, enabled=enabled))
    query = urlencode([(name, value) for name, value in fields if name in _LIST_PARAMETERS])
    in_list = {"list": query} if "list" in request.form else {}
    about = f"/users/{user_id}"
    notice = Notice(
        f"{user.username} is {'enabled' if enabled else 'disabled'}.",
        about=about,
        undo=Undo(f"{about}/enabled", {"enabled": str(int(not enabled)), **in_list}),
    )
    if not in_list:
        return redirect(request, about, notice=notice)
    return redirect(request, f"?{query}" if query else "", notice=notice)


async def set_password(request: PageRequest) -> Response:
    user_id = user_id_in_path(request)
    if request.is_safe:
        return redirect(request, f"/users/{user_id}")
    try:
        password = request.form.get("password", "")
        executor = request.runtime.executor.for_client(request.address)
        command = await executor.hash(request.users.prepare_password, user_id=user_id, password=password)
    except InvalidFieldsError as error:
        return await user_page(request, user_id, HTTPStatus.UNPROCESSABLE_ENTITY, errors=errors_by_field(error))
    user = await request.runtime.executor.apply(command)
    text = f"The password of {user.username} was set, and all their tokens were revoked. This cannot be undone."
    return redirect(request, f"/users/{user_id}", notice=Notice(text, about=f"/users/{user_id}"))


async def set_expiry(request: PageRequest) -> Response:
    """Set, extend or remove the expiry of a user's access."""
    user_id = user_id_in_path(request)
    if request.is_safe:
        return redirect(request, f"/users/{user_id}")
    try:
        expires = _parse_expiry(request.form.get("expires_on", ""))
    except InvalidFieldsError as error:
        return await user_page(request, user_id, HTTPStatus.UNPROCESSABLE_ENTITY, errors=errors_by_field(error))
    user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
    current = _expiry_text(user)
    if request.form.get("current_expiry", current) != current:  # a double click must not extend it twice
        text = f"Nothing was changed: the expiry of {user.username} was changed after you opened this page. Check it."
        return redirect(request, f"/users/{user_id}", notice=Notice(text))
    user = await _update(request, user_id, expires=expires)
    end = user.expires_datetime
    text = f"expires on {end.day} {end:%b %Y, %H:%M} UTC" if end else "no longer expires"
    return redirect(
        request, f"/users/{user_id}", notice=Notice(f"Access of {user.username} {text}.", about=f"/users/{user_id}")
    )


async def set_plan(request: PageRequest) -> Response:
    user_id = user_id_in_path(request)
    if request.is_safe:
        return redirect(request, f"/users/{user_id}")
    try:
        user = await _update(request, user_id, plan=request.form.get("plan", "") or None)
    except InvalidFieldsError as error:
        return await user_page(request, user_id, HTTPStatus.UNPROCESSABLE_ENTITY, errors=errors_by_field(error))
    text = f"the plan {user.plan}" if user.plan else "the default plan"
    return redirect(
        request, f"/users/{user_id}", notice=Notice(f"{user.username} has {text}.", about=f"/users/{user_id}")
    )


async def _update(request: PageRequest, user_id: UserId, **changes: Any) -> User:  # noqa: ANN401 - see `Users.prepare_update`
    change = await request.runtime.executor.apply(request.users.prepare_update(user_id=user_id, **changes))
    return change.after


def _expiry_text(user: User) -> str:
    return str(user.expires_datetime or "")


def _parse_expiry(text: str) -> datetime | Extension | None:
    """Parse an expiry: a date, which means its start in UTC; an extension; or ``never``.

    Raises:
        InvalidFieldsError: if the text is invalid.
    """
    if text == "never":
        return None
    try:
        if text.startswith("+"):
            return parse_extension(text)
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    except (ValueError, InvalidFieldsError):
        raise InvalidFieldsError((FieldError("expires_on", "must be a date such as 2030-01-31"),)) from None


async def revoke_tokens(request: PageRequest) -> Response:
    user_id = user_id_in_path(request)
    if request.is_safe:
        return redirect(request, f"/users/{user_id}")
    user = await request.runtime.executor.apply(request.users.prepare_end_tokens(user_id=user_id))
    text = f"All tokens of {user.username} were revoked. This cannot be undone."
    return redirect(request, f"/users/{user_id}", notice=Notice(text, about=f"/users/{user_id}"))


async def remove_user(request: PageRequest) -> Response:
    """Ask for confirmation on GET; remove the user on POST."""
    user_id = user_id_in_path(request)
    if request.is_safe:
        user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
        return render_page(request, "remove_user.html", user=user)
    user = await request.runtime.executor.apply(request.users.prepare_remove(user_id=user_id))
    return redirect(request, notice=Notice(f"{user.username} was removed. This cannot be undone."))


async def user_page(
    request: PageRequest,
    user_id: UserId,
    status: int = HTTPStatus.OK,
    *,
    errors: Mapping[str, str] | None = None,
    secret: str | None = None,
) -> Response:
    """Return a user's page.

    Args:
        request: the request.
        user_id: the id of the user.
        status: the status code of the response.
        errors: error messages by form field.
        secret: a new API key, which is shown only in this response.

    Raises:
        UserNotFoundError: if no user has this id.
        ServiceUnavailableError: if the database is unavailable.
    """

    def read() -> tuple[User, list[ApiKey], list[AuditEntry], UsageOverview]:
        users = request.runtime.users
        user, keys = users.get(user_id), users.list_api_keys(user_id)
        entries = users.list_audit_page(limit=RECENT_ENTRIES, matching=AuditFilter(user_id=user_id))
        return user, keys, entries, read_overview(request.runtime.usage, default_days(), user_id)

    user, keys, entries, usage = await request.runtime.executor.read_page(read)
    return render_page(
        request,
        "user.html",
        status,
        user=user,
        keys=keys,
        entries=entries,
        usage=usage,
        form={} if errors is None else request.form,
        errors=errors or {},
        secret=secret,
        plans=request.runtime.users.plans,
        now=utc_now(),
    )


def user_id_in_path(request: PageRequest) -> UserId:
    return requests.parse_user_id(request.http_request.path_params["user_id"])


def errors_by_field(error: InvalidFieldsError) -> dict[str, str]:
    return {field_error.field: field_error.message for field_error in error.errors}
