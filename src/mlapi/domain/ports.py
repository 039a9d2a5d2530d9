"""The interfaces between the core and its adapters. The docstrings are the contracts that every adapter must fulfill.

The contract suites in `mlapi.testing` check them. The service calls every method from several threads concurrently.
"""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Protocol, runtime_checkable

from mlapi.domain.attempts import Attempt
from mlapi.domain.audit_trail import AuditTrail
from mlapi.domain.commands import Command, Outcome, RecordApiKeyUse
from mlapi.domain.credentials import ApiKey, IssuedToken, Principal, PrincipalId, TokenClaims
from mlapi.domain.links import Link, LinkId
from mlapi.domain.lists import ListedUser, ListPosition, StateCounts
from mlapi.domain.rules import EVERY_USER, UserFilter
from mlapi.domain.users import EncryptedPassword, User, UserId, UsernameKey, UserOrder


class LinkRepository(Protocol):
    """Reads and purges the one-time links that `UserRepository.apply` writes.

    Every method raises `RepositoryUnavailableError` while the database is unavailable.
    """

    def find(self, link_id: LinkId) -> Link | None:
        """Return the link with this id, or None. It may have expired, or have been ended by a change of its user."""
        ...

    def purge(self, *, before: datetime, limit: int) -> int:
        """Delete at most ``limit`` links that expired before a time. Return how many were deleted."""
        ...


class PrincipalRepository(Protocol):
    """The part of a `UserRepository` that a guard uses."""

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        """See `UserRepository.find_principals`."""
        ...

    def apply(self, commands: Sequence[RecordApiKeyUse]) -> list[Outcome]:
        """See `UserRepository.apply`. It may raise `RepositoryUnavailableError` in a read-only database."""
        ...


