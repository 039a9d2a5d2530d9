"""The interface of a database for everything that the service stores. The docstrings are the contract.

`mlapi.testing.StorageContract` checks it. The service calls every method from several threads concurrently.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mlapi.domain.allowances import Allowances
from mlapi.domain.attempts import AttemptCounts
from mlapi.domain.inspection import Inspection
from mlapi.domain.logins import Logins
from mlapi.domain.managers import Managers
from mlapi.domain.outbox import Outbox
from mlapi.domain.ports import UserRepository
from mlapi.domain.sessions import Sessions
from mlapi.domain.usage import UsageRepository


class Storage(Protocol):
    """A database for everything that the service stores: users, managers, audit trail, attempts, usage, and the
    key fingerprint.

    `mlapi.bootstrap.register_storage` maps a URL scheme to a function that creates a storage from the URL. That
    function creates no file and does not connect, because the service must start even without its database. It raises
    `ConfigurationError` for a URL that it cannot use. The message does not repeat the URL, which may contain a
    password.

    Applied commands, managers, the audit trail, usage and the fingerprint survive closing and reopening the storage.
    The in-memory storage is an exception: it loses everything, and logs a warning.

    Every method except `close` raises `RepositoryUnavailableError` while the database is unavailable.

    The repository ``users`` may offer optional capabilities for speed, such as `NonblockingLookup`. A storage may also
    be a `mlapi.domain.backups.BackupStorage`.
    """

    @property
    def users(self) -> UserRepository:
        """The repository of users and their audit trail. It is used only after `prepare` has returned."""
        ...

    @property
    def managers(self) -> Managers:
        """The managers. Their changes are in the audit trail of ``users``. Used only after `prepare` has returned."""
        ...

    @property
    def attempts(self) -> AttemptCounts:
        """The counts of login attempts. Its methods are called only after `prepare` has returned."""
        ...

    @property
    def allowances(self) -> Allowances:
        """Counts what users have used of their allowances. Its methods are called only after `prepare` has returned."""
        ...

    @property
    def usage(self) -> UsageRepository:
        """The usage of each user. Its methods are called only after `prepare` has returned."""
        ...

    @property
    def outbox(self) -> Outbox:
        """The mail that waits to be sent. Its methods are called only after `prepare` has returned."""
        ...

    @property
    def sessions(self) -> Sessions:
        """The sessions of managers and users in browsers. Its methods are called only after `prepare` has returned."""
        ...

    @property
    def logins(self) -> Logins:
        """The logins of each user. Its methods are called only after `prepare` has returned."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The absolute paths of the local files that hold the database, the main file first. Empty for a server.

        `prepare` creates the main file, in a folder that exists already. ``mlapi doctor`` checks that the files are
        writable and that their disk has space left. A storage in local files may always upgrade its schema at
        startup; any other needs ``mlapi db upgrade`` in ``profile: production``.
        """
        ...

    @property
    def secrets_folder(self) -> Path | None:
        """The path of an existing folder for the generated ``secrets.yml``; None to keep them in memory.

        A relative path is relative to the folder of the configuration file: a server returns ``Path()``.
        The secrets must be kept for exactly as long as the passwords that they encrypt.
        """
        ...

    def find_fingerprint(self) -> str | None:
        """Return the fingerprint of the key that encrypts the passwords, or None.

        May be called before `prepare`. A new database has no fingerprint.

        The service refuses to start with a key that has a different fingerprint.
        """
        ...

    def store_fingerprint(self, fingerprint: str) -> str:
        """Store the fingerprint if none is stored. Return the stored fingerprint.

        If several processes do this concurrently, the first one wins and all get the same result.
        """
        ...

    def replace_fingerprint(self, fingerprint: str) -> None:
        """Replace the stored fingerprint, because all passwords are now encrypted with a different key."""
        ...

    def prepare(self, *, may_upgrade: bool) -> None:
        """Make the database ready for this version of mlapi: create the schema or upgrade an older one.

        Does nothing if the schema is up to date. Several processes may call this concurrently. The service calls it
        again after a `RepositoryUnavailableError`.

        Args:
            may_upgrade: if False, raise instead of changing the schema.

        Raises:
            ConfigurationError: if the schema must change and ``may_upgrade`` is False, if it belongs to a newer version
                of mlapi, or if the data belongs to another program.
        """
        ...

    def upgrade(self) -> tuple[str | None, str]:
        """Create or upgrade the schema, like `prepare`. Return the previous revision and the new one.

        The previous revision is None if there was no schema. The two are equal if the schema was up to date. Newer
        revisions sort after older ones when compared as strings. A storage with only one format can return a constant.

        Raises:
            ConfigurationError: if the schema belongs to a newer version of mlapi, or if the data belongs to another
                program.
        """
        ...

    def inspect(self, *, find_password_error: Callable[[str], str | None] | None) -> Inspection:
        """Report the state of the database without creating or changing anything.

        May be called before `prepare`. It creates no file.

        Args:
            find_password_error: a function that returns why a password stored by the legacy app cannot be used, or None
                if it can. Pass None if there are no secrets. A storage without a legacy table ignores it.

        Raises:
            ConfigurationError: if the database does not exist.
        """
        ...

    def close(self) -> None:
        """Release all connections and files. May be called more than once. No other method is called afterwards."""
        ...
