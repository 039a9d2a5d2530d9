"""Login with username and password, and password changes by the users themselves.

`LoginFlow` defines the order of the steps for synchronous and asynchronous callers. Some steps wait for the database,
others use processor time, so an `Executor` decides where each one runs: inline for `Authenticator`, in thread pools for
`AsyncAuthenticator`.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import ParamSpec, Protocol, TypeVar, final

import attrs

from mlapi.application.deadlines import remaining_seconds
from mlapi.application.guard import Guard
from mlapi.application.users import Users
from mlapi.domain.commands import Actor, ChangePassword, Reencrypt, UserCommand
from mlapi.domain.credentials import IssuedToken, check_access
from mlapi.domain.errors import (
    InvalidCredentialsError,
    InvalidFieldsError,
    ServiceUnavailableError,
    TooManyAttemptsError,
    UserNotFoundError,
)
from mlapi.domain.ports import AttemptLimiter, Clock, TokenIssuer
from mlapi.domain.rules import canonical_username
from mlapi.domain.users import User, utc_now

BURST_WAIT_SECONDS = 3.0
BURST_POLL_SECONDS = 0.05
MAX_CONCURRENT_LOGINS = 200
"""If more logins than this are in progress, they do not wait for each other."""

_logger = logging.getLogger("mlapi")

P = ParamSpec("P")
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class LoginAttempt:
    """A login attempt that has been counted.

    ``user`` is the stored user, or None for an unknown username. ``address_is_known`` says whether the user has logged
    in from this address before.
    """

    username: str
    address: str
    user: User | None
    address_is_known: bool = False


@attrs.frozen(kw_only=True)
class VerifiedLogin:
    """A login attempt with the correct password. ``upgrade`` re-encrypts a password stored in an outdated form."""

    attempt: LoginAttempt
    user: User
    upgrade: Reencrypt | None


class Executor(Protocol):
    """Decides where each step of a `LoginFlow` runs."""

    def for_client(self, address: str, *, is_urgent: bool = True) -> "Executor":
        """Return an executor for the calls of one client. The clients take turns.

        Args:
            address: the client's address.
            is_urgent: False lets all urgent calls go first.
        """
        ...

    async def query(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that waits for the database."""
        ...

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that runs the password cipher."""
        ...

    async def apply(self, command: UserCommand) -> User:
        """Apply a command durably. Raises the same errors as `Users.apply`."""
        ...


class InlineExecutor:
    """An `Executor` that runs every step in the calling thread."""

    def __init__(self, users: Users) -> None:
        self._users = users

    def for_client(self, address: str, *, is_urgent: bool = True) -> "InlineExecutor":  # noqa: ARG002 - in the protocol
        return self

    async def query(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    async def apply(self, command: UserCommand) -> User:
        return self._users.apply(command)


def run_inline(flow: Coroutine[object, object, T]) -> T:
    """Return the result of a coroutine that never suspends, without an event loop."""
    try:
        flow.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    raise RuntimeError("a flow that runs inline must not wait for an event loop")


class LoginFlow:
    """Login and password change, step by step.

    Args:
        authenticator: implements the steps.
        executor: runs each step.
    """

    def __init__(self, authenticator: "Authenticator", executor: Executor) -> None:
        self._authenticator = authenticator
        self._executor = executor

    async def log_in(self, *, username: str, password: str, address: str) -> IssuedToken:
        """Return a token. See `Authenticator.log_in`."""
        verified = await self._authenticate(username, password, address)
        if verified.upgrade is not None:
            with suppress(UserNotFoundError, ServiceUnavailableError):  # the next login tries again
                await self._executor.apply(verified.upgrade)
        return self._authenticator.issue_token(verified)

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
        return await self._verify(await self._start(username, address), password)

    async def _start(self, username: str, address: str) -> LoginAttempt:
        executor = self._executor.for_client(address)
        return await executor.query(self._authenticator.start, username=username, address=address)

    async def _verify(self, attempt: LoginAttempt, password: str) -> VerifiedLogin:
        executor = self._executor.for_client(attempt.address)
        verified = await executor.hash(self._authenticator.verify, attempt, password)
        await executor.query(self._authenticator.finish, verified)
        return verified


@final
class Authenticator:
    """Logs users in, and lets them change their passwords.

    Args:
        users: the users who may log in.
        tokens: issues the tokens.
        attempts: limits how often passwords can be guessed.
        clock: the time at which access is checked.
    """

    def __init__(self, users: Users, tokens: TokenIssuer, attempts: AttemptLimiter, *, clock: Clock = utc_now) -> None:
        self.users = users
        self._tokens = tokens
        self._attempts = attempts
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

    def start(self, *, username: str, address: str) -> LoginAttempt:
        """Count the attempt, then look the user up. Waits for the database.

        Raises:
            TooManyAttemptsError, RepositoryUnavailableError: see `log_in`.
        """
        counted = _counted_username(username)
        is_known = self._attempts.count(counted, address)
        user = self.users.find(username)
        return LoginAttempt(username=counted, address=address, user=user, address_is_known=is_known)

    def verify(self, attempt: LoginAttempt, password: str) -> VerifiedLogin:
        """Check the password. Every attempt runs the cipher once, so that timing does not reveal which users exist.

        A correct password that is stored in an outdated form is re-encrypted.

        Raises:
            InvalidCredentialsError: see `log_in`.
        """
        cipher, user = self.users.cipher, attempt.user
        is_right = cipher.matches(password, None if user is None else user.password)
        if user is None or not is_right:
            raise InvalidCredentialsError
        upgrade = None
        if cipher.needs_upgrade(user.password):
            upgrade = Reencrypt(user_id=user.id, password=cipher.encrypt(password), replacing=user.password)
        return VerifiedLogin(attempt=attempt, user=user, upgrade=upgrade)

    def finish(self, verified: VerifiedLogin) -> None:
        """Subtract the attempt from the counts, because its password was correct. Waits for the database."""
        attempt = verified.attempt
        self._attempts.record_success(attempt.username, attempt.address, was_known=attempt.address_is_known)

    def issue_token(self, verified: VerifiedLogin) -> IssuedToken:
        """Return a token.

        Raises:
            AccessDeniedError: if the user currently has no access; see `mlapi.domain.credentials.check_access`.
        """
        check_access(verified.user, self._clock())
        return self._tokens.issue(verified.user)

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

    A client may start many workers that all log in at the same time from a new address. When they reach the limit, the
    next attempt waits for those in progress, because attempts with the correct password do not count.

    Log lines contain the address and the user's id, but never the username: it may be a password typed into the wrong
    field.
    """

    def __init__(self, authenticator: Authenticator, executor: Executor) -> None:
        super().__init__(authenticator, executor)
        self._in_progress: Counter[str] = Counter()
        """Number of attempts being verified, by username."""

    async def _start(self, username: str, address: str) -> LoginAttempt:
        deadline = time.monotonic() + min(BURST_WAIT_SECONDS, remaining_seconds())
        while True:
            try:
                return await super()._start(username, address)
            except TooManyAttemptsError:
                if not self._is_burst(username) or time.monotonic() > deadline:
                    _logger.warning("login from %s: too many attempts", address)
                    raise
            await asyncio.sleep(BURST_POLL_SECONDS)

    async def _verify(self, attempt: LoginAttempt, password: str) -> VerifiedLogin:
        self._in_progress[attempt.username] += 1
        try:
            verified = await super()._verify(attempt, password)
        except InvalidCredentialsError:
            reason = "unknown username" if attempt.user is None else f"wrong password for user {attempt.user.id}"
            _logger.warning("login from %s: %s", attempt.address, reason)
            raise
        else:
            _logger.info("login from %s: correct password for user %d", attempt.address, verified.user.id)
            return verified
        finally:
            self._in_progress[attempt.username] -= 1
            if not self._in_progress[attempt.username]:
                del self._in_progress[attempt.username]

    def _is_burst(self, username: str) -> bool:
        is_in_progress = _counted_username(username) in self._in_progress
        return is_in_progress and self._in_progress.total() <= MAX_CONCURRENT_LOGINS


def _counted_username(username: str) -> str:
    """Return the name under which to count an attempt: the canonical form, or the name as typed if it is invalid."""
    try:
        return canonical_username(username)
    except InvalidFieldsError:
        return username


@attrs.frozen(kw_only=True)
class Access:
    """The two ways to authenticate: login by password, and the guard for tokens and API keys."""

    authenticator: Authenticator
    guard: Guard