class UserRepository(Protocol):
    """Stores users, their API keys and the audit trail.

    Every method raises `RepositoryUnavailableError` while the database is unavailable. Callers may pass ids of any size
    and content: treat an id that the database cannot store as unknown. Text is stored unchanged. Times are returned
    in UTC.

    Usernames are unique in canonical form: if several clients register the same name concurrently, exactly one
    succeeds. E-mail addresses need not be unique.
    """

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        """Apply the commands in order, in one durable transaction, and return one outcome for each.

        - An update stores the result of the command's ``apply_to``. A new user gets an id that was never used before.
        - A rejected command does not affect the others. Its outcome is an error that is returned, not raised.
        - A command sees the effects of those before it: it can update a user registered earlier in the batch.
        - Removing a user also removes the user's API keys.
        - Removing a user, changing the e-mail address and redeeming a link remove all links of the user. If several
          callers redeem links of a user concurrently, exactly one of them succeeds.
        - The audit entries that `mlapi.domain.audit.make_audit_entry` returns are written in the same transaction.
        - If a constraint or trigger of another application rejects a command, its outcome is a `UserReferencedError` or
          a `ChangeRejectedError`. To apply the others, the repository may split the batch into several transactions.

        Once this returns, the changes survive a crash. If it raises, nothing was applied, unless the connection was
        lost during the commit or a part of a split batch was applied: then the error's ``may_be_done`` is True.

        Args:
            commands: the list may be empty or contain several thousand commands.
            commit_by: a deadline, in the time of `time.monotonic`. If the commit would start later, roll back and raise
                `RepositoryUnavailableError("too late to commit")`. By then the client has received an error and may
                have sent another command.
        """
        ...

    def get(self, user_id: UserId) -> User:
        """Return the user with this id.

        Raises:
            UserNotFoundError: if no user has this id.
        """
        ...

    def find(self, key: UsernameKey) -> User | None:
        """Return the user with this canonical username, or None."""
        ...

    def find_many(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        """Return the result of `find` for each key.

        Args:
            keys: in any order, with or without duplicates; may be empty.
        """
        ...

    def list_page(self, *, after: UserId, limit: int, matching: UserFilter = EVERY_USER) -> list[User]:
        """Return a page of users, sorted by id.

        Args:
            after: the last id of the previous page; 0 for the first page.
            limit: maximum number of users to return. Only the last page may contain fewer.
            matching: return only the users for which its ``matches`` is True. In e-mail addresses, ignore the case of
                at least ASCII letters.

        Raises:
            SearchUnavailableError: if the repository ends long reads early; see `mlapi.interruption`.
        """
        ...

    def list_sorted(
        self,
        order: UserOrder,
        *,
        descending: bool = False,
        after: ListPosition | None = None,
        before: ListPosition | None = None,
        limit: int,
        matching: UserFilter = EVERY_USER,
    ) -> list[ListedUser]:
        """Return a page of users in any order, with their activity. Only the order ``updated`` may read every user.

        Args:
            order: names are sorted by their canonical form. Users with equal values are sorted by id. Users without a
                value come last in both directions, sorted by id.
            descending: reverse the order, including the order of users with equal values and without a value.
            after: the position of the last user of the previous page. The user may have been changed or removed since.
            before: the position of the first user of the next page. Pass at most one of ``after`` and ``before``.
                Without both, return the first page.
            limit: maximum number of users to return. Only the last page may contain fewer, or with ``before`` the first
                one.
            matching: see `list_page`. Its time ``at`` decides which month is shown.

        Raises:
            SearchUnavailableError: see `list_page`.
        """
        ...

    def find_by_prefix(self, prefix: str, *, limit: int) -> list[User]:
        """Return the users whose canonical username begins with a text, sorted by id. Use an index.

        Args:
            prefix: in canonical form (`mlapi.domain.rules.fold`), not empty.
            limit: maximum number of users to return. If there are more, return any of them.
        """
        ...

    def find_by_email(self, email: str, *, limit: int) -> list[User]:
        """Return the users with an e-mail address, sorted by id. Ignore the case of ASCII letters. Use an index.

        Args:
            email: any text.
            limit: maximum number of users to return, those with the lowest ids.
        """
        ...

    def count(self, matching: UserFilter = EVERY_USER, *, limit: int | None = None) -> int:
        """Return the number of users that match, or ``limit`` if there are more.

        Raises:
            SearchUnavailableError: see `list_page`.
        """
        ...

    def count_states(self, at: datetime) -> StateCounts:
        """Return the number of users in each state at this time, all counted at the same moment.

        Raises:
            SearchUnavailableError: see `list_page`.
        """
        ...

    def count_registrations(self, *, since: datetime) -> dict[date, int]:
        """Return how many of the existing users were registered on each day, in UTC, at ``since`` or later.

        Imported users count on the day of their original registration. Days without registrations are omitted.

        Raises:
            SearchUnavailableError: see `list_page`.
        """
        ...

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        """Return the principal with each id, or None if it does not exist.

        The principal of a `UserId` is the user; that of an `ApiKeyId` is the key together with its user. The result
        reflects every change that any process acknowledged before the call.

        Args:
            ids: in any order, with or without duplicates; may be empty.
        """
        ...

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        """Return the API keys of a user, sorted by creation time. Keys created at the same time are sorted by id.

        Raises:
            UserNotFoundError: if no user has this id.
        """
        ...

    @property
    def audit(self) -> AuditTrail:
        """The audit trail of these users."""
        ...

    @property
    def links(self) -> LinkRepository:
        """The one-time links of these users."""
        ...

    def check(self) -> None:
        """Raise `RepositoryUnavailableError` if the database cannot start a write transaction now."""
        ...


@runtime_checkable
class NonblockingPrincipalLookup(Protocol):
    """An optional capability of a `PrincipalRepository`. See `NonblockingLookup`."""

    def find_principals_nowait(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        """Return the same result as `UserRepository.find_principals`, without waiting."""
        ...


@runtime_checkable
class AsyncPrincipalLookup(Protocol):
    """An optional capability of a `PrincipalRepository`: looking up users on an event loop, without a thread.

    It waits for the database without blocking the loop. It raises `RepositoryUnavailableError` after any fault, or if
    it would have to connect first. The caller then retries with `UserRepository.find_principals`, in a thread.
    """

    async def find_principals_async(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        """Return the same result as `UserRepository.find_principals`."""
        ...


@runtime_checkable
class NonblockingLookup(NonblockingPrincipalLookup, Protocol):
    """An optional capability of a `UserRepository`: looking up users on an event loop, without a thread.

    Implement it only if a lookup takes microseconds, for example in memory or in a local file. If a repository lacks
    these methods, `UserRepository.find_principals` and `UserRepository.find_many` are called in a thread instead.

    All methods raise `RepositoryUnavailableError` if the lookup would have to wait, for a lock or for a connection to
    open. The caller then retries in a thread.
    """

    def find_many_nowait(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        """Return the same result as `UserRepository.find_many`, without waiting."""
        ...


class PasswordCipher(Protocol):
    """Encrypts passwords for storage, and compares passwords with stored ones. Passwords are never decrypted.

    Passwords are compared exactly, without normalization or truncation. If `encrypt` and `matches` take only
    microseconds, set the optional attribute ``is_costly`` to False: callers then do not use a thread.
    """

    def encrypt(self, password: str) -> EncryptedPassword:
        """Return the value to store. Encrypting the same password twice yields different values."""
        ...

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        """Return whether ``encrypted`` is the encrypted form of ``password``.

        The call takes the same time whether the password matches or not. None stands for an unknown user: the call
        takes just as long, and returns False. A value that cannot be decrypted, because it is damaged or was encrypted
        with a different key, matches no password. This may be logged as a warning but is not an error.
        """
        ...

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        """Return whether `encrypt` would use a newer scheme, key, salt or cost. Raises no error for damaged values."""
        ...

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        """Encrypt the same password with the newest key, without knowing the password.

        Return None if the value already uses the newest key or cannot be decrypted.
        """
        ...


def is_costly(cipher: PasswordCipher) -> bool:
    """Return whether the cipher takes milliseconds and must run in a thread. True by default."""
    return bool(getattr(cipher, "is_costly", True))


class TokenVerifier(Protocol):
    """Verifies tokens."""

    def verify(self, token: str) -> TokenClaims:
        """Return the claims of a token. The caller then checks them against the user with `authenticate`.

        This also returns the claims of an expired token: `authenticate` compares its expiry with the current time.

        Raises:
            InvalidTokenError: if any character differs from the token that was issued.
        """
        ...


class TokenIssuer(TokenVerifier, Protocol):
    """Issues tokens and verifies them."""

    def issue(self, user: User) -> IssuedToken:
        """Return a new token with the user's id and token epoch, and a unique token id.

        It expires at the user's ``expires_datetime`` at the latest, rounded down by less than a second.

        The token is valid as ``Bearer`` credentials in a header (RFC 6750, 2.1) and does not look like an API key.
        """
        ...


class AttemptLimiter(Protocol):
    """Limits how fast passwords can be guessed. Only attempts with a wrong username or password count.

    Call `start`, then `record_failure` or `record_success`, then `end` for every attempt. If it fails for any other
    reason than a wrong username or password, call only `end`: the attempt is then not counted. A running attempt
    occupies a slot within the limits, so that parallel guesses cannot exceed them.

    The limiter treats unknown usernames like existing ones, so that it does not reveal which names exist.
    """

    def start(self, attempt: Attempt) -> None:
        """Check the limits, and let the attempt occupy a slot until `end`.

        Raises:
            TooManyAttemptsError: if a limit is reached. Its ``is_final`` is False if the limit is only reached because
                of running attempts: retry when one of them has ended.
            RepositoryUnavailableError: if the counts cannot be read.
        """
        ...

    def record_failure(self, attempt: Attempt) -> None:
        """Count an attempt with an unknown username or a wrong password.

        Raises:
            TooManyAttemptsError: if the attempt exceeds a limit, although `start` allowed it.
        """
        ...

    def record_success(self, attempt: Attempt) -> None:
        """Remember the client's address as known for this user, because the password was correct.

        Raises:
            TooManyAttemptsError: if attempts from other addresses have reached the limit for the username, and the
                user has not logged in from this address before.
            RepositoryUnavailableError: if the counts cannot be read.
        """
        ...

    def end(self, attempt: Attempt) -> None:
        """Free the slot of an attempt. Never waits or fails. A concurrent or later `start` occupies no slot."""
        ...


class Clock(Protocol):
    def __call__(self) -> datetime:
        """Return the current time, with a time zone."""
        ...
