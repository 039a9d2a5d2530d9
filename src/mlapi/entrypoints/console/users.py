"""The pages about users: the list, each of them, and the forms that change them."""

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import parse_qsl, urlencode

from starlette.responses import Response

from mlapi.domain.audit import AuditEntry
from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import InvalidFieldsError, UserExistsError
from mlapi.domain.rules import USERNAME_MAX
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.console.chart import Chart, chart, first_moment
from mlapi.entrypoints.console.pages import redirect, render_page
from mlapi.entrypoints.console.request import ConsoleRequest
from mlapi.entrypoints.wire import queries, requests

PAGE = 25
"""Users of a page of the list."""
RECENT = 10
"""Entries of the audit trail on the page of a user."""
_LIST = ("q", "enabled", "after")  # parameters of the list


async def show_users(visit: ConsoleRequest) -> Response:
    """Show a page of the list, and above it what has happened lately."""
    given = visit.given(*_LIST)
    query = queries.parse_users_query(urlencode({**given, "limit": PAGE}).encode("ascii"))

    def read() -> tuple[list[User], int, Chart | None]:
        users = visit.serving.users
        found = users.list_page(
            after=query.after,
            limit=query.limit + 1,  # one more tells whether there is more
            enabled=query.enabled,
            containing=query.containing,
        )
        if visit.is_partial:  # which takes the list alone
            return found, 0, None
        now = utc_now()
        return found, users.repository.count(), chart(users.count_actions_per_day(first_moment(now)), now)

    found, total, drawn = await visit.serving.reading.run(read)
    shown, more = found[: query.limit], len(found) > query.limit
    following = urlencode({**given, "after": shown[-1].id}) if more else None
    first = urlencode({name: value for name, value in given.items() if name != "after"})
    return render_page(
        visit,
        "users.html",
        users=shown,
        given=given,
        listed=urlencode(given),
        first=first if query.after else None,
        following=following,
        total=total,
        chart=drawn,
        longest=USERNAME_MAX,
    )


async def lead_to_users(visit: ConsoleRequest) -> Response:
    return redirect(visit)


async def add_user(visit: ConsoleRequest) -> Response:
    if visit.is_safe:
        return render_page(visit, "add_user.html", form={}, problems={})
    form, users = visit.form, visit.users
    try:
        command = await visit.serving.hash(
            users.prepare_registration,
            username=form.get("username", ""),
            password=form.get("password", ""),
            email=form.get("email", ""),
        )
        user = await visit.serving.commands.apply(command)
    except InvalidFieldsError as error:
        status, problems = HTTPStatus.UNPROCESSABLE_ENTITY, problems_of(error)
    except UserExistsError as error:
        status, problems = HTTPStatus.CONFLICT, {"username": f"is taken by user {error.user_id}"}
    else:
        return redirect(visit, f"/users/{user.id}", said=f"{user.username} is registered.")
    return render_page(visit, "add_user.html", status, form=form, problems=problems)


async def show_user(visit: ConsoleRequest) -> Response:
    return await user_page(visit, user_id_of(visit))


async def set_enabled(visit: ConsoleRequest) -> Response:
    user_id = user_id_of(visit)
    if visit.is_safe:
        return redirect(visit, f"/users/{user_id}")
    enabled = requests.parse_permission(visit.form.get("enabled", ""))
    command = visit.users.prepare_set_enabled(user_id=user_id, enabled=enabled)
    user = await visit.serving.commands.apply(command)
    said = f"{user.username} is {'enabled' if enabled else 'disabled'}."
    if "list" not in visit.form:
        return redirect(visit, f"/users/{user_id}", said=said)
    query = urlencode([(name, value) for name, value in parse_qsl(visit.form["list"]) if name in _LIST])
    return redirect(visit, f"?{query}" if query else "", said=said)


async def set_password(visit: ConsoleRequest) -> Response:
    user_id = user_id_of(visit)
    if visit.is_safe:
        return redirect(visit, f"/users/{user_id}")
    try:
        password = visit.form.get("password", "")
        command = await visit.serving.hash(visit.users.prepare_password, user_id=user_id, password=password)
    except InvalidFieldsError as error:
        return await user_page(visit, user_id, HTTPStatus.UNPROCESSABLE_ENTITY, problems=problems_of(error))
    user = await visit.serving.commands.apply(command)
    return redirect(visit, f"/users/{user_id}", said=f"{user.username} has another password, and no token any more.")


async def end_tokens(visit: ConsoleRequest) -> Response:
    user_id = user_id_of(visit)
    if visit.is_safe:
        return redirect(visit, f"/users/{user_id}")
    user = await visit.serving.commands.apply(visit.users.prepare_end_tokens(user_id=user_id))
    return redirect(visit, f"/users/{user_id}", said=f"Every token of {user.username} has ended.")


async def remove_user(visit: ConsoleRequest) -> Response:
    """Ask first, then do it."""
    user_id = user_id_of(visit)
    if visit.is_safe:
        user = await visit.serving.reading.run(visit.serving.users.get, user_id)
        return render_page(visit, "remove_user.html", user=user)
    user = await visit.serving.commands.apply(visit.users.prepare_remove(user_id=user_id))
    return redirect(visit, said=f"{user.username} is removed.")


async def user_page(
    visit: ConsoleRequest,
    user_id: UserId,
    status: int = HTTPStatus.OK,
    *,
    problems: Mapping[str, str] | None = None,
    secret: str | None = None,
) -> Response:
    """Return the page of a user, with what is wrong with one of its forms, or with a new key that is shown once.

    Raises:
        UserNotFoundError: if no user has this id.
        RepositoryUnavailableError: if the database is away.
    """

    def read() -> tuple[User, list[ApiKey], list[AuditEntry]]:
        users = visit.serving.users
        return users.get(user_id), users.list_api_keys(user_id), users.list_audit_page(limit=RECENT, user_id=user_id)

    user, keys, entries = await visit.serving.reading.run(read)
    return render_page(
        visit,
        "user.html",
        status,
        user=user,
        keys=keys,
        entries=entries,
        form={} if problems is None else visit.form,
        problems=problems or {},
        secret=secret,
        now=utc_now(),
    )


def user_id_of(visit: ConsoleRequest) -> UserId:
    return requests.parse_user_id(visit.request.path_params["user_id"])


def problems_of(error: InvalidFieldsError) -> dict[str, str]:
    return {problem.field: problem.message for problem in error.errors}
