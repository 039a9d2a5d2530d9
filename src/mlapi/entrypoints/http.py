"""HTTP through Starlette: ``uvicorn mlapi.entrypoints.http:app --port 8001``.

Importing this builds routes and no more. Configuration is read and the database opened when the server starts.
"""

import asyncio
import gc
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from http import HTTPStatus
from typing import ParamSpec, TypeVar

import attrs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route

from mlapi import __version__
from mlapi.access import Access, AsyncGuard, LogIn, Proven
from mlapi.bootstrap import GroupCommit, async_guard, group_commit, in_memory_access, open_service
from mlapi.config import load_settings
from mlapi.domain.changes import Remove, RemoveApiKey
from mlapi.domain.credentials import ApiKeyId, looks_like_api_key
from mlapi.domain.errors import (
    InvalidTokenError,
    RepositoryUnavailableError,
    TooManyAttemptsError,
    UserDisabledError,
    UserNotFoundError,
)
from mlapi.domain.model import User, folded
from mlapi.entrypoints import wire
from mlapi.entrypoints.asgi import (
    ByMethod,
    Endpoint,
    ManagersOnly,
    NothingSecretLogged,
    OneLineStartupRefusal,
    fail,
    refuse_http,
)
from mlapi.entrypoints.management import REGISTRATION_PATH, Caller, Management, Network
from mlapi.entrypoints.threads import Threads, cores
from mlapi.service import Users

HASHING_PATIENCE = 4.0
"""Seconds that a password may wait for its hash. With those for the commit a client has his answer within 10."""
HASHING_QUEUE = 64
"""Passwords that may wait for each hashing thread: at 20 to 50 ms each, as many as are done in that time."""
BURST = 200
"""Attempts that are being compared, beyond which nobody waits how they end."""
BURST_PATIENCE = 3.0
"""Seconds."""
READING_THREADS = 4
READING_PATIENCE = 9.0
"""Seconds that a question to the database may take."""

_logger = logging.getLogger("mlapi")

P = ParamSpec("P")
T = TypeVar("T")


