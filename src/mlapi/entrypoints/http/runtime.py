"""The runtime of an application: the objects that its handlers share, from startup to shutdown."""

import gc
import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial

import attrs
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Scope

from mlapi import __version__
from mlapi.application.address_limits import AddressLimiter
from mlapi.application.authentication import Access, AsyncAuthenticator
from mlapi.application.guard import AsyncGuard
from mlapi.application.links import AsyncLinks
from mlapi.application.lookups import UsernameLookup
from mlapi.application.mailing import Mailing
from mlapi.application.managers import AsyncManagers, ManagerRegistry
from mlapi.application.registration import AsyncRegistration
from mlapi.application.sessions import SessionRegistry
from mlapi.application.user_reports import ChangesPerDay, count_changes
from mlapi.application.users import Users
from mlapi.bootstrap import async_guard, open_service, retention, sending_mail
from mlapi.config import MAX_OWN_API_KEYS, load_settings
from mlapi.domain.actors import Actor
from mlapi.domain.addresses import Network
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.domain.lists import StateCounts
from mlapi.domain.logins import Logins
from mlapi.domain.usage import UsageRepository
from mlapi.domain.users import Pending
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http.cors import CorsPolicy
from mlapi.entrypoints.http.executor import PoolExecutor
from mlapi.entrypoints.http.lifespans import freeze_startup_objects
from mlapi.entrypoints.http.metrics import Metrics
from mlapi.entrypoints.http.peers import connected_client
from mlapi.entrypoints.http.user_counts import BackgroundCount
from mlapi.entrypoints.logs import REQUEST_ID, log_to_stderr
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.paths import LINKS_PATH, base_path

_ORIGIN = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
"""The origins to which browsers can send a request."""
_GC_THRESHOLDS = (20_000, 10, 10)

_logger = logging.getLogger("mlapi")


