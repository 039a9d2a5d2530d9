"""Handlers for managers: users and their API keys."""

from starlette.requests import Request

from mlapi.application.usage_reports import find_last_seen
from mlapi.domain.credentials import ApiKeyId
from mlapi.domain.users import UserId
from mlapi.entrypoints.http.handlers.registry import handler
from mlapi.entrypoints.http.handlers.request_parts import (
    decode_body,
    get_runtime,
    get_user_id,
    read_body,
    users_as_manager,
)
from mlapi.entrypoints.http.peers import connected_client
from mlapi.entrypoints.http.user_lists import list_sorted
from mlapi.entrypoints.http.user_lists import list_users as find_users
from mlapi.entrypoints.wire import queries, requests, responses, user_lists
from mlapi.entrypoints.wire.bulk import BulkRequest
from mlapi.entrypoints.wire.errors import MAX_BULK_BODY_BYTES
from mlapi.entrypoints.wire.headers import validate_content_headers
from mlapi.entrypoints.wire.responses import Response


@handler
async def list_users(request: Request) -> Response:
    query = queries.parse_users_query(request.scope["query_string"])
    runtime = get_runtime(request)
    if query.order is not None:
        page = await list_sorted(runtime, request.receive, query, query.order)
        return user_lists.sorted_users_page(query.order, page, runtime.users.now())
    found = await find_users(runtime, request.receive, query)
    return user_lists.users_page(found.users, runtime.users.now(), next_page=found.next)


@handler
async def show_user(request: Request) -> Response:
    runtime, user_id = get_runtime(request), get_user_id(request)

    def read() -> Response:
        return responses.shown_user(
            runtime.users.get(user_id), runtime.users.now(), find_last_seen(runtime.usage, user_id)
        )

    return await runtime.executor.read_page(read)


@handler
async def update_user(request: Request) -> Response:
    user_id = get_user_id(request)
    body = await decode_body(request, requests.UpdateUserRequest)
    users = users_as_manager(request)
    change = await get_runtime(request).executor.apply(users.prepare_update(user_id=user_id, **body.get_changes()))
    return responses.user(change.after, users.now())


@handler
async def change_users(request: Request) -> Response:
    validate_content_headers(request.scope["headers"], max_bytes=MAX_BULK_BODY_BYTES)
    content = await read_body(request, max_bytes=MAX_BULK_BODY_BYTES)
    body = requests.decode(content, BulkRequest, max_bytes=MAX_BULK_BODY_BYTES)
    change, users = body.get_change(), users_as_manager(request)
    # Lists of the audit trail can fold all changes into the first one.
    repeated = users.as_actor(users.actor.repeated())
    commands = [
        change.prepare(repeated if number else users, UserId(user_id)) for number, user_id in enumerate(body.user_ids)
    ]
    return user_lists.users_changed(body.user_ids, await get_runtime(request).executor.apply_all(commands))


@handler
async def set_password(request: Request) -> Response:
    runtime = get_runtime(request)
    user_id = get_user_id(request)
    body = await decode_body(request, requests.SetPasswordRequest)
    runtime.users.validate_password(body.password)
    executor = runtime.executor.for_client(runtime.client_address(request))
    command = await executor.hash(users_as_manager(request).prepare_password, user_id=user_id, password=body.password)
    return responses.password_changed(await runtime.executor.apply(command))


@handler
async def invite_user(request: Request) -> Response:
    body = await decode_body(request, requests.InviteRequest)
    users = users_as_manager(request)
    command = users.prepare_registration(username=body.username, password=None, email=body.email, **body.details)
    return responses.user_invited(await get_runtime(request).executor.apply(command), users.now())


@handler
async def add_password_link(request: Request) -> Response:
    command, token = users_as_manager(request).prepare_link(user_id=get_user_id(request))
    client = connected_client(request.scope, request.receive)
    url = get_runtime(request).link_url(token, client, request.scope)
    return responses.password_link(await get_runtime(request).executor.apply(command), url)


@handler
async def end_tokens(request: Request) -> Response:
    command = users_as_manager(request).prepare_end_tokens(user_id=get_user_id(request))
    return responses.tokens_ended(await get_runtime(request).executor.apply(command))


@handler
async def add_api_key(request: Request) -> Response:
    user_id = get_user_id(request)
    body = await decode_body(request, requests.AddApiKeyRequest)
    command, secret = users_as_manager(request).prepare_api_key(
        user_id=user_id, name=body.name, expires_datetime=body.expires_at
    )
    return responses.api_key_added(await get_runtime(request).executor.apply(command), secret)


@handler
async def api_keys(request: Request) -> Response:
    runtime = get_runtime(request)
    return responses.api_keys(await runtime.executor.read_page(runtime.users.list_api_keys, get_user_id(request)))


@handler
async def remove_api_key(request: Request) -> Response:
    command = users_as_manager(request).prepare_remove_api_key(ApiKeyId(request.path_params["key_id"]))
    return responses.api_key_removed(await get_runtime(request).executor.apply(command))
