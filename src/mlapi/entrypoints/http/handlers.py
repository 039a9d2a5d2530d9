"""One handler for each operation, which parses the request, calls a use case and returns the response."""

from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from mlapi.application.deadlines import PausedDeadline
from mlapi.application.usage_reports import find_last_seen, iterate_usage
from mlapi.application.users import Users
from mlapi.domain.actors import Actor
from mlapi.domain.credentials import ApiKeyId, IssuedToken, looks_like_api_key
from mlapi.domain.errors import AccessDeniedError, InvalidTokenError, MlapiError
from mlapi.domain.usage import DayRange, UsageRepository
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.admin import AdminPolicy, check_role, find_manager_token
from mlapi.entrypoints.http.managers import find_manager_with_token
from mlapi.entrypoints.http.middleware import MANAGER, delayed_error_response
from mlapi.entrypoints.http.peers import connected_client
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.http.user_lists import list_sorted
from mlapi.entrypoints.http.user_lists import list_users as find_users
from mlapi.entrypoints.logs import REQUEST_ID
from mlapi.entrypoints.wire import queries, requests, responses
from mlapi.entrypoints.wire.bulk import BulkRequest
from mlapi.entrypoints.wire.error_responses import (
    BEARER_CHALLENGE,
    http_error_response,
    oauth_error_response,
    proxy_error_response,
)
from mlapi.entrypoints.wire.errors import (
    MAX_BODY_BYTES,
    MAX_BULK_BODY_BYTES,
    ApiKeyNotAcceptedError,
    MissingCredentialError,
    OwnApiKeysDisabledError,
    TokenRequiredError,
)
from mlapi.entrypoints.wire.headers import FORM, JSON, get_bearer_credential, validate_content_headers
from mlapi.entrypoints.wire.responses import Response

T = TypeVar("T")

Handler = Callable[[Request], Awaitable[Response]]
HANDLERS: dict[str, Handler] = {}
"""The handler for each operation, by `Operation.name`."""


def handler(function: Handler) -> Handler:
    """Register a function as the handler for the operation of the same name."""
    HANDLERS[function.__name__] = function
    return function


@handler
async def register_user(request: Request) -> Response:
    runtime, admin_policy = _runtime(request), _admin_policy(request)
    validate_content_headers(request.scope["headers"])
    client = connected_client(request.scope, request.receive)
    manager = request.scope.get(MANAGER)
    if manager is None and (token := find_manager_token(client.headers)) is not None:
        manager = await find_manager_with_token(token, runtime)
    if manager is not None:
        check_role(manager, request.method, client.path)
    is_admin = partial(admin_policy.is_admin, client) if manager is None else lambda: True
    body = requests.decode_registration(await _read_body(request), is_admin=is_admin)
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
    user_id = _user_id(request)
    enabled = requests.parse_permission(request.path_params["permission"])
    command = _users_as_manager(request).prepare_set_enabled(user_id=user_id, enabled=enabled)
    return responses.permission_updated(await _runtime(request).executor.apply(command))


@handler
async def remove_user(request: Request) -> Response:
    command = _users_as_manager(request).prepare_remove(user_id=_user_id(request))
    return responses.user_removed(await _runtime(request).executor.apply(command))


@handler
async def token(request: Request) -> Response:
    media_type = validate_content_headers(request.scope["headers"], (JSON, FORM))
    body = await _read_body(request)
    if media_type == FORM:
        return await _oauth_token(request, body)
    return responses.token_issued(await _log_in(request, requests.decode(body, requests.LoginRequest)))


async def _oauth_token(request: Request, body: bytes) -> Response:
    try:
        return responses.oauth_token_issued(await _log_in(request, requests.decode_login_form(body)))
    except MlapiError as error:
        return oauth_error_response(await delayed_error_response(request, error), error)