@attrs.frozen
class Runtime:
    """The objects that the handlers of an application share.

    Attributes:
        users: the users to serve.
        managers: identifies managers.
        sessions: the sessions of managers and users in browsers.
        registration: registers users.
        links: looks up and uses one-time links.
        mailing: queues mail. None if mail is not configured.
        authenticator: logs users in and changes their passwords.
        guard: checks tokens and API keys.
        usage: stores the usage of the users.
        logins: stores the logins of the users; None if they are not recorded.
        user_counts: counts the users by state.
        changes_per_day: counts recent registrations and removals.
        executor: queries the users, hashes passwords and applies commands without blocking the event loop.
        metrics: the metrics of this process.
        trusted_proxies: proxies whose headers may set the client address, the scheme and the request id.
        token_in_path: whether ``GET /token_status/<token>`` is served.
        own_api_keys: how many API keys users can create for themselves; 0 for none.
        public_url: the address of this service in one-time links. None for the address of the request.
        has_account_pages: whether users can sign in to ``/account``.
        cors: decides whether pages of other origins may call the service. None if they may not.
    """

    users: Users
    managers: AsyncManagers
    sessions: SessionRegistry
    registration: AsyncRegistration
    links: AsyncLinks
    mailing: Mailing | None
    authenticator: AsyncAuthenticator
    guard: AsyncGuard
    usage: UsageRepository
    logins: Logins | None
    user_counts: BackgroundCount[StateCounts]
    changes_per_day: BackgroundCount[ChangesPerDay]
    executor: PoolExecutor
    metrics: Metrics
    trusted_proxies: Sequence[Network]
    token_in_path: bool
    own_api_keys: int
    public_url: str | None
    has_account_pages: bool
    cors: CorsPolicy | None
    _resources: ExitStack

    @classmethod
    def from_users(
        cls,
        users: Users,
        managers: ManagerRegistry,
        sessions: SessionRegistry,
        access: Access,
        usage: UsageRepository,
        *,
        registration_limiter: AddressLimiter | None = None,
        link_limiter: AddressLimiter | None = None,
        mailing: Mailing | None = None,
        pending: Pending | None = None,
        public_url: str | None = None,
        trusted_proxies: Sequence[Network] = (),
        token_in_path: bool = True,
        own_api_keys: int = MAX_OWN_API_KEYS,
        has_account_pages: bool = True,
        cors_origins: Sequence[str] = (),
    ) -> "Runtime":
        resources, metrics = ExitStack(), Metrics(lambda: access.guard.decisions)
        executor = PoolExecutor.from_users(users, on_committed=metrics.count_commands)
        counts = BackgroundCount(lambda: users.repository.count_states(users.now()))
        changes = BackgroundCount(partial(count_changes, users))
        resources.callback(counts.close)
        resources.callback(changes.close)
        return cls(
            users=users,
            managers=AsyncManagers(managers),
            sessions=sessions,
            registration=AsyncRegistration(
                registration_limiter,
                executor,
                UsernameLookup(users.repository),
                pending=pending,
                on_rejected=metrics.count_rejected_registration,
            ),
            links=AsyncLinks(users, link_limiter, executor),
            mailing=mailing,
            authenticator=AsyncAuthenticator(access.authenticator, executor),
            guard=resources.enter_context(async_guard(access.guard)),
            usage=usage,
            logins=access.logins,
            user_counts=counts,
            changes_per_day=changes,
            executor=executor,
            metrics=metrics,
            trusted_proxies=trusted_proxies,
            token_in_path=token_in_path,
            own_api_keys=own_api_keys,
            public_url=public_url,
            has_account_pages=has_account_pages,
            cors=CorsPolicy(cors_origins) if cors_origins else None,
            resources=resources,
        )

    def as_actor(self, actor: str) -> Users:
        """Return the users for an actor. The audit trail records the actor and the id of the current request."""
        return self.users.as_actor(Actor(actor, REQUEST_ID.get()))

    def client_address(self, request: Request) -> str:
        """Return the client address, taking the headers of trusted proxies into account."""
        return connected_client(request.scope, request.receive).resolve_address(self.trusted_proxies)

    def link_url(self, token: str, client: Client, scope: Scope) -> str:
        """Return the address of the page of a one-time link.

        Args:
            token: the token of the link.
            client: the client that made the link. Without ``http.public_url``, users reach the service like it.
            scope: the ASGI scope of the request.

        Raises:
            InvalidFieldsError: if ``http.public_url`` is not set and the request has no valid Host header.
        """
        base = self.public_url
        if base is None:
            origin = client.with_forwarded_scheme(self.trusted_proxies).origin.decode("latin-1")
            if _ORIGIN.fullmatch(origin) is None:
                raise InvalidFieldsError(
                    (FieldError("Host", "must be the address of this service: set http.public_url"),)
                )
            base = origin + base_path(scope)
        return f"{base}{LINKS_PATH}/{token}"

    def close(self) -> None:
        self.registration.close()
        self.authenticator.close()
        self.managers.close()
        self.executor.close()
        self._resources.close()


@asynccontextmanager
async def lifespan_from_config(app: Starlette) -> AsyncIterator[None]:
    """Read the configuration and open the service at startup, and close it at shutdown."""
    settings = load_settings()
    log_to_stderr(settings.log_format)
    with (
        open_service(settings) as service,
        retention(
            service.users.repository,
            service.usage,
            service.settings,
            service.access.logins,
            service.sessions.sessions,
            outbox=service.outbox,
        ),
    ):
        settings = service.settings
        admin_policy = AdminPolicy.from_settings(settings)
        runtime = Runtime.from_users(
            service.users,
            service.managers,
            service.sessions,
            service.access,
            service.usage,
            registration_limiter=service.registration_limiter,
            link_limiter=service.link_limiter,
            mailing=service.mailing,
            pending=settings.registration.pending,
            public_url=settings.http.public_url,
            trusted_proxies=settings.http.trusted_networks,
            token_in_path=not settings.is_production,
            own_api_keys=settings.own_api_keys,
            has_account_pages=settings.account.enabled,
            cors_origins=settings.http.cors_origins,
        )
        install(app, runtime, admin_policy)
        _logger.info("mlapi %s, profile %s", __version__, settings.profile)
        _logger.info("%s", admin_policy)
        _tune_garbage_collection()
        async with lifespan_for(runtime)(app):
            with sending_mail(service, on_result=runtime.metrics.count_mail) as sender:
                if sender is not None:
                    runtime.metrics.watch_mail_queue(sender.get_queued)
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

    Reference counting frees nearly all objects of a request.
    """
    freeze_startup_objects()
    gc.set_threshold(*_GC_THRESHOLDS)
