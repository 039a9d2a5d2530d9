"""The interfaces between the core and its adapters. The docstrings are the contracts that every adapter must keep.

The contract suites in `mlapi.testing` check them. The service calls every method from several threads concurrently.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from mlapi.domain.attempts import AttemptCounts
from mlapi.domain.audit import AuditEntry, AuditId, DailyCount
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import ApiKey, IssuedToken, Principal, PrincipalId, TokenClaims
from mlapi.domain.inspection import Inspection
from mlapi.domain.users import EncryptedPassword, User, UserId, UsernameKey


class AuditTrail(Protocol):
    """Reads and purges the audit entries that `UserRepository.apply` writes.

    Entry ids rise and are never reused. Every method raises `RepositoryUnavailableError` while the database is
    unavailable.
    """

    def list_page(self, *, after: AuditId | None = None, limit: int, user_id: UserId | None = None) -> list[AuditEntry]:
        """Return a page of entries, the newest (highest id) first.

        Args:
            after: the last id of the previous page; None for the first page. May be larger than any id.
            limit: the largest number of entries to return.
            user_id: return only entries about this user, who may have been removed. None returns all entries.
        """
        ...

    def count_per_day(self, *, since: datetime) -> list[DailyCount]:
        """Count the successful actions of each day in UTC, starting with entries written at ``since``.

        The result is sorted by day, then by action name. Rejected commands are not counted. A day and action
        without entries has no `DailyCount`.
        """
        ...

    def purge(self, *, before: datetime, limit: int) -> int:
        """Delete at most ``limit`` entries older than ``before``, the oldest first. Return how many were deleted."""
        ...


class UserRepository(Protocol):
    """Stores users, their API keys and the audit trail.

    Every method raises `RepositoryUnavailableError` while the database is unavailable. Callers may pass ids of any size
    and content: an id that the database cannot store does not exist. Texts are stored unchanged, times returned in UTC.

    Usernames are unique in canonical form: of several concurrent registrations, exactly one succeeds. E-mail addresses
    need not be unique.
    """

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        """Apply the commands in order, in one durable transaction, and return one outcome for each.

        - An update stores the result of the command's ``apply_to``. A new user gets an id that was never used before.
        - A rejected command does not affect the others. Its outcome is an error that is returned, not raised.
        - A command sees the effects of those before it: it can update a user registered earlier in the batch.
        - Removing a user also removes the user's API keys.
        - The audit entries that `mlapi.domain.audit.make_audit_entry` returns are written too.

        Once this returns, everything survives a crash. If it raises, nothing was applied. The exception is a connection
        lost during the commit: the error's ``may_be_done`` is then True.

        Args:
            commands: none, or up to some thousands.
            commit_by: a deadline, in the time of `time.monotonic`. If the commit would start later, roll back and raise
                `RepositoryUnavailableError("too late to commit")`. The client has already received an
                error and may have sent another command.
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
        """Return what `find` returns for each key.

        Args:
            keys: in any order, with or without duplicates; may be empty.
        """
        ...

    def list_page(self, *, after: UserId, limit: int, enabled: bool | None = None, containing: str = "") -> list[User]:
        """Return a page of users, sorted by id.

        Args:
            after: the last id of the previous page; 0 for the first page.
            limit: the largest number of users to return. Fewer are returned only on the last page.
            enabled: return only users with this flag; None returns all.
            containing: return only users with this text in the canonical username or e-mail address. The text is
                in canonical form (`mlapi.domain.rules.fold`). Ignore case in addresses, at least of ASCII letters.
        """
        ...

    def count(self) -> int:
        """Return the number of users."""
        ...

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        """Return the principal with each id, or None if it does not exist.

        A `UserId` gives the user, an `ApiKeyId` the key together with its user. The result
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

    def check(self) -> None:
        """Raise `RepositoryUnavailableError` if the database cannot start a writing transaction now."""
        ...


@runtime_checkable
class NonblockingLookup(Protocol):
    """An optional capability of a `UserRepository`: look principals up on an event loop, without a thread.

    Offer it only if a lookup takes microseconds, as in memory or in a local file. A repository without this method is
    called from a thread instead.
    """

    def find_principals_nowait(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        """Return what `UserRepository.find_principals` would, without waiting.

        Raises:
            RepositoryUnavailableError: if the lookup would have to wait, for a lock or for a connection to open. The
                caller then retries with `find_principals` in a thread.
        """
        ...


class PasswordCipher(Protocol):
    """Encrypts passwords for storage, and compares passwords with stored ones. Passwords are never decrypted.

    Passwords are compared exactly, without normalisation or truncation. An optional attribute ``is_costly`` that is
    False says that `encrypt` and `matches` take microseconds, so that callers need no separate thread.
    """

    def encrypt(self, password: str) -> EncryptedPassword:
        """Return the value to store. Equal passwords give different values."""
        ...

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        """Return whether ``encrypted`` was made from ``password``.

        Takes the same time whether it matches or not, also for None, which stands for an unknown user and never
        matches. A value that cannot be decrypted (another key, damage) matches nothing. It may be logged as a warning
        but raises no error.
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
    """Return whether the cipher takes milliseconds and must run in a thread. True unless the cipher says otherwise."""
    return bool(getattr(cipher, "is_costly", True))


