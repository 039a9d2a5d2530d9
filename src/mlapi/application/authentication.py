"""Login with username and password, and password changes by the users themselves.

`LoginFlow` defines the order of the steps for synchronous and asynchronous callers. An `Executor` decides where each
step runs: inline for `Authenticator`, in thread pools for `AsyncAuthenticator`.
"""

import asyncio
import logging
from contextlib import suppress
from typing import final

import attrs

from mlapi.application.async_attempts import AsyncAttemptLimiter, BatchedAttemptLimiter, ExecutedAttemptLimiter
from mlapi.application.concurrency import ConcurrencyLimit
from mlapi.application.deadlines import raise_if_disconnected, remaining_seconds
from mlapi.application.executors import Executor, InlineExecutor
from mlapi.application.guard import Guard
from mlapi.application.inline import run_inline
from mlapi.application.login_history import UnrecordedLogins
from mlapi.application.login_throttle import FixedWindowAttemptLimiter
from mlapi.application.lookups import UsernameLookup
from mlapi.application.repeated_warnings import RepeatedWarnings
from mlapi.application.users import Users
from mlapi.application.window_counts import digest
from mlapi.domain.actors import Actor
from mlapi.domain.addresses import rate_limit_key
from mlapi.domain.attempts import Attempt
from mlapi.domain.commands import ChangePassword, Reencrypt
from mlapi.domain.credentials import IssuedToken, check_access
from mlapi.domain.errors import (
    AccessExpiredError,
    ChangeRejectedError,
    InvalidCredentialsError,
    InvalidFieldsError,
    ServiceUnavailableError,
    TooManyAttemptsError,
    UserNotFoundError,
)
from mlapi.domain.logins import LoginRecorder, Logins
from mlapi.domain.ports import AttemptLimiter, Clock, TokenIssuer
from mlapi.domain.rules import canonical_username
from mlapi.domain.users import User, UsernameKey, utc_now

MAX_RUNNING_PER_ADDRESS = 16
"""Maximum number of concurrent logins from one IPv4 address or IPv6 /64 network, in this process."""
MAX_RUNNING_PER_NAME_AND_ADDRESS = 8
POLL_SECONDS = 0.05
_REJECTION_LOG_SECONDS = 60
_DIGEST_PREFIX = "\0"  # no valid username contains this character

_logger = logging.getLogger("mlapi")


@attrs.frozen(kw_only=True)
class VerifiedLogin:
    """A login with the correct password. ``needs_upgrade`` is True if the password is stored in an outdated form."""

    user: User
    needs_upgrade: bool


class LoginFlow:
    """Login and password change, step by step.

    Args:
        authenticator: implements the steps.
        executor: runs each step.
    """

    def __init__(self, authenticator: "Authenticator", executor: Executor) -> None:
        self._authenticator = authenticator
        self._executor = executor
        self._limiter: AsyncAttemptLimiter = ExecutedAttemptLimiter(authenticator.attempts, executor)

    async def log_in(self, *, username: str, password: str, address: str) -> IssuedToken:
        """Return a token. See `Authenticator.log_in`."""
        verified = await self._log_in(username, password, address)
        token = self._authenticator.issue_token(verified)
        self._authenticator.record_login(verified, address)
        return token

    async def sign_in(self, *, username: str, password: str, address: str) -> User:
        """Return the user who signs in to their account. Their access may have expired.

        Raises:
            UserDisabledError, UserPendingError: if the password is right but the user may not sign in.
            InvalidCredentialsError, TooManyAttemptsError, RepositoryUnavailableError: see `Authenticator.log_in`.
        """
        verified = await self._log_in(username, password, address)
        self._authenticator.check_account_access(verified)
        self._authenticator.record_login(verified, address)
        return verified.user

    async def check_password(self, *, user: User, password: str, address: str) -> None:
        """Check the current password of a signed-in user.

        Raises:
            InvalidCredentialsError, TooManyAttemptsError, RepositoryUnavailableError: see `Authenticator.log_in`.
        """
        verified = await self._authenticate(user.username, password, address)
        if verified.user.id != user.id:  # the user was renamed, and another user has the old name
            raise InvalidCredentialsError

    async def _log_in(self, username: str, password: str, address: str) -> VerifiedLogin:
        """Check the password, and store it again if it is stored in an outdated form."""
        verified = await self._authenticate(username, password, address)
        if verified.needs_upgrade:
            executor = self._executor.for_client(address)
            upgrade = await executor.hash(self._authenticator.prepare_upgrade, verified, password)
            # The next login tries again.
            with suppress(UserNotFoundError, ChangeRejectedError, ServiceUnavailableError):
                await self._executor.apply(upgrade)
        return verified

    async def change_password(
        self, *, user: User, current: str, new: str, address: str, request_id: str | None = None
    ) -> User:
        """Replace a user's password. See `Authenticator.change_password`."""
        authenticator = self._authenticator
        authenticator.users.validate_password(new, field="new")
        verified = await self._authenticate(user.username, current, address)
        executor = self._executor.for_client(address)
        command = await executor.hash(authenticator.prepare_password_change, verified, new, request_id=request_id)
        return await self._executor.apply(command)

    async def _authenticate(self, username: str, password: str, address: str) -> VerifiedLogin:
        return await self._run(Attempt(username=_counted_username(username), address=address), password)

    async def _run(self, attempt: Attempt, password: str) -> VerifiedLogin:
        try:
            user = await self._start(attempt)
            return await self._verify(attempt, user, password)
        finally:
            self._authenticator.attempts.end(attempt)  # an attempt that was not recorded as a failure does not count

    async def _start(self, attempt: Attempt) -> User | None:
        await self._limiter.start(attempt)
        return await self._find(attempt)

    async def _find(self, attempt: Attempt) -> User | None:
        return self._authenticator.users.find(attempt.username)

    async def _verify(self, attempt: Attempt, user: User | None, password: str) -> VerifiedLogin:
        executor = self._executor.for_client(attempt.address)
        verified = await executor.hash(self._authenticator.verify, user, password)
        if verified is None:
            await self._limiter.record_failure(attempt)
            raise InvalidCredentialsError
        await self._limiter.record_success(attempt)
        return verified


