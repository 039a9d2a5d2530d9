"""What the core asks of the world. The docstrings are the contracts, and `mlapi.testing` holds every adapter to them.

The service calls all of them from several threads at once.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from mlapi.domain.attempts import WindowCount
from mlapi.domain.audit import AuditEntry, AuditId, DailyCount
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import ApiKey, IssuedToken, Principal, PrincipalId, TokenClaims
from mlapi.domain.inspection import Inspection
from mlapi.domain.users import EncryptedPassword, User, UserId, UsernameKey


class AuditTrail(Protocol):
    """The entries of all changes that were applied, which `UserRepository.apply` writes.

    Every method raises `RepositoryUnavailableError` while they cannot be reached.
    """

    def list_page(self, *, after: AuditId | None = None, limit: int, user_id: UserId | None = None) -> list[AuditEntry]:
        """Return at most ``limit`` entries, the newest first.

        Args:
            after: the id of the last entry of the page before; None for the newest.
            limit: of entries.
            user_id: only those about this user, whether he is still there or not; None for all.
        """
        ...

    def count_per_day(self, *, since: datetime) -> list[DailyCount]:
        """Return how often each action was done on each day (in UTC) from a time on, by day and action; no zeros."""
        ...

    def purge(self, *, before: datetime, limit: int) -> int:
        """Forget at most ``limit`` entries of before a time, the oldest first, and return how many these were."""
        ...


class UserRepository(Protocol):
    """Where the users are kept. Every method raises `RepositoryUnavailableError` while they cannot be reached."""

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        """Apply the changes in order, all in one durable transaction, and return an outcome for each.

        In the same transaction the `audit` gets an entry for each that has one (`mlapi.domain.audit.make_audit_entry`).

        A refused change leaves its neighbours alone. When this returns, all of it survives a crash; when it raises,
        none of it was applied (but for a connection lost while the database was committing, which leaves that open: the
        error says ``may_be_done``).

        Args:
            changes: in their order.
            commit_by: a time of `time.monotonic`. What could only be committed later is undone, and raises: whoever
                asked has been told that it was not done, and may have asked for something else since.
        """
        ...

    def get(self, user_id: UserId) -> User:
        """Return the user.

        Raises:
            UserNotFoundError: if no user has this id.
        """
        ...

    def find(self, key: UsernameKey) -> User | None:
        """Return the user whose canonical username is ``key``, or None."""
        ...

    def find_many(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        """Return what `find` would for each key. They are in any order, none or many times."""
        ...

    def list_page(self, *, after: UserId, limit: int, enabled: bool | None = None, containing: str = "") -> list[User]:
        """Return at most ``limit`` users with an id above ``after``, by rising id (a keyset page; begin with 0).

        Args:
            after: the last id of the page before.
            limit: of users.
            enabled: only those with this flag; None for all.
            containing: only those whose canonical username or e-mail address contains this text, which is canonical
                itself (`mlapi.domain.users.fold`). Case does not count in addresses, at least in ASCII.
        """
        ...

    def count(self) -> int:
        """Return how many users there are."""
        ...

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        """Return the principal with each id, or None where there is none.

        The principal of a `UserId` is the user; that of an `ApiKeyId` is the key together with its user. The result
        reflects every change that any process acknowledged before the call.

        Args:
            ids: in any order, with or without duplicates; may be empty.
        """
        ...

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        """Return the API keys of a user, the oldest first.

        Raises:
            UserNotFoundError: if no user has this id.
        """
        ...

    @property
    def audit(self) -> AuditTrail:
        """What was done to these users."""
        ...

    def check(self) -> None:
        """Return if a transaction that writes can begin now; raise `RepositoryUnavailableError` if not."""
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
    """Encrypt passwords for storage, and compare passwords with stored ones. There is no ``decrypt``.

    Optional: an attribute ``is_costly`` that is False says that `encrypt` and `matches` take microseconds, so callers
    need no separate thread. See `is_costly`.
    """

    def encrypt(self, password: str) -> EncryptedPassword:
        """Return what to store. Equal passwords give different values."""
        ...

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        """Whether ``encrypted`` was made of ``password``, at the same cost for yes, no, and None: nobody's password.

        A value that cannot be read (wrong key, damage) matches nothing; it is logged, and nothing is raised.
        """
        ...

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        """Whether `encrypt` would now make a better value: a newer scheme, key, salt or cost."""
        ...

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        """Return the same under the newest key, which takes no password; None if it is so already or is unreadable."""
        ...


def is_costly(cipher: PasswordCipher) -> bool:
    """Return whether the cipher takes milliseconds, so that it must run in a thread. True unless it says otherwise."""
    return bool(getattr(cipher, "is_costly", True))


class TokenIssuer(Protocol):
    """Makes tokens and knows its own again."""

    def issue(self, user: User) -> IssuedToken:
        """Return a new token that carries the user's id and token epoch."""
        ...

    def verify(self, token: str) -> TokenClaims:
        """Return what a token says. Asks no users: whether it lets anybody in is for `mlapi.domain.credentials.authenticate`.

        Raises:
            InvalidTokenError: if this issuer has not made it to the letter, or its time is over.
        """
        ...


