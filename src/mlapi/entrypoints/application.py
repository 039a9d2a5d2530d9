"""The service as a Starlette application. Run it with ``uvicorn mlapi.entrypoints.http:app --port 8001``.

Importing this module only builds the routes. The server reads the configuration and opens the database at startup.
"""

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan

from mlapi.application.address_limits import AddressLimiter
from mlapi.application.authentication import Access
from mlapi.application.managers import ManagerRegistry
from mlapi.application.sessions import SessionRegistry
from mlapi.application.users import Users
from mlapi.bootstrap import in_memory_access, in_memory_managers, in_memory_sessions, in_memory_usage
from mlapi.config import MAX_OWN_API_KEYS
from mlapi.domain.addresses import Network
from mlapi.domain.usage import UsageRepository
from mlapi.domain.users import Pending
from mlapi.entrypoints.account import account_routes, link_routes
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.console import console_routes
from mlapi.entrypoints.http.docs import documentation_routes
from mlapi.entrypoints.http.managers import find_manager
from mlapi.entrypoints.http.middleware import (
    RejectAmbiguousFraming,
    RejectLargeHead,
    RequireAdmin,
    StartupErrorMiddleware,
    handle_http_exception,
    handle_server_error,
)
from mlapi.entrypoints.http.operation_dispatch import OperationDispatch, operation_routes
from mlapi.entrypoints.http.request_context import RequestContextMiddleware
from mlapi.entrypoints.http.runtime import Runtime, install, lifespan_for, lifespan_from_config
from mlapi.entrypoints.http.start_page import start_routes
from mlapi.entrypoints.wire.paths import ACCOUNT_PATH, CONSOLE_PATH, LINKS_PATH, START_PATH

_EXCEPTION_HANDLERS = {HTTPException: handle_http_exception, Exception: handle_server_error}
_PAGES = (CONSOLE_PATH, ACCOUNT_PATH, LINKS_PATH)
"""The paths of pages, which check access themselves."""


def create_app(
    users: Users | None = None,
    admin_policy: AdminPolicy | None = None,
    access: Access | None = None,
    *,
    managers: ManagerRegistry | None = None,
    sessions: SessionRegistry | None = None,
    usage: UsageRepository | None = None,
    registration_limiter: AddressLimiter | None = None,
    link_limiter: AddressLimiter | None = None,
    pending: Pending | None = None,
    public_url: str | None = None,
    trusted_proxies: Sequence[Network] = (),
    token_in_path: bool = True,
    own_api_keys: int = MAX_OWN_API_KEYS,
    has_account_pages: bool = True,
    cors_origins: Sequence[str] = (),
) -> Starlette:
    """Return the service as an ASGI application.

    Args:
        users: the users to serve, for tests and for applications that embed the service. If None, the application
            reads the configuration and opens the database at startup, and ignores the other arguments.
        admin_policy: decides who may manage users. By default, programs on this machine.
        access: authenticates users. By default, tokens are kept in memory until the process ends.
        managers: the managers with tokens of their own. By default, there are none, and they are kept in memory.
        sessions: the sessions of managers and users in browsers. By default, they are kept in memory.
        usage: stores the usage of the users. By default, an empty store in memory.
        registration_limiter: limits the registrations of clients without credentials. By default, there is no limit.
        link_limiter: limits how many one-time links clients may use. By default, there is no limit.
        pending: what users who register themselves wait for. By default, they are enabled at once.
        public_url: the address of the application in one-time links. By default, the address of the request.
        trusted_proxies: proxies that may set ``X-Forwarded-For``, ``X-Forwarded-Proto`` and ``X-Request-Id``.
        token_in_path: whether to serve ``GET /token_status/<token>``, for clients that cannot send headers.
        own_api_keys: how many API keys users can create for themselves; 0 for none.
        has_account_pages: whether users can sign in to ``/account``.
        cors_origins: origins from which browsers may register users, log in and manage their own account, or ``*``.
    """
    if users is None:
        return _build_app(lifespan_from_config)
    access = in_memory_access(users) if access is None else access
    managers = in_memory_managers(users) if managers is None else managers
    runtime = Runtime.from_users(
        users,
        managers,
        in_memory_sessions(managers, users.now) if sessions is None else sessions,
        access,
        in_memory_usage() if usage is None else usage,
        registration_limiter=registration_limiter,
        link_limiter=link_limiter,
        pending=pending,
        public_url=public_url,
        trusted_proxies=trusted_proxies,
        token_in_path=token_in_path,
        own_api_keys=own_api_keys,
        has_account_pages=has_account_pages,
        cors_origins=cors_origins,
    )
    app = _build_app(lifespan_for(runtime))
    install(app, runtime, admin_policy or AdminPolicy())
    return app


def _build_app(lifespan: Lifespan[Starlette]) -> Starlette:
    operations = operation_routes()
    app = _Application(
        operations,
        routes=[*operations, *start_routes(), *documentation_routes(), *_page_routes()],
        middleware=[
            Middleware(StartupErrorMiddleware),
            Middleware(RejectLargeHead),
            Middleware(RejectAmbiguousFraming),
            Middleware(
                RequireAdmin,
                exclude=[START_PATH, *(pattern for path in _PAGES for pattern in (path, f"{path}/*"))],
                find_manager=find_manager,
            ),
        ],
        exception_handlers=_EXCEPTION_HANDLERS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would contain the host from the Host header, which may be forged
    return app


def _page_routes() -> list[Route]:
    return [*console_routes(), *account_routes(), *link_routes()]


class _Application(Starlette):
    def __init__(self, operations: Sequence[Route], **options: Any) -> None:  # noqa: ANN401 - the arguments of Starlette
        super().__init__(**options)
        self._operations = operations

    def build_middleware_stack(self) -> ASGIApp:
        """Also wrap Starlette's error handling, so that its responses get the default headers and are counted.

        Call the operations directly, unless an embedding application has added exception handlers: only Starlette's
        router calls those.
        """
        if self.exception_handlers == _EXCEPTION_HANDLERS:
            self.user_middleware.append(Middleware(OperationDispatch, self._operations))
        return RequestContextMiddleware(super().build_middleware_stack())


app = create_app()
