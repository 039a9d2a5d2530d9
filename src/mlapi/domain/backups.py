"""The interface for backups in files, which a `Storage` may offer."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

import attrs

MAX_EXAMPLES = 20


@attrs.frozen
class Affected:
    """Users or API keys that a restore affects."""

    count: int = 0
    examples: tuple[str, ...] = ()
    """At most `MAX_EXAMPLES` usernames. For API keys, the username and the name of the key."""


@attrs.frozen(kw_only=True)
class RestoreEffects:
    """What a restore changes, compared with the database that it replaces."""

    enabled: Affected
    """Users who were disabled after the backup and become enabled again."""
    disabled: Affected
    """Users who were enabled after the backup and become disabled again."""
    reverted: Affected
    """Users whose expiry, plan, metadata, e-mail address or spelling of the name was changed after the backup."""
    returning: Affected
    """Users who were removed after the backup and exist again."""
    lost: Affected
    """Users who were registered after the backup and no longer exist."""
    returning_api_keys: Affected
    """API keys that were removed after the backup and work again."""
    lost_api_keys: Affected
    """API keys that were added after the backup and no longer exist."""
    returning_managers: Affected
    """Managers who were removed after the backup, or got a new token. Their tokens in the backup work again."""
    lost_managers: Affected
    """Managers who were added after the backup, or got a new token. These tokens no longer work."""
    revived_tokens: Affected
    """Users whose tokens were revoked after the backup. Those tokens are valid again until they expire."""


class Restore(Protocol):
    """A backup that has been checked and is ready to replace the database."""

    @property
    def users(self) -> int:
        """The number of users in the backup."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the key that encrypts the passwords in the backup."""
        ...

    @property
    def effects(self) -> RestoreEffects | None:
        """None if there is no database to compare with, or if it cannot be read."""
        ...

    def carry_out(self, *, end_tokens: bool) -> Path | None:
        """Replace the database. Return the file that keeps the replaced database, or None if there was no database.

        If the process is killed at any time, either the old or the new database is in place and complete.

        Args:
            end_tokens: revoke all tokens of all users.
        """
        ...


@runtime_checkable
class BackupStorage(Protocol):
    """An optional capability of a `Storage`. Without it, ``mlapi backup`` and ``mlapi restore`` report an error.

    A storage with its own tools can implement it and raise a `ConfigurationError` that names them.
    """

    def find_file_error(self, file: Path) -> str | None:
        """Return why a file cannot become a backup, or None.

        The file may not exist yet. An existing file may only be an earlier backup, which the new one replaces.

        Args:
            file: a regular file, or the path of a new one, with symbolic links resolved.
        """
        ...

    def back_up(self, file: Path) -> int:
        """Write a consistent copy of the database to an empty file, and return the number of users in it.

        Other processes can use the database during the backup. The copy is then checked for damage.

        Raises:
            ConfigurationError: if the database does not exist or is damaged, or cannot be backed up with this command.
            RepositoryUnavailableError: if the database is unavailable, or the file cannot be written.
        """
        ...

    def open_restore(self, file: Path) -> AbstractContextManager[Restore]:
        """Check a backup and lock the database until the block ends. A `Restore` replaces the database.

        Raises:
            ConfigurationError: if the file is not an intact backup, was made by a newer version of mlapi, or another
                process uses the database.
            RepositoryUnavailableError: if the disk is full or the database is unavailable.
        """
        ...
