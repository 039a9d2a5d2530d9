"""Who is let in: log-ins, and the guard in front of what only users may use.

A log-in is split where time passes, as an asynchronous caller wants it: `LogIns.begin` waits for the database,
`LogIns.compare` costs processor time, `LogIns.conclude` waits for the database again. So is the guard: `Guard.claim_of`
and `Guard.admit` cost a few microseconds, and between them the users are asked.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import final

import attrs

from mlapi.domain.changes import Cause, ChangePassword, RecordApiKeyUse, Reencrypt
from mlapi.domain.credentials import (
    USE_RECORDED_EVERY,
    ApiKey,
    ApiKeyHolder,
    Claim,
    Holder,
    IssuedToken,
    Subject,
    admit,
    looks_like_api_key,
    shown_api_key,
    subject_of,
)
from mlapi.domain.errors import (
    InvalidCredentialsError,
    InvalidFieldsError,
    RepositoryUnavailableError,
    UserDisabledError,
    UserNotFoundError,
)
from mlapi.domain.model import User, canonical_username, utc_now
from mlapi.domain.ports import AttemptLimiter, Clock, KeyUses, TokenIssuer, UserRepository
from mlapi.service import Users


@attrs.frozen(kw_only=True)
class LogIn:
    """An attempt that was counted: the user of that name, if there is one, and where it comes from."""

    username: str
    address: str
    user: User | None
    address_is_known: bool = False
    """Whether the name was logged in from there before."""


@attrs.frozen(kw_only=True)
class Proven:
    """An attempt with the right password."""

    attempt: LogIn
    user: User
    upgrade: Reencrypt | None
    """What stores the password better, if it can be."""


@final
class LogIns:
    """Log-ins with a name and a password.

    Args:
        users: who may log in.
        tokens: what they get.
        attempts: keeps guessing slow.
    """

    def __init__(self, users: Users, tokens: TokenIssuer, attempts: AttemptLimiter) -> None:
        self.users = users
        self._tokens = tokens
        self._attempts = attempts

    def log_in(self, *, username: str, password: str, address: str = "") -> IssuedToken:
        """Return a token for a user with the right password.

        Args:
            username: in whatever case or spelling.
            password: as typed.
            address: where the attempt comes from.

        Raises:
            InvalidCredentialsError: for a name that nobody has, and for a wrong password.
            UserDisabledError: for the right password of a user who is shut out.
            TooManyAttemptsError: if there were too many, right or wrong.
            RepositoryUnavailableError: if the database is away.
        """
        proven = self.compare(self.begin(username=username, address=address), password)
        if proven.upgrade is not None:
            with suppress(UserNotFoundError, RepositoryUnavailableError):  # then at the next log-in
                self.users.apply(proven.upgrade)
        self.conclude(proven)
        return self.issue(proven)

    def change_password(self, *, user: User, current: str, new: str, address: str = "") -> User:
        """Give a user another password, which ends all of his tokens. For the user himself, who knows the current one.

        Raises:
            InvalidFieldsError: if the new one breaks the policy.
            InvalidCredentialsError, TooManyAttemptsError, RepositoryUnavailableError: as `log_in` does.
            PasswordChangedError: if another one was set meanwhile.
        """
        self.users.check_password(new, field="new")
        proven = self.compare(self.begin(username=user.username, address=address), current)
        changed = self.users.apply(self.prepare_change(proven, new))
        self.conclude(proven)
        return changed

    def begin(self, *, username: str, address: str) -> LogIn:
        """Count the attempt, and look the user up.

        Raises:
            TooManyAttemptsError, RepositoryUnavailableError: as `log_in` does.
        """
        try:
            counted: str = canonical_username(username)
        except InvalidFieldsError:
            counted = username  # nobody's: counted all the same
        is_known = self._attempts.count(counted, address)
        user = self.users.find(username)
        return LogIn(username=counted, address=address, user=user, address_is_known=is_known)

    def compare(self, attempt: LogIn, password: str) -> Proven:
        """Compare the password: one run of the cipher whatever comes of it, and one more if the stored one is old.

        Raises:
            InvalidCredentialsError: as `log_in` does.
        """
        cipher, user = self.users.cipher, attempt.user
        is_right = cipher.matches(password, None if user is None else user.password)
        if user is None or not is_right:
            raise InvalidCredentialsError
        upgrade = None
        if cipher.needs_upgrade(user.password):
            upgrade = Reencrypt(user_id=user.id, password=cipher.encrypt(password), replacing=user.password)
        return Proven(attempt=attempt, user=user, upgrade=upgrade)

    def prepare_change(self, proven: Proven, new: str, *, request_id: str | None = None) -> ChangePassword:
        """Check and encrypt the new password: as much processor time as a registration.

        Raises:
            InvalidFieldsError: if it breaks the policy.
        """
        return self.users.acting(Cause.of_user(proven.user.id, request_id)).prepare_password(
            user_id=proven.user.id, password=new, replacing=proven.user.password, field="new"
        )

    def conclude(self, proven: Proven) -> None:
        """Take the attempt back from the counts, as it was right."""
        attempt = proven.attempt
        self._attempts.forgive(attempt.username, attempt.address, was_known=attempt.address_is_known)

    def issue(self, proven: Proven) -> IssuedToken:
        """Return the token. Raises `UserDisabledError` for a user who is shut out."""
        if not proven.user.enabled:
            raise UserDisabledError(proven.user.id)
        return self._tokens.issue(proven.user)


@final
class Guard:
    """Tells whom a token or an API key lets in, as the users are at that moment.

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
        key_uses: KeyUses | None = None,
    ) -> None:
        self.repository = repository
        self._tokens = tokens
        self._clock = clock
        self._key_uses = self._write_use if key_uses is None else key_uses

    def check(self, credential: str) -> User:
        """Return the user whom a token or an API key lets in now.

        Raises:
            InvalidTokenError: if it lets nobody in: forged, over, ended, of a removed user.
            UserDisabledError: if its user is shut out.
            RepositoryUnavailableError: if the users cannot be asked; nobody is let in then.
        """
        claim = self.claim_of(credential)
        (holder,) = self.repository.holders([subject_of(claim)])
        return self.admit(claim, holder)

    def claim_of(self, credential: str) -> Claim:
        """Return what a credential says, without asking the users. Raises `InvalidTokenError`."""
        if looks_like_api_key(credential):
            return shown_api_key(credential)
        return self._tokens.verify(credential)

    def admit(self, claim: Claim, holder: Holder | None) -> User:
        """Return the user, given who stands behind the claim. Raises as `check` does."""
        now = self._clock()
        user = admit(claim, holder, now)
        if isinstance(holder, ApiKeyHolder):
            last = holder.key.last_used_datetime
            if last is None or now - last >= USE_RECORDED_EVERY:
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

    def __init__(self, guard: Guard, look_up: Callable[[Subject], Awaitable[Holder | None]]) -> None:
        self._guard = guard
        self._look_up = look_up

    async def check(self, credential: str) -> User:
        """Return the user whom a token or an API key lets in now. Raises as `Guard.check` does."""
        claim = self._guard.claim_of(credential)
        return self._guard.admit(claim, await self._look_up(subject_of(claim)))


@attrs.frozen(kw_only=True)
class Access:
    """Both ways in: log-ins for people, and the guard for whoever shows what he got there."""

    log_ins: LogIns
    guard: Guard