async def _log_in(request: Request, login: requests.LoginRequest) -> IssuedToken:
    runtime = _runtime(request)
    return await runtime.authenticator.log_in(
        username=login.username, password=login.password, address=runtime.client_address(request)
    )


@handler
async def token_status(request: Request) -> Response:
    try:
        return await _check_token(request, _credential(request))
    except MissingCredentialError:
        # Clients of the legacy app expect this message for every 401 of this path.
        return http_error_response(HTTPStatus.UNAUTHORIZED, [BEARER_CHALLENGE], "Invalid token")


@handler
async def token_status_of_path(request: Request) -> Response:
    if not _runtime(request).token_in_path:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return await _check_token(request, request.path_params["token"])


async def _check_token(request: Request, credential: str) -> Response:
    try:
        return responses.token_valid(await _runtime(request).guard.identify(credential))
    except AccessDeniedError:
        raise InvalidTokenError from None


@handler
async def verify(request: Request) -> Response:
    # Never read the body: a proxy sends the headers of an upload without its body.
    try:
        cost = queries.parse_cost(request.scope["query_string"])
        return responses.admitted(await _runtime(request).guard.admit(_credential(request), cost=cost))
    except MlapiError as error:
        return proxy_error_response(await delayed_error_response(request, error))


@handler
async def list_users(request: Request) -> Response:
    query = queries.parse_users_query(request.scope["query_string"])
    runtime = _runtime(request)
    if query.order is not None:
        page = await list_sorted(runtime, request.receive, query, query.order)
        return responses.sorted_users_page(query.order, page, runtime.users.now())
    found = await find_users(runtime, request.receive, query)
    return responses.users_page(found.users, runtime.users.now(), next_page=found.next)


@handler
async def show_user(request: Request) -> Response:
    runtime, user_id = _runtime(request), _user_id(request)

    def read() -> Response:
        return responses.shown_user(
            runtime.users.get(user_id), runtime.users.now(), find_last_seen(runtime.usage, user_id)
        )

    return await runtime.executor.read_page(read)


@handler
async def update_user(request: Request) -> Response:
    user_id = _user_id(request)
    body = await _decode_body(request, requests.UpdateUserRequest)
    users = _users_as_manager(request)
    change = await _runtime(request).executor.apply(users.prepare_update(user_id=user_id, **body.get_changes()))
    return responses.user(change.after, users.now())


@handler
async def change_users(request: Request) -> Response:
    validate_content_headers(request.scope["headers"], max_bytes=MAX_BULK_BODY_BYTES)
    content = await _read_body(request, max_bytes=MAX_BULK_BODY_BYTES)
    body = requests.decode(content, BulkRequest, max_bytes=MAX_BULK_BODY_BYTES)
    change, users = body.get_change(), _users_as_manager(request)
    repeated = users.as_actor(
        users.actor.repeated()
    )  # lists of the audit trail can fold all changes into the first one
    commands = [
        change.prepare(repeated if number else users, UserId(user_id)) for number, user_id in enumerate(body.user_ids)
    ]
    return responses.users_changed(body.user_ids, await _runtime(request).executor.apply_all(commands))


@handler
async def show_own_user(request: Request) -> Response:
    runtime = _runtime(request)
    return responses.own_user(await runtime.guard.identify(_credential(request)), runtime.users.now())


@handler
async def change_password(request: Request) -> Response:
    runtime = _runtime(request)
    user = await _user_with_token(request)
    body = await _decode_body(request, requests.ChangePasswordRequest)
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
    runtime = _runtime(request)
    user = await _user_with_token(request)
    users = runtime.users.as_actor(Actor.from_user_id(user.id, REQUEST_ID.get()))
    return responses.tokens_ended(await runtime.executor.apply(users.prepare_end_tokens(user_id=user.id)))


@handler
async def own_api_keys(request: Request) -> Response:
    runtime = _runtime(request)
    user = await _user_with_token(request)
    return responses.api_keys(await runtime.executor.read_own(user.id, runtime.users.list_api_keys, user.id))


