"""The runtime of an application: thread pools, batching and metrics, from startup to shutdown."""

import gc
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import ParamSpec, TypeVar, overload

import attrs
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Receive

from mlapi import __version__
from mlapi.application.authentication import Access, AsyncAuthenticator
from mlapi.application.batching import CommandBatcher
from mlapi.application.deadlines import abandonment
from mlapi.application.guard import AsyncGuard
from mlapi.application.lookups import UsernameLookup
from mlapi.application.registration import AsyncRegistration, RegistrationLimiter
from mlapi.application.users import Users
from mlapi.bootstrap import async_guard, audit_retention, command_batcher, open_service
from mlapi.config import load_settings
from mlapi.domain.addresses import Network, client_site
from mlapi.domain.commands import Actor, ApiKeyCommand, Command, UserCommand
from mlapi.domain.credentials import ApiKey
from mlapi.domain.ports import PasswordCipher, is_costly
from mlapi.domain.users import User
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http.metrics import Metrics
from mlapi.entrypoints.http.peers import connected_client
from mlapi.entrypoints.http.search_pool import SearchPool
from mlapi.entrypoints.http.shared_call import SharedCall
from mlapi.entrypoints.http.thread_pool import BoundedThreadPool, Priority, Turn, cores
from mlapi.entrypoints.logs import REQUEST_ID, log_to_stderr

MAX_QUEUED_PER_HASHING_THREAD = 64  # a thread hashes about this many in 1.3 to 3.2 seconds, at 20 to 50 ms each
LOGIN_THREADS = 4
"""Threads that wait for the database during logins. Nothing else uses them."""
_MAX_QUEUED_PER_LOGIN_THREAD = 1_000
PAGE_THREADS = 2
"""Threads for the pages of managers. Together with the searches, they need four connections to the database."""
_MAX_QUEUED_PER_PAGE_THREAD = 50
READY_TIMEOUT_SECONDS = 4.5
_MAX_QUEUED_FOR_FILES = 100
_GC_THRESHOLDS = (20_000, 10, 10)

_logger = logging.getLogger("mlapi")

P = ParamSpec("P")
T = TypeVar("T")


