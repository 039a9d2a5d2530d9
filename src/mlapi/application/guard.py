"""The guard authenticates tokens and API keys against the current state of the users."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import final

import attrs

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
from mlapi.domain.errors import InvalidTokenError, RepositoryUnavailableError
from mlapi.domain.ports import ApiKeyUsage, Clock, PrincipalRepository, TokenVerifier
from mlapi.domain.users import User, utc_now


@final
@attrs.frozen
class Admission:
    """A request that the guard has admitted.

    Attributes:
        user: the authenticated user.
        key_id: the id of the API key that the request presented; None if it presented a token.
    """

    user: User
    key_id: ApiKeyId | None


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
        clock: used to check whether credentials have expired.
        api_key_usage: records when API keys are used. By default, each use is written immediately.
        accept_bare: whether requests may have a token in the Authorization header without the scheme Bearer. `check`
            does not use this value: pass it to the function that reads the header.
    """

    def __init__(
        self,
        repository: PrincipalRepository,
        tokens: TokenVerifier,
        *,
        clock: Clock = utc_now,
        api_key_usage: ApiKeyUsage | None = None,
        accept_bare: bool = False,
    ) -> None:
        self.repository = repository
        self.accept_bare = accept_bare
        self._tokens = tokens
        self._clock = clock
        self._api_key_usage = self._record_use if api_key_usage is None else api_key_usage

    def check(self, credential: str) -> User:
        """Admit a request like `admit`, and return its user."""
        return self.admit(credential).user

    def admit(self, credential: str, *, cost: int = 1) -> Admission:
        """Authenticate the token or API key of a request, and count the request.

        Args:
            credential: the token or API key.
            cost: how much the request counts. 0 counts nothing, but raises the same errors.

        Raises:
            InvalidTokenError: if the credential is invalid, expired or revoked, or its user was removed.
            AccessDeniedError: if the credential is valid but the user has no access now, for example because the user
                is disabled.
            RepositoryUnavailableError: if the database is unavailable. In that case, no request is admitted.
        """
        parsed = self.parse_credential(credential)
        (principal,) = self.repository.find_principals([get_principal_id(parsed)])
        return self.enforce(parsed, self.authenticate(parsed, principal), cost)

    def identify(self, credential: str) -> User:
        """Authenticate a token or API key and return its user, without counting a request.

        Use it to look up the owner of a credential, for example to check an open connection again. To let a user call a
        model, use `admit` or `check`.

        Raises:
            InvalidTokenError, AccessDeniedError, RepositoryUnavailableError: see `admit`.
        """
        parsed = self.parse_credential(credential)
        (principal,) = self.repository.find_principals([get_principal_id(parsed)])
        return self.authenticate(parsed, principal)

    def parse_credential(self, credential: str) -> ParsedCredential:
        """Parse a token or API key without looking up its user. Raises `InvalidTokenError`."""
        if len(credential) > MAX_CREDENTIAL_CHARS:
            raise InvalidTokenError
        if looks_like_api_key(credential):
            return parse_api_key(credential)
        return self._tokens.verify(credential)

    def authenticate(self, parsed: ParsedCredential, principal: Principal | None) -> User:
        """Return the user, given the credential's current principal. Raises the same errors as `identify`."""
        now = self._clock()
        user = authenticate(parsed, principal, now)
        if isinstance(principal, ApiKeyPrincipal):
            last_used = principal.key.last_used_datetime
            if last_used is None or now - last_used >= USE_RECORDING_INTERVAL:
                self._api_key_usage(principal.key, now)
        return user

    def enforce(self, parsed: ParsedCredential, user: User, cost: int) -> Admission:  # noqa: ARG002
        """Admit a request of an authenticated user."""
        return Admission(user, None if isinstance(parsed, TokenClaims) else parsed.id)

    def _record_use(self, key: ApiKey, at: datetime) -> None:
        with suppress(RepositoryUnavailableError):  # authentication also works with a read-only database
            self.repository.apply([RecordApiKeyUse(key_id=key.id, at=at)])


@final
class AsyncGuard:
    """An asynchronous wrapper around a `Guard`.

    Args:
        guard: checks the credentials.
        look_up: returns the principal with the given id. Concurrent calls may share a query.
    """

    def __init__(self, guard: Guard, look_up: Callable[[PrincipalId], Awaitable[Principal | None]]) -> None:
        self.accept_bare = guard.accept_bare
        self._guard = guard
        self._look_up = look_up

    async def check(self, credential: str) -> User:
        """Admit a request like `admit`, and return its user."""
        return (await self.admit(credential)).user

    async def admit(self, credential: str, *, cost: int = 1) -> Admission:
        """Authenticate the token or API key of a request, and count the request. See `Guard.admit`."""
        parsed = self._guard.parse_credential(credential)
        user = self._guard.authenticate(parsed, await self._look_up(get_principal_id(parsed)))
        return self._guard.enforce(parsed, user, cost)

    async def identify(self, credential: str) -> User:
        """Authenticate a token or API key and return its user, without counting a request. See `Guard.identify`."""
        parsed = self._guard.parse_credential(credential)
        return self._guard.authenticate(parsed, await self._look_up(get_principal_id(parsed)))
