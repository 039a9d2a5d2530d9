"""Handlers for users and their own account."""

from starlette.requests import Request

from mlapi.application.users import Users
from mlapi.domain.actors import Actor
from mlapi.domain.credentials import ApiKeyId
from mlapi.domain.users import User
from mlapi.entrypoints.http.handlers.registry import handler
from mlapi.entrypoints.http.handlers.request_parts import (
    decode_body,
    find_user_with_token,
    get_credential,
    get_runtime,
    parse_days,
    read_usage,
)
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.logs import REQUEST_ID
from mlapi.entrypoints.wire import requests, responses
from mlapi.entrypoints.wire.errors import OwnApiKeysDisabledError
from mlapi.entrypoints.wire.responses import Response


@handler
async def show_own_user(request: Request) -> Response:
    runtime = get_runtime(request)
    return responses.own_user(await runtime.guard.identify(get_credential(request)), runtime.users.now())


@handler
async def change_password(request: Request) -> Response:
    runtime = get_runtime(request)
    user = await find_user_with_token(request)
    body = await decode_body(request, requests.ChangePasswordRequest)
    changed = await runtime.authenticator.change_password(
        user=user,
        current=body.current,
        new=body.new,
        address=runtime.client_address(request),
        request_id=REQUEST_ID.get(),
    )
    return responses.password_changed(changed)


@handler
async def end_own_tokens(request: Request) -> Response:
    runtime = get_runtime(request)
    user = await find_user_with_token(request)
    users = _users_as(user, runtime)
    return responses.tokens_ended(await runtime.executor.apply(users.prepare_end_tokens(user_id=user.id)))


@handler
async def own_api_keys(request: Request) -> Response:
    runtime = get_runtime(request)
    user = await find_user_with_token(request)
    return responses.api_keys(await runtime.executor.read_own(user.id, runtime.users.list_api_keys, user.id))


@handler
async def add_own_api_key(request: Request) -> Response:
    runtime = get_runtime(request)
    user = await find_user_with_token(request)
    if not runtime.own_api_keys:
        raise OwnApiKeysDisabledError
    body = await decode_body(request, requests.AddApiKeyRequest)
    users = _users_as(user, runtime)
    command, secret = users.prepare_api_key(
        user_id=user.id, name=body.name, expires_datetime=body.expires_at, limit=runtime.own_api_keys
    )
    return responses.api_key_added(await runtime.executor.apply(command), secret)


@handler
async def remove_own_api_key(request: Request) -> Response:
    runtime = get_runtime(request)
    user = await find_user_with_token(request)
    users = _users_as(user, runtime)
    command = users.prepare_remove_api_key(ApiKeyId(request.path_params["key_id"]), owner=user.id)
    return responses.api_key_removed(await runtime.executor.apply(command))


@handler
async def own_usage(request: Request) -> Response:
    runtime = get_runtime(request)
    user = await runtime.guard.identify(get_credential(request))
    return await runtime.executor.read_own(user.id, read_usage, runtime.usage, user.id, parse_days(request))


def _users_as(user: User, runtime: Runtime) -> Users:
    """Return the users, with this user as the actor in the audit trail."""
    return runtime.users.as_actor(Actor.from_user_id(user.id, REQUEST_ID.get()))
