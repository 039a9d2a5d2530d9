"""The user list, and the forms that add, enable and disable users."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from urllib.parse import urlencode

import attrs
from starlette.responses import Response

from mlapi.application.user_search import FoundUsers
from mlapi.application.users import Users
from mlapi.domain.errors import InvalidFieldsError, SearchUnavailableError, UserExistsError
from mlapi.domain.rules import MAX_USERNAME_CHARS, UserFilter
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.console.user_page import errors_by_field, user_id_in_path
from mlapi.entrypoints.http.user_lists import list_users
from mlapi.entrypoints.pages import Notice, PageRequest, Undo, redirect, render_page
from mlapi.entrypoints.pages.chart import Chart, chart_start, make_chart
from mlapi.entrypoints.wire import queries, requests

USERS_PER_PAGE = 25
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
    try:
        user, text = await _register(request)
    except InvalidFieldsError as error:
        status, errors = HTTPStatus.UNPROCESSABLE_ENTITY, errors_by_field(error)
    except UserExistsError as error:
        status, errors = HTTPStatus.CONFLICT, {"username": f"is already taken by user {error.user_id}"}
    else:
        return redirect(request, f"/users/{user.id}", notice=Notice(text, about=f"/users/{user.id}"))
    return render_page(request, "add_user.html", status, form=request.form, errors=errors)


async def _register(request: PageRequest) -> tuple[User, str]:
    """Register a user, or invite them if the form contains no password. Return the user and the text of the notice."""
    username, email, password = (request.form.get(name, "") for name in ("username", "email", "password"))
    if password:
        user = await request.runtime.registration.register(
            request.users, username=username, password=password, email=email, address=request.address
        )
        return user, f"{user.username} was added."
    command = request.users.prepare_registration(username=username, password=None, email=email)
    user = await request.runtime.executor.apply(command)
    if command.mail is not None:
        return user, f"{user.username} was added. An invitation is sent to {user.email}."
    return user, f"{user.username} was added without a password. Make a one-time link, and send it to them."


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