@handler
async def add_own_api_key(request: Request) -> Response:
    runtime = _runtime(request)
    user = await _user_with_token(request)
    if not runtime.own_api_keys:
        raise OwnApiKeysDisabledError
    body = await _decode_body(request, requests.AddApiKeyRequest)
    users = runtime.users.as_actor(Actor.from_user_id(user.id, REQUEST_ID.get()))
    command, secret = users.prepare_api_key(
        user_id=user.id, name=body.name, expires_datetime=body.expires_at, limit=runtime.own_api_keys
    )
    return responses.api_key_added(await runtime.executor.apply(command), secret)


@handler
async def remove_own_api_key(request: Request) -> Response:
    runtime = _runtime(request)
    user = await _user_with_token(request)
    users = runtime.users.as_actor(Actor.from_user_id(user.id, REQUEST_ID.get()))
    command = users.prepare_remove_api_key(ApiKeyId(request.path_params["key_id"]), owner=user.id)
    return responses.api_key_removed(await runtime.executor.apply(command))


@handler
async def set_password(request: Request) -> Response:
    runtime = _runtime(request)
    user_id = _user_id(request)
    body = await _decode_body(request, requests.SetPasswordRequest)
    runtime.users.validate_password(body.password)
    executor = runtime.executor.for_client(runtime.client_address(request))
    command = await executor.hash(_users_as_manager(request).prepare_password, user_id=user_id, password=body.password)
    return responses.password_changed(await runtime.executor.apply(command))


@handler
async def invite_user(request: Request) -> Response:
    body = await _decode_body(request, requests.InviteRequest)
    users = _users_as_manager(request)
    command = users.prepare_registration(username=body.username, password=None, email=body.email, **body.details)
    return responses.user_invited(await _runtime(request).executor.apply(command), users.now())


@handler
async def add_password_link(request: Request) -> Response:
    command, token = _users_as_manager(request).prepare_link(user_id=_user_id(request))
    link = await _runtime(request).executor.apply(command)
    client = connected_client(request.scope, request.receive)
    return responses.password_link(link, _runtime(request).link_url(token, client, request.scope))


@handler
async def use_password_link(request: Request) -> Response:
    runtime = _runtime(request)
    body = await _decode_body(request, requests.PasswordLinkRequest)
    used = await runtime.links.set_password(
        body.token, body.password, runtime.client_address(request), REQUEST_ID.get()
    )
    return responses.link_used(used.after)


@handler
async def reset_password(request: Request) -> Response:
    runtime = _runtime(request)
    if runtime.mailing is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    body = await _decode_body(request, requests.PasswordResetRequest)
    address = runtime.client_address(request)
    await runtime.executor.for_client(address).query(runtime.mailing.request_password, body.username, address)
    return responses.reset_requested()


@handler
async def end_tokens(request: Request) -> Response:
    command = _users_as_manager(request).prepare_end_tokens(user_id=_user_id(request))
    return responses.tokens_ended(await _runtime(request).executor.apply(command))


@handler
async def own_usage(request: Request) -> Response:
    runtime = _runtime(request)
    user = await runtime.guard.identify(_credential(request))
    return await runtime.executor.read_own(user.id, _read_usage, runtime.usage, user.id, _days(request))


@handler
async def user_usage(request: Request) -> Response:
    runtime, user_id, days = _runtime(request), _user_id(request), _days(request)

    def read() -> Response:
        return _read_usage(runtime.usage, runtime.users.get(user_id).id, days)

    return await runtime.executor.read_page(read)


def _days(request: Request) -> DayRange:
    return queries.parse_user_usage_query(request.scope["query_string"], today=utc_now().date())


def _read_usage(usage: UsageRepository, user_id: UserId, days: DayRange) -> Response:
    """Return the usage of a user. Encoding many rows takes some time, so call this in a thread."""
    return responses.user_usage(iterate_usage(usage, days, user_id), find_last_seen(usage, user_id))


