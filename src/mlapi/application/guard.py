"""The guard: authenticates tokens and API keys against the current state of the users."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import final

from mlapi.domain.commands import RecordApiKeyUse
from mlapi.domain.credentials import (
    USE_RECORDING_INTERVAL,
    ApiKey,
    ApiKeyPrincipal,
    ParsedCredential,
    Principal,
    PrincipalId,
    authenticate,
    get_principal_id,
    looks_like_api_key,
    parse_api_key,
)
from mlapi.domain.errors import (
    RepositoryUnavailableError,
)
from mlapi.domain.ports import Clock, KeyUsage, TokenIssuer, UserRepository
from mlapi.domain.users import User, utc_now


@final
class Guard:
    """Tells whom a token or an API key lets in, as the users are at that moment.

    >>> from mlapi import Users
    >>> from mlapi.adapters.memory import InMemoryTokens, InMemoryUserRepository, PlainCipher
    >>> users, tokens = Users(InMemoryUserRepository(), PlainCipher()), InMemoryTokens()
    >>> guard = Guard(users.repository, tokens)
    >>> ada = users.register(username="ada", password="difference engine", email="ada@example.com")
    >>> guard.check(tokens.issue(ada).token).username
    'ada'

    Args:
        repository: the users, asked at every call.
        tokens: knows the tokens.
        clock: by which API keys end.
        key_uses: where the use of an API key is noted; by default it is written at once.
    """

    def __init__(
        self,
        repository: UserRepository,
        tokens: TokenIssuer,
        *,
        clock: Clock = utc_now,
        key_usage: KeyUsage | None = None,
    ) -> None:
        self.repository = repository
        self._tokens = tokens
        self._clock = clock
        self._key_uses = self._write_use if key_usage is None else key_usage

    def check(self, credential: str) -> User:
        """Return the user whom a token or an API key lets in now.

        Raises:
            InvalidTokenError: if it lets nobody in: forged, over, ended, of a removed user.
            UserDisabledError: if its user is shut out.
            RepositoryUnavailableError: if the users cannot be asked; nobody is let in then.
        """
        claim = self.parse_credential(credential)
        (holder,) = self.repository.find_principals([get_principal_id(claim)])
        return self.authenticate(claim, holder)

    def parse_credential(self, credential: str) -> ParsedCredential:
        """Return what a credential says, without asking the users. Raises `InvalidTokenError`."""
        if looks_like_api_key(credential):
            return parse_api_key(credential)
        return self._tokens.verify(credential)

    def authenticate(self, claim: ParsedCredential, holder: Principal | None) -> User:
        """Return the user, given who stands behind the claim. Raises as `check` does."""
        now = self._clock()
        user = authenticate(claim, holder, now)
        if isinstance(holder, ApiKeyPrincipal):
            last = holder.key.last_used_datetime
            if last is None or now - last >= USE_RECORDING_INTERVAL:
                self._key_uses(holder.key, now)
        return user

    def _write_use(self, key: ApiKey, at: datetime) -> None:
        with suppress(RepositoryUnavailableError):  # a database that can only be read lets in all the same
            self.repository.apply([RecordApiKeyUse(key_id=key.id, at=at)])


@final
class AsyncGuard:
    """The asynchronous face of a `Guard`.

    Args:
        guard: that decides.
        look_up: asks the users for one subject; concurrent calls may share a round trip.
    """

    def __init__(self, guard: Guard, look_up: Callable[[PrincipalId], Awaitable[Principal | None]]) -> None:
        self._guard = guard
        self._look_up = look_up

    async def check(self, credential: str) -> User:
        """Return the user whom a token or an API key lets in now. Raises as `Guard.check` does."""
        claim = self._guard.parse_credential(credential)
        return self._guard.authenticate(claim, await self._look_up(get_principal_id(claim)))