@attrs.frozen
class PoolExecutor:
    """An `Executor` for an event loop: each kind of work has threads of its own, and commands are batched.

    The kinds are the queries of logins, hashing, the pages of managers, their searches, files, and the readiness check.
    The pages and searches of managers therefore never delay logins, changes, the guard or the readiness check.

    Every wait ends at the deadline of the request; see `mlapi.application.deadlines`.
    """

    _cipher: PasswordCipher
    _commands: CommandBatcher
    _hashing: BoundedThreadPool
    _logins: BoundedThreadPool
    _pages: BoundedThreadPool
    _searches: SearchPool
    _readiness: SharedCall
    _files: BoundedThreadPool
    _turn: Turn = attrs.field(factory=Turn)

    def for_client(self, address: str, *, is_urgent: bool = True) -> "PoolExecutor":
        turn = Turn(client_site(address), Priority.HIGH if is_urgent else Priority.LOW)
        return attrs.evolve(self, turn=turn)

    async def query(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._logins.run_as(self._turn, function, *args, **kwargs)

    async def page(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that reads a few rows through an index, for a manager."""
        return await self._pages.run(function, *args, **kwargs)

    async def search(self, receive: Receive, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function whose cost grows with the number of rows, for a manager. See `SearchPool.run`."""
        return await self._searches.run(receive, function, *args, **kwargs)

    async def check_ready(self) -> None:
        """Raise `ServiceUnavailableError` if the database cannot start a write transaction now."""
        await self._readiness.run()

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if is_costly(self._cipher):
            turn = attrs.evolve(self._turn, is_abandoned=abandonment())
            return await self._hashing.run_as(turn, function, *args, **kwargs)
        return function(*args, **kwargs)  # switching to a thread would take longer than the call

    async def read_files(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that reads files, but not the database. It does not wait while the database hangs."""
        return await self._files.run(function, *args, **kwargs)

    @overload
    async def apply(self, command: UserCommand) -> User: ...
    @overload
    async def apply(self, command: ApiKeyCommand) -> ApiKey: ...
    async def apply(self, command: Command) -> User | ApiKey:
        return await self._commands.apply(command)

    def close(self) -> None:
        self._hashing.close()
        self._logins.close()
        self._pages.close()
        self._searches.close()
        self._readiness.close()
        self._files.close()
        self._commands.close()


@attrs.frozen
class Runtime:
    """The objects that the handlers of an application share.

    Attributes:
        users: the users to serve.
        registration: registers users.
        authenticator: logs users in and changes their passwords.
        guard: checks tokens and API keys.
        executor: queries the users, hashes passwords and applies commands without blocking the event loop.
        metrics: the metrics of this process.
        trusted_proxies: proxies whose headers may set the client address, the scheme and the request id.
        token_in_path: whether ``GET /token_status/<token>`` is served.
    """

    users: Users
    registration: AsyncRegistration
    authenticator: AsyncAuthenticator
    guard: AsyncGuard
    executor: PoolExecutor
    metrics: Metrics
    trusted_proxies: Sequence[Network]
    token_in_path: bool
    _resources: ExitStack

    @classmethod
    def from_users(
        cls,
        users: Users,
        access: Access,
        *,
        registration_limiter: RegistrationLimiter | None = None,
        trusted_proxies: Sequence[Network] = (),
        token_in_path: bool = True,
    ) -> "Runtime":
        resources, metrics = ExitStack(), Metrics()
        executor = PoolExecutor(
            cipher=users.cipher,
            commands=command_batcher(users, on_committed=metrics.count_commands),
            hashing=BoundedThreadPool(cores(), max_queued_per_thread=MAX_QUEUED_PER_HASHING_THREAD),
            files=BoundedThreadPool(1, max_queued_per_thread=_MAX_QUEUED_FOR_FILES),
            logins=BoundedThreadPool(LOGIN_THREADS, max_queued_per_thread=_MAX_QUEUED_PER_LOGIN_THREAD),
            pages=BoundedThreadPool(PAGE_THREADS, max_queued_per_thread=_MAX_QUEUED_PER_PAGE_THREAD),
            searches=SearchPool(),
            readiness=SharedCall(users.check, timeout_seconds=READY_TIMEOUT_SECONDS),
        )
        return cls(
            users=users,
            registration=AsyncRegistration(
                registration_limiter,
                executor,
                UsernameLookup(users.repository),
                on_rejected=metrics.count_rejected_registration,
            ),
            authenticator=AsyncAuthenticator(access.authenticator, executor),
            guard=resources.enter_context(async_guard(access.guard)),
            executor=executor,
            metrics=metrics,
            trusted_proxies=trusted_proxies,
            token_in_path=token_in_path,
            resources=resources,
        )

    def as_actor(self, actor: str) -> Users:
        """Return the users for an actor. The audit trail records the actor and the id of the current request."""
        return self.users.as_actor(Actor(actor, REQUEST_ID.get()))

    def client_address(self, request: Request) -> str:
        """Return the client address, taking the headers of trusted proxies into account."""
        return connected_client(request.scope, request.receive).resolve_address(self.trusted_proxies)

    def close(self) -> None:
        self.registration.close()
        self.executor.close()
        self._resources.close()


@asynccontextmanager
async def lifespan_from_config(app: Starlette) -> AsyncIterator[None]:
    """Read the configuration and open the service at startup, and close it at shutdown."""
    settings = load_settings()
    log_to_stderr(settings.log_format)
    with open_service(settings) as service, audit_retention(service.users, service.settings):
        settings = service.settings
        admin_policy = AdminPolicy.from_settings(settings)
        runtime = Runtime.from_users(
            service.users,
            service.access,
            registration_limiter=service.registration_limiter,
            trusted_proxies=settings.http.trusted_networks,
            token_in_path=not settings.is_production,
        )
        install(app, runtime, admin_policy)
        _logger.info("mlapi %s, profile %s", __version__, settings.profile)
        _logger.info("%s", admin_policy)
        _tune_garbage_collection()
        async with lifespan_for(runtime)(app):
            yield


def lifespan_for(runtime: Runtime) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """Return a lifespan that closes the runtime at shutdown."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            runtime.close()

    return lifespan


def install(app: Starlette, runtime: Runtime, admin_policy: AdminPolicy) -> None:
    app.state.admin_policy = admin_policy
    app.state.runtime = runtime


def _tune_garbage_collection() -> None:
    """Exclude startup objects from garbage collection, and collect less often.

    Reference counting frees nearly all objects of a request. With the default settings, a full collection takes 20 ms
    and is visible in the 99th percentile of response times.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
