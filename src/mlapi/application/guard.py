"""The guard authenticates tokens and API keys against the current state of the users, and enforces the limits of plans.

`Guard` and `AsyncGuard` are the only places that admit requests. Middleware, dependencies, decorators and ``/verify``
call `Guard.admit` or `AsyncGuard.admit`.
"""

import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import copy
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, final

import attrs

from mlapi.application.admissions import Admission, limits_units, validate_count
from mlapi.application.repeated_warnings import RepeatedWarnings
from mlapi.domain.commands import RecordApiKeyUse
from mlapi.domain.credentials import (
    MAX_CREDENTIAL_CHARS,
    USE_RECORDING_INTERVAL,
    ApiKey,
    ApiKeyId,
    ApiKeyPrincipal,
    ParsedCredential,
    Principal,
    PrincipalId,
    TokenClaims,
    authenticate,
    get_principal_id,
    looks_like_api_key,
    parse_api_key,
)
from mlapi.domain.errors import InvalidTokenError, MlapiError, RepositoryUnavailableError
from mlapi.domain.ports import Clock, PrincipalRepository, TokenVerifier
from mlapi.domain.usage import UsageRecorder
from mlapi.domain.users import User, UserId, utc_now
from mlapi.forks import new_lock

if TYPE_CHECKING:
    from mlapi.application.async_limits import AsyncLimiter
    from mlapi.application.charges import BackgroundCharges
    from mlapi.application.limits import Limiter
    from mlapi.domain.plans import AllowanceState

_MAX_PLANNED = 2000
_WARNING_INTERVAL_SECONDS = 3600
_NO_PLANS = (
    "users have plans, but the configuration of this process has none, so no limits apply: copy plans and default_plan"
    " from the configuration of the service, or set the plan of these users to null"
)
_WORD_START = re.compile(r"(?<!^)(?=[A-Z])")


def _key_id(parsed: ParsedCredential) -> ApiKeyId | None:
    return None if isinstance(parsed, TokenClaims) else parsed.id


@cache
def _name_reason(error_name: str) -> str:
    """Return the reason for a rejection, such as ``access_expired``, given the name of the error's class."""
    return _WORD_START.sub("_", error_name.removesuffix("Error")).lower()


