"""HTTP through Starlette: ``uvicorn mlapi.entrypoints.http:app --port 8001``.

Importing this builds routes and no more. Configuration is read and the database opened when the server starts.
"""

import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import attrs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi import __version__
from mlapi.bootstrap import GroupCommit, group_commit, open_service
from mlapi.config import load_settings
from mlapi.domain.changes import Register, Remove
from mlapi.domain.errors import ConfigurationError, MlapiError, RepositoryUnavailableError
from mlapi.entrypoints import wire
from mlapi.entrypoints.management import REGISTRATION_PATH, Caller, Management
from mlapi.entrypoints.threads import Threads, cores
from mlapi.service import Users

HASHING_PATIENCE = 4.0
"""Seconds that a password may wait for its hash. With those for the commit a client has his answer within 10."""
HASHING_QUEUE = 64
"""Passwords that may wait for each hashing thread: at 20 to 50 ms each, as many as are done in that time."""
READING_THREADS = 4
READING_PATIENCE = 9.0
"""Seconds that a question to the database may take."""

_logger = logging.getLogger("mlapi")


def create_app(users: Users | None = None, management: Management | None = None) -> Starlette:
    """Return the service as an ASGI application.

    Args:
        users: served as they are, and nothing is read: for tests and hosts. Without it, the application reads the
            configuration when it starts, and opens and closes the database.
        management: who may manage; by default programs on this machine. Goes with ``users``.
    """
    app = Starlette(
        routes=[
            Route("/toggle-user-permission/{user_id}/{permission}", Endpoint(toggle_user_permission), methods=["PUT"]),
            Route(REGISTRATION_PATH, Endpoint(register_user), methods=["POST"]),
            Route("/remove-user/{user_id}", Endpoint(remove_user), methods=["DELETE"]),
            Route("/health/live", Endpoint(live), methods=["GET"]),
            Route("/health/ready", Endpoint(ready), methods=["GET"]),
        ],
        middleware=[Middleware(OneLineStartupRefusal), Middleware(ManagersOnly)],
        exception_handlers={HTTPException: refuse_http, Exception: _fail},
        lifespan=_configured if users is None else _given,
    )
    app.router.redirect_slashes = False  # a redirect would name a host that the client has chosen
    if users is not None:
        _serve(app, users, management or Management())
    return app


# --- endpoints: parse, one call, answer


async def register_user(request: Request) -> wire.Answer:
    service = _service(request)
    wire.check_content(request.scope["headers"])
    body = wire.registration(await wire.read_body(request.stream()))
    change = await service.prepare_registration(body)
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
    changes: GroupCommit
    hashing: Threads
    """Its own: it must not wait for a database."""
    reading: Threads

    @classmethod
    def of(cls, users: Users) -> "Service":
        return cls(
            users=users,
            changes=group_commit(users),
            hashing=Threads(cores(), queue=HASHING_QUEUE, patience=HASHING_PATIENCE),
            reading=Threads(READING_THREADS, queue=1_000, patience=READING_PATIENCE),
        )

    async def prepare_registration(self, body: wire.RegisterUser) -> Register:
        fields = {"username": body.username, "password": body.password, "email": body.email}
        if self.users.cipher.is_costly:
            return await self.hashing.run(self.users.prepare_registration, **fields)
        return self.users.prepare_registration(**fields)  # a thread would cost more than it saves

    def close(self) -> None:
        self.hashing.close()
        self.reading.close()
        self.changes.close()


@asynccontextmanager
async def _configured(app: Starlette) -> AsyncIterator[None]:
    """The life of an application that reads the configuration."""
    _log_to_stderr()
    with open_service(load_settings()) as (users, settings):
        management = Management.of(settings)
        _serve(app, users, management)
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


def _serve(app: Starlette, users: Users, management: Management) -> None:
    app.state.management = management
    app.state.service = Service.of(users)


def _log_to_stderr() -> None:
    """Show our lines beside uvicorn's, which sets up no logger but its own; unless the host shows them already."""
    if not _logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s:     %(message)s"))
        _logger.addHandler(handler)
        _logger.setLevel(logging.INFO)


# --- around the endpoints


class Endpoint:
    """An endpoint as an ASGI application: a function from a request to an answer, or to an error that refuses it."""

    def __init__(self, function: Callable[[Request], Awaitable[wire.Answer]]) -> None:
        self._function = function

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._function(request)
        except MlapiError as error:
            answer = _refusal(request, error)
        except ClientDisconnect:
            return
        await _send(answer, send)


class ManagersOnly:
    """Refuses before routing whoever may not go on to a path, by ``app.state.management``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope["app"].state.management.check(Caller.of_asgi(scope))
            except MlapiError as error:
                await _send(wire.refused(error), send)
                return
        await self._app(scope, receive, send)


class OneLineStartupRefusal:
    """Tells the server of a `ConfigurationError` in one line, where Starlette would send a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        failure: Message | None = None

        async def hold_back_failure(message: Message) -> None:
            nonlocal failure
            if message["type"] == "lifespan.startup.failed":
                failure = message
            else:
                await send(message)

        try:
            await self._app(scope, receive, hold_back_failure)
        except ConfigurationError as error:
            await send({"type": "lifespan.startup.failed", "message": f"mlapi: {error}"})
        except BaseException:
            if failure is not None:
                await send(failure)
            raise


def _service(request: Request) -> Service:
    service: Service = request.scope["app"].state.service
    return service


async def _send(answer: wire.Answer, send: Send) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(answer.body)),
        *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _refusal(request: Request, error: MlapiError) -> wire.Answer:
    if isinstance(error, RepositoryUnavailableError | ConfigurationError):
        _logger.warning("%s %s: %s", request.method, request.url.path, error)
    return wire.refused(error)


# --- for applications of other frameworks that are built on Starlette


def respond(answer: wire.Answer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers), media_type="application/json")


async def refuse(request: Request, error: Exception) -> Response:
    """Exception handler for `MlapiError`."""
    assert isinstance(error, MlapiError)  # noqa: S101 - it is registered for no other
    return respond(_refusal(request, error))


async def refuse_http(_request: Request, error: Exception) -> Response:
    """Exception handler for Starlette's ``HTTPException``: no such path, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for no other
    return respond(wire.failed(error.status_code, tuple((error.headers or {}).items())))


async def _fail(_request: Request, _error: Exception) -> Response:
    return respond(wire.failed(HTTPStatus.INTERNAL_SERVER_ERROR))


app = create_app()
