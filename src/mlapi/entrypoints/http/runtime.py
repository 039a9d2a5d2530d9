"""What the endpoints of one application run on, and its life: from the configuration to the last answer."""

import asyncio
import gc
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import ParamSpec, TypeVar

import attrs
from starlette.applications import Starlette
from starlette.requests import Request

from mlapi import __version__
from mlapi.application.authentication import Access, LoginAttempt, VerifiedLogin
from mlapi.application.guard import AsyncGuard
from mlapi.application.users import Users
from mlapi.bootstrap import CommandBatcher, async_guard, audit_retention, group_commit, open_service
from mlapi.config import load_settings
from mlapi.domain.commands import Actor
from mlapi.domain.errors import InvalidCredentialsError, TooManyAttemptsError
from mlapi.domain.ports import is_costly
from mlapi.domain.rules import fold
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http.metrics import Metrics
from mlapi.entrypoints.http.thread_pool import BoundedThreadPool, cores
from mlapi.entrypoints.logs import REQUEST_ID, log_to_stderr
from mlapi.entrypoints.wire.client import Client, Network

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


@attrs.frozen
class Runtime:
    """What the endpoints of one application use."""

    users: Users
    access: Access
    guard: AsyncGuard
    commands: CommandBatcher
    hashing: BoundedThreadPool
    """Its own: it must not wait for a database."""
    reading: BoundedThreadPool
    """For the questions of log-ins and managers."""
    metrics: Metrics
    trusted_proxies: Sequence[Network]
    token_in_path: bool
    _opened: ExitStack
    _proving: Counter[str] = attrs.field(factory=Counter)
    """How many attempts of each name are being compared."""

    @classmethod
    def of(
        cls, users: Users, access: Access, *, trusted_proxies: Sequence[Network] = (), token_in_path: bool = True
    ) -> "Runtime":
        opened, metrics = ExitStack(), Metrics()
        return cls(
            users=users,
            access=access,
            guard=opened.enter_context(async_guard(access.guard)),
            commands=group_commit(users, told=metrics.commands),
            hashing=BoundedThreadPool(cores(), queue=HASHING_QUEUE, patience=HASHING_PATIENCE),
            reading=BoundedThreadPool(READING_THREADS, queue=1_000, patience=READING_PATIENCE),
            metrics=metrics,
            trusted_proxies=trusted_proxies,
            token_in_path=token_in_path,
            opened=opened,
        )

    def as_actor(self, actor: str) -> Users:
        """Return the users for somebody who asks for a change in the request that is being answered."""
        return self.users.as_actor(Actor(actor, REQUEST_ID.get()))

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what runs the cipher."""
        if is_costly(self.users.cipher):
            return await self.hashing.run(function, *args, **kwargs)
        return function(*args, **kwargs)  # a thread would cost more than it saves

    async def prove(self, username: str, password: str, request: Request) -> VerifiedLogin:
        """Count an attempt to log in; if the password is right, take it back and return it.

        What came of it is logged, but not the name: it may be a password, typed into the wrong field.
        """
        address = Client.from_asgi(request.scope).address(self.trusted_proxies)
        authenticator, name = self.access.authenticator, fold(username)
        try:
            attempt = await self._begin(name, username, address)
        except TooManyAttemptsError:
            _logger.warning("log-in from %s: too many attempts", address)
            raise
        self._proving[name] += 1
        try:
            verified = await self.hash(authenticator.compare, attempt, password)
            await self.reading.run(authenticator.conclude, verified)
        except InvalidCredentialsError:
            what = "a name that nobody has" if attempt.user is None else f"a wrong password of user {attempt.user.id}"
            _logger.warning("log-in from %s: %s", address, what)
            raise
        else:
            _logger.info("log-in from %s: the right password of user %d", address, verified.user.id)
            return verified
        finally:
            self._proving[name] -= 1
            if not self._proving[name]:
                del self._proving[name]

    async def _begin(self, name: str, username: str, address: str) -> LoginAttempt:
        """Count an attempt. One too many waits how those of the same name end that are being compared.

        If one of them is right, so are the others likely: many workers of one client that start at the same time.
        """
        until = time.monotonic() + BURST_PATIENCE
        while True:
            try:
                return await self.reading.run(self.access.authenticator.begin, username=username, address=address)
            except TooManyAttemptsError:
                is_alone = name not in self._proving or self._proving.total() > BURST
                if is_alone or time.monotonic() > until:
                    raise
            await asyncio.sleep(0.05)

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
        management = AdminPolicy.of(settings)
        serving = Runtime.of(
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
        app.state.serving.close()


def _settle_garbage_collection() -> None:
    """Spare the collector what lives as long as the process, and the crowd of objects of the requests under way.

    Nearly all of those go by their reference counts. Without this a full collection takes 20 ms, and shows in the p99.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def serve(app: Starlette, serving: Runtime, management: AdminPolicy) -> None:
    app.state.management = management
    app.state.serving = serving