@final
class Guard:
    """Authenticates tokens and API keys. Disabling or removing a user takes effect at the next check.

    >>> from mlapi import Users
    >>> from mlapi.adapters.memory import InMemoryTokens, InMemoryUserRepository, PlainCipher
    >>> users, tokens = Users(InMemoryUserRepository(), PlainCipher()), InMemoryTokens()
    >>> guard = Guard(users.repository, tokens)
    >>> ada = users.register(username="ada", password="difference engine", email="ada@example.com")
    >>> guard.check(tokens.issue(ada).token).username
    'ada'

    Args:
        repository: queried at every check.
        tokens: verifies the tokens.
        clock: used to check whether credentials and access have expired.
        usage: records requests, charged units and the last use of API keys. By default, only the last use of API keys
            is recorded, and written immediately.
        limiter: enforces the limits of plans. By default, there are no limits.
        accept_bare: whether requests may have a token in the Authorization header without the scheme Bearer. `admit`
            does not use this value: pass it to the function that reads the header.
    """

    def __init__(
        self,
        repository: PrincipalRepository,
        tokens: TokenVerifier,
        *,
        clock: Clock = utc_now,
        usage: UsageRecorder | None = None,
        limiter: "Limiter | None" = None,
        accept_bare: bool = False,
    ) -> None:
        self.repository = repository
        self.limiter = limiter
        self.accept_bare = accept_bare
        self._admitted = 0
        self._rejections: Counter[str] = Counter()
        self.clock = clock
        self._tokens = tokens
        self._usage = usage
        self._warnings = RepeatedWarnings(interval_seconds=_WARNING_INTERVAL_SECONDS)
        self._lock = new_lock()
        # Cache users with the plan that applies: making one takes 5 us, and repositories return the same object again.
        self._planned: dict[UserId, tuple[User, User]] = {}

    @property
    def decisions(self) -> dict[str, int]:
        """How many requests this guard has admitted, and rejected for each reason, such as ``request_limit_reached``.

        Requests without a credential do not reach the guard, so they are not counted.
        """
        with self._lock:
            return {"admitted": self._admitted, **self._rejections}

    def check(self, credential: str) -> User:
        """Admit a request like `admit`, and return its user."""
        return self.admit(credential).user

    def admit(self, credential: str, *, cost: int = 1) -> Admission:
        """Authenticate the token or API key of a request, and count the request in the user's limits and usage.

        Args:
            credential: the token or API key.
            cost: the number of requests to count. 0 counts none, but raises the same errors.

        Raises:
            InvalidTokenError: if the credential is invalid, expired or revoked, or its user was removed.
            AccessDeniedError: if the credential is valid but the user has no access now, for example because the user
                is disabled.
            RequestLimitReachedError: if the user has reached a limit of their plan. The request is not counted.
            ConfigurationError: if the user has a plan that the configuration does not contain.
            RepositoryUnavailableError: if the database is unavailable. In that case, no request is admitted.
            ValueError: unless ``cost`` is a whole number from 0 to 2**53 - 1.
        """
        validate_count("cost", cost)
        try:
            parsed = self.parse_credential(credential)
            (principal,) = self.repository.find_principals([get_principal_id(parsed)])
            now = self.clock()
            user = self.apply_plan(self.authenticate(parsed, principal, now))
            limits = () if self.limiter is None else self.limiter.admit(user, cost)
        except MlapiError as error:
            self.count_rejection(error)
            raise
        return self.record(Admission(user, _key_id(parsed), limits, self._charge_now), cost, now)

    def identify(self, credential: str) -> User:
        """Authenticate a token or API key and return its user, without counting a request or applying limits.

        Use it to find out whose credential it is, for example to check an open connection again. To let a user call a
        model, use `admit` or `check`.

        Raises:
            InvalidTokenError, AccessDeniedError, RepositoryUnavailableError: see `admit`.
        """
        parsed = self.parse_credential(credential)
        (principal,) = self.repository.find_principals([get_principal_id(parsed)])
        return self.authenticate(parsed, principal, self.clock())

    def charge(self, user: User, units: int, *, key_id: ApiKeyId | None = None) -> None:
        """Count units of a user, such as generated tokens. Return when they are stored.

        The units may exceed the limit of the plan. The user's next request is then rejected. If the plan does not limit
        units, they are only recorded as usage. If you have an `Admission`, call its `charge` instead.

        Args:
            user: the user that `check` or `admit` returned.
            units: the number of units.
            key_id: the id of the API key in whose usage the units count; None for the usage with tokens.

        Raises:
            ValueError: unless ``units`` is a whole number from 0 to 2**53 - 1.
            RepositoryUnavailableError: if the database is unavailable. Unless ``may_be_done`` is True, nothing was
                counted.
        """
        validate_count("units", units)
        if self.limiter is not None and units:
            self.limiter.charge(user, units)
        self.record_units(user, key_id, units)

    def parse_credential(self, credential: str) -> ParsedCredential:
        """Parse a token or API key without looking up its user. Raises `InvalidTokenError`."""
        if len(credential) > MAX_CREDENTIAL_CHARS:
            raise InvalidTokenError
        if looks_like_api_key(credential):
            return parse_api_key(credential)
        return self._tokens.verify(credential)

    def authenticate(self, parsed: ParsedCredential, principal: Principal | None, now: datetime) -> User:
        """Return the user, given the credential's current principal. Raises the same errors as `identify`."""
        user = authenticate(parsed, principal, now)
        if isinstance(principal, ApiKeyPrincipal):
            last_used = principal.key.last_used_datetime
            if last_used is None or now - last_used >= USE_RECORDING_INTERVAL:
                self._record_key_use(principal.key, now)
        return user

    def apply_plan(self, user: User, since: float = float("inf")) -> User:
        """Return the user with the name of the plan whose limits apply.

        Args:
            user: the user.
            since: when the request began, on the clock of `time.monotonic`. Later changes of the plans may be ignored,
                so that concurrent requests share a check of the configuration file. By default, check it now.

        Raises:
            ConfigurationError: if the configuration does not contain the user's plan.
        """
        if self.limiter is None:
            if user.plan is not None:
                self._warnings.log(_NO_PLANS)
            return user
        self.limiter.refresh_plans(since)
        plan = self.limiter.find_plan(user)
        if plan is None or plan.name == user.plan:
            return user
        stored, planned = self._planned.get(user.id, (None, user))
        if stored is not user or planned.plan != plan.name:
            if len(self._planned) >= _MAX_PLANNED:
                self._planned.clear()
            self._planned[user.id] = user, (planned := attrs.evolve(user, plan=plan.name))
        return planned

    def record(self, admission: Admission, cost: int, now: datetime) -> Admission:
        """Record an admitted request, and return its admission."""
        if cost and self._usage is not None:
            self._usage.record(admission.user.id, admission.key_id, now, cost)
        self._admitted += 1  # without the lock, which would take as long as the rest of this method
        return admission

    def count_rejection(self, error: MlapiError) -> None:
        with self._lock:
            self._rejections[_name_reason(type(error).__name__)] += 1

    def record_units(self, user: User, key_id: ApiKeyId | None, units: int) -> None:
        """Record units as usage."""
        if units and self._usage is not None:
            self._usage.record(user.id, key_id, self.clock(), 0, units)

    def _charge_now(self, admission: Admission, units: int) -> None:
        self.charge(admission.user, units, key_id=admission.key_id)

    def _record_key_use(self, key: ApiKey, at: datetime) -> None:
        if self._usage is not None:
            self._usage.record_key_use(key, at)
            return
        with suppress(RepositoryUnavailableError):  # authentication also works with a read-only database
            self.repository.apply([RecordApiKeyUse(key_id=key.id, at=at)])


