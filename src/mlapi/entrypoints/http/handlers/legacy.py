"""Handlers for the operations that the legacy app has too."""

from functools import partial
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request

from mlapi.domain.credentials import IssuedToken
from mlapi.domain.errors import AccessDeniedError, InvalidTokenError, MlapiError
from mlapi.entrypoints.admin import check_role
from mlapi.entrypoints.http.handlers.registry import handler
from mlapi.entrypoints.http.handlers.request_parts import (
    get_admin_policy,
    get_credential,
    get_runtime,
    get_user_id,
    read_body,
    users_as_manager,
)
from mlapi.entrypoints.http.managers import find_manager
from mlapi.entrypoints.http.middleware import MANAGER, delayed_error_response
from mlapi.entrypoints.http.peers import connected_client
from mlapi.entrypoints.wire import requests, responses
from mlapi.entrypoints.wire.error_responses import BEARER_CHALLENGE, http_error_response, oauth_error_response
from mlapi.entrypoints.wire.errors import MissingCredentialError
from mlapi.entrypoints.wire.headers import FORM, JSON, validate_content_headers
from mlapi.entrypoints.wire.responses import Response


@handler
async def register_user(request: Request) -> Response:
    runtime, admin_policy = get_runtime(request), get_admin_policy(request)
    validate_content_headers(request.scope["headers"])
    client = connected_client(request.scope, request.receive)
    manager = request.scope.get(MANAGER)
    if manager is None:  # anyone may register users, so the policy has not identified the client
        manager = await find_manager(client, request.scope, request.receive)
    if manager is not None:
        check_role(manager, request.method, client.path)
    is_admin = partial(admin_policy.is_admin, client) if manager is None else lambda: True
    body = requests.decode_registration(await read_body(request), is_admin=is_admin)
    if manager is None and body.details:
        manager = admin_policy.identity
    actor = admin_policy.registration_actor(client.headers) if manager is None else manager.actor
    registered = await runtime.registration.register(
        runtime.as_actor(actor),
        username=body.username,
        password=body.password,
        email=body.email,
        address=client.resolve_address(runtime.trusted_proxies),
        **body.details,
    )
    return responses.user_registered(registered)


@handler
async def toggle_user_permission(request: Request) -> Response:
    user_id = get_user_id(request)
    enabled = requests.parse_permission(request.path_params["permission"])
    command = users_as_manager(request).prepare_set_enabled(user_id=user_id, enabled=enabled)
    return responses.permission_updated(await get_runtime(request).executor.apply(command))


@handler
async def remove_user(request: Request) -> Response:
    command = users_as_manager(request).prepare_remove(user_id=get_user_id(request))
    return responses.user_removed(await get_runtime(request).executor.apply(command))


@handler
async def token(request: Request) -> Response:
    media_type = validate_content_headers(request.scope["headers"], (JSON, FORM))
    body = await read_body(request)
    if media_type == FORM:
        return await _oauth_token(request, body)
    return responses.token_issued(await _log_in(request, requests.decode(body, requests.LoginRequest)))


async def _oauth_token(request: Request, body: bytes) -> Response:
    try:
        return responses.oauth_token_issued(await _log_in(request, requests.decode_login_form(body)))
    except MlapiError as error:
        return oauth_error_response(await delayed_error_response(request, error), error)


async def _log_in(request: Request, login: requests.LoginRequest) -> IssuedToken:
    runtime = get_runtime(request)
    return await runtime.authenticator.log_in(
        username=login.username, password=login.password, address=runtime.client_address(request)
    )


@handler
async def token_status(request: Request) -> Response:
    try:
        return await _check_token(request, get_credential(request))
    except MissingCredentialError:
        # Clients of the legacy app expect this message for every 401 of this path.
        return http_error_response(HTTPStatus.UNAUTHORIZED, [BEARER_CHALLENGE], "Invalid token")


@handler
async def token_status_of_path(request: Request) -> Response:
    if not get_runtime(request).token_in_path:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return await _check_token(request, request.path_params["token"])


async def _check_token(request: Request, credential: str) -> Response:
    try:
        return responses.token_valid(await get_runtime(request).guard.identify(credential))
    except AccessDeniedError:
        raise InvalidTokenError from None