def create_app(
    users: Users | None = None,
    management: Management | None = None,
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
    app = Starlette(
        routes=[
            Route("/toggle-user-permission/{user_id}/{permission}", Endpoint(toggle_user_permission), methods=["PUT"]),
            Route(REGISTRATION_PATH, Endpoint(register_user), methods=["POST"]),
            Route("/remove-user/{user_id}", Endpoint(remove_user), methods=["DELETE"]),
            Route("/token", Endpoint(token), methods=["POST"]),
            Route("/token_status", Endpoint(token_status), methods=["GET"]),
            Route(wire.TOKEN_IN_PATH + "{token:path}", Endpoint(token_status_of_path), methods=["GET"]),
            Route("/users", Endpoint(list_users), methods=["GET"]),
            Route("/users/me", Endpoint(show_own_user), methods=["GET"]),
            Route("/users/{user_id}", Endpoint(show_user), methods=["GET"]),
            Route("/users/me/password", Endpoint(change_password), methods=["PUT"]),
            Route("/users/me/tokens", Endpoint(end_own_tokens), methods=["DELETE"]),
            Route("/users/{user_id}/password", Endpoint(set_password), methods=["PUT"]),
            Route("/users/{user_id}/tokens", Endpoint(end_tokens), methods=["DELETE"]),
            Route(
                "/users/{user_id}/keys",
                ByMethod(GET=Endpoint(api_keys), POST=Endpoint(add_api_key)),
                methods=["GET", "POST"],
            ),
            Route("/keys/{key_id}", Endpoint(remove_api_key), methods=["DELETE"]),
            Route("/health/live", Endpoint(live), methods=["GET"]),
            Route("/health/ready", Endpoint(ready), methods=["GET"]),
        ],
        middleware=[Middleware(OneLineStartupRefusal), Middleware(NothingSecretLogged), Middleware(ManagersOnly)],
        exception_handlers={HTTPException: refuse_http, Exception: fail},
        lifespan=_configured if users is None else _given,
    )
    app.router.redirect_slashes = False  # a redirect would name a host that the client has chosen
    if users is not None:
        access = in_memory_access(users) if access is None else access
        service = Service.of(users, access, trusted_proxies=trusted_proxies, token_in_path=token_in_path)
        _serve(app, service, management or Management())
    return app


# --- endpoints: parse, one call, answer


async def register_user(request: Request) -> wire.Answer:
    service = _service(request)
    wire.check_content(request.scope["headers"])
    body = wire.registration(await wire.read_body(request.stream()))
    change = await service.hash(
        service.users.prepare_registration, username=body.username, password=body.password, email=body.email
    )
    return wire.registered(await service.changes.apply(change))


async def toggle_user_permission(request: Request) -> wire.Answer:
    service = _service(request)
    user_id = wire.user_id(request.path_params["user_id"])
    enabled = wire.permission(request.path_params["permission"])
    change = service.users.prepare_set_enabled(user_id=user_id, enabled=enabled)
    return wire.permission_updated(await service.changes.apply(change))


async def remove_user(request: Request) -> wire.Answer:
    service = _service(request)
    user_id = wire.user_id(request.path_params["user_id"])
    return wire.removed(await service.changes.apply(Remove(user_id=user_id)))


async def token(request: Request) -> wire.Answer:
    service = _service(request)
    body = await _body(request, wire.LogIn)
    proven = await service.prove(body.username, body.password, request)
    if proven.upgrade is not None:
        with suppress(UserNotFoundError, RepositoryUnavailableError):  # then at the next log-in
            await service.changes.apply(proven.upgrade)
    return wire.token_issued(service.access.log_ins.issue(proven))


async def token_status(request: Request) -> wire.Answer:
    return await _status_of(request, wire.bearer(request.scope["headers"]))


async def token_status_of_path(request: Request) -> wire.Answer:
    if not _service(request).token_in_path:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return await _status_of(request, request.path_params["token"])


async def _status_of(request: Request, credential: str) -> wire.Answer:
    try:
        return wire.token_valid(await _service(request).guard.check(credential))
    except UserDisabledError:
        raise InvalidTokenError from None


async def list_users(request: Request) -> wire.Answer:
    service = _service(request)
    query = wire.users_query(request.scope["query_string"])
    page = await service.reading.run(
        service.users.page,
        after=query.after,
        limit=query.limit + 1,  # one more tells whether there is more
        enabled=query.enabled,
        containing=query.containing,
    )
    return wire.users_page(page[: query.limit], more=len(page) > query.limit)


async def show_user(request: Request) -> wire.Answer:
    service = _service(request)
    user_id = wire.user_id(request.path_params["user_id"])
    return wire.user(await service.reading.run(service.users.get, user_id))


async def show_own_user(request: Request) -> wire.Answer:
    return wire.user(await _service(request).guard.check(wire.bearer(request.scope["headers"])))


async def change_password(request: Request) -> wire.Answer:
    service = _service(request)
    user = await _user_with_token(request)
    body = await _body(request, wire.ChangePassword)
    service.users.check_password(body.new, field="new")
    proven = await service.prove(user.username, body.current, request)
    change = await service.hash(service.access.log_ins.prepare_change, proven, body.new)
    return wire.password_changed(await service.changes.apply(change))


async def end_own_tokens(request: Request) -> wire.Answer:
    service = _service(request)
    user = await _user_with_token(request)
    return wire.tokens_ended(await service.changes.apply(service.users.prepare_end_tokens(user_id=user.id)))


async def set_password(request: Request) -> wire.Answer:
    service = _service(request)
    user_id = wire.user_id(request.path_params["user_id"])
    body = await _body(request, wire.SetPassword)
    service.users.check_password(body.password)
    change = await service.hash(service.users.prepare_password, user_id=user_id, password=body.password)
    return wire.password_changed(await service.changes.apply(change))


async def end_tokens(request: Request) -> wire.Answer:
    service = _service(request)
    user_id = wire.user_id(request.path_params["user_id"])
    return wire.tokens_ended(await service.changes.apply(service.users.prepare_end_tokens(user_id=user_id)))


async def add_api_key(request: Request) -> wire.Answer:
    service = _service(request)
    user_id = wire.user_id(request.path_params["user_id"])
    body = await _body(request, wire.AddApiKey)
    change, secret = service.users.prepare_api_key(user_id=user_id, name=body.name, expires=body.expires_at)
    return wire.api_key_added(await service.changes.apply(change), secret)


async def api_keys(request: Request) -> wire.Answer:
    service = _service(request)
    user_id = wire.user_id(request.path_params["user_id"])
    return wire.api_keys(await service.reading.run(service.users.api_keys, user_id))


async def remove_api_key(request: Request) -> wire.Answer:
    key_id = ApiKeyId(request.path_params["key_id"])
    return wire.api_key_removed(await _service(request).changes.apply(RemoveApiKey(key_id=key_id)))


async def live(_request: Request) -> wire.Answer:
    """Whether this process answers. Asks nothing of the database: a restart would not bring that back."""
    return wire.alive()


async def ready(request: Request) -> wire.Answer:
    """Whether the database takes a transaction that writes."""
    service = _service(request)
    await service.reading.run(service.users.repository.check)
    return wire.ready()


# --- what they run on


@attrs.frozen
class Service:
    """What the endpoints of one application use."""

    users: Users
    access: Access
    guard: AsyncGuard
    changes: GroupCommit
    hashing: Threads
    """Its own: it must not wait for a database."""
    reading: Threads
    """For the questions of log-ins and managers."""
    trusted_proxies: Sequence[Network]
    token_in_path: bool
    _opened: ExitStack
    _proving: Counter[str] = attrs.field(factory=Counter)
    """How many attempts of each name are being compared."""

    @classmethod
    def of(
        cls, users: Users, access: Access, *, trusted_proxies: Sequence[Network] = (), token_in_path: bool = True
    ) -> "Service":
        opened = ExitStack()
        return cls(
            users=users,
            access=access,
            guard=opened.enter_context(async_guard(access.guard)),
            changes=group_commit(users),
            hashing=Threads(cores(), queue=HASHING_QUEUE, patience=HASHING_PATIENCE),
            reading=Threads(READING_THREADS, queue=1_000, patience=READING_PATIENCE),
            trusted_proxies=trusted_proxies,
            token_in_path=token_in_path,
            opened=opened,
        )

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what runs the cipher."""
        if self.users.cipher.is_costly:
            return await self.hashing.run(function, *args, **kwargs)
        return function(*args, **kwargs)  # a thread would cost more than it saves

    async def prove(self, username: str, password: str, request: Request) -> Proven:
        """Count an attempt to log in; if the password is right, take it back and return it."""
        address = Caller.of_asgi(request.scope).address(self.trusted_proxies)
        log_ins, name = self.access.log_ins, folded(username)
        attempt = await self._begin(name, username, address)
        self._proving[name] += 1
        try:
            proven = await self.hash(log_ins.compare, attempt, password)
            await self.reading.run(log_ins.conclude, proven)
            return proven
        finally:
            self._proving[name] -= 1
            if not self._proving[name]:
                del self._proving[name]

    async def _begin(self, name: str, username: str, address: str) -> LogIn:
        """Count an attempt. One too many waits how those of the same name end that are being compared.

        If one of them is right, so are the others likely: many workers of one client that start at the same time.
        """
        until = time.monotonic() + BURST_PATIENCE
        while True:
            try:
                return await self.reading.run(self.access.log_ins.begin, username=username, address=address)
            except TooManyAttemptsError:
                is_alone = name not in self._proving or self._proving.total() > BURST
                if is_alone or time.monotonic() > until:
                    raise
            await asyncio.sleep(0.05)

    def close(self) -> None:
        self.hashing.close()
        self.reading.close()
        self.changes.close()
        self._opened.close()


@asynccontextmanager
async def _configured(app: Starlette) -> AsyncIterator[None]:
    """The life of an application that reads the configuration."""
    _log_to_stderr()
    with open_service(load_settings()) as opened:
        settings = opened.settings
        management = Management.of(settings)
        service = Service.of(
            opened.users,
            opened.access,
            trusted_proxies=settings.http.trusted_networks,
            token_in_path=not settings.is_production,
        )
        _serve(app, service, management)
        _logger.info("mlapi %s, profile %s", __version__, settings.profile)
        _logger.info("%s", management)
        _settle_garbage_collection()
        async with _given(app):
            yield


@asynccontextmanager
async def _given(app: Starlette) -> AsyncIterator[None]:
    """The life of an application that has its users."""
    try:
        yield
    finally:
        app.state.service.close()


def _settle_garbage_collection() -> None:
    """Spare the collector what lives as long as the process, and the crowd of objects of the requests under way.

    Nearly all of those go by their reference counts. Without this a full collection takes 20 ms, and shows in the p99.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def _serve(app: Starlette, service: Service, management: Management) -> None:
    app.state.management = management
    app.state.service = service


def _log_to_stderr() -> None:
    """Show our lines beside uvicorn's, which sets up no logger but its own; unless the host shows them already."""
    logging.getLogger("uvicorn.asgi").setLevel(logging.DEBUG)  # at its level TRACE it shows every path as it came
    if not _logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s:     %(message)s"))
        _logger.addHandler(handler)
        _logger.setLevel(logging.INFO)


def _service(request: Request) -> Service:
    service: Service = request.scope["app"].state.service
    return service


async def _body(request: Request, shape: type[T]) -> T:
    wire.check_content(request.scope["headers"])
    return wire.decode(await wire.read_body(request.stream()), shape)


async def _user_with_token(request: Request) -> User:
    """Return the user who has logged in. An API key is for the model, and not to take its user over with."""
    credential = wire.bearer(request.scope["headers"])
    if looks_like_api_key(credential):
        raise InvalidTokenError
    return await _service(request).guard.check(credential)


app = create_app()