@final
class AsyncGuard:
    """An asynchronous wrapper around a `Guard`. Use `mlapi.bootstrap.async_guard`, which also closes it.

    Args:
        guard: checks the credentials.
        look_up: returns the principal with the given id. Concurrent calls may share a query.
    """

    def __init__(self, guard: Guard, look_up: Callable[[PrincipalId], Awaitable[Principal | None]]) -> None:
        self.accept_bare = guard.accept_bare
        self._guard = guard
        self._look_up = look_up
        self._limiter: AsyncLimiter | None
        self._charges: BackgroundCharges | None
        self._limiter, self._charges = (None, None) if guard.limiter is None else _open_limits(guard.limiter)

    @property
    def decisions(self) -> dict[str, int]:
        """See `Guard.decisions`."""
        return self._guard.decisions

    async def check(self, credential: str) -> User:
        """Admit a request like `admit`, and return its user."""
        return (await self.admit(credential)).user

    async def admit(self, credential: str, *, cost: int = 1) -> Admission:
        """Authenticate the token or API key of a request, and count the request. See `Guard.admit`."""
        validate_count("cost", cost)
        guard, began = self._guard, time.monotonic()
        try:
            parsed = guard.parse_credential(credential)
            principal = await self._look_up(get_principal_id(parsed))
            now = guard.clock()
            user = guard.apply_plan(guard.authenticate(parsed, principal, now), since=began)
            limits = () if self._limiter is None else await self._limiter.admit(user, cost)
            if self._charges is not None and self._charges.error is not None and limits_units(limits):
                raise copy(self._charges.error)  # the limit would never be reached while no units can be stored
        except MlapiError as error:
            guard.count_rejection(error)
            raise
        return guard.record(Admission(user, _key_id(parsed), limits, self._charge_later), cost, now)

    async def identify(self, credential: str) -> User:
        """Authenticate a token or API key and return its user, without counting a request. See `Guard.identify`."""
        parsed = self._guard.parse_credential(credential)
        principal = await self._look_up(get_principal_id(parsed))
        return self._guard.authenticate(parsed, principal, self._guard.clock())

    async def read_limits(self, user: User) -> "tuple[AllowanceState, ...]":
        """Return the limits of a user's plan and what remains of each, without counting a request.

        Raises:
            ConfigurationError: if the plan is not in the configuration, and there is no default plan.
            InvalidTokenError: if the user does not exist.
        """
        return () if self._limiter is None else await self._limiter.read(user)

    async def charge(self, user: User, units: int, *, key_id: ApiKeyId | None = None) -> None:
        """Count units of a user, such as generated tokens. Return when they are stored. See `Guard.charge`."""
        validate_count("units", units)
        if self._limiter is not None and units:
            await self._limiter.charge(user, units)
        self._guard.record_units(user, key_id, units)

    def close(self) -> None:
        """Store the units that `Admission.charge` has collected. Do not admit requests afterwards."""
        if self._limiter is not None and self._charges is not None:
            self._charges.close()
            self._limiter.close()

    def _charge_later(self, admission: Admission, units: int) -> None:
        validate_count("units", units)
        self._guard.record_units(admission.user, admission.key_id, units)
        if units and limits_units(admission.limits) and self._charges is not None:
            admission.pending = self._charges.add(admission.user, units)


def _open_limits(limiter: "Limiter") -> "tuple[AsyncLimiter, BackgroundCharges]":
    # Imported here, because a synchronous guard does without asyncio.
    from mlapi.application.async_limits import AsyncLimiter  # noqa: PLC0415
    from mlapi.application.charges import BackgroundCharges  # noqa: PLC0415

    return AsyncLimiter(limiter), BackgroundCharges(limiter.charge_all)