@handler
async def usage(request: Request) -> Response:
    runtime = _runtime(request)
    query = queries.parse_usage_query(request.scope["query_string"], today=utc_now().date())
    found = await runtime.executor.read_page(
        runtime.usage.list_page,
        first_day=query.days.first,
        last_day=query.days.last,
        after=query.after,
        limit=query.limit + 1,
    )
    rows, has_more = found[: query.limit], len(found) > query.limit
    return responses.usage_page(rows, next_page=rows[-1].position if has_more else None)


@handler
async def add_api_key(request: Request) -> Response:
    user_id = _user_id(request)
    body = await _decode_body(request, requests.AddApiKeyRequest)
    command, secret = _users_as_manager(request).prepare_api_key(
        user_id=user_id, name=body.name, expires_datetime=body.expires_at
    )
    return responses.api_key_added(await _runtime(request).executor.apply(command), secret)


@handler
async def api_keys(request: Request) -> Response:
    runtime = _runtime(request)
    return responses.api_keys(await runtime.executor.read_page(runtime.users.list_api_keys, _user_id(request)))


@handler
async def remove_api_key(request: Request) -> Response:
    command = _users_as_manager(request).prepare_remove_api_key(ApiKeyId(request.path_params["key_id"]))
    return responses.api_key_removed(await _runtime(request).executor.apply(command))


@handler
async def audit(request: Request) -> Response:
    runtime = _runtime(request)
    query = queries.parse_audit_query(request.scope["query_string"])
    list_page = partial(
        runtime.users.list_audit_page, after=query.after, limit=query.limit + 1, matching=query.matching
    )
    executor = runtime.executor
    page = await (executor.search(request.receive, list_page) if query.is_search else executor.read_page(list_page))
    return responses.audit_page(page[: query.limit], more=len(page) > query.limit)


@handler
async def show_metrics(request: Request) -> Response:
    # Run in a thread, because this reads the metrics files of all worker processes.
    runtime = _runtime(request)
    return responses.metrics(await runtime.executor.read_files(runtime.metrics.exposition))


@handler
async def live(_request: Request) -> Response:
    # Do not check the database: orchestrators restart processes that fail this check, which would not help.
    return responses.alive()


@handler
async def ready(request: Request) -> Response:
    runtime = _runtime(request)
    await runtime.executor.check_ready()
    return responses.ready()


# --- helpers


def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.scope["app"].state.runtime
    return runtime


def _admin_policy(request: Request) -> AdminPolicy:
    admin_policy: AdminPolicy = request.scope["app"].state.admin_policy
    return admin_policy


def _users_as_manager(request: Request) -> Users:
    """Return the users, with the manager who sent the request as the actor in the audit trail."""
    return _runtime(request).as_actor(request.scope[MANAGER].actor)


def _user_id(request: Request) -> UserId:
    return requests.parse_user_id(request.path_params["user_id"])


def _credential(request: Request) -> str:
    return get_bearer_credential(request.scope["headers"], accept_bare=_runtime(request).guard.accept_bare)


async def _decode_body(request: Request, body_type: type[T]) -> T:
    validate_content_headers(request.scope["headers"])
    return requests.decode(await _read_body(request), body_type)


async def _read_body(request: Request, *, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    with PausedDeadline():
        return await requests.read_body(request.stream(), max_bytes=max_bytes)


async def _user_with_token(request: Request) -> User:
    """Return the user that the token belongs to.

    API keys are rejected, because a key that leaks from a client must not be enough to take over the account.
    """
    try:
        credential = _credential(request)
    except MissingCredentialError:
        raise TokenRequiredError from None
    if looks_like_api_key(credential):
        raise ApiKeyNotAcceptedError
    return await _runtime(request).guard.identify(credential)
