"""HTTP through Starlette: ``uvicorn mlapi.entrypoints.http:app --port 8001``.

Importing this builds routes and no more. Configuration is read and the database opened when the server starts.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mlapi.application.authentication import Access
from mlapi.application.users import Users
from mlapi.bootstrap import in_memory_access
from mlapi.domain.commands import Actor
from mlapi.domain.credentials import ApiKeyId, looks_like_api_key
from mlapi.domain.errors import (
    InvalidTokenError,
    UserDisabledError,
)
from mlapi.domain.users import User
from mlapi.entrypoints.admin import REGISTRATION_PATH, AdminPolicy
from mlapi.entrypoints.console import CONSOLE_PATH, console_routes
from mlapi.entrypoints.http.docs import documentation_routes
from mlapi.entrypoints.http.metrics import CONTENT_TYPE
from mlapi.entrypoints.http.middleware import (
    Endpoint,
    MethodDispatch,
    RejectAmbiguousFraming,
    RequireAdmin,
    StartupErrorMiddleware,
    handle_http_exception,
    handle_server_error,
)
from mlapi.entrypoints.http.request_context import RequestContextMiddleware
from mlapi.entrypoints.http.runtime import Runtime, configured, given, serve
from mlapi.entrypoints.logs import REQUEST_ID
from mlapi.entrypoints.wire import queries, requests, responses
from mlapi.entrypoints.wire.client import Network
from mlapi.entrypoints.wire.headers import get_bearer_credential, validate_content_headers

T = TypeVar("T")


def create_app(
    users: Users | None = None,
    management: AdminPolicy | None = None,
    access: Access | None = None,
    *,
    trusted_proxies: Sequence[Network] = (),
    token_in_path: bool = True,
) -> Starlette:
    """Return the service as an ASGI application.

    Args:
        users: served as they are, and nothing is read: for tests and hosts. Without it, the application reads the
            configuration when it starts, and opens and closes the database. The other arguments go with it.
        management: who may manage; by default programs on this machine.
        access: how users are let in; by default with tokens that end with this process.
        trusted_proxies: whose ``X-Forwarded-For`` is believed.
        token_in_path: whether ``GET /token_status/<token>`` is served, for clients that know no other.
    """
    app = _Application(
        routes=[
            Route("/toggle-user-permission/{user_id}/{permission}", Endpoint(toggle_user_permission), methods=["PUT"]),
            Route(REGISTRATION_PATH, Endpoint(register_user), methods=["POST"]),
            Route("/remove-user/{user_id}", Endpoint(remove_user), methods=["DELETE"]),
            Route("/token", Endpoint(token), methods=["POST"]),
            Route("/token_status", Endpoint(token_status), methods=["GET"]),
            Route(requests.TOKEN_PATH_PREFIX + "{token:path}", Endpoint(token_status_of_path), methods=["GET"]),
            Route("/users", Endpoint(list_users), methods=["GET"]),
            Route("/users/me", Endpoint(show_own_user), methods=["GET"]),
            Route("/users/{user_id}", Endpoint(show_user), methods=["GET"]),
            Route("/users/me/password", Endpoint(change_password), methods=["PUT"]),
            Route("/users/me/tokens", Endpoint(end_own_tokens), methods=["DELETE"]),
            Route("/users/{user_id}/password", Endpoint(set_password), methods=["PUT"]),
            Route("/users/{user_id}/tokens", Endpoint(end_tokens), methods=["DELETE"]),
            Route(
                "/users/{user_id}/keys",
                MethodDispatch(GET=Endpoint(api_keys), POST=Endpoint(add_api_key)),
                methods=["GET", "POST"],
            ),
            Route("/keys/{key_id}", Endpoint(remove_api_key), methods=["DELETE"]),
            Route("/audit", Endpoint(audit), methods=["GET"]),
            Route("/metrics", show_metrics, methods=["GET"]),
            Route("/health/live", Endpoint(live), methods=["GET"]),
            Route("/health/ready", Endpoint(ready), methods=["GET"]),
            *documentation_routes(),
            *console_routes(),
        ],
        middleware=[
            Middleware(StartupErrorMiddleware),
            Middleware(RejectAmbiguousFraming),
            Middleware(RequireAdmin, exclude=CONSOLE_PATH),
        ],
        exception_handlers={HTTPException: handle_http_exception, Exception: handle_server_error},
        lifespan=configured if users is None else given,
    )
    app.router.redirect_slashes = False  # a redirect would name a host that the client has chosen
    if users is not None:
        access = in_memory_access(users) if access is None else access
        serving = Runtime.from_users(users, access, trusted_proxies=trusted_proxies, token_in_path=token_in_path)
        serve(app, serving, management or AdminPolicy())
    return app


class _Application(Starlette):
    def build_middleware_stack(self) -> ASGIApp:
        """Put ours around Starlette's own handling of errors, whose answers are observed too."""
        return RequestContextMiddleware(super().build_middleware_stack())


