"""Handlers that check requests for proxies, and set forgotten passwords."""

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request

from mlapi.domain.errors import MlapiError
from mlapi.entrypoints.http.handlers.registry import handler
from mlapi.entrypoints.http.handlers.request_parts import decode_body, get_credential, get_runtime
from mlapi.entrypoints.http.middleware import delayed_error_response
from mlapi.entrypoints.logs import REQUEST_ID
from mlapi.entrypoints.wire import queries, requests, responses
from mlapi.entrypoints.wire.error_responses import proxy_error_response
from mlapi.entrypoints.wire.responses import Response


@handler
async def verify(request: Request) -> Response:
    # Never read the body: a proxy sends the headers of an upload without its body.
    try:
        cost = queries.parse_cost(request.scope["query_string"])
        return responses.admitted(await get_runtime(request).guard.admit(get_credential(request), cost=cost))
    except MlapiError as error:
        return proxy_error_response(await delayed_error_response(request, error))


@handler
async def use_password_link(request: Request) -> Response:
    runtime = get_runtime(request)
    body = await decode_body(request, requests.PasswordLinkRequest)
    used = await runtime.links.set_password(
        body.token, body.password, runtime.client_address(request), REQUEST_ID.get()
    )
    return responses.link_used(used.after)


@handler
async def reset_password(request: Request) -> Response:
    runtime = get_runtime(request)
    if runtime.mailing is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    body = await decode_body(request, requests.PasswordResetRequest)
    address = runtime.client_address(request)
    await runtime.executor.for_client(address).query(runtime.mailing.request_password, body.username, address)
    return responses.reset_requested()
