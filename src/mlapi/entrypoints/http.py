"""HTTP through Starlette: ``uvicorn mlapi.entrypoints.http:app --port 8001``.

Importing this builds routes and no more. Configuration is read and the database opened when the server starts.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import ParamSpec, TypeVar

import attrs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi import __version__
from mlapi.bootstrap import open_service
from mlapi.config import load_settings
from mlapi.domain.changes import Remove
from mlapi.domain.errors import ConfigurationError, MlapiError, RepositoryUnavailableError
from mlapi.entrypoints import wire
from mlapi.entrypoints.management import REGISTRATION_PATH, Caller, Management
from mlapi.service import Users

ANSWER_WITHIN = 9.0
"""Seconds that hashing and the database may take together. A client is promised an answer within 10."""
DATABASE_THREADS = 8
"""As many as the pool has connections."""

_logger = logging.getLogger("mlapi")

P = ParamSpec("P")
T = TypeVar("T")


def create_app(users: Users | None = None, management: Management | None = None) -> Starlette:
    """Return the service as an ASGI application.

    Args:
        users: served as they are, and nothing is read: for tests and hosts. Without it, the application reads the
            configuration when it starts, and opens and closes the database.
        management: who may manage; by default programs on this machine. Goes with ``users``.
    """
    app = Starlette(
        routes=[
            Route(REGISTRATION_PATH, register_user, methods=["POST"]),
            Route("/toggle-user-permission/{user_id}/{permission}", toggle_user_permission, methods=["PUT"]),
            Route("/remove-user/{user_id}", remove_user, methods=["DELETE"]),
            Route("/health/live", live, methods=["GET"]),
            Route("/health/ready", ready, methods=["GET"]),
        ],
        middleware=[Middleware(OneLineStartupRefusal), Middleware(ManagersOnly)],
        exception_handlers={
            MlapiError: refuse,
            HTTPException: refuse_http,
            ClientDisconnect: _nobody_listens,
            Exception: _fail,
        },
        lifespan=_configured if users is None else None,
    )
    app.router.redirect_slashes = False  # a redirect would name a host that the client has chosen
    if users is not None:
        _serve(app, users, management or Management())
    return app


# --- endpoints: parse, one call, answer


async def register_user(request: Request) -> Response:
    service = _service(request)
    wire.check_content(request.headers.getlist("content-type"), request.headers.getlist("content-length"))
    body = wire.decode(await wire.read_body(request.stream()), wire.RegisterUser)
    async with _in_time():
        change = await service.hashing.run(
            service.users.prepare_registration, username=body.username, password=body.password, email=body.email
        )
        user = await service.database.run(service.users.apply, change)
    return respond(wire.registered(user))


async def toggle_user_permission(request: Request) -> Response:
    service = _service(request)
    user_id = wire.user_id(request.path_params["user_id"])
    enabled = wire.permission(request.path_params["permission"])
    change = service.users.prepare_set_enabled(user_id=user_id, enabled=enabled)
    async with _in_time():
        user = await service.database.run(service.users.apply, change)
    return respond(wire.permission_updated(user))


async def remove_user(request: Request) -> Response:
    service = _service(request)
    user_id = wire.user_id(request.path_params["user_id"])
    async with _in_time():
        user = await service.database.run(service.users.apply, Remove(user_id=user_id))
    return respond(wire.removed(user))


async def live(_request: Request) -> Response:
    """Whether this process answers. Asks nothing of the database: a restart would not bring that back."""
    return respond(wire.alive())


async def ready(request: Request) -> Response:
    """Whether a change could be stored now."""
    service = _service(request)
    async with _in_time():
        await service.database.run(service.users.repository.check)
    return respond(wire.ready())


# --- what they run on


class Threads:
    """A fixed number of threads for one kind of blocking call; further calls queue for them in order."""

    def __init__(self, count: int) -> None:
        self._executor = ThreadPoolExecutor(count)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await a call made in a thread.

        If this is cancelled, a call that still waits in the queue is not made; one that has begun goes on, and keeps
        its thread until the database lets go of it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *args, **kwargs))

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            yield
    except TimeoutError:
        raise RepositoryUnavailableError(f"no answer within {ANSWER_WITHIN:.0f} seconds") from None


@attrs.frozen
class Service:
    """What the endpoints of one application use. Hashing has its own threads: it must not wait for a database."""

    users: Users
    hashing: Threads = attrs.field(factory=lambda: Threads(os.cpu_count() or 1))
    database: Threads = attrs.field(factory=lambda: Threads(DATABASE_THREADS))

    def close(self) -> None:
        self.hashing.close()
        self.database.close()


@asynccontextmanager
async def _configured(app: Starlette) -> AsyncIterator[None]:
    """The life of an application that reads the configuration."""
    _log_to_stderr()
    with open_service(load_settings()) as (users, settings):
        management = Management.of(settings)
        _serve(app, users, management)
        _logger.info("mlapi %s, profile %s", __version__, settings.profile)
        _logger.info("%s", management)
        try:
            yield
        finally:
            app.state.service.close()


def _serve(app: Starlette, users: Users, management: Management) -> None:
    app.state.management = management
    app.state.service = Service(users)


def _log_to_stderr() -> None:
    """Show our lines beside uvicorn's, which sets up no logger but its own; unless the host shows them already."""
    if not _logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s:     %(message)s"))
        _logger.addHandler(handler)
        _logger.setLevel(logging.INFO)


# --- around the endpoints


class ManagersOnly:
    """Refuses before routing whoever may not go on to a path, by ``app.state.management``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope["app"].state.management.check(Caller.of_asgi(scope))
            except MlapiError as error:
                await respond(wire.refused(error))(scope, receive, send)
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
    service: Service = request.app.state.service
    return service


def respond(answer: wire.Answer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers), media_type="application/json")


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, MlapiError)  # noqa: S101 - it is registered for no other
    if isinstance(error, RepositoryUnavailableError | ConfigurationError):
        _logger.warning("%s %s: %s", request.method, request.url.path, error)
    return respond(wire.refused(error))


async def refuse_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for no other
    return respond(wire.failed(error.status_code, tuple((error.headers or {}).items())))


async def _nobody_listens(_request: Request, _error: Exception) -> Response:
    return respond(wire.failed(HTTPStatus.BAD_REQUEST))


async def _fail(_request: Request, _error: Exception) -> Response:
    return respond(wire.failed(HTTPStatus.INTERNAL_SERVER_ERROR))


app = create_app()
