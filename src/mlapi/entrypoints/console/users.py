"""The user list, the user page, and the forms that change users."""

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlencode

from starlette.responses import Response

from mlapi.application.user_search import FoundUsers
from mlapi.domain.audit import AuditEntry
from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import InvalidFieldsError, SearchUnavailableError, UserExistsError
from mlapi.domain.rules import MAX_USERNAME_CHARS
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.console.chart import Chart, chart_start, make_chart
from mlapi.entrypoints.console.pages import redirect, render_page
from mlapi.entrypoints.console.request import ConsoleRequest
from mlapi.entrypoints.console.usage import UsageOverview, default_days, read_overview
from mlapi.entrypoints.http.user_lists import list_users
from mlapi.entrypoints.wire import queries, requests

USERS_PER_PAGE = 25
RECENT_ENTRIES = 10
"""The number of audit entries on a user's page."""
_LIST_PARAMETERS = ("q", "enabled", "after")


async def show_users(request: ConsoleRequest) -> Response:
    """Show a page of the user list, below a chart of recent registrations and removals."""
    parameters = request.query_parameters(*_LIST_PARAMETERS)
    typed, notice = parameters.get("q", ""), ""
    if 0 < len(typed) < queries.MIN_SEARCH_CHARS and typed.isprintable():  # htmx sends it while the user types
        del parameters["q"]
        notice = f"Type at least {queries.MIN_SEARCH_CHARS} characters to search."
    query = queries.parse_users_query(urlencode({**parameters, "limit": USERS_PER_PAGE}).encode("ascii"))

    status, headers = HTTPStatus.OK, {}
    try:
        found = await list_users(request.runtime, request.http_request.receive, query)
        total, chart = await _read_overview(request)
    except SearchUnavailableError as error:  # show it on this page, which keeps what the user has typed
        found, notice = FoundUsers([]), f"{error}."
        total, chart = 0, None  # reading them would be another search
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
        total=total,
        chart=chart,
        search_max_length=MAX_USERNAME_CHARS,
    )


async def _read_overview(request: ConsoleRequest) -> tuple[int, Chart | None]:
    """Return the number of users and the chart, or 0 and None if the database cannot be read now."""
    if request.is_partial:  # htmx replaces only the list
        return 0, None
    users, now = request.runtime.users, utc_now()

    def read() -> tuple[int, Chart | None]:
        return users.count(), make_chart(users.count_actions_per_day(chart_start(now)), now)

    try:
        return await request.search(read)
    except SearchUnavailableError:
        return 0, None


async def redirect_to_users(request: ConsoleRequest) -> Response:
    return redirect(request)


async def add_user(request: ConsoleRequest) -> Response:
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
        return redirect(request, f"/users/{user.id}", flash=f"User {user.username} was added.")
    return render_page(request, "add_user.html", status, form=form, errors=errors)


async def show_user(request: ConsoleRequest) -> Response:
    return await user_page(request, user_id_in_path(request))


async def set_enabled(request: ConsoleRequest) -> Response:
    """Enable or disable a user, then redirect to the page with the button: the user's page or the list."""
    user_id = user_id_in_path(request)
    if request.is_safe:
        return redirect(request, f"/users/{user_id}")
    enabled = requests.parse_permission(request.form.get("enabled", ""))
    fields = queries.split_query(request.form.get("list", "").encode("utf-8"))
    command = request.users.prepare_set_enabled(user_id=user_id, enabled=enabled)
    user = await request.runtime.executor.apply(command)
    flash = f"User {user.username} is now {'enabled' if enabled else 'disabled'}."
    if "list" not in request.form:
        return redirect(request, f"/users/{user_id}", flash=flash)
    query = urlencode([(name, value) for name, value in fields if name in _LIST_PARAMETERS])
    return redirect(request, f"?{query}" if query else "", flash=flash)


async def set_password(request: ConsoleRequest) -> Response:
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
    flash = f"Password changed. All tokens of {user.username} were revoked."
    return redirect(request, f"/users/{user_id}", flash=flash)


async def revoke_tokens(request: ConsoleRequest) -> Response:
    user_id = user_id_in_path(request)
    if request.is_safe:
        return redirect(request, f"/users/{user_id}")
    user = await request.runtime.executor.apply(request.users.prepare_end_tokens(user_id=user_id))
    return redirect(request, f"/users/{user_id}", flash=f"All tokens of {user.username} were revoked.")


async def remove_user(request: ConsoleRequest) -> Response:
    """Ask for confirmation on GET; remove the user on POST."""
    user_id = user_id_in_path(request)
    if request.is_safe:
        user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
        return render_page(request, "remove_user.html", user=user)
    user = await request.runtime.executor.apply(request.users.prepare_remove(user_id=user_id))
    return redirect(request, flash=f"User {user.username} was removed.")


async def user_page(
    request: ConsoleRequest,
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
        entries = users.list_audit_page(limit=RECENT_ENTRIES, user_id=user_id)
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
        now=utc_now(),
    )


def user_id_in_path(request: ConsoleRequest) -> UserId:
    return requests.parse_user_id(request.http_request.path_params["user_id"])


def errors_by_field(error: InvalidFieldsError) -> dict[str, str]:
    return {field_error.field: field_error.message for field_error in error.errors}