class AttemptLimiter(Protocol):
    """Makes guessing slow. Raises `RepositoryUnavailableError` where it cannot count."""

    def count(self, username: str, address: str) -> bool:
        """Count one attempt to log in, before anything else is done about it; return whether the address is known.

        It is if the name was logged in from there before. Then the attempt is counted for the address alone.

        Args:
            username: in whatever form the attempts shall be counted by; nobody needs to have it.
            address: where the attempt comes from.

        Raises:
            TooManyAttemptsError: if there were too many.
        """
        ...

    def record_success(self, username: str, address: str, *, was_known: bool) -> None:
        """Take back a counted attempt that was right, and remember that this name comes from this address.

        ``was_known`` is what `count` has returned for it.
        """
        ...


class KeyUsage(Protocol):
    """Where the uses of API keys are noted."""

    def __call__(self, key: ApiKey, at: datetime) -> None:
        """Note that a key was used, without a wait for the database."""
        ...


class Clock(Protocol):
    def __call__(self) -> datetime:
        """Return the time now, aware."""
        ...


class AttemptCountReader(Protocol):
    """Reads the counts of log-in attempts as they are at one moment."""

    def get(self, key: str) -> WindowCount:
        """Return the count for a key and the end of its window.

        The count is 0 if nothing was added or the window has ended; the end is then the present time.
        """
        ...


class AttemptCountWriter(AttemptCountReader, Protocol):
    """Reads and changes the counts of log-in attempts within a transaction. Reads see the transaction's own changes."""

    def add(self, key: str, *, window_seconds: float) -> int:
        """Add one attempt and return the new count.

        The first attempt opens a window of ``window_seconds``. Later attempts do not extend it. After it has ended the
        next attempt opens a new one and is counted as 1.
        """
        ...

    def subtract(self, key: str) -> None:
        """Subtract one attempt, unless the count is 0 or its window has ended."""
        ...


class AttemptCounts(Protocol):
    """Stores how many log-in attempts were made in fixed windows of time.

    Keys are printable ASCII of at most 200 characters and contain neither usernames nor addresses. Counts must be
    shared by all processes that share the users. Delete expired counts from time to time, or the storage grows with
    every attack.

    Both context managers raise `RepositoryUnavailableError` if the counts cannot be reached.
    """

    def transaction(self) -> AbstractContextManager[AttemptCountWriter]:
        """Open a transaction; commit it at the end of the ``with`` block, or undo it if an exception leaves the block.

        Concurrent transactions must not lose each other's changes. The caller changes keys in the same order in every
        process, so an implementation that locks keys as they change cannot deadlock. Durability is not required: a
        crash may lose the latest counts.
        """
        ...

    def reading(self) -> AbstractContextManager[AttemptCountReader]:
        """Open a read-only view that writes nothing and does not wait for writers.

        Rejected attempts only read, so a flood of guesses causes no writes.
        """
        ...


class Storage(Protocol):
    """A database for everything the service keeps: users, audit trail, log-in attempts, and the key fingerprint.

    `mlapi.bootstrap.register_storage` maps a URL scheme to a function that makes a storage from the URL. That function
    creates no file and does not connect: the service must start even if the database is unavailable. It raises
    `ConfigurationError` for a URL that it cannot use, without repeating the URL, which may contain a password.

    Everything that was applied is still there after the storage was closed and opened again. (The storage in memory is
    the exception, and logs a warning.)

    Every method except `close` raises `RepositoryUnavailableError` while the database is unavailable.

    A storage may offer more than this, to be faster; see `NonblockingLookup`. An author can ignore that.
    """

    @property
    def users(self) -> UserRepository:
        """The users and, as its ``audit``, the audit trail. Used only after `prepare` has returned."""
        ...

    @property
    def attempts(self) -> AttemptCounts:
        """The counts of log-in attempts."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The absolute paths of the local files that hold the database, the main file first; empty if there are none.

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
        """Return the fingerprint of the key that encrypts the passwords; None if there is none.

        May be called before `prepare`; there is none then, unless the database was prepared earlier.

        The service refuses to start with a key that has another fingerprint.
        """
        ...

    def store_fingerprint(self, fingerprint: str) -> str:
        """Store the fingerprint unless there is one already, and return the one that is stored now.

        If several processes do this at the same time, the first one wins and all get the same result.
        """
        ...

    def replace_fingerprint(self, fingerprint: str) -> None:
        """Replace the stored fingerprint: all passwords are now encrypted with another key."""
        ...

    def prepare(self, *, may_upgrade: bool) -> None:
        """Make the database ready for this version of mlapi: create the schema or upgrade an older one.

        Does nothing if the schema is up to date. Several processes may call this at the same time. Called again after
        it raised.

        Args:
            may_upgrade: if False, raise instead of changing the schema.

        Raises:
            ConfigurationError: if the schema must change and ``may_upgrade`` is False, if it belongs to a newer version
                of mlapi, or if the data is not mlapi's.
        """
        ...

    def upgrade(self) -> tuple[str | None, str]:
        """Create or upgrade the schema like `prepare`; return the revisions before (None without schema) and after.

        They are equal if the schema was up to date. Revisions sort as strings. A storage whose format never changed can
        return a constant.

        Raises:
            ConfigurationError: if the schema belongs to a newer version of mlapi, or the data is not mlapi's.
        """
        ...

    def inspect(self, *, find_password_error: Callable[[str], str | None] | None) -> Inspection:
        """Report the state of the database without creating or changing anything.

        May be called before `prepare`. It creates no file.

        Args:
            find_password_error: returns why a password stored by the legacy app cannot be used, or None if it can; None
                without secrets. A storage that cannot contain the legacy app's table ignores it.

        Raises:
            ConfigurationError: if the database does not exist.
        """
        ...

    def close(self) -> None:
        """Release all connections and files. May be called more than once; nothing else is called afterwards."""
        ...
