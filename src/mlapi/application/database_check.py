"""Check a database and its secrets without changing either."""

from collections.abc import Sequence
from typing import Protocol

import attrs

from mlapi.domain.errors import ConfigurationError
from mlapi.domain.inspection import Inspection
from mlapi.domain.storage import Storage


class StoredPasswordChecker(Protocol):
    """The part of a cipher that checks stored passwords without knowing their plaintext."""

    def find_stored_error(self, value: object) -> str | None:
        """Return why a stored password cannot be used, or None."""


class CheckableSecrets(Protocol):
    """One version of the secrets of a database."""

    @property
    def cipher(self) -> StoredPasswordChecker:
        """A cipher with all keys and salts."""

    @property
    def fingerprints(self) -> Sequence[Sequence[str]]:
        """One row per key, with one fingerprint per salt."""


class CheckableSecretStore(Protocol):
    """The secrets of a database."""

    def current(self) -> CheckableSecrets:
        """Return the current secrets. Raises `ConfigurationError` if they are invalid."""


@attrs.frozen(kw_only=True)
class DatabaseCheck:
    """The result of a check."""

    found: Inspection
    key_error: str | None
    """Why the secrets do not match this database, or None."""


def check_storage(storage: Storage, secrets: CheckableSecretStore) -> DatabaseCheck:
    """Inspect a database, and compare its passwords with the secrets.

    Raises:
        ConfigurationError: if the database does not exist.
        RepositoryUnavailableError: if it is unavailable.
    """
    try:
        current = secrets.current()
    except ConfigurationError as error:
        return DatabaseCheck(found=storage.inspect(find_password_error=None), key_error=str(error))
    found = storage.inspect(find_password_error=current.cipher.find_stored_error)
    key_error = None
    if found.unreadable:
        key_error = f"secrets.key and secrets.salt do not match {found.unreadable} of {found.sampled} stored passwords"
    elif found.fingerprint is not None and not any(found.fingerprint in row for row in current.fingerprints):
        key_error = "secrets.key or secrets.salt does not match this database's passwords"
    return DatabaseCheck(found=found, key_error=key_error)