@final
class Authenticator:
    """Logs users in, and lets them change their passwords.

    Args:
        users: the users who may log in.
        tokens: issues the tokens.
        attempts: limits how often passwords can be guessed.
        logins: records successful logins. By default, they are not recorded.
        clock: the time at which access is checked.
    """

    def __init__(
        self,
        users: Users,
        tokens: TokenIssuer,
        attempts: AttemptLimiter,
        *,
        logins: LoginRecorder | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self.users = users
        self.attempts = attempts
        self._tokens = tokens
        self._logins: LoginRecorder = UnrecordedLogins() if logins is None else logins
        self._clock = clock
        self._flow = LoginFlow(self, InlineExecutor(users))

    def log_in(self, *, username: str, password: str, address: str = "") -> IssuedToken:
        """Return a token if the password is correct.

        Args:
            username: in any case or spelling that has the same canonical form.
            password: as typed.
            address: the client's address. Attempts are limited per address.

        Raises:
            InvalidCredentialsError: if the username is unknown or the password is wrong.
            AccessDeniedError: if the password is right but the user is disabled.
            TooManyAttemptsError: if the limit is reached, even if the password is right.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return run_inline(self._flow.log_in(username=username, password=password, address=address))

    def change_password(self, *, user: User, current: str, new: str, address: str = "") -> User:
        """Replace a user's password after checking the current one, and revoke all of the user's tokens.

        Raises:
            InvalidFieldsError: if the new password violates the policy.
            InvalidCredentialsError, TooManyAttemptsError, RepositoryUnavailableError: see `log_in`.
            PasswordChangedError: if the password was changed concurrently.
            UserNotFoundError: if the user was removed concurrently.
        """
        return run_inline(self._flow.change_password(user=user, current=current, new=new, address=address))

    def verify(self, user: User | None, password: str) -> VerifiedLogin | None:
        """Return the login if the password is correct, or None.

        Every attempt runs the cipher once, so that timing does not reveal which users exist or have no password yet.
        """
        cipher = self.users.cipher
        is_right = cipher.matches(password, user.password if user is not None and user.has_password else None)
        if user is None or not is_right:
            return None
        return VerifiedLogin(user=user, needs_upgrade=cipher.needs_upgrade(user.password))

    def prepare_upgrade(self, verified: VerifiedLogin, password: str) -> Reencrypt:
        """Encrypt the password again, because it is stored in an outdated form."""
        user = verified.user
        return Reencrypt(user_id=user.id, password=self.users.cipher.encrypt(password), replacing=user.password)

    def issue_token(self, verified: VerifiedLogin) -> IssuedToken:
        """Return a token.

        Raises:
            AccessDeniedError: if the user currently has no access; see `mlapi.domain.credentials.check_access`.
        """
        check_access(verified.user, self._clock())
        return self._tokens.issue(verified.user)

    def check_account_access(self, verified: VerifiedLogin) -> None:
        """Check that the user may sign in to their account. Unlike tokens, this does not need unexpired access.

        Raises:
            UserDisabledError, UserPendingError: if the user is disabled or pending.
        """
        with suppress(AccessExpiredError):
            check_access(verified.user, self._clock())

    def record_login(self, verified: VerifiedLogin, address: str) -> None:
        """Record a successful login. Never waits for the database."""
        self._logins.record(verified.user.id, self._clock(), address)

    def prepare_password_change(
        self, verified: VerifiedLogin, new: str, *, request_id: str | None = None
    ) -> ChangePassword:
        """Check and encrypt the new password. Takes as much processor time as a registration.

        Raises:
            InvalidFieldsError: if the new password violates the policy.
        """
        user = verified.user
        return self.users.as_actor(Actor.from_user_id(user.id, request_id)).prepare_password(
            user_id=user.id, password=new, replacing=user.password, field="new"
        )


@final
class AsyncAuthenticator(LoginFlow):
    """An asynchronous wrapper around an `Authenticator`, for one event loop. It logs attempts and handles bursts.

    A client may start many workers that all log in at the same time. Their attempts take turns: at most
    `MAX_RUNNING_PER_ADDRESS` from one address run concurrently, so one address delays the logins of others by a few
    password hashes at most. If a limit is only reached because of running attempts, an attempt waits for them, because
    correct passwords do not count. An attempt whose client has disconnected ends without a hash.

    Concurrent attempts share their queries: they are looked up together, and counted together.

    Log lines contain the address and the user's id, but never the username: it may be a password typed into the wrong
    field.
    """

    def __init__(self, authenticator: Authenticator, executor: Executor) -> None:
        super().__init__(authenticator, executor)
        limiter = authenticator.attempts
        if isinstance(limiter, FixedWindowAttemptLimiter):
            self._limiter = BatchedAttemptLimiter(limiter)
        self._names = UsernameLookup(authenticator.users.repository)
        self._rejections = RepeatedWarnings(interval_seconds=_REJECTION_LOG_SECONDS)
        self._per_address = ConcurrencyLimit(MAX_RUNNING_PER_ADDRESS)
        self._per_name_and_address = ConcurrencyLimit(MAX_RUNNING_PER_NAME_AND_ADDRESS)

    def close(self) -> None:
        self._limiter.close()
        self._names.close()

    async def _run(self, attempt: Attempt, password: str) -> VerifiedLogin:
        site = rate_limit_key(attempt.address)
        async with self._per_name_and_address.slot((site, attempt.username)), self._per_address.slot(site):
            raise_if_disconnected()
            return await super()._run(attempt, password)

    async def _start(self, attempt: Attempt) -> User | None:
        while True:
            try:
                return await super()._start(attempt)
            except TooManyAttemptsError as error:
                if error.is_final:
                    self._rejections.log(f"login from {attempt.address}: too many attempts")
                    raise
            await asyncio.sleep(min(POLL_SECONDS, remaining_seconds()))

    async def _find(self, attempt: Attempt) -> User | None:
        if attempt.username.startswith(_DIGEST_PREFIX):
            return None  # no user can have this name
        return await self._names.find(UsernameKey(attempt.username))

    async def _verify(self, attempt: Attempt, user: User | None, password: str) -> VerifiedLogin:
        try:
            verified = await super()._verify(attempt, user, password)
        except InvalidCredentialsError:
            reason = "unknown username" if user is None else f"wrong password for user {user.id}"
            _logger.warning("login from %s: %s", attempt.address, reason)
            raise
        except TooManyAttemptsError:
            self._rejections.log(f"login from {attempt.address}: too many attempts")
            raise
        _logger.info("login from %s: correct password for user %d", attempt.address, verified.user.id)
        return verified


def _counted_username(username: str) -> str:
    """Return the name under which to count an attempt: the canonical form, or a digest if the name is invalid.

    An invalid name can be as long as a request body.
    """
    try:
        return canonical_username(username)
    except InvalidFieldsError:
        return _DIGEST_PREFIX + digest(username)


@attrs.frozen(kw_only=True)
class Access:
    """The two ways to authenticate: login by password, and the guard for tokens and API keys.

    ``logins`` are the successful logins; None if they are not recorded.
    """

    authenticator: Authenticator
    guard: Guard
    logins: Logins | None = None
