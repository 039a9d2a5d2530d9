"""What the endpoints of one application run on, and its life: from the configuration to the last answer."""

import gc
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import ParamSpec, TypeVar

import attrs
from starlette.applications import Starlette
from starlette.requests import Request

from mlapi import __version__
from mlapi.application.authentication import Access, AsyncAuthenticator
from mlapi.application.guard import AsyncGuard
from mlapi.application.users import Users
from mlapi.bootstrap import CommandBatcher, async_guard, audit_retention, group_commit, open_service
from mlapi.config import load_settings
from mlapi.domain.commands import Actor, UserCommand
from mlapi.domain.ports import PasswordCipher, is_costly
from mlapi.domain.users import User
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http.metrics import Metrics
from mlapi.entrypoints.http.thread_pool import BoundedThreadPool, cores
from mlapi.entrypoints.logs import REQUEST_ID, log_to_stderr
from mlapi.entrypoints.wire.client import Client, Network

HASHING_TIMEOUT_SECONDS = 4.0
"""Seconds that a password may wait for its hash. With those for the commit a client has his answer within 10."""
MAX_QUEUED_PER_HASHING_THREAD = 64
"""Passwords that may wait for each hashing thread: at 20 to 50 ms each, as many as are done in that time."""
READING_THREADS = 4
READING_TIMEOUT_SECONDS = 9.0
"""Seconds that a question to the database may take."""

_logger = logging.getLogger("mlapi")

P = ParamSpec("P")
T = TypeVar("T")


@attrs.frozen
class PoolExecutor:
    """An `Executor` for an event loop: hashing and database calls run in separate thread pools, commands in batches."""

    cipher: PasswordCipher
    commands: CommandBatcher
    hashing: BoundedThreadPool
    reading: BoundedThreadPool

    async def query(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.reading.run(function, *args, **kwargs)

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if is_costly(self.cipher):
            return await self.hashing.run(function, *args, **kwargs)
        return function(*args, **kwargs)  # a thread would take longer than the call

    async def apply(self, command: UserCommand) -> User:
        return await self.commands.apply(command)


@attrs.frozen
class Runtime:
    """What the endpoints of one application use."""

    users: Users
    authenticator: AsyncAuthenticator
    guard: AsyncGuard
    commands: CommandBatcher
    hashing: BoundedThreadPool
    """Its own: it must not wait for a database."""
    reading: BoundedThreadPool
    """For the questions of log-ins and managers."""
    executor: PoolExecutor
    metrics: Metrics
    trusted_proxies: Sequence[Network]
    token_in_path: bool
    _opened: ExitStack

    @classmethod
    def from_users(
        cls, users: Users, access: Access, *, trusted_proxies: Sequence[Network] = (), token_in_path: bool = True
    ) -> "Runtime":
        opened, metrics = ExitStack(), Metrics()
        executor = PoolExecutor(
            cipher=users.cipher,
            commands=group_commit(users, on_committed=metrics.commands),
            hashing=BoundedThreadPool(cores(), queue=MAX_QUEUED_PER_HASHING_THREAD, patience=HASHING_TIMEOUT_SECONDS),
            reading=BoundedThreadPool(READING_THREADS, queue=1_000, patience=READING_TIMEOUT_SECONDS),
        )
        return cls(
            users=users,
            authenticator=AsyncAuthenticator(access.authenticator, executor),
            guard=opened.enter_context(async_guard(access.guard)),
            commands=executor.commands,
            hashing=executor.hashing,
            reading=executor.reading,
            executor=executor,
            metrics=metrics,
            trusted_proxies=trusted_proxies,
            token_in_path=token_in_path,
            opened=opened,
        )

    def as_actor(self, actor: str) -> Users:
        """Return the users for somebody who asks for a change in the request that is being answered."""
        return self.users.as_actor(Actor(actor, REQUEST_ID.get()))

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that runs the password cipher."""
        return await self.executor.hash(function, *args, **kwargs)

    def address_of(self, request: Request) -> str:
        """Return the address of the client, as a trusted proxy reports it."""
        return Client.from_asgi(request.scope).resolve_address(self.trusted_proxies)

    def close(self) -> None:
        self.hashing.close()
        self.reading.close()
        self.commands.close()
        self._opened.close()


@asynccontextmanager
async def configured(app: Starlette) -> AsyncIterator[None]:
    """The life of an application that reads the configuration."""
    settings = load_settings()
    log_to_stderr(settings.log_format)
    with open_service(settings) as opened, audit_retention(opened):
        settings = opened.settings
        management = AdminPolicy.from_settings(settings)
        serving = Runtime.from_users(
            opened.users,
            opened.access,
            trusted_proxies=settings.http.trusted_networks,
            token_in_path=not settings.is_production,
        )
        serve(app, serving, management)
        _logger.info("mlapi %s, profile %s", __version__, settings.profile)
        _logger.info("%s", management)
        _settle_garbage_collection()
        async with given(app):
            yield


@asynccontextmanager
async def given(app: Starlette) -> AsyncIterator[None]:
    """The life of an application that has its users."""
    try:
        yield
    finally:
        app.state.runtime.close()


def _settle_garbage_collection() -> None:
    """Spare the collector what lives as long as the process, and the crowd of objects of the requests under way.

    Nearly all of those go by their reference counts. Without this a full collection takes 20 ms, and shows in the p99.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def serve(app: Starlette, serving: Runtime, management: AdminPolicy) -> None:
    app.state.admin_policy = management
    app.state.runtime = serving