class TokenIssuer(Protocol):
    """Issues tokens and verifies them."""

    def issue(self, user: User) -> IssuedToken:
        """Return a new token with the user's id and token epoch, and a unique token id.

        The token fits into a header as ``Bearer`` credentials (RFC 6750, 2.1) and does not start like an API key.
        """
        ...

    def verify(self, token: str) -> TokenClaims:
        """Return the claims of a token. The caller then checks them against the user with `authenticate`.

        Raises:
            InvalidTokenError: if the token is expired, or if any character differs from the token that was issued.
                A token expires exactly at its ``expires_at``.
        """
        ...


class AttemptLimiter(Protocol):
    """Limits how fast passwords can be guessed. Raises `RepositoryUnavailableError` if it cannot count."""

    def count(self, username: str, address: str) -> bool:
        """Count an attempt to log in. This is the first step of every log-in.

        Return whether the user has logged in from this address before. Attempts from such a known address count for
        the address alone, so that attempts from elsewhere cannot lock the user out.

        Args:
            username: any text; usually a canonical username. Need not exist.
            address: any text that identifies the client.

        Raises:
            TooManyAttemptsError: if a limit is reached. Its ``retry_after`` is a whole number of seconds.
        """
        ...

    def record_success(self, username: str, address: str, *, was_known: bool) -> None:
        """Take back an attempt because its password was right, and remember the address as known to this user.

        Args:
            username: as given to `count`.
            address: as given to `count`.
            was_known: what `count` returned.
        """
        ...


class KeyUsage(Protocol):
    """Records when API keys are used."""

    def __call__(self, key: ApiKey, at: datetime) -> None:
        """Record one use. Returns immediately, without waiting for the database."""
        ...


class Clock(Protocol):
    def __call__(self) -> datetime:
        """Return the current time, with a time zone."""
        ...


class Storage(Protocol):
    """A database for everything the service keeps: users, audit trail, log-in attempts, and the key fingerprint.

    `mlapi.bootstrap.register_storage` maps a URL scheme to a function that makes a storage from the URL. That function
    creates no file and does not connect, because the service must start even without its database. It raises
    `ConfigurationError` for a URL that it cannot use, without repeating the URL, which may contain a password.

    Applied commands, the audit trail and the fingerprint survive closing and opening again. The storage in memory is an
    exception: it forgets, and logs a warning.

    Every method except `close` raises `RepositoryUnavailableError` while the database is unavailable.

    The users may offer optional capabilities for speed, such as `NonblockingLookup`.
    """

    @property
    def users(self) -> UserRepository:
        """The users, with the audit trail as ``audit``. Their methods are called only after `prepare` has returned."""
        ...

    @property
    def attempts(self) -> AttemptCounts:
        """The counts of log-in attempts."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The absolute paths of the local files that hold the database, the main file first; empty for a server.

        `prepare` creates the main file. Their folder exists. ``mlapi doctor`` checks that they can be written and that
        their disk has room. A storage in local files may always upgrade its schema at start; any other needs ``mlapi db
        upgrade`` in ``profile: production``.
        """
        ...

    @property
    def secrets_folder(self) -> Path | None:
        """The absolute path of the folder for the generated ``secrets.yml``, which exists; None to keep them in memory.

        The secrets must last exactly as long as the passwords that they encrypt.
        """
        ...

    def find_fingerprint(self) -> str | None:
        """Return the fingerprint of the key that encrypts the passwords, or None.

        May be called before `prepare`. A new database has no fingerprint.

        The service refuses to start with a key that has another fingerprint.
        """
        ...

    def store_fingerprint(self, fingerprint: str) -> str:
        """Store the fingerprint if none is stored. Return the stored fingerprint.

        If several processes do this concurrently, the first one wins and all get the same result.
        """
        ...

    def replace_fingerprint(self, fingerprint: str) -> None:
        """Replace the stored fingerprint: all passwords are now encrypted with another key."""
        ...

    def prepare(self, *, may_upgrade: bool) -> None:
        """Make the database ready for this version of mlapi: create the schema or upgrade an older one.

        Does nothing if the schema is up to date. Several processes may call this concurrently. The service calls it
        again after a `RepositoryUnavailableError`.

        Args:
            may_upgrade: if False, raise instead of changing the schema.

        Raises:
            ConfigurationError: if the schema must change and ``may_upgrade`` is False, if it belongs to a newer version
                of mlapi, or if the data is not mlapi's.
        """
        ...

    def upgrade(self) -> tuple[str | None, str]:
        """Create or upgrade the schema like `prepare`; return the revisions before (None without schema) and after.

        They are equal if the schema was up to date. Newer revisions sort after older ones, as strings. A storage with
        only one format can return a constant.

        Raises:
            ConfigurationError: if the schema belongs to a newer version of mlapi, or the data is not mlapi's.
        """
        ...

    def inspect(self, *, find_password_error: Callable[[str], str | None] | None) -> Inspection:
        """Report the state of the database without creating or changing anything.

        May be called before `prepare`. It creates no file.

        Args:
            find_password_error: returns why a password stored by the legacy app cannot be used, or None if it can. The
                argument is None if there are no secrets. A storage without a table of the legacy app ignores it.

        Raises:
            ConfigurationError: if the database does not exist.
        """
        ...

    def close(self) -> None:
        """Release all connections and files. May be called more than once. No other method is called afterwards."""
        ...
