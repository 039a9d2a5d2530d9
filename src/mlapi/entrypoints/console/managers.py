"""The pages that list managers, and add, rotate and remove them."""

import secrets
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import cast

import attrs
from starlette.responses import Response

from mlapi.application.managers import ManagerRegistry, NewManagerToken
from mlapi.domain.actors import Actor
from mlapi.domain.errors import FieldError, InvalidFieldsError, ManagerExistsError, ManagerNotFoundError
from mlapi.domain.managers import Manager, ManagerTokenId, Role, derive_token_id
from mlapi.domain.sessions import Session, Sessions
from mlapi.domain.users import utc_now
from mlapi.entrypoints.console.access import LOGIN_PATH
from mlapi.entrypoints.console.keys import end_of_day
from mlapi.entrypoints.console.user_page import errors_by_field
from mlapi.entrypoints.logs import REQUEST_ID
from mlapi.entrypoints.pages import (
    Notice,
    PageRequest,
    redirect,
    redirect_with_secret,
    render_page,
    take_secret,
)

MANAGERS_PATH = "/managers"
_DOUBLE_CLICK_TIME = timedelta(seconds=10)


async def show_managers(request: PageRequest) -> Response:
    """List the managers on GET; add one on POST. The page of the manager then shows the token once."""
    if request.is_safe:
        return await _list_page(request)
    form, name = request.form, request.form.get("name", "")
    token_id = derive_token_id(f"{form.get('form_id', '')} {name}")
    try:
        issued = await request.runtime.executor.read_page(
            _registry(request).add,
            name=name,
            role=cast("Role", form.get("role", "")),  # `add` validates it
            expires_datetime=end_of_day(form.get("expires_at", "")),
            token_id=token_id,
        )
    except InvalidFieldsError as error:
        return await _list_page(request, HTTPStatus.UNPROCESSABLE_ENTITY, errors_by_field(error))
    except ManagerExistsError:
        if await _was_just_added(request, name, token_id):  # the browser never showed the token of the first click
            issued = await request.runtime.executor.read_page(_registry(request).rotate, name)
            return _show_token(request, issued, f"Manager {issued.manager.name} was added.")
        message = "is taken. Choose another name, or open that manager to rotate the token"
        errors = errors_by_field(InvalidFieldsError((FieldError("name", message),)))
        return await _list_page(request, HTTPStatus.CONFLICT, errors)
    return _show_token(request, issued, f"Manager {issued.manager.name} was added.")


async def _was_just_added(request: PageRequest, name: str, token_id: ManagerTokenId) -> bool:
    """Return whether this form is the second click of a double click that added the manager."""
    registry = request.runtime.managers.registry
    found = await request.runtime.executor.read_page(registry.managers.find, name)
    return (
        found is not None
        and found.token_id == token_id
        and registry.clock() - found.created_datetime < _DOUBLE_CLICK_TIME
    )


async def show_manager(request: PageRequest) -> Response:
    return await _manager_page(request)


async def rotate_token(request: PageRequest) -> Response:
    """Replace the token of a manager. This ends all their sessions, except the one that sent this request."""
    path = _path(_name(request))
    if request.is_safe:
        return redirect(request, path)
    try:
        expires = end_of_day(request.form.get("expires_at", ""))
        issued = await request.runtime.executor.read_page(
            _registry(request).rotate, _name(request), expires_datetime=expires
        )
    except InvalidFieldsError as error:
        return await _manager_page(request, HTTPStatus.UNPROCESSABLE_ENTITY, errors_by_field(error))
    if request.session is not None and request.session.stored is not None and _is_own(request):
        kept = attrs.evolve(request.session.stored, epoch=issued.manager.digest)
        await request.runtime.executor.read_page(_replace_session, request.runtime.sessions.sessions, kept)
    text = f"The token of manager {issued.manager.name} was rotated. This cannot be undone."
    return _show_token(request, issued, text)


def _replace_session(sessions: Sessions, session: Session) -> None:
    sessions.remove(session.id)
    sessions.add(session)


async def remove_manager(request: PageRequest) -> Response:
    """Ask for confirmation on GET; remove the manager on POST."""
    name = _name(request)
    if request.is_safe:
        return render_page(request, "remove_manager.html", shown=await _find(request), is_own=_is_own(request))
    await request.runtime.executor.read_page(_registry(request).remove, name)
    notice = Notice(f"Manager {name} was removed. This cannot be undone.")
    return redirect(request, LOGIN_PATH if _is_own(request) else MANAGERS_PATH, notice=notice)


async def _list_page(
    request: PageRequest, status: int = HTTPStatus.OK, errors: Mapping[str, str] | None = None
) -> Response:
    managers = await request.runtime.executor.read_page(request.runtime.managers.registry.list_all)
    return render_page(
        request,
        "managers.html",
        status,
        managers=managers,
        form_id=secrets.token_hex(16),
        form={} if errors is None else request.form,
        errors=errors or {},
        now=utc_now(),
    )


async def _manager_page(
    request: PageRequest,
    status: int = HTTPStatus.OK,
    errors: Mapping[str, str] | None = None,
) -> Response:
    shown = await _find(request)
    secret, cookies = take_secret(request, _path(shown.name))
    response = render_page(
        request,
        "manager.html",
        status,
        shown=shown,
        secret=secret,
        is_own=_is_own(request),
        form={} if errors is None else request.form,
        errors=errors or {},
        now=utc_now(),
    )
    for cookie in cookies:
        response.headers.append("Set-Cookie", cookie)
    return response


def _show_token(request: PageRequest, issued: NewManagerToken, text: str) -> Response:
    path = _path(issued.manager.name)
    notice = Notice(text, about=path)
    return redirect_with_secret(request, path, name=path, secret=issued.token, notice=notice)


async def _find(request: PageRequest) -> Manager:
    name = _name(request)
    found = await request.runtime.executor.read_page(request.runtime.managers.registry.managers.find, name)
    if found is None:
        raise ManagerNotFoundError(name)
    return found


def _registry(request: PageRequest) -> ManagerRegistry:
    """Return the use cases, with the signed-in manager as the actor in the audit trail."""
    actor = request.users.actor.name
    return request.runtime.managers.registry.as_actor(Actor(actor, REQUEST_ID.get()))


def _name(request: PageRequest) -> str:
    name: str = request.http_request.path_params["name"]
    return name


def _path(name: str) -> str:
    return f"{MANAGERS_PATH}/{name}"


def _is_own(request: PageRequest) -> bool:
    """Return whether the page is about the manager who is signed in."""
    manager = None if request.session is None else request.session.manager
    return manager is not None and manager.name == _name(request)
