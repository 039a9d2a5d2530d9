"""The forms that add, enable and disable users."""

from http import HTTPStatus
from urllib.parse import urlencode

from starlette.responses import Response

from mlapi.domain.errors import InvalidFieldsError, UserExistsError
from mlapi.domain.users import User
from mlapi.entrypoints.console.user_list import LIST_PARAMETERS
from mlapi.entrypoints.console.user_page import errors_by_field, user_id_in_path
from mlapi.entrypoints.pages import Notice, PageRequest, Undo, redirect, render_page
from mlapi.entrypoints.wire import queries, requests


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
    query = urlencode([(name, value) for name, value in fields if name in LIST_PARAMETERS])
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