# --- endpoints: parse, one call, answer


async def register_user(request: Request) -> responses.Response:
    serving = _serving(request)
    validate_content_headers(request.scope["headers"])
    body = requests.decode(await requests.read_body(request.stream()), requests.RegisterRequest)
    users = serving.as_actor("anyone") if _management(request).registration_open else _acting(request)
    command = await serving.hash(
        users.prepare_registration, username=body.username, password=body.password, email=body.email
    )
    return responses.user_registered(await serving.commands.apply(command))


async def toggle_user_permission(request: Request) -> responses.Response:
    serving = _serving(request)
    user_id = requests.parse_user_id(request.path_params["user_id"])
    enabled = requests.parse_permission(request.path_params["permission"])
    command = _acting(request).prepare_set_enabled(user_id=user_id, enabled=enabled)
    return responses.permission_updated(await serving.commands.apply(command))


async def remove_user(request: Request) -> responses.Response:
    serving = _serving(request)
    user_id = requests.parse_user_id(request.path_params["user_id"])
    return responses.user_removed(await serving.commands.apply(_acting(request).prepare_remove(user_id=user_id)))


async def token(request: Request) -> responses.Response:
    serving = _serving(request)
    body = await _body(request, requests.LoginRequest)
    issued = await serving.authenticator.log_in(
        username=body.username, password=body.password, address=serving.address_of(request)
    )
    return responses.token_issued(issued)


async def token_status(request: Request) -> responses.Response:
    return await _status_of(request, get_bearer_credential(request.scope["headers"]))


async def token_status_of_path(request: Request) -> responses.Response:
    if not _serving(request).token_in_path:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return await _status_of(request, request.path_params["token"])


async def _status_of(request: Request, credential: str) -> responses.Response:
    try:
        return responses.token_valid(await _serving(request).guard.check(credential))
    except UserDisabledError:
        raise InvalidTokenError from None


async def list_users(request: Request) -> responses.Response:
    serving = _serving(request)
    query = queries.parse_users_query(request.scope["query_string"])
    page = await serving.reading.run(
        serving.users.list_page,
        after=query.after,
        limit=query.limit + 1,  # one more tells whether there is more
        enabled=query.enabled,
        containing=query.containing,
    )
    return responses.users_page(page[: query.limit], more=len(page) > query.limit)


async def show_user(request: Request) -> responses.Response:
    serving = _serving(request)
    user_id = requests.parse_user_id(request.path_params["user_id"])
    return responses.user(await serving.reading.run(serving.users.get, user_id))


async def show_own_user(request: Request) -> responses.Response:
    return responses.user(await _serving(request).guard.check(get_bearer_credential(request.scope["headers"])))


async def change_password(request: Request) -> responses.Response:
    serving = _serving(request)
    user = await _user_with_token(request)
    body = await _body(request, requests.ChangePasswordRequest)
    changed = await serving.authenticator.change_password(
        user=user,
        current=body.current,
        new=body.new,
        address=serving.address_of(request),
        request_id=REQUEST_ID.get(),
    )
    return responses.password_changed(changed)


async def end_own_tokens(request: Request) -> responses.Response:
    serving = _serving(request)
    user = await _user_with_token(request)
    users = serving.users.as_actor(Actor.from_user_id(user.id, REQUEST_ID.get()))
    return responses.tokens_ended(await serving.commands.apply(users.prepare_end_tokens(user_id=user.id)))


async def set_password(request: Request) -> responses.Response:
    serving = _serving(request)
    user_id = requests.parse_user_id(request.path_params["user_id"])
    body = await _body(request, requests.SetPasswordRequest)
    serving.users.check_password(body.password)
    command = await serving.hash(_acting(request).prepare_password, user_id=user_id, password=body.password)
    return responses.password_changed(await serving.commands.apply(command))


async def end_tokens(request: Request) -> responses.Response:
    serving = _serving(request)
    user_id = requests.parse_user_id(request.path_params["user_id"])
    return responses.tokens_ended(await serving.commands.apply(_acting(request).prepare_end_tokens(user_id=user_id)))


async def add_api_key(request: Request) -> responses.Response:
    serving = _serving(request)
    user_id = requests.parse_user_id(request.path_params["user_id"])
    body = await _body(request, requests.AddApiKeyRequest)
    command, secret = _acting(request).prepare_api_key(user_id=user_id, name=body.name, expires=body.expires_at)
    return responses.api_key_added(await serving.commands.apply(command), secret)


async def api_keys(request: Request) -> responses.Response:
    serving = _serving(request)
    user_id = requests.parse_user_id(request.path_params["user_id"])
    return responses.api_keys(await serving.reading.run(serving.users.list_api_keys, user_id))


async def remove_api_key(request: Request) -> responses.Response:
    key_id = ApiKeyId(request.path_params["key_id"])
    return responses.api_key_removed(
        await _serving(request).commands.apply(_acting(request).prepare_remove_api_key(key_id))
    )


async def audit(request: Request) -> responses.Response:
    serving = _serving(request)
    query = queries.parse_audit_query(request.scope["query_string"])
    page = await serving.reading.run(
        serving.users.list_audit_page, after=query.after, limit=query.limit + 1, user_id=query.user_id
    )
    return responses.audit_page(page[: query.limit], more=len(page) > query.limit)


async def show_metrics(request: Request) -> Response:
    # In a thread: with many workers it reads a file of each.
    exposition = await run_in_threadpool(_serving(request).metrics.exposition)
    return Response(exposition, headers={"Content-Type": CONTENT_TYPE})


async def live(_request: Request) -> responses.Response:
    """Whether this process answers. Asks nothing of the database: a restart would not bring that back."""
    return responses.alive()


async def ready(request: Request) -> responses.Response:
    """Whether the database takes a transaction that writes."""
    serving = _serving(request)
    await serving.reading.run(serving.users.repository.check)
    return responses.ready()


# --- what they share


def _serving(request: Request) -> Runtime:
    serving: Runtime = request.scope["app"].state.runtime
    return serving


def _management(request: Request) -> AdminPolicy:
    management: AdminPolicy = request.scope["app"].state.admin_policy
    return management


def _acting(request: Request) -> Users:
    """Return the users for a manager."""
    return _serving(request).as_actor(_management(request).actor)


async def _body(request: Request, shape: type[T]) -> T:
    validate_content_headers(request.scope["headers"])
    return requests.decode(await requests.read_body(request.stream()), shape)


async def _user_with_token(request: Request) -> User:
    """Return the user who has logged in. An API key is for the model, and not to take its user over with."""
    credential = get_bearer_credential(request.scope["headers"])
    if looks_like_api_key(credential):
        raise InvalidTokenError
    return await _serving(request).guard.check(credential)


app = create_app()
